//! The sweep: one walk over every flow inside the kernel. Only sums, ends and stuck flows leave it.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, generated::bpf_for_each_map_elem},
    macros::classifier,
    programs::TcContext,
};
use tcpfsm_common::{
    abi::{
        Counters, EventKey, EventKind, FlowEvent, FlowRecord, Health, SweepReport, SweepRequest, Tap, Verdict,
    },
    flow::{End, FlowKey4, FlowKey6},
    fsm::{State, expire},
};

use crate::{
    emit, flow_table,
    maps::{EMBRYOS4, EMBRYOS6, FLOWS4, FLOWS6, SWEEP_REPORT, SWEEP_REQUEST},
    stats,
};

/// Walks all flow maps. Never attached: the daemon starts it through BPF_PROG_TEST_RUN.
#[classifier]
pub fn tcpfsm_sweep(_ctx: TcContext) -> i32 {
    // SAFETY: each callback has the key and value types of its map.
    unsafe {
        walk(&raw const FLOWS4 as *mut c_void, flow4);
        walk(&raw const FLOWS6 as *mut c_void, flow6);
        walk(&raw const EMBRYOS4 as *mut c_void, embryo4);
        walk(&raw const EMBRYOS6 as *mut c_void, embryo6);
    }
    0
}

type Callback<K> = unsafe extern "C" fn(*mut c_void, *const K, *mut FlowRecord, *mut c_void) -> i64;

#[inline(always)]
unsafe fn walk<K>(map: *mut c_void, callback: Callback<K>) {
    let mut context = 0_u64;
    // SAFETY: the helper calls back with elements of `map`.
    unsafe {
        bpf_for_each_map_elem(map, callback as *mut c_void, (&raw mut context).cast(), 0);
    }
}

macro_rules! callback {
    ($name:ident, $key:ty, $map:ident, $report:literal) => {
        unsafe extern "C" fn $name(
            _map: *mut c_void,
            key: *const $key,
            record: *mut FlowRecord,
            _context: *mut c_void,
        ) -> i64 {
            // SAFETY: the walk gives an element of this map.
            unsafe {
                if visit(&*key, record, $report) {
                    let _ = $map.remove(&*key);
                }
            }
            0
        }
    };
}

callback!(flow4, FlowKey4, FLOWS4, 0);
callback!(flow6, FlowKey6, FLOWS6, 1);
callback!(embryo4, FlowKey4, EMBRYOS4, 2);
callback!(embryo6, FlowKey6, EMBRYOS6, 3);

/// Counts one flow, ends what is to end, reports what is stuck. Says whether the flow is to be removed.
#[inline(always)]
unsafe fn visit<K: EventKey>(key: &K, record: *mut FlowRecord, at: u32) -> bool {
    let (Some(request), Some(report)) = (SWEEP_REQUEST.get_ptr(0), SWEEP_REPORT.get_ptr_mut(at)) else {
        return false;
    };
    let Some(counters) = stats::counters() else { return false };
    // SAFETY: array elements; the daemon does not touch them while the sweep runs.
    let (request, report) = unsafe { (&*request, &mut *report) };
    // SAFETY: the caller's element. Its evidence may change under our hands; each word is read once.
    let (verdict, copy) = unsafe { (flow_table::verdict(record), &*record) };
    if verdict.has(Verdict::GONE) {
        return false;
    }
    let expiry = expire(copy, request);
    if expiry.remove {
        // Marked first, so that a segment that arrives now begins anew instead of being lost.
        // SAFETY: the caller's element.
        let removed = unsafe { flow_table::install(record, verdict, verdict.with(Verdict::GONE, true)) };
        if removed {
            report.removed += 1;
            stats::health(counters, Health::Expired);
        }
        return removed;
    }
    let mut now = verdict;
    if expiry.verdict.0 != verdict.0 {
        // SAFETY: as above. A flow that came back to life meanwhile has another verdict, and keeps it.
        if unsafe { flow_table::install(record, verdict, expiry.verdict) } {
            now = expiry.verdict;
            // SAFETY: as above.
            unsafe { expired(counters, key, record, verdict, now, report) };
        }
    }
    report.flows += 1;
    // SAFETY: as above.
    unsafe {
        end(counters, key, record, now, End::Low, request, report);
        end(counters, key, record, now, End::High, request, report);
    }
    false
}

#[inline(always)]
unsafe fn expired<K: EventKey>(
    counters: &mut Counters,
    key: &K,
    record: *mut FlowRecord,
    before: Verdict,
    after: Verdict,
    report: &mut SweepReport,
) {
    report.expired += 1;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the caller's element.
    let record = unsafe { &mut *record };
    let mut event = FlowEvent::new(EventKind::Expired);
    key.fill(&mut event);
    event.time = now;
    event.before = before.0;
    event.after = after.0;
    event.since = record.shared.since;
    if after.transition(before, End::Low).is_some() {
        record.shared.since[0] = now;
    } else {
        event.sender = 1;
    }
    if after.transition(before, End::High).is_some() {
        record.shared.since[1] = now;
    }
    event.ifindex = Tap(record.shared.tap[event.sender as usize & 1]).ifindex();
    let over = after.is_closed() && !was_over(before);
    stats::change(counters, &event, record.shared.opened, over);
    // SAFETY: the caller's element.
    unsafe { emit::event(counters, &mut event, record, true, over) };
}

/// Whether the flow had already ended by itself, TIME_WAIT being what was left of it.
#[inline(always)]
fn was_over(verdict: Verdict) -> bool {
    let quiet = |state: State| state.is_closed() || matches!(state, State::TimeWait);
    quiet(verdict.state(End::Low)) && quiet(verdict.state(End::High))
}

#[inline(always)]
unsafe fn end<K: EventKey>(
    counters: &mut Counters,
    key: &K,
    record: *mut FlowRecord,
    verdict: Verdict,
    end: End,
    request: &SweepRequest,
    report: &mut SweepReport,
) {
    let state = verdict.slot(end);
    let side = (verdict.originator() as u8 != end as u8) as usize & 1;
    report.states[side][state] += 1;
    if !verdict.is_confirmed(end) {
        report.assumed[state] += 1;
    }
    // SAFETY: the caller's element.
    let record = unsafe { &mut *record };
    let since = record.shared.since[end as usize & 1];
    let threshold = request.stuck[state];
    if threshold == 0 || request.now.saturating_sub(since) < threshold {
        return;
    }
    report.stuck[state] += 1;
    if report.stuck_since[state] == 0 || since < report.stuck_since[state] {
        report.stuck_since[state] = since;
    }
    let reported = record.shared.reported;
    if reported != 0
        && reported != request.number
        && request.number.wrapping_sub(reported) < request.report_every
    {
        return;
    }
    record.shared.reported = request.number;
    let mut event = FlowEvent::new(EventKind::Stuck);
    key.fill(&mut event);
    event.sender = end as u8;
    event.time = request.now;
    event.before = verdict.0;
    event.after = verdict.0;
    event.since = record.shared.since;
    event.facts = record.shared.facts;
    event.ifindex = Tap(record.shared.tap[end as usize & 1]).ifindex();
    // SAFETY: the caller's element.
    unsafe { emit::event(counters, &mut event, record, true, false) };
}
