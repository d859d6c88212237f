//! The kernel's own TCP sockets, over `NETLINK_INET_DIAG`. Needs no capability.
//!
//! What the packet crate lacks (0.5.0) is made up for here: it has no flag for `TCP_NEW_SYN_RECV`, hands
//! `INET_DIAG_INFO` and `INET_DIAG_CGROUP_ID` over as bytes, and drops the expiry of a TIME_WAIT timer.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use netlink_packet_core::Nla as _;
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{
        ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags,
        Timer as DiagTimer, nlas::Nla,
    },
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use tcpfsm_common::fsm::State;

use crate::netlink::{Channel, Scope};

/// More sockets than any host has in one namespace; a bound on memory (about 150 MB), not on use.
const MAX_SOCKETS: usize = 1 << 20;
/// `INET_DIAG_NOCOOKIE`: any socket with this tuple.
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// `INET_DIAG_CGROUP_ID` (kernel 5.9).
const CGROUP_ID: u16 = 21;
/// `TCP_NEW_SYN_RECV`: a request socket of a listener. Kernels report it as SYN_RECV.
const NEW_SYN_RECV: u8 = 12;

/// What the kernel's timer of a socket waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// To send a segment again, for the `count`-th time.
    Retransmit {
        /// Time left.
        left: Duration,
        /// Times sent again already.
        count: u8,
    },
    /// To send a keepalive; also the end of an orphan's FIN_WAIT2.
    Keepalive {
        /// Time left.
        left: Duration,
    },
    /// For old segments to die.
    TimeWait,
    /// To probe a closed window.
    ZeroWindow {
        /// Time left.
        left: Duration,
    },
}

/// One socket, as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// This host's end. IPv4-mapped addresses are given as IPv4; no scope id.
    pub local: SocketAddr,
    /// The other end; port 0 while there is none.
    pub remote: SocketAddr,
    /// Its state; request sockets (`TCP_NEW_SYN_RECV`) are SYN_RECV.
    pub state: State,
    /// Inode of the file; 0 when no process holds it: request sockets, orphans, TIME_WAIT.
    pub inode: u32,
    /// User who created it.
    pub uid: u32,
    /// Bytes received and not read; of a listener, connections waiting for `accept`.
    pub rqueue: u32,
    /// Bytes sent and not acknowledged; of a listener, its backlog.
    pub wqueue: u32,
    /// What it waits for.
    pub timer: Option<Timer>,
    /// The kernel's name for this socket, unique since boot.
    pub cookie: u64,
    /// Interface that it is bound to; 0 for none.
    pub ifindex: u32,
    /// Id of the cgroup (v2) that created it.
    pub cgroup: Option<u64>,
    /// Time since the last segment with data or an acknowledgment, either way: at least this long in its state.
    /// Only of synchronised sockets, and only where details were asked for.
    pub idle: Option<Duration>,
}

/// A set of states to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// Every state, listeners and TIME_WAIT included.
    pub const ALL: Self = Self(0x1ffe);

    /// Exactly these.
    #[must_use]
    pub fn of(states: &[State]) -> Self {
        Self(states.iter().fold(0, |mask, &state| mask | mask_of(state)))
    }

    /// All but these.
    #[must_use]
    pub fn except(states: &[State]) -> Self {
        Self(Self::ALL.0 & !Self::of(states).0)
    }
}

/// Asks the kernel about its TCP sockets, in the network namespace of the first question.
#[derive(Debug)]
pub struct SockDiag {
    channel: Channel,
    /// Whether the kernel has ever listed its sockets: without `tcp_diag` it answers each question for one with
    /// the same "not found" as when there is none.
    has_listed: bool,
}

impl Default for SockDiag {
    fn default() -> Self {
        Self::new()
    }
}

