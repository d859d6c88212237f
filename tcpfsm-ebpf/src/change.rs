//! The books of a change of verdict that no segment made: the clock ended a state, or the host's sockets knew better.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tcpfsm_common::{
    abi::{Counters, EventKey, EventKind, FlowEvent, FlowRecord, Tap, Verdict},
    flow::End,
};

use crate::{emit, stats};

/// What whoever installed `after` does: the shared fields, the counters, the event.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn book<K: EventKey>(
    kind: EventKind,
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
    let mut event = FlowEvent::new(kind);
    key.fill(&mut event);
    event.time = now;
    event.before = before.0;
    event.after = after.0;
    event.since = shared.since;
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
