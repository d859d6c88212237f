//! The real daemon, in the watched namespace of a lab.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    collections::HashMap,
    fs::{self, File},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, tc::TcAttachType};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tempfile::TempDir;
use xtask::command::end_with_us;
use xtask::lab::{IFACE_A, Lab, Netns};

/// How long loading the programs may take on a busy machine.
const START: Duration = Duration::from_secs(60);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// `tcpfsm run` as a child; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    socket: PathBuf,
    directory: PathBuf,
}

impl Daemon {
    /// Starts it on the lab's interface and waits until it answers.
    pub(crate) fn start(lab: &Lab, directory: &TempDir) -> Self {
        let directory = directory.path().to_owned();
        let socket = directory.join("tcpfsm.sock");
        let mut command = run_command(lab, &socket);
        command.stdout(File::create(directory.join("stdout")).unwrap());
        Self::spawn(command, socket, directory)
    }

    /// Starts a command that runs it, and waits until it answers.
    pub(crate) fn spawn(mut command: Command, socket: PathBuf, directory: PathBuf) -> Self {
        command.stderr(File::create(directory.join("stderr")).unwrap());
        // A test that is killed takes the daemon with it.
        end_with_us(&mut command, Signal::KILL);
        let mut daemon = Self { child: command.spawn().unwrap(), socket, directory };
        let deadline = Instant::now() + START;
        while UnixStream::connect(&daemon.socket).is_err() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended at once, {status}: {}", daemon.stderr());
            }
            assert!(Instant::now() < deadline, "no answer within {START:?}: {}", daemon.stderr());
            thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    /// Its standard output, where that is a pipe.
    pub(crate) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it said to people so far.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.directory.join("stderr")).unwrap_or_default()
    }

    /// What it said to programs so far.
    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.directory.join("stdout")).unwrap_or_default()
    }

    /// Sends a signal; gives how it ended and how long that took.
    pub(crate) fn end(&mut self, signal: Signal) -> (ExitStatus, Duration) {
        let started = Instant::now();
        // The number is the daemon's still: it has not been waited for.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, started.elapsed());
            }
            assert!(started.elapsed() < PATIENCE, "{signal:?} did not end it: {}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// `tcpfsm list -o jsonl`, and what it only shows when asked for: flows of which both ends are closed.
    pub(crate) fn list(&self) -> Flows {
        let closed = ["list", "-o", "jsonl", "--state", "closed,listen"];
        // The closed second: one that closes in between is then found twice, not missed.
        let flows = [&closed[..3], &closed[..]].map(|arguments| {
            let output = ask(arguments, &self.socket);
            assert!(output.status.success(), "list: {}", text(&output.stderr));
            text(&output.stdout)
        });
        Flows(
            flows
                .iter()
                .flat_map(|text| text.lines())
                .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
                .map(|flow: Flow| ((flow.orig, flow.resp), flow))
                .collect(),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tcpfsm run` on the lab's interface.
pub(crate) fn run_command(lab: &Lab, socket: &Path) -> Command {
    let mut command = lab.a().command(env!("CARGO_BIN_EXE_tcpfsm"));
    command.args(["run", "--iface", IFACE_A, "--ingress", "xdp", "-o", "jsonl", "--metrics", "off"]);
    command.arg("--socket").arg(socket).stdin(Stdio::null());
    command
}

/// One of the commands that talk to the daemon.
pub(crate) fn ask(arguments: &[&str], socket: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tcpfsm")).args(arguments).arg("--socket").arg(socket).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether this kernel has TCX, which came with 6.6.
pub(crate) fn has_tcx(namespace: &Netns) -> bool {
    namespace.run(|| SchedClassifier::query_tcx(IFACE_A, TcAttachType::Egress).is_ok()).unwrap()
}

/// What is attached to the lab's interface: not by the tracker's word but by the kernel's.
pub(crate) fn attached(namespace: &Netns) -> Vec<String> {
    namespace
        .run(|| {
            let mut found = Vec::new();
            let link = Command::new("ip").args(["link", "show", "dev", IFACE_A]).output().unwrap();
            let link = text(&link.stdout);
            assert!(link.contains(IFACE_A), "{link}");
            if link.contains("xdp") {
                found.push("XDP".to_owned());
            }
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                // Kernels before 6.6 have no TCX to be asked about.
                if let Ok((_, programs)) = SchedClassifier::query_tcx(IFACE_A, side) {
                    found.extend(programs.iter().map(|program| format!("TCX {side:?} {}", program.id())));
                }
            }
            let qdiscs = Command::new("tc").args(["qdisc", "show", "dev", IFACE_A]).output();
            if qdiscs.is_ok_and(|output| text(&output.stdout).contains("clsact")) {
                for side in ["ingress", "egress"] {
                    let filters =
                        Command::new("tc").args(["filter", "show", "dev", IFACE_A, side]).output().unwrap();
                    found.extend(text(&filters.stdout).lines().map(|line| format!("clsact {side} {line}")));
                }
            }
            found
        })
        .unwrap()
}

/// One line of the list.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Flow {
    pub(crate) orig: SocketAddr,
    pub(crate) resp: SocketAddr,
    pub(crate) orig_state: String,
    pub(crate) resp_state: String,
}

/// The list.
pub(crate) struct Flows(HashMap<(SocketAddr, SocketAddr), Flow>);

impl Flows {
    /// The state of the end at `near` of its connection with `far`, if that is listed: for a while it is even after
    /// its end.
    pub(crate) fn state(&self, near: SocketAddr, far: SocketAddr) -> Option<&str> {
        let as_originator = self.0.get(&(near, far)).map(|flow| &*flow.orig_state);
        as_originator.or_else(|| self.0.get(&(far, near)).map(|flow| &*flow.resp_state))
    }
}
