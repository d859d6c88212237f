//! Warm start and the two views, with real sockets: what existed before the daemon is known, what differs is told, and
//! what went without a segment is closed.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "support/loopback.rs"]
mod loopback;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    time::Duration,
};

use loopback::{Daemon, in_namespace, wait_for};
use serde_json::Value;
use tcpfsm_userspace::BPF_OBJECT;

macro_rules! needs_kernel {
    () => {
        if BPF_OBJECT.is_empty() {
            println!("skipped: built without kernel programs: cargo xtask build");
            return;
        }
        if !rustix::process::geteuid().is_root() {
            println!("skipped: not root");
            return;
        }
    };
}

fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// The flow that this client opened.
fn flow(daemon: &Daemon, client: SocketAddr) -> Option<Value> {
    let flows =
        daemon.flows(&["--state", "closed,estab,fin_wait1,fin_wait2,close_wait,closing,last_ack,time_wait"]);
    flows.into_iter().find(|flow| flow["orig"] == client.to_string())
}

fn states(flow: &Value) -> [&str; 2] {
    ["orig_state", "resp_state"].map(|field| flow[field].as_str().unwrap())
}

/// In repair mode a socket is closed without a word to its peer.
fn forget(stream: TcpStream) {
    let on: libc::c_int = 1;
    let fd: RawFd = stream.as_raw_fd();
    // SAFETY: the value is an int that lives through the call, with its size.
    let outcome = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(outcome, 0, "TCP_REPAIR: {}", std::io::Error::last_os_error());
}

#[test]
fn connections_from_before_are_known_in_state_and_direction() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let (mut open, mut open_server) = pair(&listener);
        let (six_client, _six_server) = pair(&six);
        let (half, mut half_server) = pair(&listener);
        half.shutdown(Shutdown::Write).unwrap();
        assert_eq!(half_server.read(&mut [0]).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(300));

        let daemon = Daemon::start(directory.path(), &[]);
        assert_eq!(
            daemon.flows(&[]).len(),
            3,
            "both sockets of a connection are one flow: {:?}",
            daemon.flows(&[])
        );
        for (client, expected) in [
            (&open, ["established", "established"]),
            (&six_client, ["established", "established"]),
            (&half, ["fin_wait2", "close_wait"]),
        ] {
            let found = flow(&daemon, client.local_addr().unwrap()).unwrap();
            assert_eq!(states(&found), expected);
            assert_eq!(
                found["resp"],
                client.peer_addr().unwrap().to_string(),
                "who listens is the responder"
            );
            assert_eq!((&found["picked_up"], &found["local"]), (&true.into(), &"both".into()));
            assert_eq!((&found["orig_confirmed"], &found["resp_confirmed"]), (&true.into(), &true.into()));
            let age = found["age_ns"].as_u64().unwrap();
            assert!(age >= 250_000_000, "idle for 300 ms: {age}");
            assert_eq!(found["iface"], "lo");
            for end in ["orig_dwell_at_least", "resp_dwell_at_least"] {
                assert_eq!(found[end], true, "when it came into its state is not known: {found}");
            }
        }
        let table = loopback::text(&daemon.ask(&["list", "-o", "wide"]).stdout);
        let marked = |line: &str| line.split_whitespace().filter(|cell| cell.starts_with('>')).count();
        assert!(table.lines().skip(1).all(|line| marked(line) == 2), "DWELL and AGE: {table}");
        assert_eq!(daemon.stats()["views"]["seeded"], 3);

        // The first segments attach: nothing changes but the counts.
        open.write_all(b"hello").unwrap();
        open_server.read_exact(&mut [0; 5]).unwrap();
        open_server.write_all(b"world").unwrap();
        open.read_exact(&mut [0; 5]).unwrap();
        let client = open.local_addr().unwrap();
        wait_for("the data", || flow(&daemon, client).unwrap()["resp_bytes"] == 5);
        let found = flow(&daemon, client).unwrap();
        assert_eq!((states(&found), &found["orig_bytes"]), (["established"; 2], &5.into()));
        assert_eq!(daemon.events().len(), 0, "no transition is invented: {:?}", daemon.events());

        // And it ends as any other.
        drop(open);
        assert_eq!(open_server.read(&mut [0]).unwrap(), 0);
        drop(open_server);
        wait_for("the end", || {
            flow(&daemon, client).is_some_and(|flow| states(&flow) == ["time_wait", "closed"])
        });
        let closed = || daemon.events().into_iter().find(|event| event["kind"] == "conn_closed");
        wait_for("the event", || closed().is_some());
        let closed = closed().unwrap();
        assert_eq!((&closed["reason"], &closed["orig"]), (&"finish".into(), &client.to_string().into()));
    });
}

#[test]
fn a_half_closed_connection_from_before_ends_where_its_sockets_end() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (half, mut server) = pair(&listener);
        half.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        let client = half.local_addr().unwrap();
        let daemon = Daemon::start(directory.path(), &[]);
        // The server's FIN is seen, the client's never was.
        drop(server);
        let over = || daemon.events().iter().any(|event| event["kind"] == "conn_closed");
        wait_for("the end", over);
        let found = flow(&daemon, client).unwrap();
        assert_eq!(states(&found)[0], "time_wait", "{found}");
    });
}

