//! Per-CPU counters: exact whatever happens to events.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::STATE_SLOTS;
use crate::packet::Skip;

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// XDP, on ingress.
    Xdp = 0,
    /// TCX or clsact, on ingress.
    TcIngress = 1,
    /// TCX or clsact, on egress.
    TcEgress = 2,
}

impl Hook {
    /// Every hook, in the order of the codes.
    pub const ALL: [Self; 3] = [Self::Xdp, Self::TcIngress, Self::TcEgress];

    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc_ingress",
            Self::TcEgress => "tc_egress",
        }
    }
}

/// What became of a packet. The codes of [`Skip`] come after these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It belongs to a flow in the maps, or began one.
    Tracked = 0,
    /// A TCP segment of no known connection that begins none.
    NoSession = 1,
    /// Flags that no conforming stack sends.
    BadFlags = 2,
    /// An ICMP error about a TCP segment.
    Icmp = 3,
    /// The flow could not be stored.
    MapFull = 4,
}

impl Outcome {
    /// Every outcome, in the order of the codes.
    pub const ALL: [Self; 5] = [Self::Tracked, Self::NoSession, Self::BadFlags, Self::Icmp, Self::MapFull];

    /// How many outcomes and skip reasons there are.
    pub const COUNT: usize = Self::ALL.len() + Skip::ALL.len();

    /// The names of all outcomes and skip reasons, in the order of their counters.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(Self::name).chain(Skip::ALL.into_iter().map(Skip::name))
    }

    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracked => "tracked",
            Self::NoSession => "no_session",
            Self::BadFlags => "bad_flags",
            Self::Icmp => "icmp",
            Self::MapFull => "map_full",
        }
    }
}

/// What the tracker says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Events put into a lane or the ring buffer.
    EventsSent = 0,
    /// Events lost because the ring buffer was full.
    EventsLost = 1,
    /// Flows put into a map by their first segment.
    Inserted = 2,
    /// Flows moved from an embryonic map to a flow map.
    Promoted = 3,
    /// Flows that could not be put into a map.
    InsertFailed = 4,
    /// Verdicts that another CPU changed first, and that were worked out again.
    VerdictRetries = 5,
    /// Verdicts given up after several looks.
    VerdictLost = 6,
    /// Flows removed by the sweep.
    Expired = 7,
    /// Events of what moved no connection that were not told because there were too many: others stand for them.
    EventsSampled = 8,
}

impl Health {
    /// Every counter, in the order of the codes.
    pub const ALL: [Self; 9] = [
        Self::EventsSent,
        Self::EventsLost,
        Self::Inserted,
        Self::Promoted,
        Self::InsertFailed,
        Self::VerdictRetries,
        Self::VerdictLost,
        Self::Expired,
        Self::EventsSampled,
    ];
}

/// Buckets of the dwell histogram: powers of 4 from 1 ms, the last one open.
pub const DWELL_BUCKETS: usize = 12;

/// Buckets of the handshake histogram: the same scale.
pub const LATENCY_BUCKETS: usize = DWELL_BUCKETS;

/// The upper limit of a bucket in nanoseconds, `None` for the open one.
#[must_use]
pub const fn bucket_limit_ns(bucket: usize) -> Option<u64> {
    if bucket + 1 < DWELL_BUCKETS { Some(1_000_000 << (2 * bucket as u64)) } else { None }
}

/// The bucket of a duration.
#[inline(always)]
#[must_use]
pub const fn bucket_of(ns: u64) -> usize {
    let mut bucket = 0;
    let mut limit = 1_000_000_u64;
    while bucket < DWELL_BUCKETS - 1 && ns > limit {
        limit <<= 2;
        bucket += 1;
    }
    bucket
}

/// All counters of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters {
    /// Packets by [`Hook`], then by [`Outcome`] and [`Skip`]; rows padded to 16.
    pub packets: [[u64; 16]; 3],
    /// [`Health`] counters, padded to 16.
    pub health: [u64; 16],
    /// Facts by code.
    pub facts: [u64; 64],
    /// Transitions by side (originator first), state before, state after.
    pub transitions: [[[u64; STATE_SLOTS]; STATE_SLOTS]; 2],
    /// Flows closed, by [`CloseReason`](super::CloseReason).
    pub closed: [u64; 16],
    /// Time spent in each state when left, by [`bucket_of`].
    pub dwell: [[u64; DWELL_BUCKETS]; STATE_SLOTS],
    /// The same, added up in units of 1,024 ns: a million ends would turn 64 bits of nanoseconds over within hours.
    pub dwell_sum: [u64; STATE_SLOTS],
    /// Handshake durations (SYN to the third segment), by [`bucket_of`].
    pub handshake: [u64; LATENCY_BUCKETS],
    /// The same, added up in units of 1,024 ns.
    pub handshake_sum: u64,
    /// Flows that came into a state of a map: by flow map (`FLOWS4`, `FLOWS6`, `EMBRYOS4`, `EMBRYOS6`), then by
    /// [`Verdict::flow_slot`](super::Verdict::flow_slot). What came and neither went nor is there was evicted.
    pub came: [[u64; STATE_SLOTS]; FLOW_MAPS],
    /// Flows that went out of a state of a map, into another one, into another map, or for good.
    pub went: [[u64; STATE_SLOTS]; FLOW_MAPS],
    /// This CPU's clock, which is no counter: the tick when it was read last, and what it said.
    pub clock: [u64; 2],
    /// How many events this CPU put into its lane: where the next one goes, and so of this CPU alone too.
    pub lane: u64,
    /// No counter either: the slot of time, and how many handshakes more this CPU put straight into the flow map in it than completed there.
    pub early: [u64; 2],
    /// Nor this: the slot of 2³⁰ ns in which this CPU told only a sample last.
    pub sampled: u64,
}

