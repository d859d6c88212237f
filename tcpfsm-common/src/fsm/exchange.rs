//! Data, acknowledgments and FINs.
//!
//! The order is RFC 9293's and Linux's: is the acknowledgment acceptable, is the sequence number, PAWS; then
//! the sender's own step; then at the receiver the acknowledgment before the FIN.

use super::{
    Event, State,
    desk::{Desk, Note, is_noted, reread},
    track::Track,
    window::{AckCheck, attached, check_ack, fails_paws, rcv_nxt, window_edge},
};
use crate::{
    abi::{Evidence, Verdict},
    fact::Fact,
    segment::{Segment, TcpFlags},
};

/// How often running an end must contradict what was seen before it is believed.
const STRIKES: u16 = 3;

impl<D: Desk> Track<'_, D> {
    #[inline(always)]
    pub(super) fn ack(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if self.verdict().is_closed() && !self.picks_up(own, peer, segment) {
            own.last_ack = segment.ack;
            return;
        }
        let own = reread(own);
        if !self.is_current(own) && !self.joins(own, peer, segment) {
            own.last_ack = segment.ack;
            return;
        }
        let own = reread(own);
        self.note(Note::Attached, attached(own, peer));
        own.choose_syn((self.is(Note::Attached) && peer.has(Evidence::SYN_ACK)).then_some(peer.ack));
        let own = reread(own);
        if !self.is(Note::Attached)
            && matches!(self.state_of_sender(), State::SynSent)
            && !self.goes_on_alone(own, segment)
        {
            return;
        }
        let own = reread(own);
        if self.is(Note::Attached) && !self.is_acceptable(own, peer, segment) {
            own.last_ack = segment.ack;
            return;
        }
        if self.is_silent_sender(own, segment) {
            own.last_ack = segment.ack;
            return;
        }
        let own = reread(own);
        own.flags &= !Evidence::SYN_ON_LIVE;
        own.clear_strikes();
        self.note(Note::Acked, self.is(Note::Attached) && peer.has(Evidence::EDGE));
        // Linux drops what lies wholly before the left edge, acknowledgment and all.
        self.note(Note::Old, self.is(Note::Acked) && segment.end_seq().before(peer.ack));
        self.note(Note::Keepalive, own.is_probed_by(segment) && self.is(Note::Acked) && peer.ack == own.nxt);
        self.note_probes(own, peer, segment);
        let own = reread(own);
        self.note_other_fin(own, segment);
        let own = reread(own);
        self.unseen_fin(own, peer, segment);
        let own = reread(own);
        self.note(Note::FinAgain, own.has(Evidence::FIN));
        // Sequence numbers that went past the FIN before it was seen: its first copy was lost, and left
        // before the peer's FIN, whatever this copy acknowledges.
        self.note(Note::FinLate, !segment.end_seq().after(own.nxt));
        self.note(Note::FinAnswers, peer.has(Evidence::FIN) && own.ack.before(peer.nxt));
        let desk = self.desk;
        own.accept(segment, peer, |note| is_noted(desk, note), &mut self.facts);
        let own = reread(own);
        self.note(
            Note::SawPeerFin,
            self.is(Note::Attached) && peer.has(Evidence::FIN) && !own.ack.before(peer.nxt)
                || self.was_seeded_behind_fin(peer),
        );
        self.note(Note::FastOpen, peer.has(Evidence::SYN_DATA) && own.ack.after(peer.iss.plus(1)));
        self.sender_step(segment);
        if !self.is(Note::Old) {
            self.receiver_step(own, peer, segment);
        }
    }

    /// A segment of an end in SYN-SENT whose peer was not heard in this generation: it may acknowledge a SYN-ACK
    /// that was not seen, or be forged; that the observer cannot tell until it goes on (the other direction then
    /// takes another way). Says whether it has gone on for long enough.
    #[inline(always)]
    fn goes_on_alone(&mut self, own: &mut Evidence, segment: &Segment) -> bool {
        own.strike();
        own.last_ack = segment.ack;
        self.facts.add(Fact::AckUnseen);
        if segment.len > 0 {
            self.facts.add(Fact::DataBeforeHandshake);
        }
        if own.strikes() < STRIKES {
            return false;
        }
        own.clear_strikes();
        // What it sent while it was not believed was sent all the same.
        own.nxt = own.nxt.latest(segment.seq);
        own.contig = own.contig.latest(segment.seq);
        self.facts.add(Fact::OneSided);
        self.set_verdict(self.verdict().with(Verdict::ONE_SIDED, true));
        self.send(Event::Pickup);
        self.receive(Event::Pickup);
        true
    }

    /// Keepalives, window probes and duplicate acknowledgments: they tell something, and move nothing.
    #[inline(always)]
    fn note_probes(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        if segment.flags.any(TcpFlags::FIN) || own.has(Evidence::FIN) {
            return;
        }
        // Met in mid-stream, it stands one behind what its peer acknowledges.
        let is_behind = self.is(Note::Acked) && segment.seq == own.nxt && peer.ack == own.nxt.plus(1);
        if self.is(Note::Keepalive) || segment.len == 0 && (own.is_probed_by(segment) || is_behind) {
            let probe = peer.has(Evidence::ZERO_WINDOW);
            self.facts.add(if probe { Fact::ZeroWindowProbe } else { Fact::Keepalive });
        } else if self.is(Note::Acked)
            && segment.len == 0
            && segment.seq == own.nxt
            && segment.ack == own.ack
            && peer.nxt.after(segment.ack)
        {
            self.facts.add(Fact::DupAck);
        }
    }

    /// A FIN that cannot be: there was another, or it lies wholly before the left edge, as a connection before's does. Its
    /// acknowledgment counts. But one that comes in order is the receiver's, whatever lies beyond a hole.
    #[inline(always)]
    fn note_other_fin(&mut self, own: &Evidence, segment: &Segment) {
        let had_one = own.has(Evidence::FIN);
        let is_it = had_one && segment.end_seq() == own.nxt;
        let is_next = own.contig.before(own.nxt) && !segment.seq.after(own.contig);
        let other = segment.flags.any(TcpFlags::FIN)
            && (self.is(Note::Old) && !is_it || had_one && !is_it && !is_next);
        self.note(Note::OtherFin, other);
        if self.is(Note::OtherFin) {
            self.facts.add(if had_one { Fact::FinSeqChanged } else { Fact::OutOfWindow });
        }
    }

    /// A FIN that was not seen, but its sender counts it, and so does its peer.
    #[inline(always)]
    fn unseen_fin(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        let is_beyond = self.is(Note::Attached)
            && segment.len == 0
            && !own.has(Evidence::FIN)
            && segment.seq == own.nxt.plus(1)
            && peer.last_ack == segment.seq;
        if is_beyond && own.nxt != own.sent_to() {
            // It was met at its keepalives or window probes, and says now where it stands.
            own.nxt = segment.seq;
            own.contig = own.contig.latest(segment.seq);
        } else if is_beyond {
            self.facts.add(Fact::FinUnseen);
            own.flags |= Evidence::FIN;
            own.nxt = segment.seq;
            own.contig = own.contig.latest(segment.seq);
            self.send(Event::SentFin);
            self.send(Event::FinAcked);
        }
    }

    /// Whether the sender's socket was found, when the observer began, in a state behind a FIN that was sent before.
    #[inline(always)]
    fn was_seeded_behind_fin(&self, peer: &Evidence) -> bool {
        self.verdict().has(Verdict::SEEDED)
            && !peer.has(Evidence::FIN)
            && match self.state_of_sender() {
                State::CloseWait | State::LastAck | State::Closing | State::TimeWait => true,
                State::Closed
                | State::Listen
                | State::SynSent
                | State::SynRecv
                | State::Established
                | State::FinWait1
                | State::FinWait2 => false,
            }
    }

    /// What the segment says of its sender.
    #[inline(always)]
    fn sender_step(&mut self, segment: &Segment) {
        let fin = segment.flags.any(TcpFlags::FIN) && !self.is(Note::OtherFin);
        match self.state_of_sender() {
            State::SynRecv => {
                // A bare ACK from here is a challenge; data or a FIN mean that the handshake was completed, but who took the
                // data of a SYN sends its own before that (RFC 7413 §4.2).
                let before = segment.len > 0 && !self.is(Note::FastOpen);
                if before {
                    self.facts.add(Fact::DataBeforeHandshake);
                }
                if before || fin {
                    self.send(Event::RcvdAckOfSyn);
                }
            }
            State::Established | State::FinWait1 | State::FinWait2 => self.confirm_sender(),
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait => {
                // What does not acknowledge the peer's FIN does not show that it arrived.
                if self.is(Note::SawPeerFin) {
                    self.confirm_sender();
                }
            }
            // It had sent its SYN again, but the SYN-ACK came: it acknowledges it.
            State::SynSent => {
                if self.is(Note::Attached) {
                    self.send(Event::RcvdSynAck);
                }
            }
            State::Closed | State::Listen => {}
        }
        if self.is(Note::SawPeerFin) {
            if self.answered_fin() {
                // The FIN that it acknowledges came with the acknowledgment of its own.
                self.send(Event::FinAcked);
            }
            self.send(Event::RcvdFin);
        }
        if !fin {
            return;
        }
        if self.is(Note::FinAgain) {
            self.facts.add(Fact::FinRtx);
            self.fin_again();
        } else if self.is(Note::SawPeerFin) && !self.is(Note::FinLate) {
            self.send(Event::SentFin);
        } else {
            // It left before the peer's FIN had come.
            self.facts.add(match self.state_of_sender() {
                State::CloseWait => Fact::SimultaneousClose,
                State::Closed
                | State::Listen
                | State::SynSent
                | State::SynRecv
                | State::Established
                | State::FinWait1
                | State::FinWait2
                | State::Closing
                | State::LastAck
                | State::TimeWait => Fact::HalfClosed,
            });
            let supposed = matches!(self.state_of_sender(), State::CloseWait);
            self.send(Event::SentCrossingFin);
            if supposed {
                // That the peer's FIN had come was assumed, and wrong then; it may be on its way.
                let verdict = self.verdict().with_state(self.sender, State::FinWait1, true);
                self.set_verdict(verdict.with_state(self.sender, State::Closing, false));
            }
        }
    }

    /// Whether the receiver's FIN acknowledged the sender's: only from CLOSE-WAIT does one go to LAST-ACK.
    #[inline(always)]
    fn answered_fin(&self) -> bool {
        match self.state_of_receiver() {
            State::LastAck => true,
            State::Closed => matches!(self.verdict().previous(self.receiver), State::LastAck),
            State::Listen
            | State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::TimeWait => false,
        }
    }

    /// A FIN sent again proves that its acknowledgment, though seen, has not arrived. Not so where it is the first to
    /// acknowledge the peer's FIN: BSD's stacks put their own FIN on that acknowledgment too, and do not wait for it.
    #[inline(always)]
    fn fin_again(&mut self) {
        match self.state_of_sender() {
            State::FinWait2 => self.roll_back(self.sender, State::FinWait1, true),
            State::TimeWait if self.is(Note::SawPeerFin) && self.is(Note::FinAnswers) => {
                self.set_verdict(self.verdict().with_state(self.sender, State::TimeWait, false));
            }
            State::TimeWait => {
                let to = if self.is(Note::SawPeerFin) { State::Closing } else { State::FinWait1 };
                self.roll_back(self.sender, to, true);
            }
            State::Closed => {
                if matches!(self.verdict().previous(self.sender), State::LastAck) {
                    self.roll_back(self.sender, State::LastAck, true);
                }
            }
            State::Listen
            | State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::CloseWait
            | State::Closing
            | State::LastAck => {}
        }
    }

    /// What an acceptable segment does to its receiver: acknowledgment before FIN.
    #[inline(always)]
    fn receiver_step(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        if self.is(Note::Attached) {
            if peer.has(Evidence::SYN) && segment.ack.after(peer.iss) {
                self.receive(Event::RcvdAckOfSyn);
            }
            if peer.has(Evidence::FIN) && !segment.ack.before(peer.nxt) {
                self.receive(Event::FinAcked);
            }
        }
        if own.has(Evidence::FIN) && !rcv_nxt(own, peer).before(own.nxt) {
            self.receive(Event::RcvdFin);
        }
    }

    /// RFC 9293 §3.10.7.4, first to fifth check, as Linux does them.
    #[inline(always)]
    fn is_acceptable(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
        match check_ack(own, peer, segment.ack) {
            AckCheck::Acceptable => {}
            AckCheck::Unseen => {
                let handshake = matches!(self.state_of_receiver(), State::SynRecv);
                self.facts.add(if handshake { Fact::BadAckInHandshake } else { Fact::AckUnseen });
                own.strike();
                if own.strikes() < STRIKES {
                    return false;
                }
                self.facts.add(Fact::CaptureGap);
                self.set_verdict(self.verdict().with(Verdict::BEYOND, true));
            }
            AckCheck::TooOld => {
                self.facts.add(Fact::AckTooOld);
                return false;
            }
        }
        if segment.seq.after(window_edge(peer, rcv_nxt(own, peer))) {
            self.facts.add(Fact::OutOfWindow);
            return false;
        }
        if fails_paws(own, segment) {
            self.facts.add(Fact::Paws);
            return false;
        }
        true
    }
}
