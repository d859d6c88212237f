//! ICMP errors: what one that quotes a segment does to the flow of that.

use tcpfsm_common::{
    abi::{Counters, FlowRecord, Health, Verdict},
    flow::{FlowKey4, FlowKey6},
    fsm,
    packet::{IcmpError, Unreachable},
};

use crate::{
    flow_table::{self, Key, halves},
    machine::tcpfsm_books,
    stats,
    work::Work,
};

/// Works the ICMP error on the desk.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_icmp(work: *mut Work, counters: *mut Counters) -> u64 {
    if counters.is_null() {
        return 0;
    }
    let Some(work) = Work::passed(work) else { return 0 };
    // SAFETY: the callers pass this CPU's counters.
    let counters = unsafe { &mut *counters };
    if work.event.family == 4 {
        let key: FlowKey4 = work.key4();
        icmp(&key, work, counters);
    } else {
        let key: *const FlowKey6 = work.key6();
        // SAFETY: as for segments.
        icmp(unsafe { &*key }, work, counters);
    }
    0
}

#[inline(always)]
fn icmp<K: Key>(key: &K, work: &mut Work, counters: &mut Counters) {
    // SAFETY: the maps gave the elements.
    let is_there = |record: &*mut FlowRecord| unsafe { !flow_table::verdict(*record).has(Verdict::GONE) };
    let (record, map) = if let Some(record) = key.find_flow().filter(is_there) {
        (record, K::FLOWS)
    } else if let Some(embryo) = key.find_embryo().filter(is_there) {
        (embryo, K::EMBRYOS)
    } else {
        return;
    };
    work.map = map as u64;
    let hard = work.unreachable != Unreachable::Soft as u64;
    let reason = if hard { Unreachable::Host } else { Unreachable::Soft };
    let error = IcmpError { reason, seq: work.segment.seq, drops_request: work.drops_request != 0 };
    // SAFETY: the map gave the element.
    unsafe {
        let before = flow_table::verdict(record);
        let (own, _) = halves(record, work.sender());
        let step = fsm::observe_icmp(&work.verdict, before, work.sender(), &*own, &error);
        work.event.before = before.0;
        work.set_step(&step);
        work.tell_time();
        if step.verdict.0 == before.0 || flow_table::install(record, before, step.verdict) {
            stats::moved(counters, map, before, step.verdict);
            tcpfsm_books(work, record, counters);
        } else {
            stats::health(counters, Health::VerdictLost);
        }
    }
}
