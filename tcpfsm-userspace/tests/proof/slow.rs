//! slowhttptest against nginx.

use std::time::{Duration, Instant};

use tcpfsm_userspace::detect::AnomalyKind;
use xtask::lab::sockets;

use crate::{
    needs,
    programs::{NGINX, Program, WEB, wait_for},
    stage::{Due, Owner, Stage},
};

const SLOWHTTPTEST: &str = "/usr/bin/slowhttptest";

/// On the wire these are connections that say little: nothing is due.
#[test]
fn slow_headers_are_not_tcps_business() {
    needs!(NGINX, SLOWHTTPTEST);
    let stage = Stage::new("slowhttptest, slow headers", "");
    let _nginx = Program::nginx(&stage.lab, stage.directory.path());
    let url = format!("http://{WEB}/");
    let arguments = ["-H", "-c", "100", "-r", "100", "-i", "1", "-l", "5", "-p", "3", "-u", &url];
    let mut slow = Program::start(stage.lab.b(), SLOWHTTPTEST, &arguments);
    let open = || {
        let sockets = sockets::list(stage.lab.a()).unwrap();
        sockets.iter().filter(|socket| socket.local == WEB && socket.state == "established").count()
    };
    wait_for("the slow clients", || open() >= 90);
    std::thread::sleep(Duration::from_secs(3));
    assert!(slow.runs(), "slowhttptest ended early");
    stage.finish(&[]);
}

/// Readers that do not read close their window, and keep it closed.
#[test]
fn slow_readers_stall_the_server() {
    needs!(NGINX, SLOWHTTPTEST);
    let mut stage = Stage::new("slowhttptest, slow read", "");
    let _nginx = Program::nginx(&stage.lab, stage.directory.path());
    let url = format!("http://{WEB}/long");
    let arguments = [
        "-X", "-c", "20", "-r", "100", "-w", "512", "-y", "1024", "-n", "30", "-z", "32", "-l", "20", "-u",
        &url,
    ];
    let since = Instant::now();
    let _slow = Program::start(stage.lab.b(), SLOWHTTPTEST, &arguments);
    stage.expect(Due {
        kind: AnomalyKind::ZeroWindowStall,
        since,
        threshold: Duration::from_secs(2),
        // Until slowhttptest has connected and the windows are full and probed.
        within: Duration::from_secs(3),
        service: Some(WEB),
        source: None,
        technique: None,
        count: 1..=20,
        owner: Owner::Elsewhere,
    });
    stage.settle();
    stage.finish(&[AnomalyKind::PeerGone]);
}
