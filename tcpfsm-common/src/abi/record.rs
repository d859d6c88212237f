//! The flow record: one verdict for the flow, evidence per direction.
//!
//! ```text
//!   0 ┌──────────────────────────────┐
//!     │ Shared: verdict (CAS),       │  written on transitions only, read by both directions
//!     │ since, opened, interfaces    │
//!  64 ├──────────────────────────────┤
//!     │ Evidence of what Low sent    │  written by that direction's segments only
//! 128 ├──────────────────────────────┤
//!     │ Evidence of what High sent   │  written by that direction's segments only
//! 192 └──────────────────────────────┘
//! ```
//!
//! A map element has a 48-byte header and, for IPv4, a 16-byte key before the value: with 192 bytes of value
//! every part is a cache line of its own, so that two CPUs that carry one flow's two directions share no
//! line that either of them writes for an ordinary segment.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute_ref};

use super::Hook;
use crate::{flow::End, seq::SeqNum};

/// What one end was seen to send. Single writer: the segments of that direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Evidence {
    /// Initial sequence number; for a pickup, the first number seen.
    pub iss: SeqNum,
    /// The end of the highest segment sent. Once [`Self::FIN`] is set it is the number after the FIN.
    pub nxt: SeqNum,
    /// Everything before this was sent without a hole.
    pub contig: SeqNum,
    /// One range beyond the hole: its start …; with [`Self::SECOND_SYN`] what that SYN occupies.
    pub ooo_start: SeqNum,
    /// … and its end; empty when equal, and then, if it lies beyond what was sent, where the peer's window [ended](Self::knows).
    pub ooo_end: SeqNum,
    /// The highest acknowledgment sent that was acceptable: what this end has for certain.
    pub ack: SeqNum,
    /// The last acknowledgment sent, acceptable or not: a "no such socket" reset quotes it.
    pub last_ack: SeqNum,
    /// The right edge of the window that this end offers (ack + scaled window), the highest so far.
    pub edge: SeqNum,
    /// The last timestamp that counted (TS.Recent, RFC 7323 §4.3).
    pub tsval: u32,
    /// `SEEN` and the other bits below; bits 12–15 count strikes.
    pub flags: u16,
    /// The window scale offered in the SYN.
    pub scale: u8,
    /// Which generation of the flow this evidence belongs to: evidence of both ends says something about
    /// each other only where these are equal.
    pub generation: u8,
    /// Time of the last segment in the upper 48 bits (of nanoseconds), its IPv4 identification in the lower 16.
    pub stamp: u64,
    /// Segments sent.
    pub packets: u64,
    /// Payload bytes sent, retransmissions included.
    pub bytes: u64,
}

impl Evidence {
    /// Something was sent in this generation.
    pub const SEEN: u16 = 1;
    /// `iss` is an initial sequence number: a SYN was seen.
    pub const SYN: u16 = 1 << 1;
    /// A SYN-ACK was sent.
    pub const SYN_ACK: u16 = 1 << 2;
    /// A FIN was sent; `nxt` is the number after it.
    pub const FIN: u16 = 1 << 3;
    /// The SYN offered a window scale.
    pub const SCALE: u16 = 1 << 4;
    /// `tsval` holds a timestamp.
    pub const TIMESTAMPS: u16 = 1 << 5;
    /// A SYN was sent into a live connection and nothing but resets since.
    pub const SYN_ON_LIVE: u16 = 1 << 6;
    /// The SYN carried data.
    pub const SYN_DATA: u16 = 1 << 7;
    /// `ack` and `edge` hold values: this end sent an ACK.
    pub const EDGE: u16 = 1 << 8;
    /// The last window offered was zero.
    pub const ZERO_WINDOW: u16 = 1 << 9;
    /// The SYN offered SACK.
    pub const SACK: u16 = 1 << 10;
    /// In the handshake it sent a second SYN with another number, kept in `ooo_start` and `ooo_end`.
    pub const SECOND_SYN: u16 = 1 << 11;
    /// One strike, see [`Self::strikes`].
    pub const STRIKE: u16 = 1 << 12;
    const STRIKES: u16 = 0xf << 12;

    /// Notes where the peer's window ends, for the segments that come next in order: they need not read the peer's half. It is noted
    /// as an empty range beyond what was sent; at the end of that, nothing is known. It never stays behind, where 2 GiB later it would be ahead.
    #[inline(always)]
    pub const fn know(&mut self, edge: SeqNum) {
        self.ooo_start = edge;
        self.ooo_end = edge;
    }

    /// Whether the window of the peer, as it was noted, has room for what comes at `seq`, the next in order. Then, in this generation,
    /// the peer had offered a window, was acknowledged nothing that it was not seen to send, and acknowledged nothing that was not
    /// seen; all of that stays so, and the edge of its window moves on only.
    #[inline(always)]
    #[must_use]
    pub const fn knows(&self, seq: SeqNum) -> bool {
        self.ooo_start.0 == self.ooo_end.0 && self.ooo_end.after(seq)
    }

