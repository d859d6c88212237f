//! A packet's event into its CPU's lane: stores, and no lock, no helper, no line that another CPU writes.
//!
//! Each lane has one writer, the programs on packets of its CPU, which do not nest, and one reader, the daemon. A place is
//! good once its number is the one that is due, and is written again only after the daemon said that it has read it.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use tcpfsm_common::abi::{Counters, Health, LANE_PLACES, LanePlace};

use crate::{
    maps::{LANES, LANES_READ, lanes},
    stats,
};

/// One in so many of a lane's events looks how far the daemon has got: where it has left no more unread than this, there is room
/// for as many again.
const LOOK: u64 = LANE_PLACES as u64 / 2;

/// The next place of this CPU's lane. None where it has no lane, or the daemon is behind by more than half of it: then the
/// ring is there, which is larger, and from which the daemon is woken.
#[inline(always)]
pub(crate) fn place(counters: &Counters) -> Option<*mut LanePlace> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if cpu >= lanes() {
        return None;
    }
    let put = counters.lane;
    if put.is_multiple_of(LOOK) {
        // SAFETY: the map gave the element, an aligned word.
        let read = unsafe { (&raw const (*LANES_READ.get_ptr(cpu)?).events).read_volatile() };
        if put.wrapping_sub(read) > LOOK {
            return None;
        }
    }
    LANES.get_ptr_mut(cpu * LANE_PLACES + (put as u32 & (LANE_PLACES - 1)))
}

/// Lets the daemon see what was put into a [`place`], and counts it.
///
/// # Safety
/// `place` must be this CPU's, and filled.
#[inline(always)]
pub(crate) unsafe fn publish(place: *mut LanePlace, counters: &mut Counters) {
    counters.lane += 1;
    // SAFETY: the caller's place.
    unsafe { release(&raw mut (*place).number, counters.lane) };
    stats::health(counters, Health::EventsSent);
}

/// Stores a word behind all that was stored before it.
///
/// # Safety
/// `at` must point to eight aligned bytes of map memory.
#[inline(always)]
unsafe fn release(at: *mut u64, word: u64) {
    compiler_fence(Ordering::Release);
    // Stores keep their order on x86-64; an exchange would wait for all of them.
    // SAFETY: the caller's word.
    #[cfg(bpf_target_arch = "x86_64")]
    unsafe {
        at.write_volatile(word);
    }
    // SAFETY: as above.
    #[cfg(not(bpf_target_arch = "x86_64"))]
    unsafe {
        crate::atomics::exchange(at, word);
    }
}
