//! Programs that play a part: children in one of the namespaces, which end with the case.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use xtask::command::end_with_us;
use xtask::lab::{Lab, Netns, sockets};

/// Debian's own, for which its Python packages are.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

pub(crate) const NFT: &str = "/usr/sbin/nft";

pub(crate) const HPING: &str = "/usr/sbin/hping3";

pub(crate) const NGINX: &str = "/usr/sbin/nginx";

/// Where nginx listens.
pub(crate) const WEB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 8080);

/// How long a program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running program; killed when dropped.
pub(crate) struct Program(Child);

impl Program {
    /// Starts it and goes on.
    pub(crate) fn start(namespace: &Netns, program: &str, arguments: &[&str]) -> Self {
        Self(
            command(namespace, program, arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    /// Starts one that listens, and waits until it does.
    pub(crate) fn listening(
        namespace: &Netns,
        program: &str,
        arguments: &[&str],
        address: SocketAddr,
    ) -> Self {
        let mut program = Self::start(namespace, program, arguments);
        wait_for("the server to listen", || {
            assert!(program.runs(), "it ended at once");
            let sockets = sockets::list(namespace).unwrap();
            sockets.iter().any(|socket| socket.local == address && socket.state == "listen")
        });
        program
    }

    /// Starts one that says a line when it is ready, and waits for that.
    pub(crate) fn start_told(namespace: &Netns, program: &str, arguments: &[&str]) -> Self {
        let mut child = command(namespace, program, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{program} {arguments:?} said nothing");
        Self(child)
    }

    /// Waits until it ends by itself, and well.
    pub(crate) fn wait(&mut self) {
        assert!(self.0.wait().unwrap().success());
    }

    /// nginx with one worker, in the watched namespace at [`WEB`]: a short page at `/`, a long one at `/long`.
    pub(crate) fn nginx(lab: &Lab, directory: &Path) -> Self {
        let at = |file: &str| directory.join(file).display().to_string();
        fs::write(directory.join("long"), vec![b'x'; 4 << 20]).unwrap();
        fs::write(directory.join("index.html"), "hello\n").unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", at(kind)))
            .concat();
        let configuration = format!(
            "daemon off; user root; worker_processes 1; pid {}; error_log {};\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; {temporary} server {{ listen {WEB} backlog=511; root {}; }} }}\n",
            at("nginx.pid"),
            at("nginx.log"),
            directory.display(),
        );
        fs::write(directory.join("nginx.conf"), configuration).unwrap();
        Self::listening(lab.a(), NGINX, &["-e", &at("nginx.log"), "-c", &at("nginx.conf")], WEB)
    }

    /// Whether it has not ended yet.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // With its own children: nginx's workers outlive their master. It may have ended by itself.
        if let Some(group) = self.pid().try_into().ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Runs a program to its end.
pub(crate) fn run(namespace: &Netns, program: &str, arguments: &[&str]) -> Output {
    let output = command(namespace, program, arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    output
}

/// Sets one of a namespace's own settings, such as `net/ipv4/tcp_syncookies`.
pub(crate) fn sysctl(namespace: &Netns, name: &str, value: &str) {
    namespace.run(|| fs::write(format!("/proc/sys/{name}"), value)).unwrap().unwrap();
}

/// A server that listens for longer than a second: the daemon looks through processes no more often than that.
pub(crate) fn known_by_now() {
    thread::sleep(Duration::from_millis(1_200));
}

pub(crate) fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn command(namespace: &Netns, program: &str, arguments: &[&str]) -> Command {
    let mut command = namespace.command(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    // A test that is killed takes its programs with it.
    end_with_us(&mut command, Signal::KILL);
    command
}
