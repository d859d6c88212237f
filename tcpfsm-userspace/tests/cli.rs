//! The command line as a user meets it, without privileges: messages, exit codes, what goes where.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
};

fn tcpfsm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpfsm")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Checks the exit code, that stdout is empty, and that stderr is one message with all of `words`.
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = tcpfsm(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {word:?} is not in\n{stderr}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("os error"), "{stderr}");
    assert!(stderr.matches("tcpfsm: ").count() <= 1, "more than one message:\n{stderr}");
}

#[test]
fn unknown_options_are_usage_errors() {
    fails(&["run", "--ifaces", "lo"], 2, &["--ifaces", "--iface"]);
    fails(&["fly"], 2, &["unrecognized subcommand"]);
    fails(&["run", "--iface", "lo", "--sweep-interval", "1ms"], 2, &["at least 100ms"]);
    fails(&["run", "--iface", "lo", "--stuck", "closewate=1s"], 2, &["close_wait"]);
    fails(&["run", "--iface", "lo", "--metrics", "9477"], 2, &["127.0.0.1:9477", "off"]);
    fails(&["watch", "--state", "closewate"], 2, &["close_wait", "time_wait"]);
    fails(&["list", "-4", "-6"], 2, &["cannot be used with"]);
}

#[test]
fn no_interface_is_a_usage_error_that_names_them() {
    fails(&["run"], 2, &["no interface", "--iface NAME", "lo"]);
}

#[test]
fn an_unknown_interface_is_answered_with_the_known_ones() {
    fails(&["run", "--iface", "no-such-if"], 1, &["\"no-such-if\" does not exist", "there are:", "lo"]);
    fails(&["detach", "--iface", "no-such-if"], 1, &["\"no-such-if\" does not exist", "lo"]);
}

#[test]
fn without_a_daemon_the_clients_say_how_to_start_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for command in ["watch", "list", "stats", "check"] {
        fails(&[command, "--socket", socket], 1, &["no tcpfsm daemon", socket, "sudo tcpfsm run --iface"]);
    }
}

#[test]
fn a_config_file_is_checked_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fails(&["config", "check", &path("missing.toml")], 1, &["missing.toml", "no such file"]);
    let wrong = path("wrong.toml");
    std::fs::write(&wrong, "vantage = \"host\"\nmetricks = \"off\"\n").unwrap();
    fails(&["config", "check", &wrong], 1, &["wrong.toml", "line 2", "metricks", "config default"]);
    fails(&["run", "--iface", "lo", "--config", &wrong], 1, &["wrong.toml", "line 2"]);

    let default = tcpfsm(&["config", "default"]);
    assert!(default.status.success());
    let good = path("good.toml");
    std::fs::write(&good, &default.stdout).unwrap();
    let checked = tcpfsm(&["config", "check", &good]);
    assert_eq!((checked.status.code(), text(&checked.stdout)), (Some(0), format!("{good}: ok\n")));
}

#[test]
fn completions_and_manual_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tcpfsm(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("iface"), "{shell}");
    }
    let man = tcpfsm(&["man"]);
    let page = text(&man.stdout);
    assert!(
        man.status.success()
            && page.contains(".TH tcpfsm")
            && [".SH RUN", ".SH EXPLAIN", ".SH CHECK"].iter().all(|part| page.contains(part)),
        "{page:.200}"
    );
}

#[test]
fn help_and_version_are_no_failures() {
    for args in [["--help"].as_slice(), &["--version"], &["run", "--help"], &["help", "watch"]] {
        assert_eq!(tcpfsm(args).status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tcpfsm"))
        .args(["config", "default"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

/// Answers one request with these lines, and gives the request.
fn daemon(path: &Path, answer: &'static str) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        BufReader::new(&stream).read_line(&mut request).unwrap();
        // The client may have seen enough.
        let _ = stream.write_all(answer.as_bytes());
        request
    })
}

const TRANSITION: &str = concat!(
    r#"{"v":1,"seq":1,"ts":"2026-11-22T10:00:00.072385Z","host":"h","kind":"transition","orig":"10.0.0.1:40001","#,
    r#""resp":"10.0.0.2:80","iface":"eth0","local":"resp","side":"resp","from":"established","to":"close_wait","#,
    r#""confirmed":false,"dwell_ns":4200000000,"cause":{"dir":"original","flags":"FA","why":"peer_fin"},"#,
    r#""proc":{"pid":7,"comm":"nginx"},"later":"additions are ignored"}"#,
    "\n"
);

#[test]
fn watch_asks_with_its_filter_and_ends_with_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tcpfsm.sock");
    let socket = path.to_str().unwrap();
    let served = daemon(&path, TRANSITION);
    let output = tcpfsm(&["watch", "--socket", socket, "-L", "80", "--state", "CLOSE-WAIT", "-o", "jsonl"]);
    assert_eq!(
        served.join().unwrap(),
        "{\"v\":1,\"request\":\"watch\",\"filter\":{\"states\":[\"close_wait\"],\"local_ports\":[80]}}\n"
    );
    assert_eq!(text(&output.stdout), TRANSITION, "the line as it came");
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(1), "tcpfsm: the daemon has ended\n".into())
    );

    std::fs::remove_file(&path).unwrap();
    let served = daemon(&path, TRANSITION);
    let output = tcpfsm(&["watch", "--socket", socket]);
    served.join().unwrap();
    let stdout = text(&output.stdout);
    assert!(stdout.contains("resp* ESTAB -> CLOSE-WAIT?") && stdout.contains("nginx[7]"), "{stdout}");
}

#[test]
fn refusals_reach_the_user() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tcpfsm.sock");
    let served = daemon(&path, "{\"error\":\"this daemon speaks schema 2, not 1\"}\n");
    fails(&["list", "--socket", path.to_str().unwrap()], 1, &["speaks schema 2"]);
    served.join().unwrap();
}

#[test]
fn an_empty_list_is_a_list() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tcpfsm.sock");
    let served = daemon(&path, "{\"end\":0}\n");
    let output = tcpfsm(&["list", "--socket", path.to_str().unwrap(), "-o", "json"]);
    served.join().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "[]\n".into()));
}
