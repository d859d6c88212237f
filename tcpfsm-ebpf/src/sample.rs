//! Events of what moves no connection: counted all, told in part when there are too many.
//!
//! A SYN flood would fill the ring with two events per SYN, a flood of resets that nobody accepts with one for each, and
//! nobody reads them one by one. So in each slot of time so many are told, of the rest one in [`SAMPLE`], which says how
//! many it stands for. A handshake that completes gives back what it took: a busy server's are all told. What moves a
//! connection, from ESTABLISHED on, always is.

use tcpfsm_common::{
    abi::{Counters, FlowEvent, Health, SAMPLE},
    fact::Fact,
};

use crate::{
    atomics::{add, fetch_add},
    maps::{CONFIG, SPENT},
    stats,
};

/// The slots of time, as a power of two of nanoseconds: about a second.
const SLOT: u32 = 30;

/// What a completed handshake gives back: its two events, and as much again for SYNs that were sent twice.
const GIVEN_BACK: i64 = 4;

/// Whether an event is told whatever else there is: it moves a connection, and none that has just been made.
#[inline(always)]
pub(crate) fn is_told_always(event: &FlowEvent) -> bool {
    event.moves() && !is_of_handshake(event) && !event.fact_set().has(Fact::Established)
}

/// Whether this CPU tells only a sample now.
#[inline(always)]
pub(crate) fn is_sampling(counters: &Counters, now: u64) -> bool {
    counters.sampled == now >> SLOT
}

#[inline(always)]
fn is_of_handshake(event: &FlowEvent) -> bool {
    event.verdict_before().is_handshake() && event.verdict_after().is_handshake()
}

/// Says whether an event is to be told, and writes into it how many it stands for.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_sample(event: *mut FlowEvent, counters: *mut Counters) -> u64 {
    if event.is_null() || counters.is_null() {
        return 1;
    }
    // SAFETY: the caller passes its desk's event and this CPU's counters.
    let (event, counters) = unsafe { (&mut *event, &mut *counters) };
    let quota = i64::from(CONFIG.load().event_quota);
    if quota == 0 {
        return 1;
    }
    let Some(spent) = SPENT.get_ptr_mut(0) else { return 1 };
    // All CPUs': SYN and SYN-ACK of one handshake may be seen on two.
    let (slot, told) = (spent.cast::<u64>(), spent.cast::<i64>().wrapping_add(1));
    let now = event.time >> SLOT;
    // SAFETY: an element of two words. Where two CPUs find a new slot at once, a few more are told in it.
    unsafe {
        if slot.read_volatile() != now {
            slot.write_volatile(now);
            told.write_volatile(0);
        }
    }
    if event.moves() && !is_of_handshake(event) {
        // SAFETY: as above. Below zero it may come by as much as was given back at once, which is why it has a sign.
        unsafe {
            if event.fact_set().has(Fact::Established) && told.read_volatile() >= GIVEN_BACK {
                add(told.cast(), (-GIVEN_BACK).cast_unsigned());
            }
        }
        return 1;
    }
    // SAFETY: as above.
    let earlier = unsafe { fetch_add(told.cast(), 1) }.cast_signed();
    if earlier < quota {
        return 1;
    }
    counters.sampled = now;
    if earlier.cast_unsigned() % u64::from(SAMPLE) != 0 {
        stats::health(counters, Health::EventsSampled);
        return 0;
    }
    event.weight = SAMPLE;
    1
}
