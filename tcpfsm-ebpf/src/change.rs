//! The books of a change of verdict that no segment made: the clock ended a state, or the host's sockets knew better.

use tcpfsm_common::{
    abi::{Counters, EventKey, EventKind, FlowEvent, FlowRecord, Tap, Verdict},
    fact::{Fact, Facts},
    flow::End,
    fsm::{Step, settle},
    segment::Segment,
};

use crate::{atomics::or, emit, stats};

/// What whoever installed `after` does: the shared fields, the counters, the event. `now` was read before that: whoever goes on
/// from there is later.
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
    now: u64,
    counters: &mut Counters,
) {
    // SAFETY: the caller's element.
    let shared = unsafe { &mut (*record).shared };
    let mut event = FlowEvent::new(kind);
    key.fill(&mut event);
    event.time = now;
    event.before = before.0;
    event.after = after.0;
    event.since = shared.since;
    let changed = if after.transition(before, End::Low).is_some() { End::Low } else { End::High };
    event.sender = changed as u8;
    event.ifindex = Tap(shared.tap[changed as usize & 1]).ifindex();
    // An end of the clock's that a socket takes back is to be told when it comes.
    let back = before.is_over() && !after.is_over();
    let facts = if back {
        Facts::of(&[Fact::StateRollback])
    } else if after.is_over() && !before.is_over() {
        Facts::of(&[Fact::Closed])
    } else {
        Facts::default()
    };
    let step = Step { verdict: after, facts };
    let over = settle(shared, changed, before, &step, &Segment::default(), now).over;
    if over {
        // SAFETY: the caller's element; a packet may add its own at once.
        unsafe { or(&raw mut shared.facts, Facts::of(&[Fact::Closed]).0) };
    }
    stats::change(counters, &event, shared.opened, over);
    // SAFETY: the caller's element.
    unsafe { emit::event(counters, &mut event, record, true, over) };
}
