//! Events: a packet's into its CPU's lane, others and what finds no room there into the ring buffer. What finds none at all is
//! counted.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    helpers::generated::bpf_ringbuf_query,
    maps::ring_buf::RingBufEntry,
};
use tcpfsm_common::abi::{
    ClosedEvent, Conditions, Counters, EventKey, EventKind, FlowEvent, FlowRecord, Health, StuckEvent, Tap,
    Verdict,
};

use crate::{lane, maps::EVENTS, stats};

/// One in so many of a CPU's events looks how full the ring is.
const LOOK: u64 = 256;

/// Submits what is filled, and counts it. It wakes the daemon only where a quarter of the ring is filled before that comes by
/// itself.
#[inline(always)]
pub(crate) fn submit<T: 'static>(entry: RingBufEntry<T>, counters: &mut Counters) {
    let sent = &mut counters.health[Health::EventsSent as usize];
    let ring = &raw const EVENTS as *mut c_void;
    // SAFETY: the map is a ring.
    let of = |what: u32| unsafe { bpf_ringbuf_query(ring, u64::from(what)) };
    let is_filling = sent.is_multiple_of(LOOK) && of(BPF_RB_AVAIL_DATA) > of(BPF_RB_RING_SIZE) / 4;
    *sent += 1;
    entry.submit(u64::from(if is_filling { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
}

/// What kind of event tells of a step, if not that of the end.
#[inline(always)]
fn kind_of(kind: u8, moved: bool, over: bool) -> u8 {
    if over {
        EventKind::Closed as u8
    } else if moved {
        kind
    } else {
        EventKind::Fact as u8
    }
}

/// Writes an event, with the flow's totals.
///
/// # Safety
/// `record` must point to a map element, `closed` to room.
#[inline(always)]
unsafe fn close(closed: *mut ClosedEvent, event: &FlowEvent, record: *const FlowRecord) {
    // SAFETY: the caller's record; the room is filled whole.
    unsafe {
        (&raw mut (*closed).event).write(*event);
        let [low, high] = &(*record).sent;
        (*closed).packets = [low.packets, high.packets];
        (*closed).bytes = [low.bytes, high.bytes];
        (*closed).opened = (*record).shared.opened;
        (*closed).facts = (*record).shared.facts;
    }
}

/// Copies an event word by word: at one go it is more words than there are registers.
///
/// # Safety
/// `to` must point to room.
#[inline(always)]
unsafe fn copy(to: *mut FlowEvent, event: &FlowEvent) {
    let (to, from) = (to.cast::<u64>(), (&raw const *event).cast::<u64>());
    for word in 0..size_of::<FlowEvent>() / 8 {
        // SAFETY: the caller's room, and an event, in aligned words.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// Tells of a packet; with the flow's totals if it ended the flow.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn packet(
    counters: &mut Counters,
    event: &mut FlowEvent,
    record: *const FlowRecord,
    moved: bool,
    over: bool,
) {
    let Some(place) = lane::place(counters) else {
        // SAFETY: the caller's record.
        return unsafe { self::event(counters, event, record, moved, over) };
    };
    // SAFETY: the caller's record, and this CPU's place.
    unsafe {
        if over {
            close(&raw mut (*place).event, event, record);
        } else {
            copy(&raw mut (*place).event.event, event);
        }
        // Behind the copy: a word of which a byte was just written cannot be read at once.
        (*place).event.event.kind = kind_of(event.kind, moved, over);
        lane::publish(place, counters);
    }
}

/// Sends an event into the ring; with the flow's totals if it ended the flow.
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
    event.kind = kind_of(event.kind, moved, over);
    if over {
        let Some(mut entry) = EVENTS.reserve_untyped::<ClosedEvent>(0) else {
            return stats::health(counters, Health::EventsLost);
        };
        // SAFETY: the caller's record.
        unsafe { close(entry.as_mut_ptr(), event, record) };
        submit(entry, counters);
    } else {
        let Some(mut entry) = EVENTS.reserve(0) else {
            return stats::health(counters, Health::EventsLost);
        };
        entry.write(*event);
        submit(entry, counters);
    }
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
    submit(entry, counters);
}
