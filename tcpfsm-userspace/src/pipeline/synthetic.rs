//! Events for tests: real segments through the real machine, as the kernel programs do it.

use std::net::SocketAddr;

use tcpfsm_common::{
    abi::{EventKey as _, EventKind, FlowEvent, FlowRecord, Verdict},
    flow::{End, Endpoints4, FlowKey},
    fsm::{Config, advance},
    segment::{Segment, TcpFlags},
    seq::SeqNum,
};

use crate::{
    report::Flow,
    source::live::{Observation, Totals},
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
        let ends = Endpoints4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2], src_port: 40_001, dst_port: 8_080 };
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
        let mut event = FlowEvent {
            sender: sender as u8,
            flags,
            time: self.now,
            before,
            after: step.verdict.0,
            since,
            facts: step.facts.0,
            ifindex: 1,
            len,
            ..FlowEvent::new(if change.over { EventKind::Closed } else { EventKind::Verdict })
        };
        self.key.fill(&mut event);
        let record = &self.record;
        let totals = change.over.then(|| Totals {
            packets: record.sent.map(|sent| sent.packets),
            bytes: record.sent.map(|sent| sent.bytes),
            opened: record.shared.opened,
            facts: record.shared.facts,
        });
        let kind = if change.over { EventKind::Closed } else { EventKind::Verdict };
        Observation { kind, event, totals }
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

    /// What the sweep says of an end that is stuck.
    pub(crate) fn stuck(&self, end: End) -> Observation {
        let mut event = FlowEvent {
            sender: end as u8,
            time: self.now,
            before: self.record.shared.verdict,
            after: self.record.shared.verdict,
            since: self.record.shared.since,
            ifindex: 1,
            ..FlowEvent::new(EventKind::Stuck)
        };
        self.key.fill(&mut event);
        Observation { kind: EventKind::Stuck, event, totals: None }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        Verdict(self.record.shared.verdict)
    }
}
