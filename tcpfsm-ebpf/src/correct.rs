//! A verdict changed because the host's own sockets know better: by compare-and-swap here, since the daemon has none.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::classifier, programs::TcContext};
use tcpfsm_common::{
    abi::{Correction, Counters, EventKind, FlowEvent, FlowRecord, Tap, Verdict},
    flow::End,
};

use crate::{
    emit,
    flow_table::{self, Key},
    maps::CORRECTION,
    stats,
};

/// Makes the change that lies in `CORRECTION`. Never attached: the daemon starts it through BPF_PROG_TEST_RUN.
#[classifier]
pub fn tcpfsm_correct(_ctx: TcContext) -> i32 {
    let (Some(request), Some(counters)) = (CORRECTION.get_ptr_mut(0), stats::counters()) else { return 0 };
    // SAFETY: an array element; the daemon does not touch it while this runs.
    let request = unsafe { &mut *request };
    let done = if request.family == 4 {
        correct(&request.key4(), request, counters)
    } else {
        correct(&request.key6(), request, counters)
    };
    request.done = done.into();
    0
}

#[inline(always)]
fn correct<K: Key>(key: &K, request: &Correction, counters: &mut Counters) -> bool {
    let (before, after) = (Verdict(request.before), Verdict(request.after));
    // A flow is in one of its two maps; while it moves to the other, this copy is marked and differs.
    for (found, map) in [(key.find_flow(), K::FLOWS), (key.find_embryo(), K::EMBRYOS)] {
        let Some(record) = found else { continue };
        // SAFETY: the maps gave the elements.
        if unsafe { flow_table::install(record, before, after) } {
            stats::moved(counters, map, before, after);
            // SAFETY: as above.
            unsafe { tell(key, record, before, after, counters) };
            return true;
        }
    }
    false
}

/// The books of a change that no segment made.
#[inline(always)]
unsafe fn tell<K: Key>(
    key: &K,
    record: *mut FlowRecord,
    before: Verdict,
    after: Verdict,
    counters: &mut Counters,
) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the caller's element.
    let shared = unsafe { &mut (*record).shared };
    let mut event = FlowEvent::new(EventKind::Host);
    key.fill(&mut event);
    event.time = now;
    event.before = before.0;
    event.after = after.0;
    event.since = shared.since;
    event.facts = 0;
    if after.transition(before, End::Low).is_some() {
        shared.since[0] = now;
    } else {
        event.sender = 1;
    }
    if after.transition(before, End::High).is_some() {
        shared.since[1] = now;
    }
    shared.reported = 0;
    event.ifindex = Tap(shared.tap[event.sender as usize & 1]).ifindex();
    let over = after.is_over() && !before.is_over();
    stats::change(counters, &event, shared.opened, over);
    // SAFETY: the caller's element.
    unsafe { emit::event(counters, &mut event, record, true, over) };
}
