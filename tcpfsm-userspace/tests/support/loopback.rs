//! The daemon on the loopback of a network namespace of its own.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::{
    fs::File,
    io::Read as _,
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

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

    /// The server closes it at last; what is left still stands.
    pub(crate) fn close(self) -> (TcpStream, TcpListener) {
        (self.client, self.listener)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running daemon; killed when the test fails.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Daemon {
    pub(crate) fn start(directory: &Path, args: &[&str]) -> Self {
        let [socket, stdout, stderr] = ["tcpfsm.sock", "stdout", "stderr"].map(|name| directory.join(name));
        let child =
            tcpfsm(&["run", "--iface", "lo", "--metrics", "off", "-o", "jsonl", "--sweep-interval", "100ms"])
                .arg("--socket")
                .arg(&socket)
                .args(args)
                .stdout(File::create(&stdout).unwrap())
                .stderr(File::create(&stderr).unwrap())
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
        let mut daemon = Self { child, socket, stdout, stderr };
        wait_for("the socket", || {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon ended at once: {}", daemon.stderr());
            daemon.socket.exists()
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

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
