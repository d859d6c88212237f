//! What happens between real sockets, and the points at which kernel and tracker are compared.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};
use xtask::lab::{
    Family, Netns,
    peer::ScriptedPeer,
    segment::{ACK, FIN, PSH, RST, SYN},
};

use super::{Expect, Watched};

/// Connections of one kind at a time.
const CONNECTIONS: usize = 6;
/// No socket waits longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// A conversation; it is held in both families.
pub(crate) type Play = fn(&Watched, Family);

/// All of them. Those with `from_a` have their client in the watched namespace, so that each end's states are
/// seen both as the near and as the far ones.
pub(crate) const CONVERSATIONS: &[(&str, Play)] = &[
    ("the client closes first", |w, f| client_closes(w, f, Way::IntoA)),
    ("the client closes first, from a", |w, f| client_closes(w, f, Way::FromA)),
    ("the server closes first", |w, f| server_closes(w, f, Way::IntoA)),
    ("the server closes first, from a", |w, f| server_closes(w, f, Way::FromA)),
    ("half-close", |w, f| half_close(w, f, Way::IntoA)),
    ("half-close, from a", |w, f| half_close(w, f, Way::FromA)),
    ("CLOSE-WAIT left", |w, f| close_wait_left(w, f, Way::IntoA)),
    ("CLOSE-WAIT left, from a", |w, f| close_wait_left(w, f, Way::FromA)),
    ("bulk data, then reset by the client", |w, f| reset(w, f, Way::IntoA)),
    ("bulk data, then reset by the client, from a", |w, f| reset(w, f, Way::FromA)),
    ("closed with unread data: reset", unread_data),
    ("reset in CLOSE-WAIT", reset_in_close_wait),
    ("refused", |w, f| refused(w, f, Way::IntoA)),
    ("refused, from a", |w, f| refused(w, f, Way::FromA)),
    ("the port is used again while the server is in TIME-WAIT", port_reuse),
    ("a SYN that nobody answers", unanswered),
    ("half-open", half_open),
    ("half-open, ended by a reset", half_open_reset),
    ("simultaneous close", simultaneous_close),
    ("simultaneous open", simultaneous_open),
    ("the last ACK is late", late_last_ack),
    ("the FIN is not acknowledged", unacknowledged_fin),
    ("a FIN beyond a hole", fin_beyond_a_hole),
    ("forged resets", forged_resets),
    ("a reset in FIN-WAIT-2", reset_in_fin_wait2),
    ("SYN in ESTABLISHED", syn_in_established),
];

/// Where the client is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In b: the near end is the server.
    IntoA,
    /// In a: the near end is the client.
    FromA,
}

/// Connections between two real sockets each.
struct Connections {
    way: Way,
    server_address: SocketAddr,
    clients: Vec<Option<TcpStream>>,
    servers: Vec<Option<TcpStream>>,
    client_addresses: Vec<SocketAddr>,
}

impl Connections {
    /// Opens them, talks over them, and has the beginning of their lives compared.
    fn open(watched: &Watched, family: Family, way: Way) -> Self {
        let (client_side, server_side, server_ip) = match way {
            Way::IntoA => (watched.lab.b(), watched.lab.a(), family.a()),
            Way::FromA => (watched.lab.a(), watched.lab.b(), family.b()),
        };
        let server_address = SocketAddr::new(server_ip, fresh_port());
        let listener = listen(server_side, server_address);
        let mut connections = Self {
            way,
            server_address,
            clients: Vec::new(),
            servers: Vec::new(),
            client_addresses: Vec::new(),
        };
        for _ in 0..CONNECTIONS {
            let client = client_side
                .run(|| TcpStream::connect_timeout(&server_address, PATIENCE))
                .unwrap()
                .unwrap_or_else(|error| panic!("connect to {server_address}: {error}"));
            let (server, from) = accept(&listener);
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
            }
            connections.client_addresses.push(from);
            connections.clients.push(Some(client));
            connections.servers.push(Some(server));
        }
        connections.agree(watched, "handshake done", "established", "established");
        for (client, server) in connections.clients.iter_mut().zip(&mut connections.servers) {
            let (Some(client), Some(server)) = (client, server) else { unreachable!() };
            exchange(client, server, b"ping", b"pong");
        }
        connections.agree(watched, "request and answer", "established", "established");
        connections
    }

    fn agree(&self, watched: &Watched, point: &str, client: &'static str, server: &'static str) {
        let expected: Vec<_> = self
            .client_addresses
            .iter()
            .map(|&address| match self.way {
                Way::IntoA => Expect {
                    near: self.server_address,
                    far: address,
                    near_state: server,
                    far_state: Some(client),
                },
                Way::FromA => Expect {
                    near: address,
                    far: self.server_address,
                    near_state: client,
                    far_state: Some(server),
                },
            })
            .collect();
        watched.agree(point, &expected);
    }

    fn clients(&mut self) -> impl Iterator<Item = &mut TcpStream> {
        self.clients.iter_mut().flatten()
    }

    fn servers(&mut self) -> impl Iterator<Item = &mut TcpStream> {
        self.servers.iter_mut().flatten()
    }

    fn close_clients(&mut self) {
        self.clients.iter_mut().for_each(|client| *client = None);
    }

    fn close_servers(&mut self) {
        self.servers.iter_mut().for_each(|server| *server = None);
    }
}

