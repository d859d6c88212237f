//! Is a segment acceptable to the end it was sent to? (RFC 9293 §3.4, §3.10.7.4; RFC 5961; RFC 7323 §5)

use crate::{abi::Evidence, segment::Segment, segment::TcpOptions, seq::SeqNum};

/// Who has sent no more than this has not come round to where it began.
const NEAR: u32 = 1 << 30;

/// Assumed where an end's window was never seen: the largest unscaled one.
const UNKNOWN_WINDOW: u32 = 0xffff;

/// Whether both ends' evidence is of the same generation, so that one's numbers mean something to the other.
#[inline(always)]
pub(super) const fn attached(a: &Evidence, b: &Evidence) -> bool {
    a.has(Evidence::SEEN) && b.has(Evidence::SEEN) && a.generation == b.generation
}

/// RCV.NXT of the receiver: what it acknowledged, or what its peer sent without a hole, whichever is more.
#[inline(always)]
pub(super) const fn rcv_nxt(sender: &Evidence, receiver: &Evidence) -> SeqNum {
    if !receiver.has(Evidence::SEEN | Evidence::EDGE) {
        sender.contig
    } else if sender.has(Evidence::SEEN) && sender.generation == receiver.generation {
        receiver.ack.latest(sender.contig)
    } else {
        receiver.ack
    }
}

/// The right edge of the receiver's window.
#[inline(always)]
pub(super) const fn window_edge(receiver: &Evidence, rcv_nxt: SeqNum) -> SeqNum {
    if receiver.has(Evidence::EDGE) { receiver.edge.latest(rcv_nxt) } else { rcv_nxt.plus(UNKNOWN_WINDOW) }
}

/// How an acknowledgment number stands to what its receiver has sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AckCheck {
    /// SND.UNA − window ≤ SEG.ACK ≤ SND.NXT.
    Acceptable,
    /// It acknowledges what was not seen to be sent.
    Unseen,
    /// It is older than any window (RFC 5961 §5).
    TooOld,
}

/// Checks the acknowledgment number of a segment from `sender` against what `receiver` has sent.
#[inline(always)]
pub(super) const fn check_ack(sender: &Evidence, receiver: &Evidence, ack: SeqNum) -> AckCheck {
    // Nobody acknowledges less than the SYN. Far behind, its number would be ahead.
    let is_older = !sender.has(Evidence::EDGE)
        || ack.before(sender.ack) && sender.ack.since(receiver.iss).cast_unsigned() < NEAR;
    let is_near = receiver.nxt.since(receiver.iss).cast_unsigned() < NEAR && receiver.bytes < NEAR as u64;
    if receiver.has(Evidence::SYN) && is_older && is_near && !ack.after(receiver.iss) {
        return AckCheck::TooOld;
    }
    if !sender.has(Evidence::EDGE) {
        // Its first acknowledgment.
        return if ack.after(receiver.sent_to()) {
            AckCheck::Unseen
        } else if ack.before(receiver.iss) {
            AckCheck::TooOld
        } else {
            AckCheck::Acceptable
        };
    }
    // An acknowledgment accepted earlier, although what it acknowledged was not seen, stays good.
    if ack.after(receiver.sent_to().latest(sender.ack)) {
        return AckCheck::Unseen;
    }
    let offered = sender.edge.since(sender.ack);
    let window = if offered > 0xffff { offered } else { 0xffff };
    if sender.ack.since(ack) > window { AckCheck::TooOld } else { AckCheck::Acceptable }
}

/// Whether a timestamp is older than the last one that the receiver took (PAWS).
#[inline(always)]
pub(super) const fn fails_paws(sender: &Evidence, segment: &Segment) -> bool {
    timestamp_ahead(sender, segment) < 0
}

/// How far a timestamp is ahead of the last one that the receiver took; 0 where there are not both.
#[inline(always)]
pub(super) const fn timestamp_ahead(sender: &Evidence, segment: &Segment) -> i32 {
    // Products, not conditions: the verifier would follow each.
    let are_both = segment.options.bit(TcpOptions::HAS_TIMESTAMPS) * sender.bit(Evidence::TIMESTAMPS);
    segment.options.tsval.wrapping_sub(sender.tsval).wrapping_mul(are_both as u32).cast_signed()
}

/// Whether one timestamp is older than another.
#[inline(always)]
pub(super) const fn is_past(tsval: u32, last: u32) -> bool {
    tsval.wrapping_sub(last).cast_signed() < 0
}
