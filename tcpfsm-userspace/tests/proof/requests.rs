//! Connection requests that fail: nobody answers, nobody listens, no way there, broken off.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::Family;

use crate::{
    leak::leaky_server,
    needs,
    programs::{HPING, NFT, PYTHON, Program, run},
    stage::{Due, Owner, Stage},
};

/// Tries as often as it is told, one after the other, and says what became of the first.
const CALLER: &str = "
import socket, sys, time
time.sleep(1.5)
print('calling', flush=True)
for _ in range(int(sys.argv[3])):
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2)
    except OSError:
        pass
time.sleep(3600)
";

/// Asks many times at once, waits for answers, and gives up after 2.6 s.
const WAITER: &str = "
import socket, sys, time
time.sleep(1.5)
waiting = []
print('calling', flush=True)
for _ in range(int(sys.argv[3])):
    waiting.append(socket.socket())
    waiting[-1].setblocking(False)
    waiting[-1].connect_ex((sys.argv[1], int(sys.argv[2])))
time.sleep(2.6)
for one in waiting:
    one.close()
time.sleep(3600)
";

fn call(stage: &Stage, script: &str, service: SocketAddr, times: u32) -> Program {
    let (address, port) = (service.ip().to_string(), service.port().to_string());
    Program::start_told(stage.lab.a(), PYTHON, &["-c", script, &address, &port, &times.to_string()])
}

fn due(kind: AnomalyKind, since: Instant, service: SocketAddr, owner: Owner) -> Due {
    Due {
        kind,
        since,
        threshold: Duration::ZERO,
        within: Duration::from_millis(500),
        service: Some(service),
        source: None,
        technique: None,
        count: 1..=50,
        owner,
    }
}

#[test]
fn nobody_answers() {
    needs!(PYTHON);
    let mut stage = Stage::new("8 requests that nobody answers", "");
    let service = SocketAddr::new(Family::V4.quiet(0), 8080);
    let caller = call(&stage, WAITER, service, 8);
    let since = Instant::now();
    stage.expect(Due {
        threshold: Duration::from_secs(2),
        count: 3..=8,
        ..due(AnomalyKind::SynSentStuck, since, service, Owner::Holds(caller.pid()))
    });
    // Given up after 4 s of silence, which begins with the last SYN.
    stage.expect(Due {
        threshold: Duration::from_secs(4),
        within: Duration::from_millis(2_600),
        count: 5..=8,
        ..due(AnomalyKind::ConnectTimeout, since, service, Owner::Held(caller.pid()))
    });
    stage.settle();
    // SYNs are sent again after one second and two.
    stage.finish(&[AnomalyKind::HandshakeRetransmission]);
}

#[test]
fn nobody_listens() {
    needs!(PYTHON);
    let mut stage = Stage::new("15 requests to a closed port", "");
    let service = SocketAddr::new(Family::V4.b(), 8080);
    let _caller = call(&stage, CALLER, service, 15);
    let since = Instant::now();
    stage.expect(Due { count: 10..=15, ..due(AnomalyKind::ConnectRefused, since, service, Owner::Nobody) });
    stage.settle();
    stage.finish(&[]);
}

#[test]
fn no_way_there() {
    needs!(PYTHON, NFT);
    let mut stage = Stage::new("8 requests that a firewall rejects by ICMP", "");
    let service = SocketAddr::new(Family::V4.b(), 8080);
    let rules = "add table inet wall; add chain inet wall in { type filter hook input priority 0; }; \
                 add rule inet wall in tcp dport 8080 reject with icmpx type admin-prohibited";
    run(stage.lab.b(), NFT, &[rules]);
    let _caller = call(&stage, CALLER, service, 8);
    let since = Instant::now();
    stage.expect(Due { count: 5..=8, ..due(AnomalyKind::ConnectUnreachable, since, service, Owner::Nobody) });
    stage.settle();
    stage.finish(&[]);
}

/// hping3's SYNs are none of its kernel's, which resets what they are answered with.
#[test]
fn broken_off() {
    needs!(PYTHON, HPING);
    let mut stage = Stage::new("hping3, 20 SYNs whose answers are reset", "");
    let (service, server) = leaky_server(&stage);
    let (address, port) = (service.ip().to_string(), service.port().to_string());
    let since = Instant::now();
    let arguments = ["-q", "-S", "-p", &port, "-i", "u10000", "-c", "20", &address];
    let _hping = Program::start(stage.lab.b(), HPING, &arguments);
    stage.expect(Due {
        count: 10..=20,
        ..due(AnomalyKind::HandshakeAborted, since, service, Owner::Elsewhere)
    });
    stage.settle();
    drop(server);
    stage.finish(&[]);
}
