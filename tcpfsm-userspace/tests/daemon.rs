//! The daemon on the loopback of a network namespace of its own: from the first segment to SIGTERM.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    programs::{
        SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};
use serde_json::Value;
use tcpfsm_userspace::BPF_OBJECT;

/// Runs a test in a network namespace of its own; it ends with the thread and its children.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
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

fn tcpfsm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tcpfsm"));
    command.args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running daemon; killed when the test fails.
struct Daemon {
    child: Child,
    socket: PathBuf,
    stdout: PathBuf,
}

impl Daemon {
    fn start(directory: &Path, args: &[&str]) -> Self {
        let (socket, stdout) = (directory.join("tcpfsm.sock"), directory.join("stdout"));
        let child =
            tcpfsm(&["run", "--iface", "lo", "--metrics", "off", "-o", "jsonl", "--sweep-interval", "100ms"])
                .arg("--socket")
                .arg(&socket)
                .args(args)
                .stdout(File::create(&stdout).unwrap())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
        let mut daemon = Self { child, socket, stdout };
        wait_for("the socket", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "the daemon ended at once");
            daemon.socket.exists()
        });
        daemon
    }

    fn ask(&self, args: &[&str]) -> Output {
        tcpfsm(args).arg("--socket").arg(&self.socket).output().unwrap()
    }

    /// The events so far, as objects.
    fn events(&self) -> Vec<Value> {
        let stdout = std::fs::read_to_string(&self.stdout).unwrap();
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ready() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// `side from to` of every transition of the flow to `port`.
fn walk(events: &[Value], port: u16) -> Vec<String> {
    let end = format!(":{port}");
    events
        .iter()
        .filter(|event| event["kind"] == "transition")
        .filter(|event| event["resp"].as_str().is_some_and(|resp| resp.ends_with(&end)))
        .map(|event| ["side", "from", "to"].map(|field| event[field].as_str().unwrap_or("?")).join(" "))
        .collect()
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let run = ["run", "--iface", "lo", "--metrics", "off", "-o", "text", "--socket"];
        let output = tcpfsm(&run)
            .arg(directory.path().join("tcpfsm.sock"))
            .stdout(File::options().write(true).open("/dev/full").unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("write to stdout: no space left"), "{}", text(&output.stderr));
    });
}

/// Whether SIGHUP ends a daemon that is started through a command of the system's.
fn hangs_up(through: &[&str]) -> bool {
    use rustix::process::{Pid, Signal, kill_process};
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("tcpfsm.sock");
    let [command, args @ ..] = through else { panic!("a command") };
    let mut child = Command::new(command)
        .args(args)
        .args([
            env!("CARGO_BIN_EXE_tcpfsm"),
            "run",
            "--iface",
            "lo",
            "--metrics",
            "off",
            "-o",
            "none",
            "--socket",
        ])
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the socket", || socket.exists());
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    let end = Instant::now() + Duration::from_secs(3);
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let hung_up = child.try_wait().unwrap().is_some();
    if !hung_up {
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    hung_up
}

#[test]
fn what_nohup_ignores_stays_ignored() {
    needs_kernel!();
    in_namespace(|| {
        // Whoever runs the tests may have it ignored.
        assert!(hangs_up(&["env", "--default-signal=HUP"]));
        assert!(!hangs_up(&["nohup"]));
    });
}

#[test]
fn a_connection_is_told_from_beginning_to_end() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(directory.path(), &["--stuck", "close_wait=200ms"]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut watch = tcpfsm(&["watch", "-o", "jsonl", "--kind", "anomaly", "--socket"])
            .arg(&daemon.socket)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();

        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"hello").unwrap();
        // Closed with something unread, it would send a reset.
        server.read_exact(&mut [0; 5]).unwrap();
        let listed = daemon.ask(&["list", "-o", "jsonl", "--state", "estab"]);
        let flow: Value = serde_json::from_str(text(&listed.stdout).lines().next().unwrap()).unwrap();
        assert_eq!(
            (&flow["orig_state"], &flow["resp_state"]),
            (&"established".into(), &"established".into())
        );
        assert_eq!((&flow["orig_bytes"], &flow["local"]), (&5.into(), &"both".into()));
        drop(client);

        // The server does not close: after 200 ms that is an anomaly. (It has no owner here: only this thread is in
        // the namespace, and owners are found by process.)
        let mut line = String::new();
        BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let anomaly: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(anomaly["anomaly"], "close_wait_stuck", "{line}");
        assert_eq!((&anomaly["phase"], &anomaly["kernel_state"]), (&"start".into(), &"close_wait".into()));
        assert_eq!((&anomaly["side"], &anomaly["count"]), (&"resp".into(), &1.into()));
        let _ = watch.kill();
        let _ = watch.wait();

        drop(server);
        wait_for("the end of the connection", || {
            daemon.events().iter().any(|event| event["kind"] == "conn_closed")
        });
        wait_for("the end of the anomaly", || daemon.events().iter().any(|event| event["phase"] == "end"));
        let events = daemon.events();
        assert_eq!(
            walk(&events, port),
            [
                "orig closed syn_sent",
                "resp listen syn_recv",
                "orig syn_sent established",
                "resp syn_recv established",
                "orig established fin_wait1",
                "resp established close_wait",
                "orig fin_wait1 fin_wait2",
                "resp close_wait last_ack",
                "orig fin_wait2 time_wait",
                "resp last_ack closed",
            ]
        );
        let closed = events.iter().find(|event| event["kind"] == "conn_closed").unwrap();
        assert_eq!((&closed["reason"], &closed["orig_bytes"]), (&"finish".into(), &5.into()));
        for (event, seq) in events.iter().zip(1..) {
            assert_eq!((&event["v"], &event["seq"]), (&1.into(), &seq.into()), "no gap");
        }

        let stats: Value = serde_json::from_slice(&daemon.ask(&["stats", "-o", "json"]).stdout).unwrap();
        assert_eq!(stats["gap_seconds"], 0.0, "no other was there before");
        let evicted = stats["maps"].as_array().unwrap().iter().map(|map| &map["evicted"]);
        assert!(evicted.into_iter().all(|evicted| evicted.as_array().unwrap().is_empty()), "{stats}");
        assert_eq!((&stats["opened"], &stats["flows"]), (&1.into(), &1.into()), "in TIME-WAIT: {stats}");

        let asked = Instant::now();
        daemon.signal(rustix::process::Signal::TERM);
        assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        assert!(!daemon.socket.exists());
    });
}

