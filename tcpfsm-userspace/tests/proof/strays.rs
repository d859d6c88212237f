//! Segments that belong to no connection, from hping3, and resets that end too many.

use std::{
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::{
    Family,
    peer::ScriptedPeer,
    segment::{ACK, FIN, RST},
};

use crate::{
    needs,
    programs::{HPING, PYTHON, Program, known_by_now},
    stage::{Due, Owner, Stage},
};

fn flood(name: &'static str, options: &[&str], kind: AnomalyKind, port: u16, besides: &[AnomalyKind]) {
    needs!(HPING);
    let mut stage = Stage::new(name, "");
    let address = Family::V4.a().to_string();
    let since = Instant::now();
    let arguments = [options, &["-q", "-p", "8080", "-i", "u200", "-c", "20000", &address]].concat();
    let hping = Program::start(stage.lab.b(), HPING, &arguments);
    stage.expect(Due {
        kind,
        since,
        threshold: Duration::ZERO,
        // hping3 needs its time for the first thousand.
        within: Duration::from_millis(1_500),
        service: Some((Family::V4.a(), port).into()),
        source: None,
        technique: None,
        count: 1_000..=20_000,
        owner: Owner::Nobody,
    });
    drop(hping);
    stage.settle();
    stage.finish(besides);
}

#[test]
fn syn_acks_that_nobody_asked_for() {
    flood("hping3, SYN-ACK flood", &["-S", "-A"], AnomalyKind::SynackFlood, 0, &[]);
}

#[test]
fn resets_of_nothing() {
    flood("hping3, RST flood", &["-R"], AnomalyKind::RstFlood, 0, &[]);
}

#[test]
fn acks_of_nothing() {
    flood("hping3, ACK flood", &["-A"], AnomalyKind::AckFlood, 8080, &[]);
}

/// Accepts, and breaks off: a linger time of 0 makes the close a reset.
const BREAKER: &str = "
import socket, struct, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
while True:
    peer = listener.accept()[0]
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    peer.close()
";

/// Says goodbye first, and goes on.
const POLITE: &str = "
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
while True:
    listener.accept()[0].close()
";

fn server(stage: &Stage, script: &str) -> (SocketAddr, Program) {
    let service = SocketAddr::new(Family::V4.a(), 8080);
    let address = service.ip().to_string();
    let server = Program::listening(stage.lab.a(), PYTHON, &["-c", script, &address, "8080"], service);
    known_by_now();
    (service, server)
}

#[test]
fn a_server_that_resets_everybody() {
    needs!(PYTHON);
    let mut stage = Stage::new("a server that resets 800 clients", "");
    let (service, server) = server(&stage, BREAKER);
    let since = Instant::now();
    // Each waits for its reset, which may come before it hears that it is connected: who hangs up while the reset is under way
    // gets a second one, for the FIN.
    let is_reset = || {
        let end = TcpStream::connect(service).and_then(|mut client| client.read(&mut [0]));
        end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    };
    assert!(stage.lab.b().run(|| (0..800).all(|_| is_reset())).unwrap());
    stage.expect(Due {
        kind: AnomalyKind::RstStorm,
        since,
        threshold: Duration::ZERO,
        within: since.elapsed(),
        service: Some(service),
        source: Some(service.ip()),
        technique: None,
        count: 500..=800,
        owner: Owner::Listens(server.pid()),
    });
    stage.settle();
    stage.finish(&[AnomalyKind::ConnectionAborted]);
}

/// RFC 1337: the client has sent its FIN, and then answers the server's last word with a reset.
#[test]
fn time_wait_cut_short() {
    needs!(PYTHON);
    let mut stage = Stage::new("12 resets into TIME_WAIT", "");
    let (service, server) = server(&stage, POLITE);
    let mut clients: Vec<ScriptedPeer> = (0..12)
        .map(|number| {
            let client = SocketAddr::new(Family::V4.quiet(number), 40_000 + u16::from(number));
            ScriptedPeer::new(&stage.lab, client, service).unwrap()
        })
        .collect();
    for client in &mut clients {
        client.connect().unwrap();
        let last = client.expect(FIN | ACK).unwrap();
        client.acknowledge(&last);
        client.send(FIN | ACK).unwrap();
        client.expect(ACK).unwrap();
    }
    let since = Instant::now();
    for client in &mut clients {
        client.send(RST).unwrap();
    }
    stage.expect(Due {
        kind: AnomalyKind::TwAssassination,
        since,
        threshold: Duration::ZERO,
        within: Duration::ZERO,
        service: Some(service),
        source: None,
        technique: None,
        count: 10..=12,
        owner: Owner::Listens(server.pid()),
    });
    stage.settle();
    stage.finish(&[]);
}

/// One percent of the local ports stands for eighty: the range is the host's, and so is the time to fill it.
///
/// More are opened than that is. Where the server's ACK of the FIN, made on one CPU, comes after its own FIN, made on another,
/// TIME-WAIT answers it as old, and the server, which knows the connection no more, resets it (RFC 1337). So ends up to one in
/// ten, in a busy moment.
#[test]
fn a_client_that_opens_and_closes() {
    needs!(PYTHON);
    let mut stage =
        Stage::new("a client that closes 400 connections first", "time_wait_pressure = { percent = 1 }\n");
    let there = SocketAddr::new(Family::V4.b(), 8080);
    let address = there.ip().to_string();
    let _server = crate::leak::reader_at(stage.lab.b(), there);
    let since = Instant::now();
    let mut client = Program::start(stage.lab.a(), PYTHON, &["-c", OPENER, &address, "8080", "400"]);
    stage.expect(Due {
        kind: AnomalyKind::TimeWaitPressure,
        since,
        threshold: Duration::ZERO,
        within: Duration::from_secs(2),
        service: Some(there),
        source: None,
        technique: None,
        count: 282..=400,
        owner: Owner::Nobody,
    });
    client.wait();
    stage.settle();
    stage.finish(&[AnomalyKind::TwAssassination]);
}

const OPENER: &str = "
import socket, sys
for _ in range(int(sys.argv[3])):
    socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()
";
