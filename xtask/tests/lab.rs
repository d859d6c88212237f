//! The laboratory itself: what other tests build on must hold first.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use xtask::lab::peer::ScriptedPeer;
use xtask::lab::segment::{ACK, FIN, RST};
use xtask::lab::{Family, Lab, sockets};

const PATIENCE: Duration = Duration::from_secs(3);

/// A lab, or the reason why there is none.
fn lab() -> Option<Lab> {
    if let Err(reason) = Lab::requirements() {
        println!("skipped: {reason}");
        return None;
    }
    match Lab::new("test") {
        Ok(lab) => Some(lab),
        Err(error) => panic!("no lab: {error:#}"),
    }
}

#[test]
fn the_first_connection_works_at_once() {
    let Some(lab) = lab() else { return };
    for family in [Family::V4, Family::V6] {
        let address = SocketAddr::new(family.a(), 80);
        let listener = lab.a().run(|| TcpListener::bind(address)).unwrap().unwrap();
        let mut client = lab.b().run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), family.b());
        client.write_all(b"hello").unwrap();
        drop(client);
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(sockets::state(lab.a(), address, from).unwrap(), Some("close_wait"));
    }
}

#[test]
fn quiet_addresses_are_quiet() {
    let Some(lab) = lab() else { return };
    for family in [Family::V4, Family::V6] {
        let address = SocketAddr::new(family.quiet(9), 80);
        let result =
            lab.a().run(|| TcpStream::connect_timeout(&address, Duration::from_millis(300))).unwrap();
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }
}

#[test]
fn a_script_gets_a_socket_into_closing() {
    let Some(lab) = lab() else { return };
    for family in [Family::V4, Family::V6] {
        let near = SocketAddr::new(family.a(), 80);
        let far = SocketAddr::new(family.quiet(0), 4711);
        let listener = lab.a().run(|| TcpListener::bind(near)).unwrap().unwrap();
        let mut peer = ScriptedPeer::new(&lab, far, near).unwrap();
        peer.connect().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // Ten bytes from 0xfffffffb on: sequence numbers wrap.
        peer.send_data(ACK, b"0123456789").unwrap();
        let mut data = [0; 10];
        server.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"0123456789");
        server.shutdown(Shutdown::Both).unwrap();
        let fin = peer.expect(FIN | ACK).unwrap();
        peer.send(FIN | ACK).unwrap();
        peer.expect(ACK).unwrap();
        assert_eq!(sockets::state(lab.a(), near, far).unwrap(), Some("closing"));
        peer.acknowledge(&fin);
        peer.send(ACK).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while sockets::state(lab.a(), near, far).unwrap() != Some("time_wait") {
            assert!(Instant::now() < deadline, "it does not come to TIME-WAIT");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_script_is_refused_at_a_closed_port() {
    let Some(lab) = lab() else { return };
    let (near, far) = (SocketAddr::new(Family::V4.a(), 81), SocketAddr::new(Family::V4.quiet(0), 4711));
    let mut peer = ScriptedPeer::new(&lab, far, near).unwrap();
    let iss = peer.next;
    peer.send(xtask::lab::segment::SYN).unwrap();
    let answer = peer.expect(RST | ACK).unwrap();
    assert_eq!(answer.ack, iss.wrapping_add(1));
}

#[test]
fn nothing_is_left_behind_even_after_a_panic() {
    let Some(lab) = lab() else { return };
    let names = [lab.a().name().to_owned(), lab.b().name().to_owned()];
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        lab.a().run(|| panic!("inside a namespace")).unwrap();
    }));
    assert!(panicked.is_err());
    for name in names {
        assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name} is still there");
    }
}
