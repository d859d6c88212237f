//! Sockets to flow records: what is known of a connection that began before anybody watched. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use tcpfsm_common::{
    abi::{FlowRecord, Hook, Tap, Verdict},
    flow::{End, Endpoints4, Endpoints6, FlowKey},
    fsm::State,
};

use super::{coverage::Passage, held::with_socket_in};
use crate::host::{Socket, Timer};

/// A flow and what its sockets say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Where it goes in the maps.
    pub key: FlowKey,
    /// Both states, since when at least, and no sequence number: none is known.
    pub record: FlowRecord,
}

/// The key of a flow, and which end `local` is.
#[must_use]
pub fn flow_key(local: SocketAddr, remote: SocketAddr, scope: u32) -> Option<(FlowKey, End)> {
    let (src_port, dst_port) = (local.port(), remote.port());
    match (local.ip(), remote.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let ends = Endpoints4 { src: src.octets(), dst: dst.octets(), src_port, dst_port };
            let (key, end) = ends.key(scope);
            Some((FlowKey::V4(key), end))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ends = Endpoints6 { src: src.octets(), dst: dst.octets(), src_port, dst_port };
            let (key, end) = ends.key(scope);
            Some((FlowKey::V6(key), end))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// The flows of these sockets that pass a watched interface. `passage` says where. `now` is monotonic.
#[must_use]
pub fn seeds(
    sockets: &[Socket],
    scope: u32,
    now: u64,
    passage: impl Fn(&Socket) -> Option<Passage>,
) -> Vec<Seed> {
    let listeners = Listeners::among(sockets);
    // A connection of the host with itself has two sockets and one flow. In order, so that the same sockets
    // give the same seeds.
    let mut flows: HashMap<FlowKey, [Option<&Socket>; 2]> = HashMap::new();
    let mut order = Vec::new();
    for socket in sockets {
        let connected = socket.remote.port() != 0 && !socket.state.is_closed();
        // A socket connected to itself is both ends of its flow; what it is in says nothing about either.
        if !connected || socket.local == socket.remote {
            continue;
        }
        let Some((key, end)) = flow_key(socket.local, socket.remote, scope) else { continue };
        let ends = flows.entry(key).or_insert_with(|| {
            order.push(key);
            [None, None]
        });
        ends[end as usize & 1] = Some(socket);
    }
    order
        .into_iter()
        .filter_map(|key| {
            let &[low, high] = flows.get(&key)?;
            let passage = passage(low.or(high)?)?;
            Some(Seed { key, record: record([low, high], &listeners, now, passage)? })
        })
        .collect()
}

fn record(
    sockets: [Option<&Socket>; 2],
    listeners: &Listeners,
    now: u64,
    passage: Passage,
) -> Option<FlowRecord> {
    let mut verdict = Verdict::default()
        .next_generation()
        .with(Verdict::PICKED_UP | Verdict::SEEDED, true)
        .with_originator(originator(sockets, listeners)?);
    let mut since = [now; 2];
    for end in [End::Low, End::High] {
        let (own, peer) = (sockets[end as usize & 1], sockets[end.other() as usize & 1]);
        verdict = match (own, peer) {
            (Some(own), _) => with_socket_in(verdict, end, own.state),
            (None, Some(peer)) => verdict.with_state(end, peer_of(peer.state), false),
            (None, None) => return None,
        };
        if let Some(socket) = own.or(peer) {
            since[end as usize & 1] = now.saturating_sub(known_for(socket)).max(1);
        }
    }
    let mut record = FlowRecord::default();
    record.shared.verdict = verdict.0;
    record.shared.since = since;
    record.shared.opened = since[0].min(since[1]);
    record.shared.tap = sockets.map(|own| tap(passage, own.is_some()).0);
    let last = since[0].max(since[1]);
    // No evidence, but the clock of its silence runs.
    for sent in &mut record.sent {
        sent.stamp = last & !0xffff;
    }
    Some(record)
}

/// Where the segments of an end are seen: this host's go out, the others' come in.
fn tap(passage: Passage, ours: bool) -> Tap {
    match passage {
        Passage::Loopback(index) => Tap::new(index, Hook::TcIngress),
        Passage::Card(index) if ours => Tap::new(index, Hook::TcEgress),
        Passage::Card(index) => Tap::new(index, Hook::TcIngress),
        Passage::Somewhere => Tap(0),
    }
}

/// Who opened it. A socket that waits for its SYN to be answered did; one whose port somebody listens on did not.
fn originator(sockets: [Option<&Socket>; 2], listeners: &Listeners) -> Option<End> {
    let responds = |socket: &Socket| match socket.state {
        State::SynSent => false,
        State::SynRecv => true,
        _ => listeners.listens(socket.local),
    };
    let [low, high] = sockets;
    match (low, high) {
        (Some(low), Some(high)) => Some(match (responds(low), responds(high)) {
            (true, false) => End::High,
            (false, true) => End::Low,
            // Services have low ports.
            (true, true) | (false, false) if low.local.port() < high.local.port() => End::High,
            (true, true) | (false, false) => End::Low,
        }),
        (Some(low), None) => Some(if responds(low) { End::High } else { End::Low }),
        (None, Some(high)) => Some(if responds(high) { End::Low } else { End::High }),
        (None, None) => None,
    }
}

/// What the other end is in, for all that is known: no further than what this end has received from it.
const fn peer_of(state: State) -> State {
    match state {
        State::SynSent => State::Listen,
        // It sent a FIN that is not acknowledged: it need not have arrived.
        State::SynRecv | State::Established | State::FinWait1 => State::Established,
        State::FinWait2 => State::CloseWait,
        State::CloseWait | State::LastAck => State::FinWait2,
        State::Closing => State::Closing,
        State::Closed | State::Listen | State::TimeWait => State::Closed,
    }
}

/// For how long at least the socket has been in its state, in nanoseconds: nothing came or went since.
fn known_for(socket: &Socket) -> u64 {
    let known = match (socket.idle, socket.timer) {
        (Some(idle), _) => idle.as_nanos(),
        // The first SYN waits a second, and each further one twice as long.
        (None, Some(Timer::Retransmit { count, .. })) => ((1_u128 << count.min(16)) - 1) * 1_000_000_000,
        (None, _) => 0,
    };
    u64::try_from(known).unwrap_or(0)
}

/// Where somebody listens.
#[derive(Debug, Default)]
struct Listeners {
    anywhere: HashSet<u16>,
    at: BTreeMap<u16, HashSet<IpAddr>>,
}

impl Listeners {
    fn among(sockets: &[Socket]) -> Self {
        let mut listeners = Self::default();
        for socket in sockets.iter().filter(|socket| socket.state == State::Listen) {
            let port = socket.local.port();
            if socket.local.ip().is_unspecified() {
                listeners.anywhere.insert(port);
            } else {
                listeners.at.entry(port).or_default().insert(socket.local.ip());
            }
        }
        listeners
    }

    fn listens(&self, local: SocketAddr) -> bool {
        self.anywhere.contains(&local.port())
            || self.at.get(&local.port()).is_some_and(|addresses| addresses.contains(&local.ip()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1_000 * SECOND;

    fn socket(local: &str, remote: &str, state: State) -> Socket {
        Socket {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state,
            inode: 1,
            uid: 0,
            rqueue: 0,
            wqueue: 0,
            timer: None,
            cookie: 0,
            ifindex: 0,
            cgroup: None,
            idle: Some(Duration::from_secs(30)),
        }
    }

    fn one(sockets: &[Socket]) -> (Verdict, FlowRecord, End) {
        let found = seeds(sockets, 0, NOW, |_| Some(Passage::Card(7)));
        let [Seed { key, record }] = &found[..] else { panic!("{found:?}") };
        let own = sockets.iter().find(|socket| socket.state != State::Listen).unwrap();
        let (same, end) = flow_key(own.local, own.remote, 0).unwrap();
        assert_eq!(same, *key);
        (Verdict(record.shared.verdict), *record, end)
    }

    #[test]
    fn both_ends_follow_from_one_socket() {
        let cases = [
            (State::Established, State::Established),
            (State::SynSent, State::Listen),
            (State::SynRecv, State::Established),
            (State::FinWait1, State::Established),
            (State::FinWait2, State::CloseWait),
            (State::CloseWait, State::FinWait2),
            (State::Closing, State::Closing),
            (State::LastAck, State::FinWait2),
            (State::TimeWait, State::Closed),
        ];
        for (state, peer) in cases {
            for (local, remote) in [("10.0.0.1:5", "10.0.0.2:80"), ("[fd00::9]:5", "[fd00::2]:80")] {
                let (verdict, record, end) = one(&[socket(local, remote, state)]);
                assert_eq!((verdict.state(end), verdict.state(end.other())), (state, peer));
                assert!(verdict.is_confirmed(end) && !verdict.is_confirmed(end.other()));
                let ends_by_itself = matches!(state, State::SynSent | State::SynRecv | State::TimeWait);
                assert_eq!(verdict.is_held(end), !ends_by_itself, "it may have been silent for long");
                assert!(!verdict.is_held(end.other()));
                assert!(verdict.has(Verdict::SEEDED) && verdict.has(Verdict::PICKED_UP));
                assert_eq!(record.shared.since, [NOW - 30 * SECOND; 2]);
                assert!(record.last_seen() <= NOW - 30 * SECOND && record.last_seen() > NOW - 31 * SECOND);
                let taps = [Tap::new(7, Hook::TcEgress), Tap::new(7, Hook::TcIngress)].map(|tap| tap.0);
                assert_eq!(record.shared.tap[end as usize], taps[0]);
                assert_eq!(record.shared.tap[end.other() as usize], taps[1]);
                assert_eq!(record.sent.map(|sent| sent.flags), [0; 2], "nothing was seen");
            }
        }
    }

    #[test]
    fn the_originator_is_who_does_not_listen() {
        let server = socket("10.0.0.2:80", "10.0.0.1:40001", State::Established);
        let (verdict, _, end) = one(std::slice::from_ref(&server));
        assert_eq!(verdict.originator(), end, "nobody listens there, as far as is known");
        for listener in ["0.0.0.0:80", "[::]:80", "10.0.0.2:80"] {
            let listener = socket(listener, "0.0.0.0:0", State::Listen);
            let (verdict, _, end) = one(&[server.clone(), listener]);
            assert_eq!(verdict.originator(), end.other());
        }
        let elsewhere = socket("10.0.0.3:80", "0.0.0.0:0", State::Listen);
        let (verdict, _, end) = one(&[server, elsewhere]);
        assert_eq!(verdict.originator(), end);
    }

    #[test]
    fn two_sockets_of_one_flow_are_both_believed() {
        let client = socket("127.0.0.1:40001", "127.0.0.1:80", State::FinWait2);
        let server = socket("127.0.0.1:80", "127.0.0.1:40001", State::CloseWait);
        let (verdict, _, client_end) = one(&[client, server]);
        assert_eq!(verdict.state(client_end), State::FinWait2);
        assert_eq!(verdict.state(client_end.other()), State::CloseWait);
        assert!(verdict.is_confirmed(End::Low) && verdict.is_confirmed(End::High));
        assert_eq!(verdict.originator(), client_end);
    }

    #[test]
    fn what_is_no_connection_or_passes_nowhere_is_left_out() {
        let sockets = [
            socket("10.0.0.1:80", "0.0.0.0:0", State::Listen),
            socket("10.0.0.1:80", "10.0.0.2:1", State::Closed),
            socket("10.0.0.1:80", "10.0.0.1:80", State::Established),
        ];
        assert_eq!(seeds(&sockets, 0, NOW, |_| Some(Passage::Somewhere)), []);
        let elsewhere = socket("10.0.0.1:80", "10.0.0.2:1", State::Established);
        assert_eq!(seeds(&[elsewhere], 0, NOW, |_| None), []);
    }

    #[test]
    fn a_request_that_was_sent_again_is_as_old_as_that_took() {
        let timer = Some(Timer::Retransmit { left: Duration::from_secs(1), count: 3 });
        let request = Socket { idle: None, timer, ..socket("10.0.0.1:5", "10.0.0.2:80", State::SynSent) };
        let (_, record, _) = one(&[request]);
        assert_eq!(record.shared.opened, NOW - 7 * SECOND);
    }
}
