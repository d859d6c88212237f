//! Events into the ring buffer: reserve, fill, submit, and count what finds no room.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use tcpfsm_common::abi::{
    ClosedEvent, Conditions, Counters, EventKey, EventKind, FlowEvent, FlowRecord, Health, StuckEvent, Tap,
    Verdict,
};

use crate::{maps::EVENTS, stats};

/// Sends an event; with the flow's totals if it ended the flow.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn event(
    counters: &mut Counters,
    event: &mut FlowEvent,
    record: *const FlowRecord,
    moved: bool,
    over: bool,
) {
    if over {
        event.kind = EventKind::Closed as u8;
        let Some(mut entry) = EVENTS.reserve_untyped::<ClosedEvent>(0) else {
            return stats::health(counters, Health::EventsLost);
        };
        // SAFETY: the caller's record; the room is filled whole.
        unsafe {
            let closed = entry.as_mut_ptr();
            (&raw mut (*closed).event).write(*event);
            let [low, high] = &(*record).sent;
            (*closed).packets = [low.packets, high.packets];
            (*closed).bytes = [low.bytes, high.bytes];
            (*closed).opened = (*record).shared.opened;
            (*closed).facts = (*record).shared.facts;
        }
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    } else {
        if !moved {
            event.kind = EventKind::Fact as u8;
        }
        let Some(mut entry) = EVENTS.reserve(0) else {
            return stats::health(counters, Health::EventsLost);
        };
        entry.write(*event);
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
    stats::health(counters, Health::EventsSent);
}

/// Sends what the sweep found about a flow.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn stuck<K: EventKey>(
    counters: &mut Counters,
    key: &K,
    record: *const FlowRecord,
    verdict: Verdict,
    found: Conditions,
    now: u64,
) {
    let Some(mut entry) = EVENTS.reserve_untyped::<StuckEvent>(0) else {
        return stats::health(counters, Health::EventsLost);
    };
    // SAFETY: the caller's record; the room is filled whole, in place: the stack has none for it.
    unsafe {
        let stuck = entry.as_mut_ptr();
        let event = &mut (*stuck).event;
        *event = FlowEvent::new(EventKind::Stuck);
        key.fill(event);
        event.time = now;
        event.before = verdict.0;
        event.after = verdict.0;
        let FlowRecord { shared, sent: [low, high] } = &*record;
        event.since = shared.since;
        event.facts = shared.facts;
        let seen_on = if shared.tap[0] != 0 { shared.tap[0] } else { shared.tap[1] };
        event.ifindex = Tap(seen_on).ifindex();
        (*stuck).seen = [low.last_seen(), high.last_seen()];
        (*stuck).packets = [low.packets, high.packets];
        (*stuck).rtx = shared.rtx;
        (*stuck).unacked = [low.nxt.0.wrapping_sub(high.ack.0), high.nxt.0.wrapping_sub(low.ack.0)];
        (*stuck).conditions = found.0;
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    stats::health(counters, Health::EventsSent);
}