/// How many flow maps there are.
pub const FLOW_MAPS: usize = 4;

/// A number for each state that a flow can be in, in each flow map.
pub type ByMapAndState = [[u64; STATE_SLOTS]; FLOW_MAPS];

const _: () = assert!(Outcome::COUNT <= 16);

impl Counters {
    /// What a unit of sums of times is, in bits of nanoseconds.
    const SUM_UNIT: u32 = 10;

    /// Nanoseconds as units of such a sum, rounded.
    #[inline(always)]
    #[must_use]
    pub const fn sum_units(ns: u64) -> u64 {
        ns.wrapping_add(1 << (Self::SUM_UNIT - 1)) >> Self::SUM_UNIT
    }

    /// The time spent in a state when left, added up in nanoseconds.
    #[must_use]
    pub fn dwell_sum_ns(&self, slot: usize) -> u128 {
        self.dwell_sum.get(slot).map_or(0, |sum| u128::from(*sum) << Self::SUM_UNIT)
    }

    /// How long handshakes took, added up in nanoseconds.
    #[must_use]
    pub fn handshake_sum_ns(&self) -> u128 {
        u128::from(self.handshake_sum) << Self::SUM_UNIT
    }

    /// All zero.
    pub const ZERO: Self = Self {
        packets: [[0; 16]; 3],
        health: [0; 16],
        facts: [0; 64],
        transitions: [[[0; STATE_SLOTS]; STATE_SLOTS]; 2],
        closed: [0; 16],
        dwell: [[0; DWELL_BUCKETS]; STATE_SLOTS],
        dwell_sum: [0; STATE_SLOTS],
        handshake: [0; LATENCY_BUCKETS],
        handshake_sum: 0,
        came: [[0; STATE_SLOTS]; FLOW_MAPS],
        went: [[0; STATE_SLOTS]; FLOW_MAPS],
        clock: [0; 2],
        lane: 0,
        early: [0; 2],
        sampled: 0,
    };

    /// Adds another CPU's counters.
    pub fn add(&mut self, other: &Self) {
        let Self {
            packets,
            health,
            facts,
            transitions,
            closed,
            dwell,
            dwell_sum,
            handshake,
            handshake_sum,
            came,
            went,
            clock: _,
            lane: _,
            early: _,
            sampled: _,
        } = other;
        add_all(self.packets.as_flattened_mut(), packets.as_flattened());
        add_all(&mut self.health, health);
        add_all(&mut self.facts, facts);
        add_all(
            self.transitions.as_flattened_mut().as_flattened_mut(),
            transitions.as_flattened().as_flattened(),
        );
        add_all(&mut self.closed, closed);
        add_all(self.dwell.as_flattened_mut(), dwell.as_flattened());
        add_all(&mut self.dwell_sum, dwell_sum);
        add_all(&mut self.handshake, handshake);
        self.handshake_sum = self.handshake_sum.wrapping_add(*handshake_sum);
        add_all(self.came.as_flattened_mut(), came.as_flattened());
        add_all(self.went.as_flattened_mut(), went.as_flattened());
    }
}

fn add_all(sums: &mut [u64], terms: &[u64]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum = sum.wrapping_add(*term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_meet_their_limits() {
        assert_eq!(bucket_of(0), 0);
        for bucket in 0..DWELL_BUCKETS - 1 {
            let limit = bucket_limit_ns(bucket).unwrap();
            assert_eq!(bucket_of(limit), bucket);
            assert_eq!(bucket_of(limit + 1), bucket + 1);
        }
        assert_eq!(bucket_limit_ns(DWELL_BUCKETS - 1), None);
        assert_eq!(bucket_of(u64::MAX), DWELL_BUCKETS - 1);
    }

    #[test]
    fn counters_add_up() {
        let mut sum = Counters::ZERO;
        let mut one = Counters::ZERO;
        one.transitions[1][10][0] = 2;
        one.handshake_sum = 7;
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.transitions[1][10][0], sum.handshake_sum), (4, 14));
    }
}
