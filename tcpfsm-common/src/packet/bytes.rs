//! The one way in which the parser reads a packet.

use super::walk_options;
use crate::segment::TcpOptions;

/// A packet that can be read at an offset.
///
/// In the kernel an implementation must prove every access to the verifier; a fixed-size read that either
/// succeeds or says `None` is all the parser ever needs.
pub trait PacketBytes {
    /// The first `N` bytes.
    type Head<const N: usize>: PacketHead;

    /// The first `N` bytes, or `None` where the packet ends before: one check for all that is read of them.
    fn head<const N: usize>(&self) -> Option<Self::Head<N>>;

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

/// The beginning of a packet, known to be there.
pub trait PacketHead: Copy {
    /// The four bytes at `AT`, which must lie in it: it does not compile otherwise.
    fn quad<const AT: usize>(&self) -> [u8; 4];

    /// The two bytes there.
    fn pair<const AT: usize>(&self) -> [u8; 2];
}

impl<const N: usize> PacketHead for [u8; N] {
    #[inline(always)]
    fn quad<const AT: usize>(&self) -> [u8; 4] {
        const { assert!(AT + 4 <= N, "beyond the head") };
        [self[AT], self[AT + 1], self[AT + 2], self[AT + 3]]
    }

    #[inline(always)]
    fn pair<const AT: usize>(&self) -> [u8; 2] {
        const { assert!(AT + 2 <= N, "beyond the head") };
        [self[AT], self[AT + 1]]
    }
}

impl PacketBytes for [u8] {
    type Head<const N: usize> = [u8; N];

    fn head<const N: usize>(&self) -> Option<[u8; N]> {
        self.first_chunk().copied()
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

impl PacketBytes for &[u8] {
    type Head<const N: usize> = [u8; N];

    fn head<const N: usize>(&self) -> Option<[u8; N]> {
        (**self).head()
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        (**self).read(offset)
    }
}
