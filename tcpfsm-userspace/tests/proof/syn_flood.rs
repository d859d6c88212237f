//! A SYN flood from forged addresses, with SYN cookies and without.

use std::{
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use tcpfsm_userspace::{detect::AnomalyKind, owner::Confidence, report::Anomaly};

use crate::{
    leak::connect,
    needs,
    programs::{HPING, NGINX, Program, WEB, known_by_now, run, sysctl},
    stage::{Due, Owner, Stage},
};

/// What hangs, hangs for long; what is forged from addresses that no segment can be sent to, or finds no room, is not
/// even answered.
const CONSEQUENCES: [AnomalyKind; 4] = [
    AnomalyKind::HandshakeRetransmission,
    AnomalyKind::HalfOpen,
    AnomalyKind::SynSentStuck,
    AnomalyKind::ConnectTimeout,
];

/// `technique`: what shows of the server's way to bear it.
fn flood(name: &'static str, cookies: &str, technique: &str) {
    needs!(NGINX, HPING);
    let mut stage = Stage::new(name, "");
    sysctl(stage.lab.a(), "net/ipv4/tcp_syncookies", cookies);
    sysctl(stage.lab.a(), "net/ipv4/tcp_max_syn_backlog", "256");
    // SYN-ACKs to forged addresses leave by the same wire.
    run(stage.lab.a(), "ip", &["route", "add", "default", "via", "192.0.2.2"]);
    let nginx = Program::nginx(&stage.lab, stage.directory.path());
    known_by_now();
    let (address, port) = (WEB.ip().to_string(), WEB.port().to_string());
    let since = Instant::now();
    let arguments = ["-q", "-S", "-p", &port, "--rand-source", "-i", "u500", "-c", "100000", &address];
    let hping = Program::start(stage.lab.b(), HPING, &arguments);
    stage.expect(Due {
        kind: AnomalyKind::SynFlood,
        since,
        threshold: Duration::ZERO,
        // hping3 needs a moment for the first 128.
        within: Duration::from_millis(500),
        service: Some(WEB),
        source: None,
        technique: None,
        count: 128..=20_000,
        owner: Owner::Listens(nginx.pid()),
    });
    stage.shows(AnomalyKind::SynFlood, technique);
    if cookies == "2" {
        // A client that is served is the last whose handshake began, and the server has closed when the flood is over.
        let mut client = connect(&stage, WEB, 1).remove(0);
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        client.read_to_end(&mut Vec::new()).unwrap();
        drop((client, hping));
        let Anomaly { proc, unowned, .. } = stage.over(AnomalyKind::SynFlood);
        let listener = proc.map(|proc| (proc.pid, proc.confidence));
        assert_eq!((listener, unowned), (Some((nginx.pid(), Confidence::Listener)), None));
    } else {
        drop(hping);
    }
    stage.settle();
    stage.finish(&CONSEQUENCES);
}

#[test]
fn with_cookies_when_the_queue_is_full() {
    // What came before the queue was full has its place in it, and its SYN-ACKs are sent again.
    flood("hping3 SYN flood, tcp_syncookies 1", "1", "backlog");
}

#[test]
fn with_cookies_always() {
    flood("hping3 SYN flood, tcp_syncookies 2", "2", "syn_cookies");
}

#[test]
fn without_cookies() {
    flood("hping3 SYN flood, tcp_syncookies 0", "0", "backlog_full");
}
