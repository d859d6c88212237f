//! One netlink socket, and the rules of asking.

use std::{
    io,
    time::{Duration, Instant},
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The kernel answers from the context of our own `send`: an answer that takes longer is not coming.
const ANSWER: Duration = Duration::from_secs(1);
/// A dump is many answers; a million sockets take about two seconds.
const DUMP: Duration = Duration::from_secs(10);
/// The kernel fills at most 32 KiB per datagram of a dump.
const BUFFER: usize = 64 * 1024;
/// Netlink messages start on a multiple of this (`NLMSG_ALIGNTO`).
const ALIGN: usize = 4;

/// Whether one thing is asked for, or all that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    One,
    Dump,
}

/// A netlink socket that is opened at the first question, and anew after an error: an answer that comes too
/// late can then never be taken for the answer to the next question.
#[derive(Debug)]
pub(crate) struct Channel {
    protocol: isize,
    socket: Option<Socket>,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Channel {
    /// Opens nothing yet.
    pub(crate) fn new(protocol: isize) -> Self {
        Self { protocol, socket: None, buffer: vec![0; BUFFER], sequence: 0 }
    }

    /// Asks, and maps each answer with `take`, at most `limit` of them.
    ///
    /// # Errors
    ///
    /// `NotFound` where one thing was asked for and there is none; `TimedOut`; whatever else the kernel says.
    pub(crate) fn ask<M, T>(
        &mut self,
        request: &M,
        scope: Scope,
        limit: usize,
        mut take: impl FnMut(M) -> Option<T>,
    ) -> io::Result<Vec<T>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        let mut retried = false;
        loop {
            let mut answers = Vec::new();
            let outcome = self.exchange(request, scope, &mut |response| {
                answers.extend(take(response));
                answers.len() < limit
            });
            match outcome {
                Ok(()) => return Ok(answers),
                // ENOBUFS: the receive buffer overflowed and answers were lost. Half a list is worse than a
                // second try, more than two tries worse than an error.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && !retried => {
                    self.socket = None;
                    retried = true;
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::NotFound {
                        self.socket = None;
                    }
                    return Err(error);
                }
            }
        }
    }

    fn exchange<M>(&mut self, request: &M, scope: Scope, take: &mut dyn FnMut(M) -> bool) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let Self { protocol, socket, buffer, sequence } = self;
        let open = match socket {
            Some(open) => open,
            None => socket.insert(open_socket(*protocol)?),
        };
        send(open, &message(request, scope, *sequence))?;

        let deadline = Instant::now() + if scope == Scope::Dump { DUMP } else { ANSWER };
        loop {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let length = receive(open, buffer)?;
            let datagram = buffer.get(..length).ok_or(io::ErrorKind::InvalidData)?;
            match read(datagram, *sequence, take)? {
                After::More => {}
                After::Done => return Ok(()),
                After::Enough => {
                    // The rest of the dump still waits in this socket.
                    *socket = None;
                    return Ok(());
                }
            }
        }
    }
}

fn open_socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
    set_socket_timeout(&socket, Timeout::Send, Some(ANSWER))?;
    Ok(socket)
}

fn message<M: NetlinkSerializable + Clone>(request: &M, scope: Scope, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.sequence_number = sequence;
    header.flags = match scope {
        Scope::One => NLM_F_REQUEST,
        Scope::Dump => NLM_F_REQUEST | NLM_F_DUMP,
    };
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request.clone()));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn send(socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    loop {
        match socket.send(bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.recv(&mut &mut *buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // SO_RCVTIMEO reports a timeout as EAGAIN, which reads as if trying again would help.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            outcome => return outcome,
        }
    }
}

/// What to do after a datagram.
enum After {
    More,
    Done,
    Enough,
}

fn read<M: NetlinkDeserializable>(
    mut datagram: &[u8],
    sequence: u32,
    take: &mut dyn FnMut(M) -> bool,
) -> io::Result<After> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(datagram)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let length = (message.header.length as usize).next_multiple_of(ALIGN).max(ALIGN);
        datagram = datagram.get(length..).unwrap_or_default();
        if message.header.sequence_number != sequence {
            continue;
        }
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => {
                if !take(answer) {
                    return Ok(After::Enough);
                }
                if message.header.flags & NLM_F_MULTIPART == 0 {
                    return Ok(After::Done);
                }
            }
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Done(_) => return Ok(After::Done),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Error(_) => return Ok(After::Done),
            NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            _ => {}
        }
    }
    Ok(After::More)
}

#[cfg(test)]
mod tests {
    use netlink_packet_sock_diag::SockDiagMessage;

    use super::*;

    #[test]
    fn garbage_is_an_error_and_another_questions_answer_is_passed_over() {
        let mut none = |_: SockDiagMessage| true;
        assert!(read(&[1, 2, 3], 1, &mut none).is_err());
        assert!(read(&[0; 16], 1, &mut none).is_err(), "a length of zero must not loop");
        // A NLMSG_DONE of sequence 7.
        let mut done = vec![20, 0, 0, 0, 3, 0, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(read(&done, 8, &mut none), Ok(After::More)));
        assert!(matches!(read(&done, 7, &mut none), Ok(After::Done)));
        // The same with an error code: EPERM.
        done.splice(16..20, (-1_i32).to_ne_bytes());
        assert_eq!(read(&done, 7, &mut none).err().and_then(|e| e.raw_os_error()), Some(libc::EPERM));
    }
}
