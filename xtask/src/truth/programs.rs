//! What clients and servers do: small programs with real sockets, by kind of traffic.
//!
//! Every way to end a connection that a program has is among them. A client and its server run on threads of their own,
//! so who is first is left to the scheduler where the table does not say it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

/// A kind of traffic.
pub struct Kind {
    pub name: &'static str,
    /// How often it is played, beside the others.
    pub weight: usize,
    /// Connections of the same four-tuple, one after the other.
    pub connections: &'static [Programs],
}

/// One program for each end.
#[derive(Clone, Copy)]
pub struct Programs {
    pub client: Program,
    /// None where nobody listens.
    pub server: Option<Program>,
}

/// What a program does with its end.
pub type Program = fn(TcpStream, &Meeting) -> io::Result<()>;

const fn one(client: Program, server: Program) -> Programs {
    Programs { client, server: Some(server) }
}

/// Everything that is played.
pub const KINDS: &[Kind] = &[
    kind("short, client closes", 5, &[one(ask_and_close, answer_until_end)]),
    kind("short, server closes", 4, &[one(ask_until_end, answer_and_close)]),
    kind("short, nothing said", 1, &[one(just_close, until_end)]),
    kind("short, client does not wait", 1, &[one(tell_and_close, until_end)]),
    kind("half-close by the client", 2, &[one(ask_and_half_close, answer_after_end)]),
    kind("half-close by the server", 1, &[one(send_after_end, tell_and_half_close)]),
    kind("bulk both ways", 1, &[one(bulk_and_half_close, bulk_until_end)]),
    kind("both close at once", 1, &[one(meet_and_close, meet_and_close)]),
    kind("abort by the client", 1, &[one(ask_and_abort, answer_until_end)]),
    kind("abort by the server", 1, &[one(ask_until_end, answer_and_abort)]),
    kind("abort in CLOSE-WAIT", 1, &[one(ask_and_half_close, abort_after_end)]),
    kind("closed with unread data", 1, &[one(close_unread, answer_until_end)]),
    kind("data to a client that is gone", 1, &[one(ask_and_close, talk_after_end)]),
    kind("refused", 1, &[Programs { client: just_close, server: None }]),
    kind(
        "port used again in TIME-WAIT",
        1,
        &[one(ask_until_gone, answer_and_close), one(ask_and_close, answer_until_end)],
    ),
];

const fn kind(name: &'static str, weight: usize, connections: &'static [Programs]) -> Kind {
    Kind { name, weight, connections }
}

const REQUEST: [u8; 100] = [b'q'; 100];
const ANSWER: [u8; 700] = [b'a'; 700];
/// Bulk transfers go in pieces that fit any socket buffer, so that no end waits for the other for ever.
const PIECE: [u8; 16_384] = [b'b'; 16_384];
const PIECES: usize = 12;

fn ask_and_close(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    ask(&mut stream)
}

fn ask(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(&REQUEST)?;
    stream.read_exact(&mut [0; ANSWER.len()])
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; REQUEST.len()])?;
    stream.write_all(&ANSWER)
}

fn to_the_end(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

fn answer_until_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    answer(&mut stream)?;
    to_the_end(&mut stream)
}

fn ask_until_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    stream.write_all(&REQUEST)?;
    to_the_end(&mut stream)
}

fn answer_and_close(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    answer(&mut stream)
}

fn just_close(_: TcpStream, _: &Meeting) -> io::Result<()> {
    Ok(())
}

fn until_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    to_the_end(&mut stream)
}

fn tell_and_close(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    stream.write_all(&REQUEST)
}

fn ask_and_half_close(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    stream.write_all(&REQUEST)?;
    stream.shutdown(Shutdown::Write)?;
    to_the_end(&mut stream)
}

fn answer_after_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    to_the_end(&mut stream)?;
    for _ in 0..3 {
        stream.write_all(&ANSWER)?;
    }
    Ok(())
}

fn tell_and_half_close(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    stream.write_all(&ANSWER)?;
    stream.shutdown(Shutdown::Write)?;
    to_the_end(&mut stream)
}

fn send_after_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    to_the_end(&mut stream)?;
    for _ in 0..3 {
        stream.write_all(&ANSWER)?;
    }
    Ok(())
}

fn bulk(stream: &mut TcpStream) -> io::Result<()> {
    let mut piece = vec![0; PIECE.len()];
    for _ in 0..PIECES {
        stream.write_all(&PIECE)?;
        stream.read_exact(&mut piece)?;
    }
    Ok(())
}

fn bulk_and_half_close(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    bulk(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    to_the_end(&mut stream)
}

fn bulk_until_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    bulk(&mut stream)?;
    to_the_end(&mut stream)
}

fn meet_and_close(stream: TcpStream, meeting: &Meeting) -> io::Result<()> {
    meeting.wait();
    drop(stream);
    Ok(())
}

/// Lingering for no time at all is how a program asks for RST.
fn abort(stream: TcpStream) -> io::Result<()> {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

fn ask_and_abort(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    ask(&mut stream)?;
    abort(stream)
}

fn answer_and_abort(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    answer(&mut stream)?;
    abort(stream)
}

fn abort_after_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    to_the_end(&mut stream)?;
    abort(stream)
}

/// Closing with the answer unread resets, too.
fn close_unread(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    stream.write_all(&REQUEST)?;
    stream.peek(&mut [0]).map(drop)
}

/// The client's orphan answers with a reset.
fn talk_after_end(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    answer(&mut stream)?;
    to_the_end(&mut stream)?;
    stream.write_all(&ANSWER)?;
    // Nothing comes but the reset.
    let _ = stream.read(&mut [0]);
    Ok(())
}

/// Goes only once the connection is over, so that its port can be used again at once.
fn ask_until_gone(mut stream: TcpStream, _: &Meeting) -> io::Result<()> {
    stream.write_all(&REQUEST)?;
    to_the_end(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    // TCP_INFO of a closed socket fails or says state 7 (TCP_CLOSE).
    while tcp_state(&stream).is_some_and(|state| state != 7) && Instant::now() < deadline {
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

fn tcp_state(stream: &TcpStream) -> Option<u8> {
    use std::os::fd::AsRawFd as _;
    let mut state = 0_u8;
    let mut length: libc::socklen_t = 1;
    // SAFETY: `state` and `length` outlive the call; the kernel writes at most `length` bytes, the first of which is
    // tcpi_state.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(state)
}

/// Where both programs of a connection wait for each other, to do something at the same time.
#[derive(Debug, Default)]
pub struct Meeting(AtomicUsize);

impl Meeting {
    fn wait(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
        let deadline = Instant::now() + Duration::from_millis(200);
        while self.0.load(Ordering::Acquire) < 2 && Instant::now() < deadline {
            thread::yield_now();
        }
    }

    /// For the next connection.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}
