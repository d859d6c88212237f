//! Per-CPU counters: exact whatever happens to events.

use tcpfsm_common::{
    abi::{Counters, FlowEvent, Health, Hook, Verdict, bucket_of},
    fact::{Fact, Facts},
    flow::End,
    fsm::State,
};

use crate::maps::COUNTERS;

/// This CPU's counters, for packets.
#[inline(always)]
pub(crate) fn counters() -> Option<&'static mut Counters> {
    of(0)
}

/// This CPU's counters for what packets may interrupt: whoever is interrupted between reading a counter and writing it
/// would take back what was counted meanwhile.
#[inline(always)]
pub(crate) fn between_packets() -> Option<&'static mut Counters> {
    of(1)
}

#[inline(always)]
fn of(whom: u32) -> Option<&'static mut Counters> {
    let counters = COUNTERS.get_ptr_mut(whom)?;
    // SAFETY: the element is this CPU's own; neither programs on packet hooks nest, nor sweeps and corrections.
    Some(unsafe { &mut *counters })
}

/// Counts what became of a packet; `outcome` counts the `Outcome`s and then the `Skip`s.
#[inline(always)]
pub(crate) fn packet(counters: &mut Counters, hook: Hook, outcome: usize) {
    counters.packets[hook as usize][outcome & 15] += 1;
}

/// Counts one of the tracker's own doings.
#[inline(always)]
pub(crate) fn health(counters: &mut Counters, health: Health) {
    counters.health[health as usize] += 1;
}

/// Counts facts, up to eight of one segment.
#[inline(always)]
pub(crate) fn facts(counters: &mut Counters, facts: Facts) {
    let mut left = facts.0;
    for _ in 0..8 {
        if left == 0 {
            break;
        }
        counters.facts[lowest_bit(left)] += 1;
        left &= left - 1;
    }
}

/// The index of the lowest bit set. The instruction set has no count of trailing zeros.
#[inline(always)]
fn lowest_bit(word: u64) -> usize {
    const DE_BRUIJN: u64 = 0x03f7_9d71_b4cb_0a89;
    static INDEX: [u8; 64] = {
        let mut index = [0; 64];
        let mut bit = 0;
        while bit < 64 {
            index[(DE_BRUIJN.wrapping_shl(bit) >> 58) as usize] = bit as u8;
            bit += 1;
        }
        index
    };
    let isolated = word & word.wrapping_neg();
    (INDEX[(isolated.wrapping_mul(DE_BRUIJN) >> 58) as usize & 63] & 63) as usize
}

/// Counts a change of verdict: transitions, time spent in the states left, handshakes, ends.
#[inline(always)]
pub(crate) fn change(counters: &mut Counters, event: &FlowEvent, opened: u64, over: bool) {
    let (before, after) = (event.verdict_before(), event.verdict_after());
    end(counters, before, after, End::Low, event.since[0], event.time);
    end(counters, before, after, End::High, event.since[1], event.time);
    if event.fact_set().has(Fact::Established) && !after.has(Verdict::PICKED_UP) {
        let took = event.time.saturating_sub(opened);
        counters.handshake[bucket_of(took)] += 1;
        counters.handshake_sum += Counters::sum_units(took);
    }
    if over {
        counters.closed[core::hint::black_box(after.close_reason() as usize) & 15] += 1;
    }
}

/// Books a flow that came into the flow map with this number.
#[inline(always)]
pub(crate) fn came(counters: &mut Counters, map: usize, verdict: Verdict) {
    counters.came[map & 3][verdict.flow_slot()] += 1;
}

/// Books a flow that left the flow map with this number.
#[inline(always)]
pub(crate) fn went(counters: &mut Counters, map: usize, verdict: Verdict) {
    counters.went[map & 3][verdict.flow_slot()] += 1;
}

/// Books what a change of verdict did to a flow in the flow map with this number; whoever installed it does.
#[inline(always)]
pub(crate) fn moved(counters: &mut Counters, map: usize, before: Verdict, after: Verdict) {
    if before.flow_slot() != after.flow_slot() {
        went(counters, map, before);
        came(counters, map, after);
    }
}

#[inline(always)]
fn end(counters: &mut Counters, before: Verdict, after: Verdict, end: End, since: u64, now: u64) {
    let (left, entered) = (before.slot(end), after.slot(end));
    if left == entered {
        return;
    }
    let new = before.generation() != after.generation();
    let from = if new { after.previous_slot(end) } else { left };
    let side = (after.originator() as u8 != end as u8) as usize & 1;
    counters.transitions[side][from][entered] += 1;
    // The time before a connection is nobody's dwell time.
    if !new && left > State::Listen as usize {
        // Four instructions; `saturating_sub` is ten.
        let dwell = now.wrapping_sub(since).cast_signed().max(0).cast_unsigned();
        counters.dwell[left][bucket_of(dwell)] += 1;
        counters.dwell_sum[left] += Counters::sum_units(dwell);
    }
}
