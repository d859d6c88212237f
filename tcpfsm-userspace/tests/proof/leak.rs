//! A server that accepts and never closes.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::{Family, Netns};

use crate::{
    needs,
    programs::{PYTHON, Program},
    stage::{Due, Owner, Stage},
};

const SERVER: &str = "
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
kept = []
while True:
    kept.append(listener.accept()[0])
";

/// Reads to the end and closes.
const READER: &str = "
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
while True:
    peer = listener.accept()[0]
    while peer.recv(65536):
        pass
    peer.close()
";

pub(crate) fn leaky_server(stage: &Stage) -> (SocketAddr, Program) {
    let service = SocketAddr::new(Family::V4.a(), 8080);
    (service, leaky_server_at(stage.lab.a(), service))
}

pub(crate) fn leaky_server_at(namespace: &Netns, service: SocketAddr) -> Program {
    server_at(namespace, service, SERVER)
}

pub(crate) fn reader_at(namespace: &Netns, service: SocketAddr) -> Program {
    server_at(namespace, service, READER)
}

fn server_at(namespace: &Netns, service: SocketAddr, script: &str) -> Program {
    let (address, port) = (service.ip().to_string(), service.port().to_string());
    Program::listening(namespace, PYTHON, &["-c", script, &address, &port], service)
}

pub(crate) fn connect(stage: &Stage, service: SocketAddr, count: usize) -> Vec<TcpStream> {
    stage.lab.b().run(|| (0..count).map(|_| TcpStream::connect(service).unwrap()).collect()).unwrap()
}

#[test]
fn a_server_that_never_closes() {
    needs!(PYTHON);
    let mut stage = Stage::new("a server that never closes", "");
    let (service, server) = leaky_server(&stage);
    let clients = connect(&stage, service, 20);
    let since = Instant::now();
    drop(clients);
    stage.expect(Due {
        kind: AnomalyKind::CloseWaitStuck,
        since,
        threshold: Duration::from_secs(2),
        within: Duration::ZERO,
        service: Some(service),
        source: None,
        technique: None,
        count: 1..=20,
        owner: Owner::Holds(server.pid()),
    });
    stage.settle();
    drop(server);
    assert_eq!(stage.over(AnomalyKind::CloseWaitStuck).peak, 20);
    // What is CLOSE_WAIT here is FIN_WAIT2 at the other end.
    stage.finish(&[AnomalyKind::FinWait2Stuck]);
}

/// A client leaves every eighth of a second. Nothing is old yet: only the rise tells.
#[test]
fn a_server_that_leaks_slowly() {
    needs!(PYTHON);
    let mut stage = Stage::new("a server that leaks 8 a second", "close_wait_stuck = \"off\"\n");
    let (service, server) = leaky_server(&stage);
    let since = Instant::now();
    for _ in 0..32 {
        drop(connect(&stage, service, 1));
        std::thread::sleep(Duration::from_millis(125));
    }
    stage.expect(Due {
        kind: AnomalyKind::CloseWaitLeak,
        since,
        // Each of the six parts of its window of 3 s has to be over, and the first is begun anywhere.
        threshold: Duration::from_millis(2_500),
        within: Duration::from_millis(2_000),
        service: Some(service),
        source: None,
        technique: None,
        count: 10..=32,
        owner: Owner::Holds(server.pid()),
    });
    stage.finish(&[AnomalyKind::FinWait2Stuck]);
}
