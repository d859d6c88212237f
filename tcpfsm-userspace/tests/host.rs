//! What the host knows of its sockets, asked about real ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its sockets has failed")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tcpfsm_common::fsm::State;
use tcpfsm_userspace::host::{Confidence, Host, SockDiag, Socket, States, Whose, WhyUnowned};

fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

/// Loopback delivers at once, but not before the system call returns.
fn until(host: &mut Host, (local, remote): (SocketAddr, SocketAddr), state: State) {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let seen = host.kernel_state(local, remote);
        if seen == Some(state) {
            return;
        }
        assert!(Instant::now() < deadline, "{seen:?}, not {state:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn both_ends_of_a_connection_to_ourselves_are_ours() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).unwrap();
        let (client, server) = pair(&listener);
        let mut host = Host::new();
        for stream in [&client, &server] {
            let (local, remote) = ends(stream);
            let owner = host.owner_of(local, remote).unwrap();
            assert_eq!((owner.pid, owner.confidence), (std::process::id(), Confidence::Socket));
            assert_eq!(owner.exe.as_deref(), std::env::current_exe().unwrap().to_str());
            assert_eq!(host.kernel_state(local, remote), Some(State::Established));
        }
    }
}

#[test]
fn a_wildcard_listener_is_found_under_any_address() {
    for (bind, asked) in [
        ("0.0.0.0:0", &["127.0.0.1", "127.3.2.1"][..]),
        ("[::]:0", &["127.0.0.1", "::1", "::ffff:127.0.0.1"]),
        ("127.0.0.1:0", &["127.0.0.1"]),
    ] {
        let listener = TcpListener::bind(bind).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut host = Host::new();
        for ip in asked {
            let owner = host.listener_owner((ip.parse::<IpAddr>().unwrap(), port).into());
            let owner = owner.unwrap_or_else(|| panic!("{bind} asked as {ip}"));
            assert_eq!((owner.pid, owner.confidence), (std::process::id(), Confidence::Listener));
        }
        drop(listener);
        assert_eq!(host.listener_owner(([127, 0, 0, 1], port).into()), None, "{bind} is closed");
    }
}

#[test]
fn a_dual_stack_servers_ipv4_connection_is_an_ipv4_connection() {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    assert!(server.local_addr().unwrap().is_ipv6(), "else this tests nothing");
    let (remote, local) = ends(&client);
    let mut host = Host::new();
    let found = host.socket(local, remote).unwrap().unwrap();
    assert_eq!((found.local, found.remote, found.state), (local, remote, State::Established));
    let listed = host.sockets().unwrap();
    assert!(listed.iter().any(|socket| socket.local == local && socket.remote == remote));
    assert_eq!(host.owner_of(local, remote).map(|owner| owner.pid), Some(std::process::id()));
}

#[test]
fn a_child_that_inherited_the_socket_is_the_owner() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_client, server) = pair(&listener);
    let (local, remote) = ends(&server);
    // The child's standard input is the socket; our own copy is closed with the command.
    let mut child =
        Command::new("sleep").arg("20").stdin(Stdio::from(OwnedFd::from(server))).spawn().unwrap();
    let owner = Host::new().owner_of(local, remote);
    child.kill().unwrap();
    child.wait().unwrap();
    let owner = owner.unwrap();
    assert_eq!((owner.pid, owner.comm.as_str()), (child.id(), "sleep"));
}

#[test]
fn a_socket_opened_later_is_found_within_the_walk_interval() {
    let mut host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_client, server) = pair(&listener);
    let (local, remote) = ends(&server);
    let deadline = Instant::now() + Duration::from_secs(5);
    while host.owner_of(local, remote).is_none() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A flow without a socket of its own, such as one that a SYN cookie answers: its listener is there all the same.
#[test]
fn a_listener_that_is_not_indexed_yet_is_too_new_and_not_gone() {
    let mut host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (local, nobody) = (listener.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 9], 9)));
    let answer = host.whose(local, nobody);
    assert!(matches!(answer.whose, Whose::Nobody(WhyUnowned::TooNew, _)), "{answer:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    let owner = loop {
        if let Whose::Process(owner) = host.whose(local, nobody).whose {
            break owner;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((owner.pid, owner.confidence), (std::process::id(), Confidence::Listener));
    drop(listener);
    assert_eq!(host.whose(local, nobody).whose, Whose::Nobody(WhyUnowned::NoSocket, None));
}

#[test]
fn close_wait_and_fin_wait2_are_seen_with_their_owner() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, mut server) = pair(&listener);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    let mut host = Host::new();
    until(&mut host, ends(&server), State::CloseWait);
    until(&mut host, ends(&client), State::FinWait2);
    let (local, remote) = ends(&server);
    assert_eq!(host.owner_of(local, remote).map(|owner| owner.pid), Some(std::process::id()));
}

