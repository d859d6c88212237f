//! The one way in which the parser reads a packet.

use super::walk_options;
use crate::segment::TcpOptions;

/// A packet that can be read at an offset.
///
/// In the kernel an implementation must prove every access to the verifier; a fixed-size read that either
/// succeeds or says `None` is all the parser ever needs.
pub trait PacketBytes {
    /// The `N` bytes at `offset`, or `None` where the packet ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same number, no more than `mask`, which must be one less than a power of two.
    ///
    /// A walk over headers passes its offset through here at every step. The verifier follows every offset
    /// that a walk can have reached, and with each step there are more of them; in the kernel this makes them
    /// one unknown below a bound.
    #[inline(always)]
    fn blur(&self, offset: usize, mask: usize) -> usize {
        offset & mask
    }

    /// What the `len` bytes of TCP options at `start` say, where they are not the ones that nearly every segment
    /// carries.
    ///
    /// In the kernel this only puts them aside, and says [`TcpOptions::UNREAD`]: the walk along a packet whose length
    /// is unknown costs the verifier more than everything else together, and the short path takes no such segment.
    #[inline(always)]
    fn options(&self, start: usize, len: usize) -> TcpOptions {
        walk_options(self, start, len)
    }

    /// One byte.
    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.read::<1>(offset).map(|[byte]| byte)
    }

    /// A 16-bit number in network order.
    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_be_bytes)
    }

    /// A 32-bit number in network order.
    #[inline(always)]
    fn u32(&self, offset: usize) -> Option<u32> {
        self.read(offset).map(u32::from_be_bytes)
    }
}

impl PacketBytes for [u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

impl PacketBytes for &[u8] {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        (**self).read(offset)
    }
}
