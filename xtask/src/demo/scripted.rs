//! Scenarios in which the far end plays from a script. The near end is a real socket in the watched namespace, and
//! is asked afterwards whether it really was in the state that the scenario is about.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::scenario::PORT_HALF_OPEN;
use super::{PATIENCE, Stage, accept, listen};
use crate::lab::peer::ScriptedPeer;
use crate::lab::segment::{ACK, FIN, SYN};
use crate::lab::{Family, sockets};
use crate::stop;

/// How long the interesting state is held.
const DWELL: Duration = Duration::from_millis(400);

const PORT_LATE_ACK: u16 = 8008;
const PORT_SIMULTANEOUS_CLOSE: u16 = 8009;
const PORT_SIMULTANEOUS_OPEN: u16 = 7001;
const PORT_SILENT: u16 = 7002;

/// Host numbers of the scripted peers: one each, so that scenarios cannot disturb each other.
const SILENT: u8 = 0;
const LATE_ACK: u8 = 1;
const SIMULTANEOUS_CLOSE: u8 = 2;
const SIMULTANEOUS_OPEN: u8 = 3;
const HALF_OPEN: u8 = 4;

pub(super) fn silent_peer(stage: &Stage, family: Family) -> Result<()> {
    let address = SocketAddr::new(family.quiet(SILENT), PORT_SILENT);
    match stage.lab.a().run(|| TcpStream::connect_timeout(&address, PATIENCE))? {
        Ok(_) => bail!("somebody answered for {address}"),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(()),
        Err(error) => Err(error).context("expected silence"),
    }
}

pub(super) fn half_open(stage: &Stage, family: Family) -> Result<()> {
    let server = SocketAddr::new(family.a(), PORT_HALF_OPEN);
    let local = SocketAddr::new(family.quiet(HALF_OPEN), fresh_port());
    let mut peer = ScriptedPeer::new(&stage.lab, local, server)?;
    peer.send(SYN)?;
    peer.expect(SYN | ACK)?;
    expect_state(stage, server, local, "syn_recv")
}

pub(super) fn late_last_ack(stage: &Stage, family: Family) -> Result<()> {
    let (mut peer, server, local) = handshake(stage, family, LATE_ACK, PORT_LATE_ACK)?;
    peer.send(FIN | ACK)?;
    peer.expect(ACK)?;
    expect_state(stage, peer.remote(), local, "close_wait")?;
    drop(server);
    let fin = peer.expect(FIN | ACK)?;
    expect_state(stage, peer.remote(), local, "last_ack")?;
    stop::sleep(DWELL);
    peer.acknowledge(&fin);
    peer.send(ACK)
}

pub(super) fn simultaneous_close(stage: &Stage, family: Family) -> Result<()> {
    let (mut peer, server, local) = handshake(stage, family, SIMULTANEOUS_CLOSE, PORT_SIMULTANEOUS_CLOSE)?;
    server.shutdown(Shutdown::Both)?;
    let fin = peer.expect(FIN | ACK)?;
    expect_state(stage, peer.remote(), local, "fin_wait1")?;
    // Not acknowledging the FIN that has just come: the two crossed on the way.
    peer.send(FIN | ACK)?;
    peer.expect(ACK)?;
    expect_state(stage, peer.remote(), local, "closing")?;
    stop::sleep(DWELL);
    peer.acknowledge(&fin);
    peer.send(ACK)?;
    expect_state(stage, peer.remote(), local, "time_wait")
}

pub(super) fn simultaneous_open(stage: &Stage, family: Family) -> Result<()> {
    let local = SocketAddr::new(family.quiet(SIMULTANEOUS_OPEN), PORT_SIMULTANEOUS_OPEN);
    let mut peer = ScriptedPeer::new(&stage.lab, local, SocketAddr::new(family.a(), 0))?;
    let lab = &stage.lab;
    thread::scope(|scope| {
        let connecting = scope.spawn(move || lab.a().run(|| TcpStream::connect_timeout(&local, PATIENCE)));
        let syn = peer.expect(SYN)?;
        // A SYN of our own instead of an answer: the two crossed on the way.
        let iss = peer.next;
        peer.send(SYN)?;
        let answer = peer.expect(SYN | ACK)?;
        ensure!(answer.seq == syn.seq, "the SYN+ACK is not the first SYN again");
        expect_state(stage, peer.remote(), local, "syn_recv")?;
        stop::sleep(DWELL);
        // RFC 9293, figure 8: each end answers the other's SYN with SYN+ACK, of the same sequence number.
        peer.next = iss;
        peer.acknowledge(&syn);
        peer.send(SYN | ACK)?;
        let Ok(connected) = connecting.join() else { bail!("the connecting thread panicked") };
        let stream = connected?.context("connect")?;
        expect_state(stage, peer.remote(), local, "established")?;
        // Closed in order, by the script.
        peer.send(FIN | ACK)?;
        drop(stream);
        let fin = peer.expect(FIN | ACK)?;
        peer.acknowledge(&fin);
        peer.send(ACK)
    })
}

/// A scripted client with a connection to a socket in the watched namespace: the client, the socket, and the
/// client's address.
fn handshake(
    stage: &Stage,
    family: Family,
    host: u8,
    port: u16,
) -> Result<(ScriptedPeer, TcpStream, SocketAddr)> {
    let listener = listen(&stage.lab, family.a(), port)?;
    let local = SocketAddr::new(family.quiet(host), fresh_port());
    let mut peer = ScriptedPeer::new(&stage.lab, local, SocketAddr::new(family.a(), port))?;
    peer.connect()?;
    let server = accept(&listener)?;
    Ok((peer, server, local))
}

/// A port that no earlier wave used: its connection may still be in TIME-WAIT.
fn fresh_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    40_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000
}

/// Segments and state changes are not seen in the same instant: asks again for a while.
fn expect_state(stage: &Stage, near: SocketAddr, far: SocketAddr, expected: &str) -> Result<()> {
    let deadline = Instant::now() + DWELL / 2;
    loop {
        let state = sockets::state(stage.lab.a(), near, far)?;
        if state == Some(expected) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the kernel's socket should be in {expected}, but is in {}", state.unwrap_or("none"));
        }
        thread::sleep(Duration::from_millis(5));
    }
}