#[test]
fn a_flow_whose_sockets_went_without_a_segment_is_closed() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (old_client, old_server) = pair(&listener);
        let daemon = Daemon::start(directory.path(), &[]);
        let (client, server) = pair(&listener);
        let ends = [old_client.local_addr().unwrap(), client.local_addr().unwrap()];
        wait_for("the comparison", || daemon.stats()["views"]["agreed"].as_u64().unwrap() > 20);
        for stream in [old_client, old_server, client, server] {
            forget(stream);
        }
        let closed = |address: SocketAddr| {
            let events = daemon.events();
            events
                .into_iter()
                .find(|event| event["kind"] == "conn_closed" && event["orig"] == address.to_string())
        };
        for address in ends {
            wait_for("the end", || closed(address).is_some());
            let event = closed(address).unwrap();
            assert_eq!(event["reason"], "socket_gone", "{event}");
            assert_eq!((&event["orig_state"], &event["resp_state"]), (&"closed".into(), &"closed".into()));
        }
        let whys: Vec<_> = daemon
            .events()
            .iter()
            .filter(|event| event["kind"] == "transition" && event["to"] == "closed")
            .map(|event| event["cause"]["why"].as_str().unwrap().to_owned())
            .collect();
        assert!(whys.iter().all(|why| why == "own_socket" || why == "socket_gone"), "{whys:?}");
        let stats = daemon.stats();
        assert_eq!(stats["views"]["gone"], 4, "each end once");
        let reasons = stats["closed"].as_array().unwrap();
        let gone = reasons.iter().find(|reason| reason["name"] == "socket_gone").unwrap();
        assert_eq!(gone["count"], 2);
    });
}

#[test]
fn a_fin_that_waits_behind_a_closed_window_is_a_difference_that_is_told() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(directory.path(), &[]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, mut server) = pair(&listener);
        let address = client.local_addr().unwrap();
        client.set_nonblocking(true).unwrap();
        loop {
            match client.write(&[0; 65_536]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        // Closed: the kernel's socket is in FIN_WAIT1, but the FIN cannot leave.
        drop(client);
        let anomaly = |phase: &str| {
            let events = daemon.events();
            events.into_iter().find(|event| event["anomaly"] == "view_mismatch" && event["phase"] == phase)
        };
        wait_for("the anomaly", || anomaly("start").is_some());
        let start = anomaly("start").unwrap();
        assert_eq!(
            (&start["state"], &start["kernel_state"]),
            (&"established".into(), &"fin_wait1".into()),
            "{start}"
        );
        assert_eq!((&start["orig"], &start["side"]), (&address.to_string().into(), &"orig".into()));
        assert!(daemon.stats()["views"]["differed"].as_u64().unwrap() > 0);
        assert_eq!(daemon.stats()["views"]["differing"], 1);

        // The server reads: the FIN leaves, and both views agree again.
        let mut sink = vec![0; 1 << 20];
        while server.read(&mut sink).unwrap() > 0 {}
        wait_for("the end of the anomaly", || anomaly("end").is_some());
        drop(server);
    });
}

/// A daemon for which FIN_WAIT2 is stuck and expires soon.
fn impatient(directory: &Path, timeout: &str, args: &[&str]) -> Daemon {
    let config = directory.join("tcpfsm.toml");
    let text = format!(
        "[timeouts]\nfin_wait2 = \"{timeout}\"\n[stuck]\nfin_wait2 = \"300ms\"\n\
         [detect]\nfin_wait2_stuck = {{ count = 1 }}\n"
    );
    std::fs::write(&config, text).unwrap();
    Daemon::start(directory, &[&["--config", config.to_str().unwrap()], args].concat())
}

/// A connection whose client has finished, and whose server has not.
fn half_closed(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let (client, mut server) = pair(listener);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    (client, server)
}

fn anomaly(daemon: &Daemon, kind: &str, phase: &str) -> Option<Value> {
    daemon.events().into_iter().find(|event| event["anomaly"] == kind && event["phase"] == phase)
}

/// Why this client's end came from FIN_WAIT2 to CLOSED, if it did.
fn why_closed(daemon: &Daemon, client: SocketAddr) -> Option<String> {
    let is_end = |event: &Value| {
        event["kind"] == "transition"
            && event["orig"] == client.to_string()
            && (&event["from"], &event["to"]) == (&"fin_wait2".into(), &"closed".into())
    };
    let end = daemon.events().into_iter().find(is_end)?;
    Some(end["cause"]["why"].as_str().unwrap().to_owned())
}

