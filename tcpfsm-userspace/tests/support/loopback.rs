//! The daemon on the loopback of a network namespace of its own.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    fs::File,
    io::Read as _,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::command::end_with_us;

/// Runs a test in a network namespace of its own; it ends with the thread and its children.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes; nothing else of the process is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "ip link set lo up");
        test();
    })
    .join()
    .unwrap();
}

pub(crate) fn tcpfsm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpfsm"));
    command.args(args);
    command
}

/// A connection that its client has finished and its server does not close.
pub(crate) struct Leak {
    /// Where it listens.
    pub(crate) service: String,
    pub(crate) client: TcpStream,
    server: TcpStream,
    listener: TcpListener,
}

impl Leak {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = listener.local_addr().unwrap().to_string();
        let client = TcpStream::connect(&service).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        Self { service, client, server, listener }
    }

    /// One more connection of this kind at the same service: its client's end and its server's.
    pub(crate) fn another(&self) -> [TcpStream; 2] {
        let client = TcpStream::connect(&self.service).unwrap();
        let (mut server, _) = self.listener.accept().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        [client, server]
    }

    /// The server closes it at last; what is left still stands.
    pub(crate) fn close(self) -> (TcpStream, TcpListener) {
        (self.client, self.listener)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process; killed when the test ends, however it ends.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        end_with_us(command, Signal::KILL);
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) process: Running,
    pub(crate) socket: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    pub(crate) fn start(directory: &Path, args: &[&str]) -> Self {
        let [socket, stdout, stderr] = ["tcpfsm.sock", "stdout", "stderr"].map(|name| directory.join(name));
        let metrics: &[&str] = if args.contains(&"--metrics") { &[] } else { &["--metrics", "off"] };
        let process = Running::start(
            tcpfsm(&["run", "--iface", "lo", "-o", "jsonl", "--sweep-interval", "100ms"])
                .args(metrics)
                .arg("--socket")
                .arg(&socket)
                .args(args)
                .stdout(File::create(&stdout).unwrap())
                .stderr(File::create(&stderr).unwrap())
                .stdin(Stdio::null()),
        );
        let mut daemon = Self { process, socket, stdout, stderr };
        wait_for("the socket", || {
            assert!(!daemon.process.has_ended(), "the daemon ended at once: {}", daemon.stderr());
            UnixStream::connect(&daemon.socket).is_ok()
        });
        daemon
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        tcpfsm(args).arg("--socket").arg(&self.socket).output().unwrap()
    }

    /// What it said to people so far.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// The events so far, as objects.
    pub(crate) fn events(&self) -> Vec<Value> {
        let stdout = std::fs::read_to_string(&self.stdout).unwrap();
        stdout
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The flows now.
    pub(crate) fn flows(&self, args: &[&str]) -> Vec<Value> {
        let listed = self.ask(&[&["list", "-o", "jsonl"], args].concat());
        assert!(listed.status.success(), "{}", text(&listed.stderr));
        text(&listed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The answer to `stats`.
    pub(crate) fn stats(&self) -> Value {
        serde_json::from_slice(&self.ask(&["stats", "-o", "json"]).stdout).unwrap()
    }
}

pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    // Loading the programs may take that long on a busy machine.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
