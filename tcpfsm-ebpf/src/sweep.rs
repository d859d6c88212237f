//! The sweep: one walk over every flow inside the kernel. Only sums, ends and stuck flows leave it.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::bpf_for_each_map_elem, macros::raw_tracepoint, programs::RawTracePointContext,
};
use tcpfsm_common::{
    abi::{
        Conditions, Counters, EventKey, EventKind, FlowRecord, Health, SweepReport, SweepRequest, Verdict,
        half_open,
    },
    flow::{End, FlowKey4, FlowKey6},
    fsm::{Calm, State, conditions, expire},
};

use crate::{
    change, clock, emit, filter,
    flow_table::{self, Key},
    maps::{EMBRYOS4, EMBRYOS6, FLOWS4, FLOWS6, SWEEP_REPORT, SWEEP_REQUEST},
    services, stats,
};

/// Walks all flow maps. Never attached: the daemon starts it through BPF_PROG_TEST_RUN. A classifier would keep its CPU from
/// taking in packets all the while.
#[raw_tracepoint]
pub fn tcpfsm_sweep(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: each callback has the key and value types of its map.
    unsafe {
        walk(&raw const FLOWS4 as *mut c_void, flow4, 0);
        walk(&raw const FLOWS6 as *mut c_void, flow6, 1);
        walk(&raw const EMBRYOS4 as *mut c_void, embryo4, 2);
        walk(&raw const EMBRYOS6 as *mut c_void, embryo6, 3);
    }
    0
}

/// A walk over one map: what it asks of the flows that are only counted, and how many these were.
#[derive(Default)]
#[repr(C)]
struct Walk {
    calm: Calm,
    counted: u64,
}

/// Begins a walk. A function of its own: the verifier need not follow its ways into the walks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcpfsm_walk(walk: *mut Walk, request: *const SweepRequest) -> u64 {
    if walk.is_null() || request.is_null() {
        return 0;
    }
    // SAFETY: the caller's walk and request.
    unsafe { *walk = Walk { calm: Calm::of(&*request), counted: 0 } };
    0
}

type Callback<K> = unsafe extern "C" fn(*mut c_void, *const K, *mut FlowRecord, *mut Walk) -> i64;

/// Walks one map, the one with this number.
#[inline(always)]
unsafe fn walk<K>(map: *mut c_void, callback: Callback<K>, number: u32) {
    let Some(request) = SWEEP_REQUEST.get_ptr(0) else { return };
    // SAFETY: an array element; the daemon does not touch it while the sweep runs.
    let request = unsafe { &*request };
    if request.empty & 1 << number != 0 {
        return;
    }
    let mut walk = Walk::default();
    tcpfsm_walk(&raw mut walk, request);
    // SAFETY: the helper calls back with elements of `map`, and hands the walk on.
    unsafe {
        bpf_for_each_map_elem(map, callback as *mut c_void, (&raw mut walk).cast(), 0);
    }
    let Some(report) = SWEEP_REPORT.get_ptr_mut(number) else { return };
    // SAFETY: an array element; the daemon does not touch it while the sweep runs.
    let report = unsafe { &mut *report };
    let calm = walk.counted;
    report.flows += calm;
    let established = State::Established as usize;
    report.by_state[established] += calm;
    report.states[0][established] += calm;
    report.states[1][established] += calm;
}

macro_rules! callback {
    ($name:ident, $key:ty, $map:ident, $report:literal) => {
        unsafe extern "C" fn $name(
            _map: *mut c_void,
            key: *const $key,
            record: *mut FlowRecord,
            walk: *mut Walk,
        ) -> i64 {
            // SAFETY: the walk gives an element of this map, and itself.
            unsafe {
                visit(&*key, record, $report, &mut *walk, |key| {
                    let _ = $map.remove(key);
                });
            }
            0
        }
    };
}

callback!(flow4, FlowKey4, FLOWS4, 0);
callback!(flow6, FlowKey6, FLOWS6, 1);
callback!(embryo4, FlowKey4, EMBRYOS4, 2);
callback!(embryo6, FlowKey6, EMBRYOS6, 3);

