//! Segments of no known connection, or with impossible flags: counted all, told in part.
//!
//! A scan is told apart from a flood by who sent what to whom, which counters do not say. The first ones of each
//! second are told one by one, of the rest one in [`SAMPLE`], so that a flood of them cannot fill the ring.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use tcpfsm_common::{
    abi::{Counters, EventKind, Health, SAMPLE},
    fact::{Fact, Facts},
};

use crate::{emit, maps::STRAYS, stats, work::Work};

/// Strays told one by one, per CPU and slot of 1.07 s.
const EACH: u64 = 1_024;

/// Whether the facts are a stray's.
#[inline(always)]
pub(crate) fn is_stray(facts: Facts) -> bool {
    facts.any(Facts::of(&[Fact::NoSession, Fact::BadFlags]))
}

/// Tells of the stray on the desk, if it is its turn.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_stray(work: *mut Work, counters: *mut Counters) -> u64 {
    if work.is_null() || counters.is_null() {
        return 0;
    }
    let Some(quota) = STRAYS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the caller passes this CPU's desk and counters; the quota is this CPU's too.
    let (work, counters, quota) = unsafe { (&mut *work, &mut *counters, &mut *quota) };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let [slot, told] = quota;
    if *slot != now >> 30 {
        *slot = now >> 30;
        *told = 0;
    }
    *told += 1;
    let weight = if *told <= EACH { 1 } else { SAMPLE };
    if weight != 1 && *told % u64::from(SAMPLE) != 0 {
        stats::health(counters, Health::EventsSampled);
        return 0;
    }
    work.event.kind = EventKind::Stray as u8;
    work.event.time = now;
    work.event.weight = weight;
    (work.event.seq, work.event.ack) = (0, 0);
    // SAFETY: the desk's record, which no event of a stray asks for.
    unsafe { emit::packet(counters, &mut work.event, &raw const work.record, true, false) };
    0
}
