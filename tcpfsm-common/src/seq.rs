//! Sequence numbers and their serial arithmetic (RFC 9293 §3.4).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A TCP sequence number: a point on a circle of 2³².
///
/// There is deliberately no `Ord`: "less" only means something for two numbers less than 2³¹ apart,
/// and the methods say which reading is meant. Nothing here can panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SeqNum(pub u32);

impl SeqNum {
    /// Signed distance from `other` to `self`; positive when `self` is ahead.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// Whether `self` lies before `other`.
    #[inline(always)]
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        self.since(other) < 0
    }

    /// Whether `self` lies after `other`.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        self.since(other) > 0
    }

    /// The later of two numbers.
    #[inline(always)]
    #[must_use]
    pub const fn latest(self, other: Self) -> Self {
        if self.after(other) { self } else { other }
    }

    /// Moves forward by `n`.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// Moves backward by `n`.
    #[inline(always)]
    #[must_use]
    pub const fn minus(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

#[cfg(test)]
mod tests {
    use super::SeqNum;

    #[test]
    fn wraps_around_zero() {
        let high = SeqNum(0xffff_fff0);
        let low = high.plus(0x20);
        assert_eq!(low, SeqNum(0x10));
        assert!(low.after(high) && high.before(low));
        assert_eq!(low.since(high), 0x20);
        assert_eq!(high.latest(low), low);
    }

    #[test]
    fn a_number_is_neither_before_nor_after_itself() {
        let n = SeqNum(7);
        assert!(!n.before(n) && !n.after(n));
    }
}
