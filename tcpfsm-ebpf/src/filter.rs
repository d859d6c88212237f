//! Which flows cannot be in an embryonic map. Whoever asks that map for the first SYN of a connection waits for memory, and nearly
//! always finds nothing.
//!
//! A flow is marked once it is in an embryonic map, in both sets. The daemon clears the one that packets do not ask, the sweep
//! marks there what it finds, and then the daemon has packets ask that one: what has left the maps is forgotten so.
//!
//! Only SYNs go by it. A walk may miss an element that is taken out and put in again elsewhere while it stands there; a SYN
//! sent again that does not find its handshake begins it a second time, while an ACK would be a stray.

use core::sync::atomic::{Ordering, compiler_fence};

use tcpfsm_common::abi::EmbryoFilter;

use crate::{flow_table::Key, maps::EMBRYO_FILTER};

/// Whether a flow may be in its embryonic map.
#[inline(always)]
pub(crate) fn may_hold<K: Key>(key: &K) -> bool {
    let Some(filter) = EMBRYO_FILTER.get_ptr(0) else { return true };
    // SAFETY: the map gave the element; an aligned word and a byte.
    unsafe {
        let complete = (&raw const (*filter).complete).read_volatile();
        let set = EmbryoFilter::unfinished(complete) ^ 1;
        complete == 0 || (&raw const (*filter).sets[set][key.slot()]).read_volatile() != 0
    }
}

/// Marks a flow that came into an embryonic map, and was counted: a sweep that passes over the map because nothing came then has
/// the set cleared before this.
#[inline(always)]
pub(crate) fn mark<K: Key>(key: &K) {
    let Some(filter) = EMBRYO_FILTER.get_ptr_mut(0) else { return };
    let slot = key.slot();
    compiler_fence(Ordering::Release);
    // SAFETY: as above; whoever writes, writes the same.
    unsafe {
        (&raw mut (*filter).sets[0][slot]).write_volatile(1);
        (&raw mut (*filter).sets[1][slot]).write_volatile(1);
    }
}

/// Marks a flow that the sweep finds in an embryonic map.
#[inline(always)]
pub(crate) fn mark_again<K: Key>(key: &K) {
    let Some(filter) = EMBRYO_FILTER.get_ptr_mut(0) else { return };
    // SAFETY: as above; the word changes only between sweeps.
    unsafe {
        let set = EmbryoFilter::unfinished((*filter).complete);
        (&raw mut (*filter).sets[set][key.slot()]).write_volatile(1);
    }
}
