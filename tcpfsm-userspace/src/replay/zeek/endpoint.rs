//! What one end of a connection was seen to do.

use tcpfsm_common::{
    segment::{Segment, TcpFlags},
    seq::SeqNum,
};

use super::{
    history::{History, Scaled},
    stream::{Sender, Stream},
};

/// A jump of sequence numbers that is not believed in a SYN or a RST.
const TOO_FAR: i32 = 1 << 20;

/// Zeek's states of one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was seen of it.
    #[default]
    Inactive,
    /// It sent a SYN.
    SynSent,
    /// It sent a SYN-ACK as the first of the connection.
    SynAckSent,
    /// It sent something, but no SYN.
    Partial,
    /// Its SYN was answered, or it answered one.
    Established,
    /// It sent a FIN.
    Closed,
    /// It sent a RST.
    Reset,
}

/// One end.
#[derive(Debug, Default)]
pub(super) struct Endpoint {
    pub(super) state: State,
    pub(super) before: State,
    /// The initial sequence number, or one before the first that was seen.
    start: SeqNum,
    /// After the highest segment sent.
    last: Wide,
    /// The highest acknowledgment of what it sent.
    acked: Wide,
    pub(super) sent_fin: bool,
    fin_seq: u64,
    /// Its closing was told.
    pub(super) did_close: bool,
    pub(super) seen: bool,
    pub(super) stream: Stream,
    /// Which once-only letters it has in the history.
    letters: u8,
    last_syn: u64,
    last_fin: u64,
    last_rst: u64,
    retransmissions: Scaled,
    zero_windows: Scaled,
    gaps: Scaled,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// A sequence number with the count of its wraps.
#[derive(Clone, Copy, Debug, Default)]
struct Wide {
    low: SeqNum,
    wraps: u32,
}

impl Wide {
    const fn advance(&mut self, to: SeqNum) {
        if to.0 < self.low.0 {
            self.wraps = self.wraps.wrapping_add(1);
        }
        self.low = to;
    }

    const fn full(self) -> u64 {
        (self.wraps as u64) << 32 | self.low.0 as u64
    }
}

/// The letters of the history.
mod letter {
    pub(super) const SYN: u8 = 1;
    pub(super) const FIN: u8 = 1 << 1;
    pub(super) const RST: u8 = 1 << 2;
    pub(super) const FIN_RST: u8 = 1 << 3;
    pub(super) const DATA: u8 = 1 << 4;
    pub(super) const ACK: u8 = 1 << 5;
    pub(super) const MULTI: u8 = 1 << 6;
}

/// A place in a stream, and whether it lies before its beginning.
#[derive(Clone, Copy)]
pub(super) struct Relative {
    pub(super) at: u64,
    pub(super) underflow: bool,
}

impl Endpoint {
    pub(super) const fn set_state(&mut self, state: State) {
        if self.state as u8 != state as u8 {
            self.before = self.state;
            self.state = state;
        }
    }

    /// Takes the initial sequence numbers from the first segment, or from a SYN that corrects them.
    pub(super) fn begin(&mut self, segment: &Segment, end: SeqNum) {
        let syn = segment.flags.any(TcpFlags::SYN);
        match self.state {
            State::Inactive if !syn => {
                // As though a SYN had come before, so that relative numbers mean the same.
                self.start_at(segment.seq.minus(1), segment.seq);
            }
            State::Inactive => self.start_at(segment.seq, end),
            State::SynSent | State::SynAckSent if syn && segment.seq != self.start => {
                self.start_at(segment.seq, end);
            }
            State::Established | State::Partial if syn => self.start_at(segment.seq, end),
            State::Reset if syn && self.before == State::Inactive => self.start_at(segment.seq, end),
            State::SynSent
            | State::SynAckSent
            | State::Established
            | State::Partial
            | State::Closed
            | State::Reset => {}
        }
    }

    fn start_at(&mut self, start: SeqNum, last: SeqNum) {
        self.start = start;
        self.acked.low = start;
        self.last.low = last;
    }

    /// Nothing was seen of it, but its peer acknowledges something that it must have sent.
    pub(super) fn begin_unseen(&mut self, ack: SeqNum) {
        self.start_at(ack.minus(1), ack.minus(1));
    }

    /// Where a segment of this end lies.
    pub(super) fn locate(&self, seq: SeqNum) -> Relative {
        self.relative(seq, self.last)
    }

    /// Where an acknowledgment of what this end sent points.
    pub(super) fn locate_ack(&self, ack: SeqNum) -> Relative {
        self.relative(ack, self.acked)
    }

    fn relative(&self, seq: SeqNum, near: Wide) -> Relative {
        let delta = seq.since(near.low);
        let mut wraps = near.wraps;
        if delta < 0 && wraps > 0 && seq.0 > near.low.0 {
            wraps -= 1;
        } else if delta > 0 && seq.0 < near.low.0 {
            wraps = wraps.wrapping_add(1);
        }
        if wraps == 0 {
            let delta = seq.since(self.start);
            return Relative { at: i64::from(delta).cast_unsigned(), underflow: delta < 0 };
        }
        Relative { at: self.offset_of(Wide { low: seq, wraps }), underflow: false }
    }

    const fn offset_of(&self, seq: Wide) -> u64 {
        seq.full().wrapping_sub(self.start.0 as u64)
    }

    pub(super) const fn starts_at(&self, seq: SeqNum) -> bool {
        self.start.0 == seq.0
    }

