//! What goes through the ring buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{ABI_VERSION, ServiceKey, Verdict};
use crate::{
    fact::Facts,
    flow::{End, FlowKey, FlowKey4, FlowKey6},
    segment::TcpFlags,
};

/// Under a flood one event in so many is told, and stands for them all. A prime: a rhythm of segments and their answers
/// would keep step with a power of two, and only the ones or only the others would be told.
pub const SAMPLE: u8 = 61;

/// What an event reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    /// The verdict changed: at least one end is in another state, confirmed, or rolled back.
    Verdict = 1,
    /// Nothing changed, but the segment said something worth reporting.
    Fact = 2,
    /// The sweep ended the state of one or both ends because its time ran out.
    Expired = 3,
    /// The sweep found an end longer in its state than the threshold, or something else amiss: a [`StuckEvent`].
    Stuck = 4,
    /// The flow ended: a [`ClosedEvent`] with its totals.
    Closed = 5,
    /// A segment of no known connection, or with flags that no stack sends: a sample, see [`FlowEvent::weight`].
    Stray = 6,
    /// The host's own sockets knew better: the daemon corrected the verdict.
    Host = 7,
}

impl TryFrom<u8> for EventKind {
    type Error = u8;

    fn try_from(code: u8) -> Result<Self, u8> {
        match code {
            1 => Ok(Self::Verdict),
            2 => Ok(Self::Fact),
            3 => Ok(Self::Expired),
            4 => Ok(Self::Stuck),
            5 => Ok(Self::Closed),
            6 => Ok(Self::Stray),
            7 => Ok(Self::Host),
            other => Err(other),
        }
    }
}

/// One event: what was before, what is now, and which segment did it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FlowEvent {
    /// [`ABI_VERSION`].
    pub version: u8,
    /// How many such events this one stands for; 1 but under a flood.
    pub weight: u8,
    /// An [`EventKind`] code.
    pub kind: u8,
    /// 4 or 6: how to read `addr`.
    pub family: u8,
    /// The [`Hook`](super::Hook) code on which the segment was seen.
    pub hook: u8,
    /// The [`End`] code of the segment's sender; for a sweep, of the end that expired or is stuck.
    pub sender: u8,
    /// The segment's TCP flags, 0 for a sweep.
    pub flags: u16,
    /// `CLOCK_MONOTONIC` nanoseconds, fine clock.
    pub time: u64,
    /// The verdict before.
    pub before: u64,
    /// The verdict now.
    pub after: u64,
    /// When each end had entered the state it was in before.
    pub since: [u64; 2],
    /// What the segment told.
    pub facts: u64,
    /// Addresses, low end first; IPv4 in the first word of each.
    pub addr: [[u32; 4]; 2],
    /// Ports, low end first.
    pub port: [u16; 2],
    /// Scope of the key.
    pub scope: u32,
    /// The interface on which the segment was seen.
    pub ifindex: u32,
    /// SEG.SEQ relative to the sender's initial number; 0 for a stray.
    pub seq: u32,
    /// SEG.ACK relative to the receiver's initial number.
    pub ack: u32,
    /// Payload bytes.
    pub len: u32,
}

/// A flow's end, with its totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct ClosedEvent {
    /// The event that closed it.
    pub event: FlowEvent,
    /// Segments sent by each end.
    pub packets: [u64; 2],
    /// Payload bytes sent by each end.
    pub bytes: [u64; 2],
    /// When the flow was opened.
    pub opened: u64,
    /// Every fact of its life.
    pub facts: u64,
}

/// What the sweep found about a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct StuckEvent {
    /// The flow, its verdict, and since when each end is in its state.
    pub event: FlowEvent,
    /// When each end was last heard; 0 for never.
    pub seen: [u64; 2],
    /// Segments sent by each end.
    pub packets: [u64; 2],
    /// Of these, sent again.
    pub rtx: [u32; 2],
    /// Sequence numbers that each end sent and the other has not acknowledged.
    pub unacked: [u32; 2],
    /// The [`Conditions`](super::Conditions).
    pub conditions: u64,
}

const _: () = assert!(
    size_of::<FlowEvent>() == 112 && size_of::<ClosedEvent>() == 160 && size_of::<StuckEvent>() == 168
);

/// Keys that can be written into an event.
pub trait EventKey {
    /// Writes the key's family, addresses, ports and scope.
    fn fill(&self, event: &mut FlowEvent);

    /// The service whose responder is `end`.
    fn service(&self, end: End) -> ServiceKey;

    /// Whether both ends are the same socket address: a socket connected to itself.
    fn is_self_connected(&self) -> bool;
}

