//! What the machine sees of one TCP segment.

use crate::seq::SeqNum;

/// The TCP flag bits as they stand in the header: FIN is bit 0, CWR bit 7, AE bit 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TcpFlags(pub u16);

impl TcpFlags {
    /// FIN: no more data from the sender.
    pub const FIN: u16 = 0x001;
    /// SYN: synchronise sequence numbers.
    pub const SYN: u16 = 0x002;
    /// RST: reset the connection.
    pub const RST: u16 = 0x004;
    /// PSH: push.
    pub const PSH: u16 = 0x008;
    /// ACK: the acknowledgment field is significant.
    pub const ACK: u16 = 0x010;
    /// URG: the urgent pointer is significant.
    pub const URG: u16 = 0x020;
    /// ECE: ECN echo (RFC 3168).
    pub const ECE: u16 = 0x040;
    /// CWR: congestion window reduced (RFC 3168).
    pub const CWR: u16 = 0x080;
    /// AE: accurate ECN (RFC 9768).
    pub const AE: u16 = 0x100;
    /// All of them.
    pub const ALL: u16 = 0x1ff;

    /// Whether any bit of `mask` is set.
    #[inline(always)]
    #[must_use]
    pub const fn any(self, mask: u16) -> bool {
        self.0 & mask != 0
    }

    /// 1 if the one bit of `mask` is set, else 0.
    #[inline(always)]
    #[must_use]
    pub const fn bit(self, mask: u16) -> u16 {
        (self.0 & mask) / mask
    }

    /// The flags that steer the machine, classified; ECE, CWR, AE, PSH and URG play no part.
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> SegmentKind {
        const ACK: u16 = TcpFlags::ACK;
        const SYN: u16 = TcpFlags::SYN;
        const FIN: u16 = TcpFlags::FIN;
        const RST: u16 = TcpFlags::RST;
        const SYN_ACK: u16 = SYN | ACK;
        const FIN_ACK: u16 = FIN | ACK;
        const RST_ACK: u16 = RST | ACK;
        match self.0 & (SYN | FIN | RST | ACK) {
            ACK => SegmentKind::Ack,
            FIN_ACK => SegmentKind::Fin,
            SYN => SegmentKind::Syn,
            SYN_ACK => SegmentKind::SynAck,
            RST | RST_ACK => SegmentKind::Rst,
            _ => SegmentKind::Invalid,
        }
    }
}

/// A segment, by the flags that matter to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// ACK and nothing else: data, acknowledgments, probes.
    Ack,
    /// FIN with ACK.
    Fin,
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// RST, with or without ACK.
    Rst,
    /// NULL, no ACK, SYN+FIN, SYN+RST, FIN+RST: no conforming stack sends these.
    Invalid,
}

/// The TCP options that the machine reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Maximum segment size (RFC 9293 §3.7.1); 0 when absent.
    pub mss: u16,
    /// Window scale shift (RFC 7323 §2), clamped to 14; see [`Self::HAS_SCALE`].
    pub scale: u8,
    /// Which options were present, see the `HAS_` constants.
    pub present: u8,
    /// TSval (RFC 7323 §3).
    pub tsval: u32,
    /// TSecr (RFC 7323 §3).
    pub tsecr: u32,
    /// The highest right edge of the SACK blocks (RFC 2018).
    pub sack_edge: SeqNum,
}

impl TcpOptions {
    /// The MSS option was present.
    pub const HAS_MSS: u8 = 1;
    /// The window scale option was present.
    pub const HAS_SCALE: u8 = 2;
    /// SACK-permitted was present.
    pub const SACK_PERMITTED: u8 = 4;
    /// At least one SACK block was present.
    pub const HAS_SACK: u8 = 8;
    /// The timestamps option was present.
    pub const HAS_TIMESTAMPS: u8 = 16;
    /// An option was malformed, or there were more than the walk reads; what came before it counts.
    pub const MALFORMED: u8 = 32;
    /// The options were put aside and are still to be read; never set where the machine sees them.
    pub const UNREAD: u8 = 64;

    /// 1 if the one bit of `mask` is set in `present`, else 0.
    #[inline(always)]
    #[must_use]
    pub const fn bit(&self, mask: u8) -> u16 {
        ((self.present & mask) / mask) as u16
    }

    /// Whether any bit of `mask` is set in `present`.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, mask: u8) -> bool {
        self.present & mask != 0
    }
}

