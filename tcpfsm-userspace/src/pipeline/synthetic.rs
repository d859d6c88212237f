//! Events for tests: real segments through the real machine, as the kernel programs do it.

use std::net::SocketAddr;

use tcpfsm_common::{
    abi::{Conditions, EventKey as _, EventKind, FlowEvent, FlowRecord, SweepRequest, Verdict},
    flow::{End, Endpoints4, FlowKey},
    fsm::{Config, PlainDesk, State, advance, expire, observe_icmp},
    packet::{IcmpError, Unreachable},
    segment::{Segment, TcpFlags},
    seq::SeqNum,
};

use crate::{
    clock::monotonic_ns,
    config::PerState,
    detect::{AnomalyKind, Dwelling, Finding},
    report::{Flow, Phase, Severity, Side},
    source::live::{Observation, Sight, Totals},
};

pub(crate) const ORIG: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), 40_001);
pub(crate) const RESP: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2)), 8_080);

/// One connection between [`ORIG`] (the low end) and [`RESP`].
pub(crate) struct Conversation {
    pub(crate) key: FlowKey,
    pub(crate) record: FlowRecord,
    pub(crate) now: u64,
    next: [u32; 2],
}

impl Conversation {
    pub(crate) fn new() -> Self {
        Self::from_port(ORIG.port())
    }

    /// The same from another port of the originator's.
    pub(crate) fn from_port(port: u16) -> Self {
        Self::between(port, RESP.port())
    }

