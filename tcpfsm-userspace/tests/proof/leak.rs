//! A server that accepts and never closes.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::Family;

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

pub(crate) fn leaky_server(stage: &Stage) -> (SocketAddr, Program) {
    let service = SocketAddr::new(Family::V4.a(), 8080);
    let server = Program::listening(
        stage.lab.a(),
        PYTHON,
        &["-c", SERVER, &service.ip().to_string(), "8080"],
        service,
    );
    (service, server)
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
    assert_eq!(stage.over(AnomalyKind::CloseWaitStuck), 20);
    stage.finish(&[]);
}