// ── Two real sockets ───────────────────────────────────────────────────────────────────────────────────────

fn client_closes(watched: &Watched, family: Family, way: Way) {
    let mut all = Connections::open(watched, family, way);
    all.clients().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    all.agree(watched, "the client has closed", "fin_wait2", "close_wait");
    all.close_servers();
    all.agree(watched, "both have closed", "time_wait", "closed");
}

fn server_closes(watched: &Watched, family: Family, way: Way) {
    let mut all = Connections::open(watched, family, way);
    all.close_servers();
    all.agree(watched, "the server has closed", "close_wait", "fin_wait2");
    all.close_clients();
    all.agree(watched, "both have closed", "closed", "time_wait");
}

fn half_close(watched: &Watched, family: Family, way: Way) {
    let mut all = Connections::open(watched, family, way);
    all.clients().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    for (client, server) in all.clients.iter_mut().zip(&mut all.servers) {
        let (Some(client), Some(server)) = (client, server) else { unreachable!() };
        assert_eq!(server.read(&mut [0]).unwrap(), 0, "the end of the stream");
        server.write_all(b"still here").unwrap();
        client.read_exact(&mut [0; 10]).unwrap();
    }
    all.agree(watched, "one half is closed, the other talks", "fin_wait2", "close_wait");
    all.servers().for_each(|server| server.shutdown(Shutdown::Write).unwrap());
    all.agree(watched, "both halves are closed", "time_wait", "closed");
}

fn close_wait_left(watched: &Watched, family: Family, way: Way) {
    let mut all = Connections::open(watched, family, way);
    all.close_clients();
    all.agree(watched, "the client's process has closed", "fin_wait2", "close_wait");
    thread::sleep(Duration::from_millis(500));
    all.agree(watched, "and still nobody closes the server's end", "fin_wait2", "close_wait");
}

fn reset(watched: &Watched, family: Family, way: Way) {
    let mut all = Connections::open(watched, family, way);
    let data = vec![b'x'; 300_000];
    for (client, server) in all.clients.iter_mut().zip(&mut all.servers) {
        let (Some(client), Some(server)) = (client, server) else { unreachable!() };
        exchange(client, server, &data, &data);
    }
    all.agree(watched, "600 kB later", "established", "established");
    for client in all.clients() {
        // Lingering for no time at all is how a program asks for RST.
        sockopt::set_socket_linger(client, Some(Duration::ZERO)).unwrap();
    }
    all.close_clients();
    all.agree(watched, "the client has aborted", "closed", "closed");
}

fn unread_data(watched: &Watched, family: Family) {
    let mut all = Connections::open(watched, family, Way::IntoA);
    all.clients().for_each(|client| client.write_all(b"never read").unwrap());
    all.agree(watched, "data waits for the server", "established", "established");
    all.close_servers();
    all.agree(watched, "the server closed without reading", "closed", "closed");
}

fn reset_in_close_wait(watched: &Watched, family: Family) {
    let mut all = Connections::open(watched, family, Way::IntoA);
    all.clients().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    all.agree(watched, "the client has closed", "fin_wait2", "close_wait");
    for server in all.servers() {
        sockopt::set_socket_linger(server, Some(Duration::ZERO)).unwrap();
    }
    all.close_servers();
    all.agree(watched, "the server has aborted", "closed", "closed");
}

