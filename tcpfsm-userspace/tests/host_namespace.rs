//! What the host knows of its sockets, where an own network namespace or other privileges are needed.
//!
//! Without root these tests say so and pass.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its sockets has failed")]

use std::{
    io::Read as _,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::thread::{CapabilitySet, UnshareFlags};
use tcpfsm_common::fsm::State;
use tcpfsm_userspace::host::{Confidence, Host, SockDiag, States, Whose, WhyUnowned};

/// Runs `test` on a thread with a network namespace of its own, in which only loopback is up.
fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the thread has opened nothing that belongs to the namespace it leaves.
            if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
                println!("skipped: no own network namespace ({error})");
                return;
            }
            ip("link set lo up");
            test();
        });
        thread.join().unwrap();
    });
}

/// A child process is born into the namespace of the thread that starts it.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn within<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_address_is_local_soon_after_it_is_added_and_no_longer_when_removed() {
    in_namespace(|| {
        let host = Host::new();
        let addresses: [IpAddr; 2] = ["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let soon = Duration::from_secs(4);
        assert!(!addresses.iter().any(|&address| host.is_local(address)));
        ip("addr add 198.51.100.7/32 dev lo");
        ip("addr add 2001:db8::7/128 dev lo");
        let all = || addresses.iter().all(|&address| host.is_local(address)).then_some(());
        assert!(within(soon, all).is_some());
        ip("addr del 198.51.100.7/32 dev lo");
        assert!(within(soon, || (!host.is_local(addresses[0])).then_some(())).is_some());
    });
}

#[test]
fn sockets_bound_to_an_interface_are_found() {
    in_namespace(|| {
        ip("link add va type veth peer name vb");
        ip("link set va up");
        ip("link set vb up");
        ip("addr add fe80::1234/64 dev va nodad");
        let link_local: Ipv6Addr = "fe80::1234".parse().unwrap();
        let index = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let line = index.lines().find(|line| line.starts_with("fe800000000000000000000000001234")).unwrap();
        let index = u32::from_str_radix(line.split_ascii_whitespace().nth(1).unwrap(), 16).unwrap();

        let listener = TcpListener::bind(SocketAddrV6::new(link_local, 0, 0, index)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let plain = |address: SocketAddr| SocketAddr::from((address.ip(), address.port()));
        let (local, remote) = (plain(client.local_addr().unwrap()), plain(client.peer_addr().unwrap()));

        let mut alone = SockDiag::new();
        assert_eq!(alone.find(local, remote, 0).unwrap(), None, "else the interfaces are tried for nothing");
        assert_eq!(alone.find(local, remote, index).unwrap().unwrap().ifindex, index);

        let mut host = Host::new();
        assert!(host.is_local(link_local.into()));
        for (local, remote) in [(local, remote), (remote, local)] {
            assert_eq!(host.kernel_state(local, remote), Some(State::Established));
            assert_eq!(host.owner_of(local, remote).unwrap().pid, std::process::id());
        }
        assert_eq!(host.listener_owner(remote).unwrap().pid, std::process::id());
    });
}

#[test]
fn a_request_socket_is_in_syn_recv_and_only_its_listener_has_an_owner() {
    in_namespace(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // With TCP_DEFER_ACCEPT the last ACK of the handshake leaves the request socket as it is.
        let seconds: libc::c_int = 30;
        // SAFETY: the value is an int that lives through the call, with its size.
        let outcome = unsafe {
            libc::setsockopt(
                listener.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_DEFER_ACCEPT,
                (&raw const seconds).cast(),
                size_of_val(&seconds) as libc::socklen_t,
            )
        };
        assert_eq!(outcome, 0);
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (remote, local) = (client.local_addr().unwrap(), client.peer_addr().unwrap());

        let mut host = Host::new();
        assert_eq!(host.kernel_state(local, remote), Some(State::SynRecv));
        assert_eq!(host.kernel_state(remote, local), Some(State::Established));
        assert_eq!(host.owner_of(local, remote), None);
        let whose = host.whose(local, remote).whose;
        let Whose::Process(owner) = whose else { panic!("{whose:?}") };
        assert_eq!((owner.pid, owner.confidence), (std::process::id(), Confidence::Listener));
        let requests = SockDiag::new().list(States::of(&[State::SynRecv])).unwrap();
        assert_eq!(
            requests.iter().map(|socket| (socket.local, socket.remote)).collect::<Vec<_>>(),
            [(local, remote)]
        );
    });
}

#[test]
fn a_socket_closed_before_its_peer_is_an_orphan() {
    in_namespace(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop(client);
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        let mut host = Host::new();
        // The reader wakes before the acknowledgment of the FIN is sent.
        let fin_wait2 = || (host.kernel_state(local, remote) == Some(State::FinWait2)).then_some(());
        assert!(
            within(Duration::from_secs(2), fin_wait2).is_some(),
            "{:?}",
            host.kernel_state(local, remote)
        );
        assert_eq!(host.owner_of(local, remote), None);
        let whose = host.whose(local, remote).whose;
        assert!(matches!(whose, Whose::Nobody(WhyUnowned::Orphan, _)), "{whose:?}");
        assert_eq!(host.owner_of(remote, local).unwrap().pid, std::process::id());
    });
}

#[test]
fn another_namespace_has_other_sockets() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    assert!(Host::new().listener_owner(address).is_some());
    in_namespace(|| assert_eq!(Host::new().listener_owner(address), None));
}

#[test]
fn without_capabilities_the_reason_is_given_and_the_rest_works() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let (server, remote) = listener.accept().unwrap();
    let local = server.local_addr().unwrap();
    let input = Stdio::from(OwnedFd::from(server));
    let mut sleeper = Command::new("sleep").arg("20").stdin(input).spawn().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            if !sets.effective.contains(CapabilitySet::SYS_PTRACE) {
                println!("skipped: no CAP_SYS_PTRACE to give up");
                return;
            }
            // Of this thread only.
            sets.effective = CapabilitySet::empty();
            sets.permitted = CapabilitySet::empty();
            rustix::thread::set_capabilities(None, sets).unwrap();
            let mut host = Host::new();
            let reason = host.degraded().unwrap().to_owned();
            println!("{reason}");
            assert!(reason.contains("CAP_SYS_PTRACE"), "{reason}");
            assert!(host.sockets().is_ok(), "sock_diag needs no capability");
            assert_eq!(
                host.listener_owner(address).unwrap().pid,
                std::process::id(),
                "our own are still seen"
            );
            let whose = host.whose(local, remote).whose;
            assert!(matches!(whose, Whose::Nobody(WhyUnowned::Hidden, _)), "the sleeper's is not: {whose:?}");
        });
        let outcome = thread.join();
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        outcome.unwrap();
    });
}
