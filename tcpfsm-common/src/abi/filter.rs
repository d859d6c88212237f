//! Which flows cannot be in an embryonic map: nearly every connection's first SYN would be looked for there in vain.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flow::{FlowKey4, FlowKey6};

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

/// Mixes a word into a hash, of which the upper bits are good.
#[inline(always)]
const fn mix(hash: u64, word: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    (hash ^ word).wrapping_mul(ODD)
}

/// Two words as one.
#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

impl FlowKey4 {
    /// The key's slot in the filter of embryos.
    #[inline(always)]
    #[must_use]
    pub const fn slot(&self) -> usize {
        let Self { addr: [low, high], port, scope } = *self;
        slot_of(mix(mix(0, pair(low, high)), pair(ports(port), scope)))
    }
}

impl FlowKey6 {
    /// The key's slot in the filter of embryos.
    #[inline(always)]
    #[must_use]
    pub const fn slot(&self) -> usize {
        let Self { addr: [[a, b, c, d], [e, f, g, h]], port, scope } = *self;
        let addresses = mix(mix(mix(mix(0, pair(a, b)), pair(c, d)), pair(e, f)), pair(g, h));
        slot_of(mix(addresses, pair(ports(port), scope)))
    }
}

#[inline(always)]
const fn ports([low, high]: [u16; 2]) -> u32 {
    low as u32 | (high as u32) << 16
}

#[inline(always)]
const fn slot_of(hash: u64) -> usize {
    (hash >> (64 - FILTER_SLOTS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_fall_into_different_slots() {
        use std::collections::HashSet;
        let key4 = |port| FlowKey4 { addr: [1, 2], port: [port, 80], scope: 0 };
        let key6 = |port| FlowKey6 { addr: [[7; 4], [8; 4]], port: [80, port], scope: 0 };
        // Of 1,000 balls thrown at 8,192 places some 940 lie alone or first.
        let fours: HashSet<_> = (10_000..11_000).map(|port| key4(port).slot()).collect();
        let sixes: HashSet<_> = (10_000..11_000).map(|port| key6(port).slot()).collect();
        assert!(fours.len() > 900 && sixes.len() > 900, "{} {}", fours.len(), sixes.len());
        assert!(fours.iter().chain(&sixes).all(|&slot| slot < FILTER_SLOTS));
    }
}
