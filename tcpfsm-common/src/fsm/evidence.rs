//! What an end was seen to send, brought up to date by one segment.

use core::hint::black_box;

use super::desk::Note;
use crate::{
    abi::Evidence,
    fact::{Fact, Facts},
    segment::{Acknowledgment, Segment, TcpFlags, TcpOptions},
    seq::SeqNum,
};

/// The scale assumed where no SYN was seen: the largest, so that nothing in the window is refused.
const UNKNOWN_SCALE: u32 = 14;

/// After so long without a segment a timestamp is not compared with the last one (RFC 7323 §5.5; Linux: `TCP_PAWS_WRAP`).
const STALE_NS: u64 = 2_147_000_000_000;

/// What it says, without a condition.
#[inline(always)]
fn one_unless_zero(value: u32) -> u16 {
    // What the compiler knows of it would make it one again.
    let value = black_box(value);
    ((value | value.wrapping_neg()) >> 31) as u16
}

/// The right edge of a window.
#[inline(always)]
pub(super) fn edge(ack: SeqNum, window: u16, shift: u32) -> SeqNum {
    ack.plus(u32::from(window) << shift)
}

impl Evidence {
    /// Begins a generation with a SYN, a SYN-ACK, or, for a pickup, whatever came first.
    #[inline(always)]
    pub(super) fn start(&mut self, segment: &Segment, generation: u8) {
        // Products, not conditions: the verifier would follow each of them through all that comes after.
        let (syn, ack) = (segment.flags.bit(TcpFlags::SYN), segment.flags.bit(TcpFlags::ACK));
        let options = &segment.options;
        // Some stacks put 0 into a SYN and their clock into what follows; so Linux takes a 0 for none.
        let stamped = options.bit(TcpOptions::HAS_TIMESTAMPS) * one_unless_zero(options.tsval);
        let of_syn = Self::SYN
            | (options.bit(TcpOptions::HAS_SCALE) * Self::SCALE)
            | (options.bit(TcpOptions::SACK_PERMITTED) * Self::SACK)
            | (one_unless_zero(segment.len) * Self::SYN_DATA);
        self.flags = Self::SEEN | (ack * Self::EDGE) | (stamped * Self::TIMESTAMPS) | (syn * of_syn);
        let (syn, ack) = (u32::from(syn), u32::from(ack));
        let first_data = segment.seq.plus(syn);
        self.iss = segment.seq;
        self.nxt = segment.seq.plus(syn * segment.end_seq().since(segment.seq).cast_unsigned());
        // Data in a SYN counts only once it is acknowledged: the receiver may ignore it (RFC 7413 §3).
        self.contig = first_data;
        self.ooo_start = first_data;
        self.ooo_end = first_data;
        self.ack = segment.ack;
        self.last_ack = segment.ack;
        // The window of a SYN is never scaled (RFC 7323 §2.2).
        self.edge = segment.ack.plus(ack * (u32::from(segment.window) << (UNKNOWN_SCALE * (1 - syn))));
        self.tsval = options.tsval;
        self.scale = options.scale;
        self.generation = generation;
        self.packets = 0;
        self.bytes = 0;
    }

    /// Keeps a SYN with another number than the first: which of the two is the connection's, or whether its connection is over, the
    /// answer tells.
    #[inline(always)]
    pub(super) fn remember_second_syn(&mut self, segment: &Segment) {
        self.ooo_start = segment.seq;
        self.ooo_end = segment.end_seq();
        self.flags |= Self::SECOND_SYN;
    }

    /// Whether there is a second SYN that this acknowledges.
    #[inline(always)]
    pub(super) const fn second_syn_has(&self, ack: SeqNum) -> bool {
        self.has(Self::SECOND_SYN) && ack.after(self.ooo_start) && !ack.after(self.ooo_end)
    }

    /// Whether there is a second SYN that was sent again: that makes it harder to believe that it was forged.
    #[inline(always)]
    pub(super) const fn insists_on_second_syn(&self) -> bool {
        self.has(Self::SECOND_SYN) && self.strikes() > 0
    }

    /// Whether there is a second SYN that begins there.
    #[inline(always)]
    pub(super) const fn is_second_syn(&self, seq: SeqNum) -> bool {
        self.has(Self::SECOND_SYN) && self.ooo_start.0 == seq.0
    }

