//! The full machine on one segment, and the books that the winner of the verdict keeps. Out of line: one
//! copy for both families and all maps.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_ktime_get_coarse_ns};
use tcpfsm_common::{
    abi::{Counters, Evidence, FlowRecord, Health, Verdict},
    fact::Facts,
    fsm::{Config, observe, observe_icmp, settle},
    packet::IcmpError,
};

use crate::{emit, flow_table, maps::CONFIG, stats, track::halves, work::Work};

/// How often a verdict is worked out again because the other direction changed it meanwhile.
const RETRIES: usize = 3;

/// Works a segment on a record that is in a map.
///
/// # Safety
/// `record` must point to a map element.
#[inline(never)]
pub(crate) unsafe fn advance(counters: &mut Counters, record: *mut FlowRecord, work: &mut Work) {
    // SAFETY: the caller's promise; nobody else writes this half (see flow_table.rs).
    unsafe {
        let (own, peer) = halves(record, work.sender());
        let coarse = bpf_ktime_get_coarse_ns();
        for _ in 0..RETRIES {
            let before = flow_table::verdict(record);
            work.own = *own;
            step(work, peer, before.0);
            work.own.count(&work.segment, coarse);
            let after = Verdict(work.event.after);
            // The evidence goes first: whoever sees the new verdict sees what it rests on.
            let original = *own;
            *own = work.own;
            if after.0 != before.0 && !flow_table::install(record, before, after) {
                *own = original;
                stats::health(counters, Health::VerdictRetries);
                continue;
            }
            if after.0 != before.0 || work.event.facts != 0 {
                work.relate(&*own, &*peer);
                books(counters, record, work);
            }
            return;
        }
        stats::health(counters, Health::VerdictLost);
    }
}

/// Asks the machine.
#[inline(never)]
fn step(work: &mut Work, peer: *const Evidence, before: u64) {
    // SAFETY: every caller passes a half of a record.
    let peer = unsafe { &*peer };
    let before = Verdict(before);
    let sender = work.sender();
    let config = Config::from(CONFIG.load());
    let Work { own, segment, verdict, .. } = work;
    let step = observe(verdict, before, sender, own, peer, segment, config);
    work.set_step(before, &step);
}

/// Works a segment of no known flow on the desk's own record. Says whether that began a flow.
#[inline(always)]
pub(crate) fn begin(counters: &mut Counters, work: &mut Work) -> bool {
    work.record = FlowRecord::default();
    work.own = Evidence::default();
    let record = &raw mut work.record;
    // SAFETY: the desk is this CPU's.
    unsafe {
        let (own, peer) = halves(record, work.sender());
        step(work, peer, 0);
        if Verdict(work.event.after).generation() == 0 {
            stats::facts(counters, Facts(work.event.facts));
            return false;
        }
        work.own.count(&work.segment, bpf_ktime_get_coarse_ns());
        *own = work.own;
        (*record).shared.verdict = work.event.after;
        settled(record, work);
        true
    }
}

/// Reports a flow that [`begin`] began and that found its place.
#[inline(always)]
pub(crate) fn began(counters: &mut Counters, work: &mut Work) {
    stats::health(counters, Health::Inserted);
    let record = &raw mut work.record;
    // SAFETY: the desk is this CPU's.
    unsafe { report(counters, record, work, false) };
}

/// Counts a flow that found no place.
#[inline(always)]
pub(crate) fn not_stored(counters: &mut Counters) {
    stats::health(counters, Health::InsertFailed);
}

/// Works an ICMP error about a segment that the work's sender sent.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn icmp(
    counters: &mut Counters,
    record: *mut FlowRecord,
    work: &mut Work,
    error: &IcmpError,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let before = flow_table::verdict(record);
        let (own, _) = halves(record, work.sender());
        let step = observe_icmp(&work.verdict, before, work.sender(), &*own, error);
        work.set_step(before, &step);
        if step.verdict.0 == before.0 || flow_table::install(record, before, step.verdict) {
            books(counters, record, work);
        }
    }
}

/// What the winner of a verdict does: the shared fields, the counters, the event.
#[inline(never)]
unsafe fn books(counters: &mut Counters, record: *mut FlowRecord, work: &mut Work) {
    // SAFETY: the caller's record; facts alone may be written by two CPUs at once, and are idempotent.
    unsafe {
        let over = settled(record, work);
        report(counters, record, work, over);
    }
}

/// Brings the shared part of a record up to date. Says whether that was the end of the flow.
#[inline(always)]
unsafe fn settled(record: *mut FlowRecord, work: &mut Work) -> bool {
    // SAFETY: the caller's record.
    let shared = unsafe { &mut (*record).shared };
    work.event.since = shared.since;
    // SAFETY: a helper without arguments.
    work.event.time = unsafe { bpf_ktime_get_ns() };
    let seen_on = &mut shared.ifindex[work.sender() as usize & 1];
    if *seen_on == 0 {
        *seen_on = work.event.ifindex;
    }
    let before = Verdict(work.event.before);
    settle(shared, work.sender(), before, &work.step(), &work.segment, work.event.time).over
}

#[inline(always)]
unsafe fn report(counters: &mut Counters, record: *const FlowRecord, work: &mut Work, over: bool) {
    let facts = Facts(work.event.facts);
    stats::facts(counters, facts);
    let moved = (work.event.before ^ work.event.after) & Verdict::STATES_AND_GENERATION != 0;
    // A stray that is only remembered is no connection yet.
    if Verdict(work.event.after).has(Verdict::CANDIDATE) || !moved && facts.without(Facts::QUIET).is_empty() {
        return;
    }
    // SAFETY: the caller's record.
    unsafe {
        stats::change(counters, &work.event, (*record).shared.opened, over);
        emit::event(counters, &mut work.event, record, moved, over);
    }
}
