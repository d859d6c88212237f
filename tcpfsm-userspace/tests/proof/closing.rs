//! Connections that do not get closed: the program has closed, and what should answer does not come.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::{Family, sockets};

use crate::{
    leak::{connect, leaky_server},
    needs,
    programs::{NFT, PYTHON, Program, known_by_now, run, wait_for},
    stage::{Due, Owner, Stage},
};

/// Accepts, and at SIGUSR1 closes everything, or only shuts it down and keeps the sockets; what its clients do meanwhile
/// does not matter to it.
const SERVER: &str = "
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
kept = [listener.accept()[0] for _ in range(int(sys.argv[3]))]
signal.sigwait([signal.SIGUSR1])
for peer in kept:
    peer.close() if sys.argv[4] == 'close' else peer.shutdown(socket.SHUT_WR)
signal.pause()
";

/// Connects, shuts its sending side down at SIGUSR1, and waits for an answer that does not come.
const HALF_CLOSER: &str = "
import signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
kept = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]
print('connected', flush=True)
signal.sigwait([signal.SIGUSR1])
for peer in kept:
    peer.shutdown(socket.SHUT_WR)
signal.pause()
";

/// Fills what its client does not read, and closes.
const WRITER: &str = "
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128)
peer = listener.accept()[0]
time.sleep(1.5)
peer.setblocking(False)
try:
    while True:
        peer.send(bytes(65536))
except BlockingIOError:
    pass
peer.close()
time.sleep(3600)
";

const CLIENTS: usize = 5;

fn service() -> SocketAddr {
    SocketAddr::new(Family::V4.a(), 8080)
}

/// A server that closes when told to, in this way, and its clients.
fn closer(stage: &Stage, how: &str) -> (Program, Vec<TcpStream>) {
    let address = service().ip().to_string();
    let arguments = ["-c", SERVER, &address, "8080", &CLIENTS.to_string(), how];
    let server = Program::listening(stage.lab.a(), PYTHON, &arguments, service());
    known_by_now();
    (server, connect(stage, service(), CLIENTS))
}

fn tell(program: &Program) {
    let pid = Pid::from_raw(program.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::USR1).unwrap();
}

/// The clients' host drops what matches; the wire between has seen it.
fn drop_at_clients(stage: &Stage, what: &str) {
    let rules = format!(
        "add table inet cut; add chain inet cut in {{ type filter hook input priority 0; }}; \
         add rule inet cut in {what} drop"
    );
    run(stage.lab.b(), NFT, &[&rules]);
}

/// Until all the server's sockets are in a state.
fn until(stage: &Stage, state: &str) {
    wait_for(state, || {
        let sockets = sockets::list(stage.lab.a()).unwrap();
        sockets.iter().filter(|socket| socket.local == service() && socket.state == state).count() == CLIENTS
    });
}

fn due(kind: AnomalyKind, since: Instant, owner: Owner) -> Due {
    Due {
        kind,
        since,
        threshold: Duration::from_secs(2),
        within: Duration::ZERO,
        service: Some(service()),
        source: None,
        technique: None,
        count: 3..=CLIENTS as u64,
        owner,
    }
}

#[test]
fn a_fin_that_nobody_acknowledges() {
    needs!(PYTHON, NFT);
    let mut stage = Stage::new("a server's FINs, dropped", "");
    let (server, _clients) = closer(&stage, "shutdown");
    drop_at_clients(&stage, "tcp sport 8080");
    let since = Instant::now();
    tell(&server);
    stage.expect(due(AnomalyKind::FinWait1Stuck, since, Owner::Holds(server.pid())));
    stage.settle();
    // A FIN that is sent again and never answered is that, too. The clients never got it: they are in no CLOSE-WAIT.
    stage.finish(&[AnomalyKind::PeerGone]);
}

#[test]
fn a_last_fin_that_nobody_acknowledges() {
    needs!(PYTHON, NFT);
    let mut stage = Stage::new("a server's last FINs, dropped", "");
    let (server, clients) = closer(&stage, "close");
    drop_at_clients(&stage, "tcp sport 8080 tcp flags & fin == fin");
    // Whose they are is asked with CLOSE-WAIT, while there is somebody.
    known_by_now();
    drop(clients);
    until(&stage, "close_wait");
    let since = Instant::now();
    tell(&server);
    stage.expect(due(AnomalyKind::LastAckStuck, since, Owner::Held(server.pid())));
    stage.settle();
    stage.finish(&[AnomalyKind::PeerGone]);
}

#[test]
fn fins_that_cross() {
    needs!(PYTHON, NFT);
    let mut stage = Stage::new("FINs that cross, the server's dropped", "");
    let (server, clients) = closer(&stage, "shutdown");
    drop_at_clients(&stage, "tcp sport 8080");
    tell(&server);
    until(&stage, "fin_wait1");
    let since = Instant::now();
    drop(clients);
    stage.expect(due(AnomalyKind::ClosingStuck, since, Owner::Holds(server.pid())));
    stage.settle();
    stage.finish(&[AnomalyKind::PeerGone]);
}

#[test]
fn a_client_that_only_half_closes() {
    needs!(PYTHON);
    let mut stage = Stage::new("a client that half-closes, and a server that leaks", "");
    let there = SocketAddr::new(Family::V4.b(), 8080);
    let address = there.ip().to_string();
    let _server = crate::leak::leaky_server_at(stage.lab.b(), there);
    let client = Program::start_told(stage.lab.a(), PYTHON, &["-c", HALF_CLOSER, &address, "8080", "12"]);
    known_by_now();
    let since = Instant::now();
    tell(&client);
    stage.expect(Due {
        service: Some(there),
        count: 10..=12,
        ..due(AnomalyKind::FinWait2Stuck, since, Owner::Holds(client.pid()))
    });
    // The same connections from their other end.
    stage.expect(Due {
        service: Some(there),
        count: 1..=12,
        ..due(AnomalyKind::CloseWaitStuck, since, Owner::Elsewhere)
    });
    stage.settle();
    stage.finish(&[]);
}

#[test]
fn a_fin_that_cannot_leave() {
    needs!(PYTHON);
    let mut stage = Stage::new("closed with a full queue, the client does not read", "");
    let address = service().ip().to_string();
    let _server = Program::listening(stage.lab.a(), PYTHON, &["-c", WRITER, &address, "8080"], service());
    let client = connect(&stage, service(), 1);
    until_closed(&stage);
    let since = Instant::now();
    stage.expect(Due {
        // Three looks and two seconds: the first look is up to a sweep after the difference began.
        within: Duration::from_millis(1_000),
        count: 1..=1,
        ..due(AnomalyKind::ViewMismatch, since, Owner::Nobody)
    });
    stage.settle();
    drop(client);
    stage.finish(&[AnomalyKind::ZeroWindowStall]);
}

/// Until the writer's socket waits to send its FIN.
fn until_closed(stage: &Stage) {
    wait_for("the writer to close", || {
        sockets::list(stage.lab.a()).unwrap().iter().any(|socket| socket.state == "fin_wait1")
    });
}

#[test]
fn connections_that_nobody_uses() {
    needs!(PYTHON);
    let mut stage = Stage::new("12 connections, idle", "idle_established = { after = \"2s\" }\n");
    let (service, server) = leaky_server(&stage);
    let clients = connect(&stage, service, 12);
    let since = Instant::now();
    stage.expect(Due {
        count: 10..=12,
        ..due(AnomalyKind::IdleEstablished, since, Owner::Holds(server.pid()))
    });
    stage.settle();
    drop(clients);
    stage.finish(&[]);
}