    /// The same with these ports.
    pub(crate) fn between(src_port: u16, dst_port: u16) -> Self {
        let ends = Endpoints4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2], src_port, dst_port };
        let (key, source) = ends.key(0);
        assert_eq!(source, End::Low);
        Self {
            key: FlowKey::V4(key),
            record: FlowRecord::default(),
            now: 1_000_000_000,
            next: [1_000, 5_000],
        }
    }

    pub(crate) fn flow(&self) -> Flow {
        Flow { orig: ORIG, resp: RESP, iface: "veth0".into(), local: None }
    }

    /// A finding about an end of it.
    pub(crate) fn finding(&self, end: End, state: State) -> Finding {
        let side = if end == End::Low { Side::Orig } else { Side::Resp };
        let oldest = Dwelling {
            key: self.key,
            end,
            side,
            state,
            confirmed: true,
            since: 0,
            service: RESP,
            ifindex: 1,
        };
        Finding {
            kind: AnomalyKind::RstInjection,
            phase: Phase::Start,
            severity: Severity::Critical,
            count: 1,
            peak: 1,
            first_seen: 1,
            time: monotonic_ns(),
            oldest,
            source: None,
            technique: None,
            permille: None,
        }
    }

    /// The next segments carry these sequence numbers.
    pub(crate) fn renumber(&mut self, next: [u32; 2]) {
        self.next = next;
    }

    /// One segment a millisecond after the last, acknowledging everything so far.
    pub(crate) fn segment(&mut self, sender: End, flags: u16, len: u32) -> Observation {
        self.now += 1_000_000;
        let (own, peer) = (sender as usize, sender.other() as usize);
        let segment = Segment {
            seq: SeqNum(self.next[own]),
            ack: if flags & TcpFlags::ACK != 0 { SeqNum(self.next[peer]) } else { SeqNum(0) },
            len,
            flags: TcpFlags(flags),
            window: 64_000,
            ..Segment::default()
        };
        self.next[own] = segment.end_seq().0;
        let (before, since) = (self.record.shared.verdict, self.record.shared.since);
        let (step, change) = advance(&mut self.record, sender, &segment, self.now, Config::default());
        let kind = if change.over { EventKind::Closed } else { EventKind::Verdict };
        let event = FlowEvent { sender: sender as u8, flags, len, ..self.event(kind, before, since) };
        self.observation(FlowEvent { after: step.verdict.0, facts: step.facts.0, ..event })
    }

    /// A segment of no known connection.
    pub(crate) fn stray(&mut self, sender: End, flags: u16) -> Observation {
        let mut stray = self.segment(sender, flags, 0);
        stray.kind = EventKind::Stray;
        stray.event.kind = EventKind::Stray as u8;
        stray
    }

    /// An ICMP unreachable about the originator's SYN.
    pub(crate) fn unreachable(&mut self) -> Observation {
        let (before, since) = (self.verdict(), self.record.shared.since);
        let error =
            IcmpError { reason: Unreachable::Host, seq: self.record.sent[0].iss, drops_request: true };
        let step = observe_icmp(&PlainDesk::default(), before, End::Low, &self.record.sent[0], &error);
        self.record.shared.verdict = step.verdict.0;
        let event = self.event(EventKind::Closed, before.0, since);
        self.observation(FlowEvent { facts: step.facts.0, ..event })
    }

    /// What the sweep ends at `now`.
    pub(crate) fn expire(&mut self, now: u64) -> Observation {
        self.now = now;
        let timeout = PerState::default_timeouts().nanoseconds();
        let request = SweepRequest { now, timeout, ..SweepRequest::default() };
        let (before, since) = (self.verdict(), self.record.shared.since);
        let after = expire(&self.record, &request).verdict;
        self.record.shared.verdict = after.0;
        let over = after.is_over() && !before.is_over();
        let event = self.event(if over { EventKind::Closed } else { EventKind::Expired }, before.0, since);
        self.observation(event)
    }

    /// An event without a segment.
    fn event(&self, kind: EventKind, before: u64, since: [u64; 2]) -> FlowEvent {
        let after = self.record.shared.verdict;
        let mut event =
            FlowEvent { time: self.now, before, after, since, ifindex: 1, ..FlowEvent::new(kind) };
        self.key.fill(&mut event);
        event
    }

    fn observation(&self, event: FlowEvent) -> Observation {
        let kind = EventKind::try_from(event.kind).unwrap();
        let record = &self.record;
        let totals = (kind == EventKind::Closed).then(|| Totals {
            packets: record.sent.map(|sent| sent.packets),
            bytes: record.sent.map(|sent| sent.bytes),
            opened: record.shared.opened,
            facts: record.shared.facts,
        });
        Observation { kind, event, totals, sight: None }
    }

    /// Handshake; FIN from the originator; FIN from the responder.
    pub(crate) fn ordinary_life(&mut self) -> Vec<Observation> {
        const ACK: u16 = TcpFlags::ACK;
        let mut all = self.handshake();
        all.push(self.segment(End::Low, TcpFlags::FIN | ACK, 0));
        all.push(self.segment(End::High, ACK, 0));
        all.push(self.segment(End::High, TcpFlags::FIN | ACK, 0));
        all.push(self.segment(End::Low, ACK, 0));
        all
    }

    pub(crate) fn handshake(&mut self) -> Vec<Observation> {
        vec![
            self.segment(End::Low, TcpFlags::SYN, 0),
            self.segment(End::High, TcpFlags::SYN | TcpFlags::ACK, 0),
            self.segment(End::Low, TcpFlags::ACK, 0),
        ]
    }

    /// What the sweep says of a flow in these conditions.
    pub(crate) fn stuck(&self, conditions: u64) -> Observation {
        let FlowRecord { shared, sent: [low, high] } = &self.record;
        let event = self.event(EventKind::Stuck, shared.verdict, shared.since);
        let sight = Sight {
            conditions: Conditions(conditions),
            seen: [low.last_seen(), high.last_seen()],
            packets: [low.packets, high.packets],
            rtx: shared.rtx,
            unacked: [low.nxt.0.wrapping_sub(high.ack.0), high.nxt.0.wrapping_sub(low.ack.0)],
        };
        let event = FlowEvent { facts: shared.facts, ..event };
        Observation { sight: Some(sight), ..self.observation(event) }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        Verdict(self.record.shared.verdict)
    }
}