fn refused(watched: &Watched, family: Family, way: Way) {
    let (side, server_ip) = match way {
        Way::IntoA => (watched.lab.b(), family.a()),
        Way::FromA => (watched.lab.a(), family.b()),
    };
    let mut expected = Vec::new();
    for _ in 0..CONNECTIONS {
        let server = SocketAddr::new(server_ip, fresh_port());
        let client_port = fresh_port();
        let client_ip = if way == Way::IntoA { family.b() } else { family.a() };
        let client = SocketAddr::new(client_ip, client_port);
        let socket = bound(side, client);
        let refusal = begin_connecting(&socket, server);
        assert!(matches!(refusal, Errno::INPROGRESS | Errno::CONNREFUSED), "{refusal:?}");
        let (near, far) = if way == Way::IntoA { (server, client) } else { (client, server) };
        expected.push(Expect { near, far, near_state: "closed", far_state: Some("closed") });
        // The socket is gone with this: what remains is what the wire said.
        thread::sleep(Duration::from_millis(5));
    }
    watched.agree("refused", &expected);
}

fn port_reuse(watched: &Watched, family: Family) {
    let server_address = SocketAddr::new(family.a(), fresh_port());
    let listener = listen(watched.lab.a(), server_address);
    let client_address = SocketAddr::new(family.b(), fresh_port());
    let expect = |client, server| {
        [Expect { near: server_address, far: client_address, near_state: server, far_state: Some(client) }]
    };
    for _ in 0..3 {
        let socket = bound(watched.lab.b(), client_address);
        let mut client = finish_connecting(socket, server_address);
        let (mut server, _) = accept(&listener);
        exchange(&mut client, &mut server, b"ping", b"pong");
        watched.agree("open", &expect("established", "established"));
        drop(server);
        watched.agree("the server has closed", &expect("close_wait", "fin_wait2"));
        drop(client);
        watched.agree("the server is in TIME-WAIT", &expect("closed", "time_wait"));
    }
}

// ── A real socket and a scripted peer ──────────────────────────────────────────────────────────────────────

fn unanswered(watched: &Watched, family: Family) {
    let far = SocketAddr::new(family.quiet(20), fresh_port());
    let mut sockets = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..CONNECTIONS {
        let near = SocketAddr::new(family.a(), fresh_port());
        let socket = bound(watched.lab.a(), near);
        assert_eq!(begin_connecting(&socket, far), Errno::INPROGRESS);
        sockets.push(socket);
        expected.push(near_only(near, far, "syn_sent"));
    }
    watched.agree("the SYN is sent", &expected);
    thread::sleep(Duration::from_millis(1300));
    watched.agree("it has been sent again", &expected);
}

fn half_open(watched: &Watched, family: Family) {
    let near = SocketAddr::new(family.a(), fresh_port());
    let _listener = listen(watched.lab.a(), near);
    let mut peers = Vec::new();
    let mut expected = Vec::new();
    for number in 0..6 {
        let far = SocketAddr::new(family.quiet(number), fresh_port());
        let mut peer = ScriptedPeer::new(&watched.lab, far, near).unwrap();
        peer.send(SYN).unwrap();
        let answer = peer.expect(SYN | ACK).unwrap();
        peer.acknowledge(&answer);
        peers.push(peer);
        expected.push(near_only(near, far, "syn_recv"));
    }
    watched.agree("the last ACK does not come", &expected);
    thread::sleep(Duration::from_millis(1300));
    watched.agree("the SYN-ACK has been sent again", &expected);
    for peer in &mut peers {
        peer.send(ACK).unwrap();
    }
    expected.iter_mut().for_each(|expect| expect.near_state = "established");
    watched.agree("and then it does", &expected);
}

fn half_open_reset(watched: &Watched, family: Family) {
    let near = SocketAddr::new(family.a(), fresh_port());
    let _listener = listen(watched.lab.a(), near);
    let far = SocketAddr::new(family.quiet(6), fresh_port());
    let mut peer = ScriptedPeer::new(&watched.lab, far, near).unwrap();
    peer.send(SYN).unwrap();
    peer.expect(SYN | ACK).unwrap();
    watched.agree("half-open", &[near_only(near, far, "syn_recv")]);
    peer.send(RST).unwrap();
    watched.agree("reset", &[near_only(near, far, "closed")]);
}

