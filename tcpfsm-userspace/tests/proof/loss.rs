//! A link that loses much.

use std::{
    io::Read as _,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::Family;

use crate::{
    leak::connect,
    needs,
    programs::{NFT, PYTHON, Program, run},
    stage::{Due, Owner, Stage},
};

/// Sends to everybody what they take.
const SENDER: &str = "
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
def send(peer):
    while True:
        peer.sendall(bytes(16384))
while True:
    threading.Thread(target=send, args=[listener.accept()[0]], daemon=True).start()
";

#[test]
fn a_link_that_loses_much() {
    needs!(PYTHON, NFT);
    let mut stage = Stage::new("10 transfers over a link that loses 30 %", "");
    let service = SocketAddr::new(Family::V4.a(), 8080);
    let address = service.ip().to_string();
    let server = Program::listening(stage.lab.a(), PYTHON, &["-c", SENDER, &address, "8080"], service);
    let rules = "add table inet loss; add chain inet loss in { type filter hook input priority 0; }; \
                 add rule inet loss in tcp sport 8080 ip length > 100 numgen random mod 100 < 30 drop";
    run(stage.lab.b(), NFT, &[rules]);
    let since = Instant::now();
    for mut client in connect(&stage, service, 10) {
        // They end with the server.
        thread::spawn(move || while client.read(&mut [0; 65_536]).is_ok_and(|read| read > 0) {});
    }
    stage.expect(Due {
        kind: AnomalyKind::RetransmissionStorm,
        since,
        threshold: Duration::ZERO,
        // Until the first hundred have been sent again.
        within: Duration::from_secs(4),
        // The whole host's comes first: of a service it takes two sweeps to tell.
        service: None,
        source: None,
        technique: Some("host"),
        count: 100..=20_000,
        owner: Owner::Example(server.pid()),
    });
    stage.settle();
    stage.finish(&[AnomalyKind::PeerGone]);
}