impl EventKey for FlowKey4 {
    #[inline(always)]
    fn fill(&self, event: &mut FlowEvent) {
        event.family = 4;
        event.addr = [[self.addr[0], 0, 0, 0], [self.addr[1], 0, 0, 0]];
        event.port = self.port;
        event.scope = self.scope;
    }

    #[inline(always)]
    fn service(&self, end: End) -> ServiceKey {
        let at = end as usize & 1;
        ServiceKey { addr: [self.addr[at], 0, 0, 0], port: self.port[at], family: 4, scope: self.scope }
    }

    #[inline(always)]
    fn is_self_connected(&self) -> bool {
        // One comparison.
        u32::from(self.port[0] ^ self.port[1]) | (self.addr[0] ^ self.addr[1]) == 0
    }
}

impl EventKey for FlowKey6 {
    #[inline(always)]
    fn fill(&self, event: &mut FlowEvent) {
        event.family = 6;
        event.addr = self.addr;
        event.port = self.port;
        event.scope = self.scope;
    }

    #[inline(always)]
    fn service(&self, end: End) -> ServiceKey {
        let at = end as usize & 1;
        ServiceKey { addr: self.addr[at], port: self.port[at], family: 6, scope: self.scope }
    }

    #[inline(always)]
    fn is_self_connected(&self) -> bool {
        self.port[0] == self.port[1] && self.addr[0] == self.addr[1]
    }
}

impl EventKey for FlowKey {
    fn fill(&self, event: &mut FlowEvent) {
        match self {
            Self::V4(key) => key.fill(event),
            Self::V6(key) => key.fill(event),
        }
    }

    fn service(&self, end: End) -> ServiceKey {
        match self {
            Self::V4(key) => key.service(end),
            Self::V6(key) => key.service(end),
        }
    }

    fn is_self_connected(&self) -> bool {
        match self {
            Self::V4(key) => key.is_self_connected(),
            Self::V6(key) => key.is_self_connected(),
        }
    }
}

impl FlowEvent {
    /// The flow's key.
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        let &Self { family, addr, port, scope, .. } = self;
        match family {
            4 => FlowKey::V4(FlowKey4 { addr: [addr[0][0], addr[1][0]], port, scope }),
            _ => FlowKey::V6(FlowKey6 { addr, port, scope }),
        }
    }

    /// The segment's sender, or the end that the sweep speaks of.
    #[must_use]
    pub const fn sender_end(&self) -> End {
        End::from_bit(self.sender as u64)
    }

    /// The verdict before.
    #[must_use]
    pub const fn verdict_before(&self) -> Verdict {
        Verdict(self.before)
    }

    /// The verdict now.
    #[must_use]
    pub const fn verdict_after(&self) -> Verdict {
        Verdict(self.after)
    }

    /// What the segment told.
    #[must_use]
    pub const fn fact_set(&self) -> Facts {
        Facts(self.facts)
    }

    /// Whether a connection began with it.
    #[must_use]
    pub const fn opens(&self) -> bool {
        self.verdict_before().generation() != self.verdict_after().generation()
    }

    /// Whether an end is in another state, or a connection began.
    #[inline(always)]
    #[must_use]
    pub const fn moves(&self) -> bool {
        (self.before ^ self.after) & Verdict::STATES_AND_GENERATION != 0
    }

    /// Whether it goes on where the one before it ended.
    #[must_use]
    pub const fn follows(&self, earlier: &Self) -> bool {
        (earlier.after ^ self.before) & Verdict::STATES_AND_GENERATION == 0
    }

    /// How many such events it stands for: under a flood only a part is told of what moves no connection.
    #[must_use]
    pub const fn weight(&self) -> u64 {
        self.weight as u64
    }

    /// The segment's flags.
    #[must_use]
    pub const fn tcp_flags(&self) -> TcpFlags {
        TcpFlags(self.flags)
    }

    /// An event of this version and kind.
    #[inline(always)]
    #[must_use]
    pub fn new(kind: EventKind) -> Self {
        let mut event = Self::default();
        event.begin(kind);
        event
    }

    /// Makes it one of this version and kind, which stands for itself alone; the rest stays as it is.
    #[inline(always)]
    pub const fn begin(&mut self, kind: EventKind) {
        self.version = ABI_VERSION;
        self.weight = 1;
        self.kind = kind as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_event() {
        let v4 = FlowKey::V4(FlowKey4 { addr: [1, 2], port: [3, 4], scope: 5 });
        let v6 = FlowKey::V6(FlowKey6 { addr: [[1, 2, 3, 4], [5, 6, 7, 8]], port: [9, 10], scope: 11 });
        for key in [v4, v6] {
            let mut event = FlowEvent::new(EventKind::Verdict);
            key.fill(&mut event);
            assert_eq!(event.key(), key);
        }
    }
}