fn simultaneous_close(watched: &Watched, family: Family) {
    let (mut peer, server, expect) = scripted_client(watched, family, 7);
    server.shutdown(Shutdown::Both).unwrap();
    let fin = peer.expect(FIN | ACK).unwrap();
    watched.agree("the FIN is on its way", &[expect("fin_wait1")]);
    // Not acknowledging the FIN that has just come: the two crossed.
    peer.send(FIN | ACK).unwrap();
    peer.expect(ACK).unwrap();
    watched.agree("the FINs have crossed", &[expect("closing")]);
    peer.acknowledge(&fin);
    peer.send(ACK).unwrap();
    watched.agree("both are acknowledged", &[expect("time_wait")]);
    // RFC 1337: a reset at the exact number ends TIME-WAIT.
    peer.send(RST).unwrap();
    watched.agree("TIME-WAIT is cut short", &[expect("closed")]);
}

fn simultaneous_open(watched: &Watched, family: Family) {
    let far = SocketAddr::new(family.quiet(8), fresh_port());
    let near = SocketAddr::new(family.a(), fresh_port());
    let mut peer = ScriptedPeer::new(&watched.lab, far, near).unwrap();
    let socket = bound(watched.lab.a(), near);
    assert_eq!(begin_connecting(&socket, far), Errno::INPROGRESS);
    let syn = peer.expect(SYN).unwrap();
    watched.agree("the SYN is on its way", &[near_only(near, far, "syn_sent")]);
    let iss = peer.next;
    peer.send(SYN).unwrap();
    peer.expect(SYN | ACK).unwrap();
    watched.agree("the SYNs have crossed", &[near_only(near, far, "syn_recv")]);
    // RFC 9293, figure 8: each end answers the other's SYN with SYN+ACK, of the same sequence number.
    peer.next = iss;
    peer.acknowledge(&syn);
    peer.send(SYN | ACK).unwrap();
    watched.agree("open", &[near_only(near, far, "established")]);
    peer.send(FIN | ACK).unwrap();
    peer.expect(ACK).unwrap();
    watched.agree("the peer has closed", &[near_only(near, far, "close_wait")]);
}

fn late_last_ack(watched: &Watched, family: Family) {
    let (mut peer, server, expect) = scripted_client(watched, family, 9);
    peer.send(FIN | ACK).unwrap();
    peer.expect(ACK).unwrap();
    watched.agree("the client has closed", &[expect("close_wait")]);
    drop(server);
    let fin = peer.expect(FIN | ACK).unwrap();
    watched.agree("the last ACK is missing", &[expect("last_ack")]);
    thread::sleep(Duration::from_millis(500));
    watched.agree("the FIN has been sent again", &[expect("last_ack")]);
    peer.acknowledge(&fin);
    peer.send(ACK).unwrap();
    watched.agree("it has come", &[expect("closed")]);
}

fn unacknowledged_fin(watched: &Watched, family: Family) {
    let (mut peer, server, expect) = scripted_client(watched, family, 10);
    server.shutdown(Shutdown::Write).unwrap();
    let fin = peer.expect(FIN | ACK).unwrap();
    watched.agree("the FIN is not acknowledged", &[expect("fin_wait1")]);
    // An acknowledgment of everything but the FIN.
    peer.send_data(ACK | PSH, b"data").unwrap();
    watched.agree("data was, the FIN was not", &[expect("fin_wait1")]);
    peer.acknowledge(&fin);
    peer.send(ACK).unwrap();
    watched.agree("it is", &[expect("fin_wait2")]);
    peer.send(FIN | ACK).unwrap();
    watched.agree("the peer closes too", &[expect("time_wait")]);
}

fn fin_beyond_a_hole(watched: &Watched, family: Family) {
    let (mut peer, _server, expect) = scripted_client(watched, family, 11);
    let hole = peer.next;
    peer.next = hole.wrapping_add(4);
    peer.send(FIN | ACK).unwrap();
    watched.agree("data before the FIN is missing", &[expect("established")]);
    let after = std::mem::replace(&mut peer.next, hole);
    peer.send_data(ACK | PSH, b"data").unwrap();
    peer.next = after;
    watched.agree("it has come", &[expect("close_wait")]);
}