    /// The handshake is behind this end: of its two SYNs the one that its peer acknowledged was the connection's.
    #[inline(always)]
    pub(super) fn choose_syn(&mut self, acked: Option<SeqNum>) {
        if !self.has(Self::SECOND_SYN) {
            return;
        }
        if !self.has(Self::SYN_ON_LIVE) && acked.is_some_and(|ack| self.second_syn_has(ack)) {
            self.iss = self.ooo_start;
            self.nxt = self.ooo_end;
            self.contig = self.iss.plus(1);
            // The first SYN's is not of this connection.
            self.flags &= !Self::TIMESTAMPS;
        }
        self.ooo_start = self.contig;
        self.ooo_end = self.contig;
        self.flags &= !Self::SECOND_SYN;
    }

    /// Forgets a timestamp that is too old to be compared with another: half a turn of a clock may have passed.
    #[inline(always)]
    pub fn forget_stale_timestamp(&mut self, now: u64) {
        // 1 if so, without a branch: the verifier would follow both sides through all that comes after.
        let silent = now.wrapping_sub(self.last_seen());
        let is_stale = (STALE_NS.wrapping_sub(silent) >> 63) as u16;
        self.flags &= !(is_stale * Self::TIMESTAMPS);
    }

    /// Counts a segment of this end, whatever it said.
    #[inline(always)]
    pub fn count(&mut self, len: u32, ip_id: u16, now: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(u64::from(len));
        self.stamp = now & !0xffff | u64::from(ip_id);
    }

    /// The right edge of the window that an acknowledgment of this end offers.
    #[inline(always)]
    pub(super) fn edge_of(&self, ack: SeqNum, window: u16, peer: &Self) -> SeqNum {
        edge(ack, window, self.window_shift(peer))
    }

    /// Whether this end is known not to take SACK.
    #[inline(always)]
    pub(super) const fn refuses_sack(&self) -> bool {
        self.flags & (Self::SYN | Self::SACK) == Self::SYN
    }

    /// Whether this end may have offered a window scale.
    #[inline(always)]
    pub(super) const fn may_scale(&self) -> bool {
        self.flags & (Self::SYN | Self::SCALE) != Self::SYN
    }

    /// The shift of this end's window: both ends must have offered one (RFC 7323 §2.2).
    #[inline(always)]
    fn window_shift(&self, peer: &Self) -> u32 {
        self.shift_for(peer.may_scale())
    }

    /// The same, by whether the peer may have offered one.
    #[inline(always)]
    pub(super) fn shift_for(&self, both: bool) -> u32 {
        if both && self.has(Self::SYN | Self::SCALE) {
            u32::from(self.scale & 15)
        } else if self.has(Self::SYN) {
            0
        } else {
            UNKNOWN_SCALE
        }
    }

    /// How far it may have sent: of an end that was met in mid-stream and has sent nothing but acknowledgments since, these may be
    /// keepalives or window probes, whose number is one behind.
    #[inline(always)]
    pub(super) const fn sent_to(&self) -> SeqNum {
        self.nxt.plus((self.flags & Self::SYN == 0 && self.bytes == 0) as u32)
    }

    /// Whether a segment of this end lies where keepalives and window probes do: right before what comes next.
    #[inline(always)]
    pub(super) fn is_probed_by(&self, segment: &Segment) -> bool {
        segment.len <= 1 && segment.seq == self.nxt.minus(1)
    }

    /// Takes an acceptable ACK or FIN segment of this end into account. `is` tells what was noted: [`Note::Acked`], that the
    /// peer's acknowledgments are of this generation, and [`Note::Keepalive`].
    #[inline(always)]
    pub(super) fn accept(
        &mut self,
        segment: &Segment,
        peer: &Self,
        is: impl Fn(Note) -> bool,
        facts: &mut Facts,
    ) {
        let acked = || is(Note::Acked);
        let end = segment.end_seq();
        if acked() {
            // Acknowledged means received, whether or not it was seen to be sent.
            self.contig = self.contig.latest(peer.ack);
        }
        let is_next = segment.seq == self.nxt && self.contig == self.nxt;
        if segment.len > 0 && !self.nxt.before(end) && !is(Note::Keepalive) {
            facts.add(Fact::Rtx);
            if acked() && !end.after(peer.ack) {
                facts.add(Fact::SpuriousRtx);
            }
        }
        if !is(Note::OtherFin) {
            if self.has(Self::FIN) {
                if segment.len > 0 && end.after(self.nxt) {
                    facts.add(Fact::DataAfterFin);
                    return;
                }
            } else {
                if segment.seq.after(self.nxt) && segment.len == 0 {
                    facts.add(Fact::CaptureGap);
                }
                self.nxt = self.nxt.latest(end);
            }
            self.extend(segment.seq, end, facts);
            if segment.flags.any(TcpFlags::FIN) {
                // A FIN is the last there is: were anything beyond it seen before, it was not this end's.
                self.flags |= Self::FIN;
                self.nxt = end;
            }
        }
        self.take_window(segment, peer, facts);
        if segment.options.has(TcpOptions::HAS_TIMESTAMPS)
            && (!self.has(Self::TIMESTAMPS)
                || !acked()
                || is_next
                || is(Note::Keepalive)
                || !segment.seq.after(peer.ack) && !end.before(peer.ack))
        {
            // RFC 7323 §4.3: TS.Recent follows segments at the left edge only. What lies wholly before it Linux drops
            // before it looks at the timestamp: sent again for nothing, it is newer than what is still on its way. What comes next
            // in order counts before it is acknowledged: all that was sent before it is older, and was seen or acknowledged. So
            // does a keepalive: else a clock that goes on while nothing else is sent would seem to go back.
            self.tsval = segment.options.tsval;
            self.flags |= Self::TIMESTAMPS;
        }
    }