#[test]
fn a_second_daemon_is_refused_and_a_killed_one_replaced() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Daemon::start(directory.path(), &[]);
        let second = tcpfsm(&["run", "--iface", "lo", "--metrics", "off", "--socket"])
            .arg(&first.socket)
            .output()
            .unwrap();
        assert_eq!(second.status.code(), Some(1));
        assert!(
            text(&second.stderr).contains(&format!("(pid {})", first.child.id())),
            "{}",
            text(&second.stderr)
        );
        let detach = first.ask(&["detach"]);
        assert_eq!(detach.status.code(), Some(1), "its attachments are its own");

        let killed = Instant::now();
        first.child.kill().unwrap();
        first.child.wait().unwrap();
        assert!(first.socket.exists(), "a killed daemon leaves its socket");
        let detach = first.ask(&["detach"]);
        assert_eq!(detach.status.code(), Some(0));
        assert!(text(&detach.stdout).contains("removed the stale socket"), "{}", text(&detach.stdout));
        std::thread::sleep(Duration::from_millis(500));
        let third = Daemon::start(directory.path(), &[]);
        let stats: Value = serde_json::from_slice(&third.ask(&["stats", "-o", "json"]).stdout).unwrap();
        let gap = stats["gap_seconds"].as_f64().unwrap();
        // The last mark is a second old at most, and told late where the machine is busy.
        let most = killed.elapsed().as_secs_f64() + 2.0;
        assert!((0.5..most).contains(&gap), "nobody observed for {gap} s");
    });
}

#[test]
fn a_port_in_use_is_named() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let output = tcpfsm(&["run", "--iface", "lo", "--metrics", &address.to_string(), "--socket"])
            .arg(directory.path().join("tcpfsm.sock"))
            .output()
            .unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("port {} is in use", address.port())), "{stderr}");
        assert!(stderr.contains("--metrics") && output.stdout.is_empty(), "{stderr}");
    });
}

/// What `tc` shows of the filters for packets that come in on the loopback.
fn filters() -> String {
    text(&Command::new("tc").args(["filter", "show", "dev", "lo", "ingress"]).output().unwrap().stdout)
}

/// On kernels without TCX a killed daemon's filters stay.
#[test]
fn detach_takes_clsact_filters_away() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        {
            let mut ebpf = EbpfLoader::new().load(BPF_OBJECT).unwrap();
            let program: &mut SchedClassifier =
                ebpf.program_mut("tcpfsm_ingress").unwrap().try_into().unwrap();
            program.load().unwrap();
            qdisc_add_clsact("lo").unwrap();
            let id = program
                .attach_with_options(
                    "lo",
                    TcAttachType::Ingress,
                    TcAttachOptions::Netlink(NlOptions::default()),
                )
                .unwrap();
            std::mem::forget(program.take_link(id).unwrap());
        }
        assert!(filters().contains("tcpfsm_ingress"), "{}", filters());
        let detach =
            || tcpfsm(&["detach", "--socket"]).arg(directory.path().join("none.sock")).output().unwrap();
        let output = detach();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("removed clsact ingress filter tcpfsm_ingress from lo"));
        assert_eq!(filters(), "");
        let output = detach();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(!text(&output.stdout).contains("removed"));
    });
}

/// Its successor takes them away, and nobody takes away those of a daemon that runs.
#[test]
fn a_killed_daemons_clsact_filters_do_not_pile_up() {
    needs_kernel!();
    in_namespace(|| {
        let directories = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let ours = || filters().matches("name tcpfsm_ingress").count();
        drop(Daemon::start(directories[0].path(), &["--ingress", "clsact"]));
        assert_eq!(ours(), 1, "killed, it leaves its filter: {}", filters());
        let mut second = Daemon::start(directories[1].path(), &["--ingress", "clsact"]);
        assert_eq!(ours(), 1, "{}", filters());
        let stats: Value = serde_json::from_slice(&second.ask(&["stats", "-o", "json"]).stdout).unwrap();
        assert_eq!(stats["attached"][0]["mode"], "clsact");

        let detach =
            tcpfsm(&["detach", "--socket"]).arg(directories[0].path().join("tcpfsm.sock")).output().unwrap();
        assert_eq!(detach.status.code(), Some(0), "{}", text(&detach.stderr));
        let kept = format!("kept clsact ingress filter tcpfsm_ingress on lo: process {}", second.child.id());
        assert!(text(&detach.stdout).contains(&kept), "{}", text(&detach.stdout));
        assert_eq!(ours(), 1, "{}", filters());

        second.signal(rustix::process::Signal::TERM);
        assert_eq!(second.child.wait().unwrap().code(), Some(0));
        assert_eq!(filters(), "");
    });
}
