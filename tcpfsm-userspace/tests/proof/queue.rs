//! A server that does not accept: its queue is full, and clients believe that they are connected.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::{
    Family,
    peer::ScriptedPeer,
    segment::{ACK, SYN},
};

use crate::{
    leak::connect,
    needs,
    programs::{PYTHON, Program, known_by_now, sysctl},
    stage::{Due, Owner, Stage},
};

const SERVER: &str = "
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=8)
time.sleep(3600)
";

/// Asks for connections and does not wait for them.
const CALLER: &str = "
import socket, sys, time
calls = []
for _ in range(int(sys.argv[3])):
    call = socket.socket()
    call.setblocking(False)
    call.connect_ex((sys.argv[1], int(sys.argv[2])))
    calls.append(call)
print('asked', flush=True)
time.sleep(3600)
";

/// The queue has room for nine. Nine ask while two places are left: a queue that is full does not even answer a SYN.
#[test]
fn a_full_accept_queue() {
    needs!(PYTHON);
    let mut stage = Stage::new("a full accept queue", "");
    let service = SocketAddr::new(Family::V4.a(), 8080);
    let address = service.ip().to_string();
    let server = Program::listening(stage.lab.a(), PYTHON, &["-c", SERVER, &address, "8080"], service);
    sysctl(stage.lab.a(), "net/ipv4/tcp_syncookies", "0");
    let _waiting = connect(&stage, service, 7);
    known_by_now();
    let mut clients: Vec<ScriptedPeer> = (0..9)
        .map(|number| {
            let client = SocketAddr::new(Family::V4.quiet(number), 40_000 + u16::from(number));
            ScriptedPeer::new(&stage.lab, client, service).unwrap()
        })
        .collect();
    for client in &mut clients {
        client.send(SYN).unwrap();
    }
    for client in &mut clients {
        let answer = client.expect(SYN | ACK).unwrap();
        client.acknowledge(&answer);
    }
    for client in &mut clients {
        client.send(ACK).unwrap();
    }
    let since = Instant::now();
    stage.expect(Due {
        kind: AnomalyKind::AcceptQueueOverflow,
        since,
        threshold: Duration::ZERO,
        // Only the SYN-ACK that is sent again tells, one second after the first.
        within: Duration::from_secs(1),
        service: Some(service),
        source: None,
        technique: None,
        count: 5..=7,
        owner: Owner::Listens(server.pid()),
    });
    stage.settle();
    // The SYN-ACKs are sent again, the handshakes hang, and the sockets say what the wire does not.
    stage.finish(&[AnomalyKind::HandshakeRetransmission, AnomalyKind::HalfOpen, AnomalyKind::ViewMismatch]);
}

/// The nine places are taken: the SYNs of those who come now are dropped, and only the listener says why.
#[test]
fn a_queue_that_was_full_before() {
    needs!(PYTHON);
    let mut stage = Stage::new("an accept queue that was full before", "");
    let service = SocketAddr::new(Family::V4.a(), 8080);
    let address = service.ip().to_string();
    let server = Program::listening(stage.lab.a(), PYTHON, &["-c", SERVER, &address, "8080"], service);
    let _waiting = connect(&stage, service, 9);
    known_by_now();
    let since = Instant::now();
    let _callers = Program::start_told(stage.lab.b(), PYTHON, &["-c", CALLER, &address, "8080", "6"]);
    stage.expect(Due {
        kind: AnomalyKind::AcceptQueueOverflow,
        since,
        threshold: Duration::ZERO,
        // Until Python has started, and the SYNs are sent again after a second.
        within: Duration::from_millis(1_500),
        service: Some(service),
        source: None,
        technique: None,
        count: 5..=12,
        owner: Owner::Listens(server.pid()),
    });
    stage.settle();
    stage.finish(&[
        AnomalyKind::HandshakeRetransmission,
        AnomalyKind::SynSentStuck,
        AnomalyKind::ConnectTimeout,
    ]);
}
