//! Nothing wrong: short connections by the thousand, and crowds of them.

use tcpfsm_userspace::detect::AnomalyKind;

use crate::{
    needs,
    programs::{NGINX, Program, WEB, run},
    stage::Stage,
};

const WRK: &str = "/usr/bin/wrk";

/// Whole connections that there must have been.
const ENOUGH: u64 = 10_000;

#[test]
fn ten_thousand_short_connections_raise_nothing() {
    needs!(NGINX, WRK);
    let stage = Stage::new("10,000 short connections by wrk", "");
    let _nginx = Program::nginx(&stage.lab, stage.directory.path());
    let url = format!("http://{WEB}/");
    let mut done = 0;
    while done < ENOUGH {
        let output = run(stage.lab.b(), WRK, &["-t1", "-c32", "-d2s", "-H", "Connection: close", &url]);
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let line =
            words.lines().find(|line| line.contains("requests in")).unwrap_or_else(|| panic!("{words}"));
        done += line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        assert!(!words.contains("Socket errors"), "{words}");
    }
    stage.settle();
    println!("{done} connections");
    stage.finish(&[]);
}

#[test]
fn a_crowd_at_once_is_no_flood() {
    needs!(NGINX, WRK);
    let stage = Stage::new("a crowd of 400 clients", "");
    let _nginx = Program::nginx(&stage.lab, stage.directory.path());
    let url = format!("http://{WEB}/");
    run(stage.lab.b(), WRK, &["-t1", "-c400", "-d2s", "-H", "Connection: close", &url]);
    stage.settle();
    // When its time is over, wrk hangs up with answers unread: resets, some of them into the server's TIME-WAIT.
    stage.finish(&[AnomalyKind::ConnectionAborted, AnomalyKind::TwAssassination]);
}
