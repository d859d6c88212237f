//! The real daemon watches real sockets between two network namespaces: what `tcpfsm list` says of an end must be
//! what that end's kernel says of its socket, at every point where nothing is on its way any more. And however the
//! daemon ends, nothing of it stays attached.

#[path = "netns/conversations.rs"]
mod conversations;
#[path = "support/daemon.rs"]
mod daemon;

use std::{
    net::SocketAddr,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use conversations::CONVERSATIONS;
use daemon::{Daemon, ask, attached, has_tcx, run_command, text};
use rustix::process::Signal;
use tempfile::TempDir;
use xtask::lab::{Family, Lab, sockets};

/// How long wire, kernel and tracker may differ: a segment takes microseconds, but the machine may be busy.
const SETTLE: Duration = Duration::from_secs(4);
/// After this long without a difference nothing is on its way.
const REST: Duration = Duration::from_millis(60);

/// The lab and the daemon that watches it.
pub(crate) struct Watched {
    pub(crate) lab: Lab,
    daemon: Daemon,
    compared: std::cell::Cell<usize>,
}

/// One connection at one point of its life.
pub(crate) struct Expect {
    /// The socket in the watched namespace.
    pub(crate) near: SocketAddr,
    /// Its peer.
    pub(crate) far: SocketAddr,
    /// What the near socket must be in; `closed` where there is none.
    pub(crate) near_state: &'static str,
    /// The same for the far socket, where it is a real one.
    pub(crate) far_state: Option<&'static str>,
}

impl Watched {
    /// Waits until kernel and tracker agree on all of these, and the scenario is where it should be; then looks
    /// again, at rest.
    pub(crate) fn agree(&self, point: &str, expected: &[Expect]) {
        let deadline = Instant::now() + SETTLE;
        loop {
            match self.differences(expected) {
                None => {
                    thread::sleep(REST);
                    if let Some(differences) = self.differences(expected) {
                        // What moved meanwhile was on its way after all.
                        assert!(Instant::now() < deadline, "{point}: does not come to rest:\n{differences}");
                        continue;
                    }
                    let ends = |expect: &Expect| 1 + usize::from(expect.far_state.is_some());
                    self.compared.set(self.compared.get() + expected.iter().map(ends).sum::<usize>());
                    return;
                }
                Some(differences) => {
                    assert!(
                        Instant::now() < deadline,
                        "{point}:\n{differences}\nthe daemon said: {}",
                        self.daemon.stderr()
                    );
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn differences(&self, expected: &[Expect]) -> Option<String> {
        let near = sockets::list(self.lab.a()).unwrap();
        let far = sockets::list(self.lab.b()).unwrap();
        let tracked = self.daemon.list();
        let mut differences = Vec::new();
        for expect in expected {
            let ends = [
                Some((&near, expect.near, expect.far, expect.near_state)),
                expect.far_state.map(|state| (&far, expect.far, expect.near, state)),
            ];
            for (sockets, local, remote, state) in ends.into_iter().flatten() {
                let kernel = sockets
                    .iter()
                    .find(|socket| socket.local == local && socket.remote == remote)
                    .map_or("closed", |socket| socket.state);
                let ours = match tracked.state(local, remote) {
                    Some("listen") => "closed",
                    Some(state) => state,
                    None => "nothing",
                };
                if kernel != state || ours != state {
                    differences.push(format!(
                        "  {local} with {remote}: the kernel says {kernel}, tcpfsm {ours}, expected {state}"
                    ));
                }
            }
        }
        (!differences.is_empty()).then(|| differences.join("\n"))
    }
}

/// A lab, or the reason why there is none.
fn lab() -> Option<Lab> {
    if tcpfsm_userspace::BPF_OBJECT.is_empty() {
        println!("skipped: built without kernel programs: cargo xtask build");
        return None;
    }
    if let Err(reason) = Lab::requirements() {
        println!("skipped: {reason}");
        return None;
    }
    match Lab::new("net") {
        Ok(lab) => Some(lab),
        Err(error) => panic!("no lab: {error:#}"),
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SETTLE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn states_equal_those_of_the_kernels_sockets() {
    if std::env::var_os(xtask::test::QUICK_VARIABLE).is_some() {
        println!("skipped: --quick");
        return;
    }
    let Some(lab) = lab() else { return };
    let directory = TempDir::new().unwrap();
    let daemon = Daemon::start(&lab, &directory);
    let mut watched = Watched { lab, daemon, compared: std::cell::Cell::new(0) };
    for (name, play) in CONVERSATIONS {
        for family in [Family::V4, Family::V6] {
            let before = watched.compared.get();
            play(&watched, family);
            println!("{name} ({family:?}): {} states equal", watched.compared.get() - before);
        }
    }
    println!("{} states of real sockets equal, at rest", watched.compared.get());

    let (status, _) = watched.daemon.end(Signal::INT);
    assert!(status.success(), "{status}: {}", watched.daemon.stderr());
    let stdout = watched.daemon.stdout();
    assert!(stdout.lines().count() > 100, "hardly any events:\n{stdout}");
    for line in stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let kind = event["kind"].as_str().unwrap_or_default();
        assert!(["transition", "anomaly", "conn_closed"].contains(&kind), "{line}");
    }
}

#[test]
fn sigterm_and_sigint_detach_and_take_the_socket_away_within_two_seconds() {
    let Some(lab) = lab() else { return };
    for signal in [Signal::TERM, Signal::INT] {
        let directory = TempDir::new().unwrap();
        let mut daemon = Daemon::start(&lab, &directory);
        let on = attached(lab.a());
        assert!(on.len() >= 2 && on.iter().any(|what| what == "XDP"), "ingress and egress: {on:?}");
        let (status, took) = daemon.end(signal);
        assert!(status.success(), "{signal:?}: {status}: {}", daemon.stderr());
        assert!(took < Duration::from_secs(2), "{signal:?} took {took:?}");
        assert!(!daemon.socket().exists(), "{signal:?}: the socket's file is still there");
        eventually(&format!("{signal:?}: still attached"), || attached(lab.a()).is_empty());
    }
}

#[test]
fn sigkill_leaves_nothing_attached_and_a_second_start_works() {
    let Some(lab) = lab() else { return };
    let directory = TempDir::new().unwrap();
    let mut daemon = Daemon::start(&lab, &directory);
    assert!(!attached(lab.a()).is_empty());
    daemon.end(Signal::KILL);
    // Before TCX there are filters, which nothing ties to a process.
    let outlives = |what: &String| !has_tcx(lab.a()) && what.starts_with("clsact");
    eventually("still attached after SIGKILL", || attached(lab.a()).iter().all(outlives));
    assert!(daemon.socket().exists(), "who removed the socket's file?");

    let detach = || {
        let mut command = lab.a().command(env!("CARGO_BIN_EXE_tcpfsm"));
        command.arg("detach").arg("--socket").arg(directory.path().join("tcpfsm.sock"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "detach: {}: {}", output.status, text(&output.stderr));
        text(&output.stdout)
    };
    let first = detach();
    assert!(first.contains("removed the stale socket"), "{first}");
    assert_eq!(attached(lab.a()), [""; 0], "after detach, which said {first}");
    // Other daemons may run on this machine, in namespaces of their own.
    let second = detach();
    assert!(
        second.contains("nothing of tcpfsm is attached") || second.starts_with("still loaded"),
        "{second}"
    );

    let mut daemon = Daemon::start(&lab, &directory);
    assert!(!attached(lab.a()).is_empty());
    // Once more, without `detach` in between: a stale socket is no daemon.
    daemon.end(Signal::KILL);
    let mut daemon = Daemon::start(&lab, &directory);
    daemon.list();
    let (status, _) = daemon.end(Signal::TERM);
    assert!(status.success(), "{status}: {}", daemon.stderr());
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused() {
    let Some(lab) = lab() else { return };
    let directory = TempDir::new().unwrap();
    let daemon = Daemon::start(&lab, &directory);
    let before = attached(lab.a());
    let output =
        run_command(&lab, daemon.socket()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let words =
        format!("another tcpfsm daemon (pid {}) answers on {}", daemon.pid(), daemon.socket().display());
    assert!(stderr.contains(&words) && stderr.contains("remedy:"), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    // The first one is none the worse for it.
    assert_eq!(attached(lab.a()), before);
    assert!(ask(&["stats", "-o", "json"], daemon.socket()).status.success());
    // And `detach` does not pull the ground from under it.
    let detach = ask(&["detach"], daemon.socket());
    assert_eq!(detach.status.code(), Some(1), "{}", text(&detach.stdout));
    assert!(text(&detach.stderr).contains(&format!("pid {}", daemon.pid())), "{}", text(&detach.stderr));
    assert_eq!(attached(lab.a()), before);
}