/// Counts one flow, ends what is to end, reports what is stuck, removes what has been over for long enough.
#[inline(always)]
unsafe fn visit<K: Key>(
    key: &K,
    record: *mut FlowRecord,
    map: usize,
    walk: &mut Walk,
    remove: impl FnOnce(&K),
) {
    if map == K::EMBRYOS {
        filter::mark_again(key);
    }
    // SAFETY: the caller's element. Its evidence may change under our hands; each word is read once.
    let (verdict, copy) = unsafe { (flow_table::verdict(record), &*record) };
    if walk.calm.is_calm(copy, verdict) {
        walk.counted += 1;
        return;
    }
    let (Some(request), Some(report), Some(counters)) =
        (SWEEP_REQUEST.get_ptr(0), SWEEP_REPORT.get_ptr_mut(map as u32), stats::between_packets())
    else {
        return;
    };
    // SAFETY: array elements; the daemon does not touch them while the sweep runs.
    let (request, report) = unsafe { (&*request, &mut *report) };
    // A copy: the element may be evicted, and another flow's by the time it is removed.
    let own = *key;
    if verdict.has(Verdict::GONE) {
        if is_left_over(copy, verdict, map, request) {
            remove(&own);
        }
        return;
    }
    let expiry = expire(copy, request);
    if expiry.remove {
        // Marked first: a segment that comes now finds no flow that is about to go with what it writes.
        // SAFETY: the caller's element.
        if unsafe { flow_table::install(record, verdict, verdict.with(Verdict::GONE, true)) } {
            report.removed += 1;
            stats::health(counters, Health::Expired);
            stats::went(counters, map, verdict);
            remove(&own);
            return;
        }
    }
    let mut now = verdict;
    if !expiry.remove && expiry.verdict.0 != verdict.0 {
        let time = clock::fine();
        // SAFETY: as above. A flow that came back to life meanwhile has another verdict, and keeps it.
        if unsafe { flow_table::install(record, verdict, expiry.verdict) } {
            now = expiry.verdict;
            stats::moved(counters, map, verdict, now);
            // SAFETY: as above.
            unsafe { change::book(EventKind::Expired, key, record, verdict, now, time, counters) };
            report.expired += 1;
        }
    }
    report.flows += 1;
    report.by_state[now.flow_slot()] += 1;
    // SAFETY: as above.
    unsafe { look(counters, key, record, now, request, report) };
}

/// Whether a marked record is one whose removal failed, which a map may refuse. It was booked as gone when it was marked.
///
/// In the flow maps and of closed flows the mark is the sweep's, and there is one sweep at a time. The others are on their way
/// to the flow map, which takes no time.
#[inline(always)]
fn is_left_over(record: &FlowRecord, verdict: Verdict, map: usize, request: &SweepRequest) -> bool {
    const LONG: u64 = 60_000_000_000;
    map < <FlowKey4 as Key>::EMBRYOS
        || verdict.is_closed()
        || request.now.saturating_sub(record.last_seen()) > LONG
}

/// What is amiss with a flow. A function of its own: the verifier need not follow its ways into the caller.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcpfsm_conditions(
    record: *const FlowRecord,
    request: *const SweepRequest,
    verdict: u64,
) -> u64 {
    if record.is_null() || request.is_null() {
        return 0;
    }
    // SAFETY: the caller's elements; each word of the evidence is read once.
    unsafe { conditions(&*record, Verdict(verdict), &*request).0 }
}

/// Counts both ends, and reports what is amiss.
#[inline(always)]
unsafe fn look<K: EventKey>(
    counters: &mut Counters,
    key: &K,
    record: *mut FlowRecord,
    verdict: Verdict,
    request: &SweepRequest,
    report: &mut SweepReport,
) {
    let found = Conditions(tcpfsm_conditions(record, request, verdict.0));
    // SAFETY: as above.
    let since = unsafe { (*record).shared.since };
    end(verdict, End::Low, since[0], found, report);
    end(verdict, End::High, since[1], found, report);
    if let Some(answered) = half_open(verdict) {
        services::count_half_open(key, verdict, request.number, answered);
    }
    if found.is_empty() {
        return;
    }
    // SAFETY: as above. A segment may have ended it just now.
    let (current, reported) = unsafe { (flow_table::verdict(record), (*record).shared.reported) };
    if current.0 != verdict.0 {
        return;
    }
    if reported == 0 || request.number.wrapping_sub(reported) >= found.told_again_after(request) {
        // SAFETY: as above; only the sweep writes this field of a flow whose states do not change.
        unsafe { (*record).shared.reported = request.number };
        // SAFETY: as above.
        unsafe { emit::stuck(counters, key, record, verdict, found, request.now) };
    }
}

#[inline(always)]
fn end(verdict: Verdict, end: End, since: u64, found: Conditions, report: &mut SweepReport) {
    let state = verdict.slot(end);
    let side = (verdict.originator() as u8 != end as u8) as usize & 1;
    report.states[side][state] += 1;
    if !verdict.is_confirmed(end) {
        report.assumed[state] += 1;
    }
    if found.has(Conditions::STUCK, end) {
        report.stuck[state] += 1;
        if report.stuck_since[state] == 0 || since < report.stuck_since[state] {
            report.stuck_since[state] = since;
        }
    }
}
