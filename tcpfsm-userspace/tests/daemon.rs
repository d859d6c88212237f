//! The daemon on the loopback of a network namespace of its own: from the first segment to SIGTERM.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/loopback.rs"]
mod loopback;
mod support;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    programs::{
        SchedClassifier, TcAttachType,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};
use loopback::{Daemon, Running, in_namespace, tcpfsm, text, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use tcpfsm_userspace::BPF_OBJECT;

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

/// What it says to people is worth less than what it does.
#[test]
fn a_full_disk_behind_stderr_is_none() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let socket = directory.path().join("tcpfsm.sock");
        let run =
            ["run", "--iface", "lo", "--metrics", "off", "-o", "none", "--log-level", "debug", "--socket"];
        let mut daemon = Running::start(tcpfsm(&run).arg(&socket).stderr(full()));
        wait_for("the socket", || daemon.has_ended() || socket.exists());
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait().code(), Some(0));
        let list = tcpfsm(&["list", "--socket"]).arg(&socket).stderr(full()).output().unwrap();
        assert_eq!(list.status.code(), Some(1));
    });
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(directory.path(), &[]);
        daemon.process.signal(Signal::STOP);
        let check = daemon.ask(&["check", "--nagios"]);
        assert_eq!(check.status.code(), Some(3), "{}", text(&check.stderr));
        assert!(text(&check.stdout).contains("has not answered for 10 s"), "{}", text(&check.stdout));
    });
}

/// Whether SIGHUP ends a daemon that is started through a command of the system's.
fn hangs_up(through: &[&str]) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("tcpfsm.sock");
    let [command, args @ ..] = through else { panic!("a command") };
    let run = ["run", "--iface", "lo", "--metrics", "off", "-o", "none", "--socket"];
    let mut daemon = Running::start(
        Command::new(command)
            .args(args)
            .arg(env!("CARGO_BIN_EXE_tcpfsm"))
            .args(run)
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    wait_for("the socket", || socket.exists());
    daemon.signal(Signal::HUP);
    let end = Instant::now() + Duration::from_secs(3);
    while !daemon.has_ended() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let hung_up = daemon.has_ended();
    if !hung_up {
        daemon.signal(Signal::TERM);
    }
    assert_eq!(daemon.wait().code(), Some(0));
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
        let started = |daemon: &Daemon| {
            daemon.events().into_iter().find(|event| event["anomaly"] == "close_wait_stuck")
        };
        wait_for("the anomaly", || started(&daemon).is_some());
        let anomaly = started(&daemon).unwrap();
        assert_eq!((&anomaly["phase"], &anomaly["kernel_state"]), (&"start".into(), &"close_wait".into()));
        assert_eq!((&anomaly["side"], &anomaly["count"]), (&"resp".into(), &1.into()));

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
        daemon.process.signal(Signal::TERM);
        assert_eq!(daemon.process.wait().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
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
            text(&second.stderr).contains(&format!("(pid {})", first.process.pid())),
            "{}",
            text(&second.stderr)
        );
        let detach = first.ask(&["detach"]);
        assert_eq!(detach.status.code(), Some(1), "its attachments are its own");

        let killed = Instant::now();
        first.process.signal(Signal::KILL);
        first.process.wait();
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

/// Where a kernel has no TCX, others may have their filters, and an older qdisc in the place of clsact.
#[test]
fn clsact_stands_back_behind_others() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let run = |line: &str| {
            let [program, arguments @ ..] = &line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("a command")
            };
            assert!(Command::new(program).args(arguments).status().unwrap().success(), "{line}");
        };
        run("ip link add v0 type veth peer name v1");
        run("ip link set v0 up");
        run("tc qdisc add dev v0 clsact");
        run("tc filter add dev v0 egress prio 1 protocol ip u32 match u32 0 0");
        let daemon = Daemon::start(directory.path(), &["--ingress", "clsact", "--iface", "v0"]);
        assert!(daemon.stderr().contains("other egress filters come before ours"), "{}", daemon.stderr());
        drop(daemon);

        run("tc qdisc del dev v0 clsact");
        run("tc qdisc add dev v0 ingress");
        let refused =
            tcpfsm(&["run", "--iface", "v0", "--metrics", "off", "--ingress", "clsact", "--socket"])
                .arg(directory.path().join("other.sock"))
                .output()
                .unwrap();
        assert_eq!(refused.status.code(), Some(1));
        let stderr = text(&refused.stderr);
        assert!(stderr.contains("an ingress qdisc is in the place of clsact"), "{stderr}");
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
        let kept =
            format!("kept clsact ingress filter tcpfsm_ingress on lo: process {}", second.process.pid());
        assert!(text(&detach.stdout).contains(&kept), "{}", text(&detach.stdout));
        assert_eq!(ours(), 1, "{}", filters());

        second.process.signal(Signal::TERM);
        assert_eq!(second.process.wait().code(), Some(0));
        assert_eq!(filters(), "");
    });
}