#[test]
fn the_clock_ends_no_state_that_the_socket_is_still_in() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let daemon = impatient(directory.path(), "1s", &[]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, server) = half_closed(&listener);
        let (other, other_server) = half_closed(&listener);
        let [address, other_address] = [&client, &other].map(|stream| stream.local_addr().unwrap());
        wait_for("the anomaly", || anomaly(&daemon, "fin_wait2_stuck", "start").is_some());
        // As long as four timeouts, and as it takes to tell of a difference.
        std::thread::sleep(Duration::from_secs(4));
        for address in [address, other_address] {
            assert_eq!(states(&flow(&daemon, address).unwrap()), ["fin_wait2", "close_wait"]);
            assert_eq!(why_closed(&daemon, address), None, "{:?}", daemon.events());
        }
        assert_eq!(anomaly(&daemon, "fin_wait2_stuck", "end"), None);

        // One ends by its peer's FIN, as ever; the other's sockets go without a word.
        drop(server);
        wait_for("the end", || states(&flow(&daemon, address).unwrap()) == ["time_wait", "closed"]);
        forget(other);
        wait_for("the other's end", || why_closed(&daemon, other_address).is_some());
        assert_eq!(why_closed(&daemon, other_address).unwrap(), "own_socket");
        forget(other_server);
        wait_for("the end of the anomaly", || anomaly(&daemon, "fin_wait2_stuck", "end").is_some());
        assert_eq!(anomaly(&daemon, "view_mismatch", "start"), None, "{:?}", daemon.events());
    });
}

#[test]
fn what_the_clock_ended_before_anybody_asked_is_taken_back() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        // Less than lies between two sweeps: of some the time is up before they are looked at.
        let daemon = impatient(directory.path(), "50ms", &["--timeout", "close_wait=50ms"]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pairs: Vec<_> = (0..10)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(23));
                half_closed(&listener)
            })
            .collect();
        let clients: Vec<_> = pairs.iter().map(|(client, _)| client.local_addr().unwrap()).collect();
        let closed = |client: &SocketAddr, reason: &str| {
            daemon.events().iter().any(|event| {
                event["kind"] == "conn_closed"
                    && event["orig"] == client.to_string()
                    && event["reason"] == reason
            })
        };
        wait_for("a timeout", || clients.iter().any(|client| closed(client, "timeout")));
        let is_back = |&client: &SocketAddr| {
            flow(&daemon, client).is_some_and(|flow| states(&flow) == ["fin_wait2", "close_wait"])
        };
        wait_for("their sockets' states", || clients.iter().all(is_back));
        for (_, server) in &pairs {
            server.shutdown(Shutdown::Write).unwrap();
        }
        wait_for("the ends", || clients.iter().all(|client| closed(client, "finish")));
        assert_eq!(anomaly(&daemon, "view_mismatch", "start"), None, "{:?}", daemon.events());
    });
}

#[test]
fn a_half_closed_connection_from_before_is_not_ended_for_its_long_silence() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, server) = half_closed(&listener);
        let address = client.local_addr().unwrap();
        std::thread::sleep(Duration::from_millis(700));
        let daemon = impatient(directory.path(), "500ms", &[]);
        wait_for("the anomaly", || anomaly(&daemon, "fin_wait2_stuck", "start").is_some());
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(states(&flow(&daemon, address).unwrap()), ["fin_wait2", "close_wait"]);
        assert_eq!(why_closed(&daemon, address), None, "{:?}", daemon.events());
        drop(server);
        wait_for("the end", || states(&flow(&daemon, address).unwrap())[0] == "time_wait");
    });
}

#[test]
fn the_clock_ends_what_has_no_socket() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let daemon = impatient(directory.path(), "1500ms", &[]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, _server) = half_closed(&listener);
        let address = client.local_addr().unwrap();
        let waits = || daemon.events().iter().any(|event| event["to"] == "fin_wait2");
        wait_for("the FIN's ACK", waits);
        // Gone before its silence is worth a note; where this thread had to wait for its turn, after that.
        forget(client);
        wait_for("the timeout", || why_closed(&daemon, address).is_some());
        let why = why_closed(&daemon, address).unwrap();
        assert!(why == "timeout" || why == "own_socket", "{why}");
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(states(&flow(&daemon, address).unwrap()), ["closed", "close_wait"]);
        assert_eq!(anomaly(&daemon, "view_mismatch", "start"), None, "{:?}", daemon.events());
    });
}

#[test]
fn a_gateway_goes_by_the_clock() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let daemon = impatient(directory.path(), "1s", &["--vantage", "gateway"]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, _server) = half_closed(&listener);
        let address = client.local_addr().unwrap();
        wait_for("the timeout", || why_closed(&daemon, address).is_some());
        assert_eq!(why_closed(&daemon, address).unwrap(), "timeout");
    });
}

#[test]
fn a_gateway_asks_no_socket() {
    needs_kernel!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _before = pair(&listener);
        let daemon = Daemon::start(directory.path(), &["--vantage", "gateway"]);
        assert_eq!(daemon.flows(&[]).len(), 0);
        let _after = pair(&listener);
        wait_for("the flow", || daemon.flows(&[]).len() == 1);
        std::thread::sleep(Duration::from_millis(400));
        let views = &daemon.stats()["views"];
        for count in ["seeded", "agreed", "differed", "gone", "followed"] {
            assert_eq!(views[count], 0, "{views}");
        }
    });
}
