//! A peer that is unplugged while the server talks to it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::{Family, IFACE_B};

use crate::{
    leak::connect,
    needs,
    programs::{PYTHON, Program, run},
    stage::{Due, Owner, Stage},
};

/// Says something to everybody fifty times a second.
const TALKER: &str = "
import socket, sys, threading, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
def talk(peer):
    while True:
        peer.send(b'tick')
        time.sleep(0.02)
while True:
    threading.Thread(target=talk, args=[listener.accept()[0]], daemon=True).start()
";

/// How old the last answer may be, even if the machine is busy.
const LAST_ANSWER: Duration = Duration::from_millis(200);

fn talker(stage: &Stage) -> (SocketAddr, Program) {
    let service = SocketAddr::new(Family::V4.a(), 8080);
    let address = service.ip().to_string();
    (service, Program::listening(stage.lab.a(), PYTHON, &["-c", TALKER, &address, "8080"], service))
}

#[test]
fn a_peer_that_vanishes() {
    needs!(PYTHON, "/usr/sbin/ip");
    let mut stage = Stage::new("5 clients of a host that is unplugged", "");
    let (service, server) = talker(&stage);
    let clients = connect(&stage, service, 5);
    std::thread::sleep(Duration::from_millis(500));
    // Silence counts from the last answer, which is older than that.
    let since = Instant::now() - LAST_ANSWER;
    run(stage.lab.b(), "ip", &["link", "set", IFACE_B, "down"]);
    stage.expect(Due {
        kind: AnomalyKind::PeerGone,
        since,
        threshold: Duration::from_secs(2),
        // Until the link is down.
        within: LAST_ANSWER + Duration::from_millis(100),
        service: Some(service),
        source: None,
        technique: Some("unanswered"),
        count: 3..=5,
        owner: Owner::Holds(server.pid()),
    });
    drop(clients);
    stage.settle();
    stage.finish(&[]);
}
