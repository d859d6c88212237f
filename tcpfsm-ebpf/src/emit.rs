//! Events into the ring buffer: reserve, fill, submit, and count what finds no room.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use tcpfsm_common::{
    abi::{ClosedEvent, Counters, EventKey, EventKind, FlowEvent, FlowRecord, Health},
    segment::TcpFlags,
};

use crate::{
    maps::EVENTS,
    stats,
    track::{Work, halves},
};

/// Sends what a segment did; with the flow's totals if it ended the flow.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn segment<K: EventKey>(
    counters: &mut Counters,
    key: &K,
    record: *const FlowRecord,
    work: &Work,
    moved: bool,
    over: bool,
) {
    // SAFETY: the caller's record; the room in the ring is filled whole before it is submitted.
    unsafe {
        if over {
            let Some(mut entry) = EVENTS.reserve_untyped::<ClosedEvent>(0) else {
                return stats::health(counters, Health::EventsLost);
            };
            let closed = entry.as_mut_ptr();
            fill(&raw mut (*closed).event, EventKind::Closed, key, record, work);
            totals(closed, record);
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        } else {
            let Some(mut entry) = EVENTS.reserve(0) else {
                return stats::health(counters, Health::EventsLost);
            };
            let kind = if moved { EventKind::Verdict } else { EventKind::Fact };
            fill(entry.as_mut_ptr(), kind, key, record, work);
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
    }
    stats::health(counters, Health::EventsSent);
}

#[inline(always)]
unsafe fn fill<K: EventKey>(
    event: *mut FlowEvent,
    kind: EventKind,
    key: &K,
    record: *const FlowRecord,
    work: &Work,
) {
    // SAFETY: the caller's record and room.
    unsafe {
        let (own, peer) = halves(record.cast_mut(), work.sender);
        let mut made = FlowEvent::new(kind);
        key.fill(&mut made);
        made.hook = work.hook as u8;
        made.sender = work.sender as u8;
        made.flags = work.segment.flags.0;
        made.time = work.now;
        made.before = work.before.0;
        made.after = work.step.verdict.0;
        made.since = work.since;
        made.facts = work.step.facts.0;
        made.ifindex = work.ifindex;
        made.seq = work.segment.seq.0.wrapping_sub((*own).iss.0);
        if work.segment.flags.any(TcpFlags::ACK) {
            made.ack = work.segment.ack.0.wrapping_sub((*peer).iss.0);
        }
        made.len = work.segment.len;
        event.write(made);
    }
}

#[inline(always)]
unsafe fn totals(closed: *mut ClosedEvent, record: *const FlowRecord) {
    // SAFETY: the caller's record and room.
    unsafe {
        let [low, high] = &(*record).sent;
        (*closed).packets = [low.packets, high.packets];
        (*closed).bytes = [low.bytes, high.bytes];
        (*closed).opened = (*record).shared.opened;
        (*closed).facts = (*record).shared.facts;
    }
}

/// Sends an event of the sweep; with the flow's totals if it ended the flow.
#[inline(always)]
pub(crate) fn swept(counters: &mut Counters, event: FlowEvent, record: &FlowRecord, over: bool) {
    if over {
        let Some(mut entry) = EVENTS.reserve_untyped::<ClosedEvent>(0) else {
            return stats::health(counters, Health::EventsLost);
        };
        let closed = entry.as_mut_ptr();
        // SAFETY: the room is filled whole.
        unsafe {
            (&raw mut (*closed).event).write(FlowEvent { kind: EventKind::Closed as u8, ..event });
            totals(closed, record);
        }
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    } else {
        let Some(mut entry) = EVENTS.reserve(0) else {
            return stats::health(counters, Health::EventsLost);
        };
        entry.write(event);
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
    stats::health(counters, Health::EventsSent);
}
