//! Handshakes that go straight into the flow map: as many as do no harm there if they all hang.
//!
//! In the embryonic map a handshake costs an insertion, a removal and a copy more, which is what keeps a flood away from the
//! connections. While nearly all handshakes complete there is none to keep away. So each CPU may put so many into the flow map in
//! a slot of time, and one that completes gives its place back, on whichever CPU that is seen: all CPUs together never have more
//! out than they were given.

use tcpfsm_common::{abi::Counters, fact::Fact, fsm::Step};

use crate::{clock, flow_table::Key, maps::early, work::Work};

/// The number of the map into which a handshake goes: takes a place in the flow map if this CPU has one left.
#[inline(always)]
pub(crate) fn map<K: Key>(counters: &mut Counters) -> usize {
    let slot = clock::coarse(counters) >> 33;
    let [current, taken] = &mut counters.early;
    if *current != slot {
        *current = slot;
        *taken = 0;
    }
    let is_free = taken.cast_signed() < i64::from(early());
    *taken = taken.wrapping_add(is_free.into());
    if is_free { K::FLOWS } else { K::EMBRYOS }
}

/// Gives back the place that was taken for a handshake which did not come into the flow map.
#[inline(always)]
pub(crate) fn give_back<K: Key>(counters: &mut Counters, map: usize) {
    let [_, taken] = &mut counters.early;
    *taken = taken.wrapping_sub((map == K::FLOWS).into());
}

/// Whether a step may be one of a handshake that went straight into the flow map: there nothing else is in its first generation and
/// becomes established. Gives the place of one that does back, but no more than were given for a slot: it may have been taken in the
/// one before.
#[inline(always)]
pub(crate) fn seen(counters: &mut Counters, work: &Work, step: &Step) -> bool {
    let is_early = !work.is_embryo() && step.verdict.generation() == 1;
    if is_early && step.facts.has(Fact::Established) {
        let [_, taken] = &mut counters.early;
        let least = -i64::from(early());
        *taken = (taken.cast_signed() - 1).max(least).cast_unsigned();
    }
    is_early
}