    /// The same without what was noted of the peer, or a range that is past: that depends on which way segments took.
    #[must_use]
    pub fn unknowing(&self) -> Self {
        if self.has(Self::SECOND_SYN) || self.has_hole() {
            *self
        } else {
            Self { ooo_start: self.contig, ooo_end: self.contig, ..*self }
        }
    }

    /// Whether there is a range beyond a hole.
    #[inline(always)]
    #[must_use]
    pub const fn has_hole(&self) -> bool {
        self.ooo_start.0 != self.ooo_end.0 && self.ooo_end.after(self.contig)
    }

    /// 1 if the one bit of `mask` is set, else 0.
    #[inline(always)]
    #[must_use]
    pub const fn bit(&self, mask: u16) -> u16 {
        (self.flags & mask) / mask
    }

    /// Whether all bits of `mask` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, mask: u16) -> bool {
        self.flags & mask == mask
    }

    /// Whether this end was seen in this generation, the bits in `needed` are set, and none of those in `noisy`: in one comparison,
    /// since nearly every segment asks it of both ends.
    #[inline(always)]
    #[must_use]
    pub fn is_quiet(&self, generation: u8, needed: u16, noisy: u16) -> bool {
        const WORD: usize = offset_of!(Evidence, flags) / 4;
        const _: () = assert!(
            offset_of!(Evidence, flags) == WORD * 4 && offset_of!(Evidence, generation) == WORD * 4 + 3
        );
        let words: &[u32; 16] = transmute_ref!(self);
        let needed = needed | Self::SEEN;
        let mask = u32::from(needed | noisy) | 0xff << 24;
        u32::from_le(words[WORD]) & mask == u32::from(needed) | u32::from(generation) << 24
    }

    /// How many times running this end sent something that did not fit what was seen so far.
    #[inline(always)]
    #[must_use]
    pub const fn strikes(&self) -> u16 {
        self.flags >> 12
    }

    /// Counts a strike, up to 15.
    #[inline(always)]
    pub const fn strike(&mut self) {
        if self.flags & Self::STRIKES != Self::STRIKES {
            self.flags += Self::STRIKE;
        }
    }

    /// Forgets the strikes.
    #[inline(always)]
    pub const fn clear_strikes(&mut self) {
        self.flags &= !Self::STRIKES;
    }

    /// When the last segment was seen, in nanoseconds with a grain of 65.5 µs.
    #[inline(always)]
    #[must_use]
    pub const fn last_seen(&self) -> u64 {
        self.stamp & !0xffff
    }

    /// The IPv4 identification of the last segment.
    #[inline(always)]
    #[must_use]
    pub const fn last_ip_id(&self) -> u16 {
        self.stamp as u16
    }
}

/// What both directions read and only transitions write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Shared {
    /// The [`Verdict`](super::Verdict) word: both states and all that changes with them, in one CAS.
    pub verdict: u64,
    /// When each end entered its state, nanoseconds, low end first.
    pub since: [u64; 2],
    /// When this generation of the flow began.
    pub opened: u64,
    /// Every fact of this generation.
    pub facts: u64,
    /// The [`Tap`] at which each direction was first seen, low end's first; 0 when not yet.
    pub tap: [u32; 2],
    /// Retransmitted segments of each direction.
    pub rtx: [u32; 2],
    /// MSS offered by each end; 0 when not seen.
    pub mss: [u16; 2],
    /// Sweep bookkeeping: the sweep that last reported this flow as stuck.
    pub reported: u32,
}

/// Where segments are seen: an interface, on the way in or out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tap(pub u32);

impl Tap {
    /// The tap of a hook on an interface; never 0.
    #[inline(always)]
    #[must_use]
    pub const fn new(ifindex: u32, hook: Hook) -> Self {
        let way = match hook {
            Hook::Xdp | Hook::TcIngress => 1,
            Hook::TcEgress => 2,
        };
        Self(ifindex << 2 | way)
    }

    /// The index of its interface.
    #[inline(always)]
    #[must_use]
    pub const fn ifindex(self) -> u32 {
        self.0 >> 2
    }
}

/// The value of the flow maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FlowRecord {
    /// Verdict and what changes with it.
    pub shared: Shared,
    /// Evidence of what each end sent, low end first.
    pub sent: [Evidence; 2],
}

impl FlowRecord {
    /// Evidence of what `end` sent.
    #[inline(always)]
    #[must_use]
    pub const fn sent_by(&self, end: End) -> &Evidence {
        match end {
            End::Low => &self.sent[0],
            End::High => &self.sent[1],
        }
    }

    /// When the flow was last heard of, from either end.
    #[inline(always)]
    #[must_use]
    pub const fn last_seen(&self) -> u64 {
        let (low, high) = (self.sent[0].last_seen(), self.sent[1].last_seen());
        if low > high { low } else { high }
    }
}

const _: () = {
    assert!(size_of::<Evidence>() == 64);
    assert!(size_of::<Shared>() == 64);
    assert!(size_of::<FlowRecord>() == 192);
    assert!(align_of::<FlowRecord>() == 8, "map values are aligned to 8 bytes, no more");
};
