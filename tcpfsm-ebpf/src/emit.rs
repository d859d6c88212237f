//! Events into the ring buffer: reserve, fill, submit, and count what finds no room.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use tcpfsm_common::abi::{ClosedEvent, Counters, EventKind, FlowEvent, FlowRecord, Health};

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