impl SockDiag {
    /// Opens nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { channel: Channel::new(NETLINK_SOCK_DIAG), has_listed: false }
    }

    /// All sockets of both families in these states, without [`Socket::idle`].
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or has no `inet_diag`.
    pub fn list(&mut self, states: States) -> io::Result<Vec<Socket>> {
        self.both(states, &ExtensionFlags::empty())
    }

    /// The same with [`Socket::idle`], for which the kernel locks each socket in turn.
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list).
    pub fn list_detailed(&mut self, states: States) -> io::Result<Vec<Socket>> {
        self.both(states, &ExtensionFlags::INFO)
    }

    fn both(&mut self, states: States, extensions: &ExtensionFlags) -> io::Result<Vec<Socket>> {
        let mut sockets = self.dump(AF_INET, states, extensions.clone())?;
        // A kernel without IPv6 has no such sockets.
        match self.dump(AF_INET6, states, extensions.clone()) {
            Ok(more) => sockets.extend(more),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(sockets)
    }

    /// The socket of this tuple, without a dump: the kernel does the lookup that it does for a segment from
    /// `remote` to `local`. Without a connected socket, that finds the **listener**, in state LISTEN.
    ///
    /// Sockets bound to an interface, link-local ones among them, are found only with their `ifindex`; the
    /// others with any, 0 included.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or has no `inet_diag`; no such socket is `Ok(None)`.
    pub fn find(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        ifindex: u32,
    ) -> io::Result<Option<Socket>> {
        let (local, remote) = (canonical(local), canonical(remote));
        let request = InetRequest {
            family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::INFO,
            states: StateFlags::from_bits_retain(States::ALL.0),
            socket_id: SocketId {
                source_port: local.port(),
                destination_port: remote.port(),
                source_address: local.ip(),
                destination_address: remote.ip(),
                interface_id: ifindex,
                cookie: NO_COOKIE,
            },
        };
        match self.channel.ask(&SockDiagMessage::InetRequest(request), Scope::One, 2, socket) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !self.has_listed {
                    self.dump(AF_INET, States::of(&[State::Listen]), ExtensionFlags::empty())?;
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The listener that a connection to `local` would reach, wildcards included; `ifindex` as in
    /// [`find`](Self::find). Of several that share a port, one.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub fn listener(&mut self, local: SocketAddr, ifindex: u32) -> io::Result<Option<Socket>> {
        let local = canonical(local);
        // No connected socket has port 0 on its other end.
        let anyone = match local {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        Ok(self.find(local, anyone, ifindex)?.filter(|socket| socket.state == State::Listen))
    }

    fn dump(&mut self, family: u8, states: States, extensions: ExtensionFlags) -> io::Result<Vec<Socket>> {
        let id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions,
            states: StateFlags::from_bits_retain(states.0),
            socket_id: SocketId { cookie: NO_COOKIE, ..id },
        };
        let request = SockDiagMessage::InetRequest(request);
        let sockets = self.channel.ask(&request, Scope::Dump, MAX_SOCKETS, socket)?;
        self.has_listed = true;
        Ok(sockets)
    }
}

fn socket(answer: SockDiagMessage) -> Option<Socket> {
    let SockDiagMessage::InetResponse(response) = answer else { return None };
    let InetResponse { header, nlas } = &*response;
    let InetResponseHeader { family: _, state, timer, socket_id, recv_queue, send_queue, uid, inode } =
        header;
    let state = state_of(*state);
    let mut socket = Socket {
        local: canonical((socket_id.source_address, socket_id.source_port).into()),
        remote: canonical((socket_id.destination_address, socket_id.destination_port).into()),
        state,
        inode: *inode,
        uid: *uid,
        rqueue: *recv_queue,
        wqueue: *send_queue,
        timer: timer.as_ref().map(timer_of),
        cookie: u64::from_ne_bytes(socket_id.cookie),
        ifindex: socket_id.interface_id,
        cgroup: None,
        idle: None,
    };
    for nla in nlas {
        match nla {
            Nla::TcpInfo(info) if state.is_synchronized() && state != State::TimeWait => {
                socket.idle = idle(info)
            }
            Nla::Other(other) if other.kind() == CGROUP_ID && other.value_len() == 8 => {
                let mut id = [0; 8];
                other.emit_value(&mut id);
                socket.cgroup = Some(u64::from_ne_bytes(id)).filter(|&id| id != 0);
            }
            _ => {}
        }
    }
    Some(socket)
}

/// The shortest of `tcpi_last_data_sent`, `tcpi_last_data_recv` and `tcpi_last_ack_recv`, milliseconds ago.
/// Their places in `struct tcp_info` have been fixed since Linux 2.4.
fn idle(info: &[u8]) -> Option<Duration> {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECV: usize = 52;
    const LAST_ACK_RECV: usize = 56;
    let milliseconds = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let shortest =
        milliseconds(LAST_DATA_SENT)?.min(milliseconds(LAST_DATA_RECV)?).min(milliseconds(LAST_ACK_RECV)?);
    Some(Duration::from_millis(shortest.into()))
}

fn timer_of(timer: &DiagTimer) -> Timer {
    match *timer {
        DiagTimer::Retransmit(left, count) => Timer::Retransmit { left, count },
        DiagTimer::KeepAlive(left) => Timer::Keepalive { left },
        DiagTimer::TimeWait => Timer::TimeWait,
        DiagTimer::Probe(left) => Timer::ZeroWindow { left },
    }
}

/// The kernel numbers its states (`net/tcp_states.h`) otherwise than the RFC's diagram reads.
const fn state_of(code: u8) -> State {
    match code {
        1 => State::Established,
        2 => State::SynSent,
        3 | NEW_SYN_RECV => State::SynRecv,
        4 => State::FinWait1,
        5 => State::FinWait2,
        6 => State::TimeWait,
        8 => State::CloseWait,
        9 => State::LastAck,
        10 => State::Listen,
        11 => State::Closing,
        // 7 is TCP_CLOSE, 13 TCP_BOUND_INACTIVE: neither is a connection.
        _ => State::Closed,
    }
}

const fn mask_of(state: State) -> u32 {
    match state {
        State::Established => 1 << 1,
        State::SynSent => 1 << 2,
        State::SynRecv => 1 << 3 | 1 << NEW_SYN_RECV,
        State::FinWait1 => 1 << 4,
        State::FinWait2 => 1 << 5,
        State::TimeWait => 1 << 6,
        State::Closed => 1 << 7,
        State::CloseWait => 1 << 8,
        State::LastAck => 1 << 9,
        State::Listen => 1 << 10,
        State::Closing => 1 << 11,
    }
}

/// One spelling per endpoint: `::ffff:a.b.c.d` is `a.b.c.d`, and the scope id is not part of it.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_own_bit_and_its_own_code() {
        for state in State::ALL {
            let codes: Vec<u8> = (1..=NEW_SYN_RECV).filter(|&code| state_of(code) == state).collect();
            assert_eq!(mask_of(state), codes.iter().fold(0, |mask, code| mask | 1 << code), "{state:?}");
        }
        assert_eq!(States::of(&State::ALL), States::ALL);
        assert_eq!(States::except(&State::ALL), States(0));
    }

    #[test]
    fn a_short_tcp_info_has_no_idle_time() {
        assert_eq!(idle(&[0; 59]), None);
        let mut info = [0xff; 60];
        info[52..56].copy_from_slice(&1_500_u32.to_ne_bytes());
        assert_eq!(idle(&info), Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:80".parse().unwrap());
        let scoped: SocketAddr = "[fe80::1%3]:80".parse().unwrap();
        assert_eq!(canonical(scoped), "[fe80::1]:80".parse().unwrap());
    }
}