#[test]
fn time_wait_has_no_owner_and_no_socket_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (client, mut server) = pair(&listener);
    let ((local, remote), at_server) = (ends(&client), ends(&server));
    let mut host = Host::new();
    drop(client);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    drop(server);
    until(&mut host, (local, remote), State::TimeWait);
    assert_eq!(host.owner_of(local, remote), None);
    let answer = host.whose(local, remote);
    assert_eq!(answer.state, Some(State::TimeWait));
    assert_eq!(answer.whose, Whose::Nobody(WhyUnowned::TimeWait, None));
    assert_eq!(host.socket(local, remote).unwrap().unwrap().inode, 0);
    until(&mut host, at_server, State::Closed);
    assert!(host.listener(remote).unwrap().is_some(), "the lookup must not take the listener for the flow");
}

#[test]
fn a_foreign_address_has_no_kernel_state() {
    let mut host = Host::new();
    let foreign: SocketAddr = "192.0.2.1:80".parse().unwrap();
    assert!(!host.is_local(foreign.ip()));
    assert_eq!(host.kernel_state(foreign, "192.0.2.2:1".parse().unwrap()), None);
    assert_eq!(host.kernel_state("127.0.0.1:1".parse().unwrap(), foreign), Some(State::Closed));
}

#[test]
fn unread_and_unaccepted_are_in_the_queues() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut client, server) = pair(&listener);
    let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.write_all(b"hello").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let mut host = Host::new();
    let (local, remote) = ends(&server);
    let socket = host.socket(local, remote).unwrap().unwrap();
    assert_eq!(socket.rqueue, 5);
    let idle = socket.idle.unwrap();
    assert!(idle >= Duration::from_millis(40) && idle < Duration::from_secs(30), "{idle:?}");
    assert_eq!(host.listener(local).unwrap().unwrap().rqueue, 1);
    // Nobody has accepted it: established, and no process holds it.
    let (remote, local) = ends(&waiting);
    assert_eq!(host.kernel_state(local, remote), Some(State::Established));
    assert_eq!(host.owner_of(local, remote), None);
    let answer = host.whose(local, remote);
    let Whose::Process(owner) = answer.whose else { panic!("{answer:?}") };
    assert_eq!((owner.pid, owner.confidence), (std::process::id(), Confidence::Listener));
    assert_eq!(answer.state, Some(State::Established));
    // Nobody listens, and there is no socket.
    drop((client, server, waiting));
    drop(listener);
    let nowhere: SocketAddr = "127.0.0.1:9".parse().unwrap();
    assert_eq!(host.whose(nowhere, remote).whose, Whose::Nobody(WhyUnowned::NoSocket, None));
}

#[test]
fn two_thousand_sockets_are_listed_quickly() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Most are in TIME_WAIT, which needs no open file: the usual limit is 1,024.
    let mut open = Vec::new();
    for _ in 0..2_000 {
        let (client, server) = pair(&listener);
        if open.len() < 100 {
            open.push((client, server));
        }
    }
    let mut sock_diag = SockDiag::new();
    let started = Instant::now();
    let all = sock_diag.list_detailed(States::ALL).unwrap();
    let took = started.elapsed();
    let count = |sockets: &[Socket]| {
        sockets.iter().filter(|socket| socket.local.port() == port || socket.remote.port() == port).count()
    };
    println!("{} sockets in {took:?}", all.len());
    assert!(count(&all) >= 2_000, "{}", count(&all));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(count(&sock_diag.list(States::of(&[State::Established])).unwrap()), 200);
    assert_eq!(count(&sock_diag.list(States::of(&[State::Listen])).unwrap()), 1);
}

#[test]
fn a_socket_knows_the_cgroup_that_made_it() {
    use std::os::unix::fs::MetadataExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = Host::new().listener(listener.local_addr().unwrap()).unwrap().unwrap();
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        println!("skipped: no cgroup v2");
        return;
    };
    let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let Some(root) =
        roots.iter().find(|root| std::fs::exists(format!("{root}/cgroup.procs")).unwrap_or(false))
    else {
        println!("skipped: cgroup v2 is not mounted where it usually is");
        return;
    };
    let directory = std::fs::metadata(format!("{root}/{path}")).unwrap();
    assert_eq!(socket.cgroup, Some(directory.ino()));
}