/// An ACK and nothing else, of whose options only timestamps matter. A segment in a packet is read where it lies, each
/// number when it is asked for.
pub trait Acknowledgment {
    /// SEG.SEQ.
    fn seq(&self) -> SeqNum;
    /// SEG.ACK.
    fn ack(&self) -> SeqNum;
    /// SEG.WND, unscaled.
    fn window(&self) -> u16;
    /// TSval, where there are timestamps.
    fn tsval(&self) -> Option<u32>;
    /// Payload bytes.
    fn payload_len(&self) -> u32;
    /// The IPv4 identification, 0 for IPv6.
    fn ip_id(&self) -> u16;
}

/// One TCP segment, reduced to what the machine and the evidence read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// SEG.SEQ.
    pub seq: SeqNum,
    /// SEG.ACK; meaningless without the ACK flag.
    pub ack: SeqNum,
    /// Payload bytes, from the IP length (or the GSO super-packet's), never from the frame's.
    pub len: u32,
    /// The flags.
    pub flags: TcpFlags,
    /// SEG.WND as it stands in the header, unscaled.
    pub window: u16,
    /// The IPv4 identification, 0 for IPv6: tells a packet seen twice from a retransmission.
    pub ip_id: u16,
    /// Both ends are one and the same socket.
    pub to_itself: bool,
    /// Where it was seen, see [`Tap`](crate::abi::Tap); 0 where there is only one place.
    pub tap: u32,
    /// The options.
    pub options: TcpOptions,
}

/// For those that are one; see [`Segment::is_acknowledgment`].
impl Acknowledgment for Segment {
    #[inline(always)]
    fn seq(&self) -> SeqNum {
        self.seq
    }

    #[inline(always)]
    fn ack(&self) -> SeqNum {
        self.ack
    }

    #[inline(always)]
    fn window(&self) -> u16 {
        self.window
    }

    #[inline(always)]
    fn tsval(&self) -> Option<u32> {
        self.options.has(TcpOptions::HAS_TIMESTAMPS).then_some(self.options.tsval)
    }

    #[inline(always)]
    fn payload_len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    fn ip_id(&self) -> u16 {
        self.ip_id
    }
}

impl Segment {
    /// Whether this is an ACK and nothing else, with options that were read and are as they should be.
    #[inline(always)]
    #[must_use]
    pub const fn is_acknowledgment(&self) -> bool {
        matches!(self.flags.kind(), SegmentKind::Ack)
            && !self.options.has(TcpOptions::MALFORMED | TcpOptions::UNREAD)
    }

    /// Whether this is a SYN without an ACK.
    #[inline(always)]
    #[must_use]
    pub const fn is_syn(&self) -> bool {
        matches!(self.flags.kind(), SegmentKind::Syn)
    }

    /// SEG.SEQ plus SEG.LEN: payload, SYN and FIN each take their place in sequence space.
    #[inline(always)]
    #[must_use]
    pub const fn end_seq(&self) -> SeqNum {
        let syn = (self.flags.0 & TcpFlags::SYN) >> 1;
        let fin = self.flags.0 & TcpFlags::FIN;
        self.seq.plus(self.len).plus((syn + fin) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_do_not_change_the_kind() {
        let modifiers = TcpFlags::PSH | TcpFlags::URG | TcpFlags::ECE | TcpFlags::CWR | TcpFlags::AE;
        for bits in 0..=0x1ff_u16 {
            assert_eq!(TcpFlags(bits).kind(), TcpFlags(bits & !modifiers).kind(), "flags {bits:#x}");
        }
    }

    #[test]
    fn six_of_sixteen_combinations_are_valid() {
        let steering = [TcpFlags::FIN, TcpFlags::SYN, TcpFlags::RST, TcpFlags::ACK];
        let valid = (0..16_u16)
            .map(|i| (0..4).filter(|b| i & (1 << b) != 0).fold(0, |bits, b| bits | steering[b as usize]))
            .filter(|&bits| TcpFlags(bits).kind() != SegmentKind::Invalid)
            .count();
        assert_eq!(valid, 6);
    }

    #[test]
    fn syn_and_fin_take_a_sequence_number_each() {
        let segment =
            |flags, len| Segment { seq: SeqNum(10), len, flags: TcpFlags(flags), ..Segment::default() };
        assert_eq!(segment(TcpFlags::ACK, 5).end_seq(), SeqNum(15));
        assert_eq!(segment(TcpFlags::SYN, 0).end_seq(), SeqNum(11));
        assert_eq!(segment(TcpFlags::FIN | TcpFlags::ACK, 5).end_seq(), SeqNum(16));
    }
}