    /// Writes the letter of a segment, and of a zero window.
    pub(super) fn write_history(&mut self, history: &mut History, segment: &Segment, at: u64) {
        let flags = segment.flags;
        let bits = (flags.0 & (TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST)).count_ones();
        if bits > 1 {
            if flags.any(TcpFlags::FIN) && flags.any(TcpFlags::RST) {
                self.write_once(history, letter::FIN_RST, b'I');
            } else {
                self.write_once(history, letter::MULTI, b'Q');
            }
        } else if flags.any(TcpFlags::SYN) {
            let code = if flags.any(TcpFlags::ACK) { b'H' } else { b'S' };
            if self.write_once(history, letter::SYN, code) && at != self.last_syn {
                history.write(code);
            }
            self.last_syn = at;
        } else if flags.any(TcpFlags::FIN) {
            let end = at.wrapping_add(u64::from(segment.len));
            if self.write_once(history, letter::FIN, b'F') && end != self.last_fin {
                history.write(b'F');
            }
            self.last_fin = end;
        } else if flags.any(TcpFlags::RST) {
            if self.write_once(history, letter::RST, b'R') && at != self.last_rst {
                history.write(b'R');
            }
            self.last_rst = at;
        } else if segment.len > 0 {
            self.write_once(history, letter::DATA, b'D');
        } else if flags.any(TcpFlags::ACK) {
            self.write_once(history, letter::ACK, b'A');
        }
    }

    /// Says whether the letter was there already.
    fn write_once(&mut self, history: &mut History, mask: u8, code: u8) -> bool {
        if self.letters & mask != 0 {
            return true;
        }
        self.letters |= mask;
        history.write(code);
        false
    }

    pub(super) fn note_zero_window(&mut self, history: &mut History) {
        if self.zero_windows.count() {
            history.write(b'W');
        }
    }

    pub(super) fn note_gaps(&mut self, history: &mut History, gaps: u32) {
        for _ in 0..gaps {
            if self.gaps.count() {
                history.write(b'G');
            }
        }
    }

    pub(super) const fn note_fin(&mut self, end: u64) {
        self.sent_fin = true;
        self.fin_seq = end;
    }

    /// The peer acknowledges `ack`.
    pub(super) fn advance_ack(&mut self, ack: SeqNum) {
        let delta = ack.since(self.acked.low);
        // Zero is more often a broken acknowledgment than a number.
        if delta > 0 && !(ack.0 == 0 && delta > TOO_FAR) {
            self.acked.advance(ack);
        }
    }

    /// The segment's end; notes a retransmission.
    pub(super) fn advance_last(&mut self, history: &mut History, segment: &Segment, end: SeqNum) {
        let delta = end.since(self.last.low);
        let flags = segment.flags;
        if flags.any(TcpFlags::SYN | TcpFlags::RST) && !(-TOO_FAR..=TOO_FAR).contains(&delta) {
            return;
        }
        if flags.any(TcpFlags::FIN) && self.last.low == self.start.plus(1) {
            self.last.advance(end);
        } else if self.state == State::Reset {
            // Nothing after a RST is believed.
        } else if delta > 0 {
            self.last.advance(end);
        } else if segment.len > 0 && self.retransmissions.count() {
            history.write(b'T');
        }
    }

    fn sender(&self, peer: State, is_partial: bool) -> Sender {
        let full = self.acked.full();
        let start = u64::from(self.start.0);
        Sender { nothing_acked: full == start || full == start + 1, size: self.size(peer), is_partial }
    }

    /// Payload bytes, by sequence numbers.
    pub(super) fn size(&self, peer: State) -> u64 {
        let start = u64::from(self.start.0);
        let acked = self.acked.full();
        let nothing_acked = acked == start || acked == start + 1;
        if self.before == State::SynSent
            && self.state == State::Reset
            && peer == State::Inactive
            && !nothing_acked
        {
            return 0;
        }
        let size = self.last.full().max(acked).wrapping_sub(start);
        size.saturating_sub(1).saturating_sub(u64::from(self.sent_fin))
    }

    /// Payload was sent at `at`.
    #[inline]
    pub(super) fn deliver(&mut self, at: u64, len: u32, peer: State, is_partial: bool) {
        let sender = self.sender(peer, is_partial);
        self.stream.sent(at, at.wrapping_add(u64::from(len)), sender);
    }

    /// Its peer acknowledged everything before `at`. Gives the gaps that this reveals.
    #[inline]
    pub(super) fn acknowledged(&mut self, at: u64, peer: State, is_partial: bool) -> u32 {
        let at = if self.sent_fin && at >= self.fin_seq { self.fin_seq.wrapping_sub(1) } else { at };
        let sender = self.sender(peer, is_partial);
        self.stream.acknowledged(at, sender)
    }

    /// Whether some of what it sent has not been seen yet, or what its peer sent is not acknowledged.
    pub(super) fn is_pending(&self, peer: &Self) -> bool {
        if self.stream.is_skipping() {
            return false;
        }
        let delivered = u64::from(self.start.0).wrapping_add(self.stream.delivered());
        let last = self.last.full();
        if last < delivered {
            return false;
        }
        last - delivered > 1 || (self.state != State::Reset && peer.stream.has_blocks())
    }

    /// Whether gaps of this end are worth a letter.
    pub(super) fn is_clean(&self) -> bool {
        self.state == State::Established || (self.state == State::Closed && self.before == State::Established)
    }
}