fn forged_resets(watched: &Watched, family: Family) {
    let (mut peer, _server, expect) = scripted_client(watched, family, 12);
    let exact = peer.next;
    for (point, distance) in
        [("in the window", 1000_u32), ("below it", 0_u32.wrapping_sub(1)), ("far beyond it", 1 << 30)]
    {
        peer.next = exact.wrapping_add(distance);
        peer.send(RST).unwrap();
        thread::sleep(Duration::from_millis(20));
        watched.agree(point, &[expect("established")]);
    }
    peer.next = exact;
    peer.send(RST).unwrap();
    watched.agree("at the exact number", &[expect("closed")]);
}

fn reset_in_fin_wait2(watched: &Watched, family: Family) {
    let (mut peer, server, expect) = scripted_client(watched, family, 13);
    server.shutdown(Shutdown::Write).unwrap();
    let fin = peer.expect(FIN | ACK).unwrap();
    peer.acknowledge(&fin);
    peer.send(ACK).unwrap();
    watched.agree("half-closed", &[expect("fin_wait2")]);
    peer.send(RST | ACK).unwrap();
    watched.agree("reset", &[expect("closed")]);
}

fn syn_in_established(watched: &Watched, family: Family) {
    let (mut peer, _server, expect) = scripted_client(watched, family, 14);
    let next = peer.next;
    for distance in [5000_u32, 0_u32.wrapping_sub(1), 1 << 30] {
        peer.next = next.wrapping_add(distance);
        peer.send(SYN).unwrap();
        // RFC 5961 §4: a challenge, and nothing changes.
        peer.expect(ACK).unwrap();
        watched.agree("challenged", &[expect("established")]);
        // Challenges are rationed, two a second for a connection.
        thread::sleep(Duration::from_millis(600));
    }
    peer.next = next;
    peer.send(FIN | ACK).unwrap();
    watched.agree("and the connection goes on", &[expect("close_wait")]);
}

/// A scripted client that is connected to a real socket, that socket, and what to expect of it.
fn scripted_client(
    watched: &Watched,
    family: Family,
    number: u8,
) -> (ScriptedPeer, TcpStream, impl Fn(&'static str) -> Expect) {
    let near = SocketAddr::new(family.a(), fresh_port());
    let listener = listen(watched.lab.a(), near);
    let far = SocketAddr::new(family.quiet(number), fresh_port());
    let mut peer = ScriptedPeer::new(&watched.lab, far, near).unwrap();
    peer.connect().unwrap();
    let (server, _) = accept(&listener);
    watched.agree("handshake done", &[near_only(near, far, "established")]);
    (peer, server, move |state| near_only(near, far, state))
}

fn near_only(near: SocketAddr, far: SocketAddr, near_state: &'static str) -> Expect {
    Expect { near, far, near_state, far_state: None }
}

// ── Sockets ────────────────────────────────────────────────────────────────────────────────────────────────

/// Below the range from which kernels take ports by themselves, and never the same twice.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn listen(namespace: &Netns, address: SocketAddr) -> TcpListener {
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap();
    listener.unwrap_or_else(|error| panic!("listen on {address}: {error}"))
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false).unwrap();
                return (stream, from);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// A socket with an address of its own choice, even one in TIME-WAIT.
fn bound(namespace: &Netns, address: SocketAddr) -> OwnedFd {
    let family = match address.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = namespace.run(|| socket_with(family, SocketType::STREAM, flags, None)).unwrap().unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &address).unwrap_or_else(|error| panic!("bind to {address}: {error}"));
    socket
}

fn begin_connecting(socket: &OwnedFd, to: SocketAddr) -> Errno {
    connect(socket, &to).expect_err("nobody can have answered yet")
}

fn finish_connecting(socket: OwnedFd, to: SocketAddr) -> TcpStream {
    // On a veth pair the whole handshake may have happened before connect returns.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connect(&socket, &to) {
            Ok(()) | Err(Errno::ISCONN) => break,
            Err(Errno::INPROGRESS | Errno::ALREADY) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => panic!("connect to {to}: {error}"),
        }
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream, request: &[u8], answer: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| client.write_all(request).unwrap());
        let mut received = vec![0; request.len()];
        server.read_exact(&mut received).unwrap();
        assert_eq!(received, request);
    });
    thread::scope(|scope| {
        scope.spawn(|| server.write_all(answer).unwrap());
        let mut received = vec![0; answer.len()];
        client.read_exact(&mut received).unwrap();
        assert_eq!(received, answer);
    });
}
