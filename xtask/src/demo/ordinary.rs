//! Scenarios with two real sockets: the client in namespace b, the server in the watched one.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::set_socket_linger;

use super::scenario::PORT_LEAKY;
use super::{PATIENCE, Stage};
use crate::lab::Family;
use crate::stop;

/// Long enough to be seen, short enough to see everything in one wave.
const DWELL: Duration = Duration::from_millis(200);

const PORT_CLIENT_CLOSES: u16 = 8001;
const PORT_SERVER_CLOSES: u16 = 8002;
const PORT_HALF_CLOSE: u16 = 8003;
const PORT_CLOSED: u16 = 8004;
const PORT_RESET: u16 = 8005;

pub(super) fn client_closes(stage: &Stage, family: Family) -> Result<()> {
    let (mut client, mut server) = stage.connection(family, PORT_CLIENT_CLOSES)?;
    exchange(&mut client, &mut server)?;
    client.shutdown(Shutdown::Write)?;
    expect_end(&mut server)?;
    stop::sleep(DWELL);
    drop(server);
    expect_end(&mut client)
}

pub(super) fn server_closes(stage: &Stage, family: Family) -> Result<()> {
    let (mut client, mut server) = stage.connection(family, PORT_SERVER_CLOSES)?;
    exchange(&mut client, &mut server)?;
    drop(server);
    expect_end(&mut client)?;
    stop::sleep(DWELL);
    Ok(())
}

pub(super) fn half_close(stage: &Stage, family: Family) -> Result<()> {
    let (mut client, mut server) = stage.connection(family, PORT_HALF_CLOSE)?;
    client.write_all(b"everything, please")?;
    client.shutdown(Shutdown::Write)?;
    let mut request = String::new();
    server.read_to_string(&mut request).context("read the request")?;
    for part in ["one", "two", "three"] {
        server.write_all(part.as_bytes()).context("go on sending")?;
        stop::sleep(DWELL);
    }
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).context("read the answer")?;
    ensure!(answer == "onetwothree", "the answer was cut short: {answer:?}");
    Ok(())
}

pub(super) fn refused(stage: &Stage, family: Family) -> Result<()> {
    let address = SocketAddr::new(family.a(), PORT_CLOSED);
    match stage.lab.b().run(|| TcpStream::connect_timeout(&address, PATIENCE))? {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).context("expected to be refused"),
        Ok(_) => bail!("expected to be refused, was accepted"),
    }
}

pub(super) fn reset(stage: &Stage, family: Family) -> Result<()> {
    let (mut client, mut server) = stage.connection(family, PORT_RESET)?;
    exchange(&mut client, &mut server)?;
    // Lingering for no time at all is how a program asks for RST.
    set_socket_linger(&client, Some(Duration::ZERO)).context("SO_LINGER")?;
    drop(client);
    match server.read(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        other => bail!("expected a reset, got {other:?}"),
    }
}

/// The server's end stays open in another process, the client's is closed here.
pub(super) fn leak(stage: &Stage, family: Family) -> Result<()> {
    ensure!(stage.leaky.is_alive(), "the leaky server ended");
    let address = SocketAddr::new(family.a(), PORT_LEAKY);
    let mut client =
        stage.lab.b().run(|| TcpStream::connect_timeout(&address, PATIENCE))?.context("connect")?;
    client.write_all(b"bye")?;
    stop::sleep(DWELL);
    Ok(())
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    client.write_all(b"ping").context("send the request")?;
    let mut request = [0; 4];
    server.read_exact(&mut request).context("read the request")?;
    server.write_all(b"pong").context("send the answer")?;
    client.read_exact(&mut request).context("read the answer")?;
    stop::sleep(DWELL);
    Ok(())
}

fn expect_end(stream: &mut TcpStream) -> Result<()> {
    let read = stream.read(&mut [0]).context("wait for the peer's FIN")?;
    ensure!(read == 0, "expected the end of the stream, got data");
    Ok(())
}
