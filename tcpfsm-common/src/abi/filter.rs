//! Which flows cannot be in an embryonic map: nearly every connection's first SYN would be looked for there in vain.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Slots of a set, a power of two: many times what hangs on a host that nobody floods, and few enough to stay in a CPU's own cache.
pub const FILTER_SLOTS: usize = 8_192;

/// Value of `EMBRYO_FILTER`: two sets of marks. Packets ask the complete one, while the sweep fills the other anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct EmbryoFilter {
    /// The number of the complete set, from 1: every flow in an embryonic map is marked there. 0 before the first sweep.
    pub complete: u64,
    /// Fills the cache line.
    pub unused: [u64; 7],
    /// A byte for each slot, 1 where an embryo's key may fall there.
    pub sets: [[u8; FILTER_SLOTS]; 2],
}

const _: () = assert!(FILTER_SLOTS.is_power_of_two());
const _: () = assert!(size_of::<EmbryoFilter>() == 64 + 2 * FILTER_SLOTS);

impl EmbryoFilter {
    /// The index of the set that is not complete, by what [`Self::complete`] says.
    #[inline(always)]
    #[must_use]
    pub const fn unfinished(complete: u64) -> usize {
        complete as usize & 1
    }
}