    /// Takes the acknowledgment and the window of an acceptable segment.
    #[inline(always)]
    pub(super) fn take_window(&mut self, segment: &Segment, peer: &Self, facts: &mut Facts) {
        let edge = if segment.flags.any(TcpFlags::SYN) {
            // Never scaled (RFC 7323 §2.2).
            segment.ack.plus(u32::from(segment.window))
        } else {
            self.edge_of(segment.ack, segment.window, peer)
        };
        self.ack = if self.has(Self::EDGE) { self.ack.latest(segment.ack) } else { segment.ack };
        self.last_ack = segment.ack;
        self.edge = if self.has(Self::EDGE) { self.edge.latest(edge) } else { edge };
        self.flags |= Self::EDGE;
        if segment.window == 0 {
            if !self.has(Self::ZERO_WINDOW) {
                facts.add(Fact::ZeroWindow);
            }
            self.flags |= Self::ZERO_WINDOW;
        } else {
            self.flags &= !Self::ZERO_WINDOW;
        }
    }

    /// Takes a segment into account that is the next one in order, acknowledges no less than the one before, and like that
    /// offers a window; a FIN but for its flag. Where nothing is odd, [`Self::accept`] does the same.
    #[inline(always)]
    pub(super) fn accept_orderly(&mut self, segment: &Segment, peer: &Self) {
        let edge = self.edge_of(segment.ack, segment.window, peer);
        let end = segment.end_seq();
        if segment.seq != end {
            // A range beyond a hole is past now, if there was one.
            self.know(end);
        }
        self.go_on(segment.seq, end, segment.ack);
        self.edge = if self.has(Self::EDGE) { self.edge.latest(edge) } else { edge };
        self.flags |= Self::EDGE;
        if let Some(tsval) = segment.tsval() {
            self.tsval = tsval;
            self.flags |= Self::TIMESTAMPS;
        }
    }

    /// Takes the numbers of a segment that is the next one in order, and acknowledges no less than the one before.
    #[inline(always)]
    pub(super) fn go_on(&mut self, seq: SeqNum, end: SeqNum, ack: SeqNum) {
        if seq != end {
            self.nxt = end;
            self.contig = end;
        }
        self.ack = ack;
        self.last_ack = ack;
    }

    /// Extends what was sent without a hole by `[seq, end)`, remembering one range beyond a hole.
    #[inline(always)]
    fn extend(&mut self, seq: SeqNum, end: SeqNum, facts: &mut Facts) {
        if self.ooo_start == self.ooo_end {
            // What was known of the peer is forgotten; and 2 GiB behind would be ahead.
            self.know(self.contig);
        }
        if seq == end {
            return;
        }
        if !seq.after(self.contig) {
            self.contig = self.contig.latest(end);
            if self.ooo_start != self.ooo_end && !self.ooo_start.after(self.contig) {
                self.contig = self.contig.latest(self.ooo_end);
                self.ooo_start = self.ooo_end;
            }
            return;
        }
        facts.add(Fact::OutOfOrder);
        if !self.has_hole() {
            self.ooo_start = seq;
            self.ooo_end = end;
        } else if !seq.after(self.ooo_end) && !end.before(self.ooo_start) {
            if seq.before(self.ooo_start) {
                self.ooo_start = seq;
            }
            self.ooo_end = self.ooo_end.latest(end);
        }
        // A second hole: the nearer range is kept, the receiver's acknowledgments tell of the other.
    }
}
