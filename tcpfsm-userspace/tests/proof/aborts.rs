//! Clients that break off: a close with a linger time of 0 is a reset.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_linger;
use tcpfsm_userspace::detect::AnomalyKind;

use crate::{
    leak::{connect, leaky_server},
    needs,
    programs::PYTHON,
    stage::{Due, Owner, Stage},
};

#[test]
fn clients_that_abort() {
    needs!(PYTHON);
    let mut stage = Stage::new("30 clients that abort", "");
    let (service, _server) = leaky_server(&stage);
    let clients: Vec<TcpStream> = connect(&stage, service, 30);
    let since = Instant::now();
    for client in clients {
        set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    }
    stage.expect(Due {
        kind: AnomalyKind::ConnectionAborted,
        since,
        threshold: Duration::ZERO,
        within: Duration::ZERO,
        service: Some(service),
        source: None,
        technique: None,
        count: 20..=30,
        owner: Owner::Elsewhere,
    });
    stage.settle();
    stage.finish(&[]);
}
