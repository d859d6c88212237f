//! Resets (RFC 9293 §3.5.2, §3.5.3; RFC 5961 §3 as Linux does it; RFC 1337).

use super::{
    Event, State,
    desk::Desk,
    track::Track,
    window::{attached, rcv_nxt, window_edge},
};
use crate::{
    abi::{CloseReason, Evidence, Verdict},
    fact::Fact,
    flow::Direction,
    segment::{Segment, TcpFlags},
};

/// What the end to which a reset was sent makes of it.
enum Answer {
    /// It resets.
    Accepted,
    /// In the window but not exact: a challenge ACK, nothing changes.
    Challenged,
    /// Nothing, not even an answer.
    Ignored(Fact),
}

impl<D: Desk> Track<'_, D> {
    #[inline(always)]
    pub(super) fn reset(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        if self.verdict().has(Verdict::CANDIDATE) {
            // The stray belonged to nothing. What was kept of it is of an earlier generation now.
            self.facts.add(Fact::NoSession);
            self.set_verdict(self.verdict().next_generation().with(Verdict::CANDIDATE, true));
            return;
        }
        if self.verdict().is_closed() {
            let known = own.has(Evidence::SEEN) || peer.has(Evidence::SEEN);
            self.facts.add(if known { Fact::RstAfterClose } else { Fact::NoSession });
            return;
        }
        if segment.len > 0 {
            self.facts.add(Fact::RstWithData);
        }
        match self.answer(own, peer, segment) {
            Answer::Accepted => self.accepted(own, segment),
            Answer::Challenged => {
                self.facts.add(Fact::RstInexact);
                self.sender_may_be_gone(own, peer, segment);
            }
            Answer::Ignored(fact) => {
                self.facts.add(fact);
                self.sender_may_be_gone(own, peer, segment);
            }
        }
    }

    #[inline(always)]
    fn answer(&self, own: &Evidence, peer: &Evidence, segment: &Segment) -> Answer {
        let rcv = rcv_nxt(own, peer);
        // Of a connection that was found at the start nothing may have been seen yet: its numbers are not known.
        let unknown = self.verdict().has(Verdict::SEEDED) && !self.is_current(own) && !self.is_current(peer);
        let exact = segment.seq == rcv || unknown;
        match self.state_of_receiver() {
            State::Closed | State::Listen => Answer::Ignored(Fact::RstAfterClose),
            State::SynSent => {
                // §3.10.7.3: only a reset that acknowledges the SYN.
                let acks_first =
                    peer.has(Evidence::SYN) && segment.ack.after(peer.iss) && !segment.ack.after(peer.nxt);
                // Who has a handshake under way resets it for a second SYN in the window, which may be forged (O12), and answers one
                // outside of it with an acknowledgment. Who refuses one that was sent again had none: the first SYN was lost.
                let has_none = matches!(self.state_of_sender(), State::SynRecv)
                    && !self.verdict().is_confirmed(self.sender)
                    && peer.insists_on_second_syn();
                let acks_syn = acks_first || has_none && peer.second_syn_has(segment.ack);
                if segment.flags.any(TcpFlags::ACK) && acks_syn {
                    Answer::Accepted
                } else {
                    Answer::Ignored(Fact::RstIgnored)
                }
            }
            State::TimeWait => {
                if exact && !self.config.rfc1337 {
                    Answer::Accepted
                } else {
                    Answer::Ignored(Fact::RstIgnored)
                }
            }
            State::SynRecv => Self::window_answer(exact, peer, segment, rcv),
            State::CloseWait | State::Closing | State::LastAck => {
                // Linux: a peer that had sent its FIN may reset with the number before it.
                let exact = exact || segment.seq == rcv.minus(1) || Self::at_sack_edge(own, peer, segment);
                Self::window_answer(exact, peer, segment, rcv)
            }
            State::Established | State::FinWait1 | State::FinWait2 => {
                Self::window_answer(exact || Self::at_sack_edge(own, peer, segment), peer, segment, rcv)
            }
        }
    }

    #[inline(always)]
    fn window_answer(exact: bool, peer: &Evidence, segment: &Segment, rcv: crate::seq::SeqNum) -> Answer {
        if exact {
            Answer::Accepted
        } else if segment.seq.after(rcv) && segment.seq.before(window_edge(peer, rcv)) {
            Answer::Challenged
        } else {
            Answer::Ignored(Fact::RstOutOfWindow)
        }
    }

    /// Linux: the right edge of what the receiver has SACKed is exact too.
    #[inline(always)]
    fn at_sack_edge(own: &Evidence, peer: &Evidence, segment: &Segment) -> bool {
        !own.refuses_sack()
            && !peer.refuses_sack()
            && !own.has(Evidence::SECOND_SYN)
            && own.has_hole()
            && segment.seq == own.ooo_end
    }

    #[inline(always)]
    fn accepted(&mut self, own: &Evidence, segment: &Segment) {
        let receiver = self.state_of_receiver();
        let by = match self.verdict().direction(self.sender) {
            Direction::Original => CloseReason::ResetByOriginator,
            Direction::Reply => CloseReason::ResetByResponder,
        };
        self.receive(Event::RcvdRst);
        match receiver {
            State::SynSent => {
                self.facts.add(Fact::ConnectRefused);
                self.set_verdict(
                    self.verdict()
                        .with_state(self.sender, State::Closed, true)
                        .with_close_reason(CloseReason::Refused),
                );
                return;
            }
            State::SynRecv => self.facts.add(Fact::HandshakeAborted),
            State::TimeWait => self.facts.add(Fact::TwAssassination),
            State::Closed
            | State::Listen
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => self.facts.add(Fact::Reset),
        }
        self.set_verdict(self.verdict().with_close_reason(by));
        self.sender_is_gone(own, segment);
    }

    /// Its sender may be gone whatever the peer makes of a reset.
    #[inline(always)]
    fn sender_may_be_gone(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        let says_so = if segment.flags.any(TcpFlags::ACK) {
            // "No such socket here", to a SYN (§3.10.7.1): FIN-WAIT-2 is the state that ends without a word.
            let refuses = matches!(self.state_of_sender(), State::FinWait2)
                && segment.seq.0 == 0
                && peer.has(Evidence::SYN_ON_LIVE)
                && peer.second_syn_has(segment.ack);
            // An abort has a number that its sender may send, though not always the next: where the window has closed in front of what
            // it sent, Linux takes its edge. Nobody is left to be deceived where the peer is closed; else it must acknowledge the same.
            let aborts = attached(own, peer)
                && !segment.seq.before(peer.ack)
                && !segment.seq.after(own.nxt)
                && (segment.ack == own.last_ack || self.state_of_receiver().is_closed());
            refuses || aborts
        } else {
            // The same to a segment: with the number that this just acknowledged.
            peer.has(Evidence::SEEN) && segment.seq == peer.last_ack
        };
        if says_so {
            self.sender_is_gone(own, segment);
        }
    }

    #[inline(always)]
    fn sender_is_gone(&mut self, own: &Evidence, segment: &Segment) {
        // In SYN-RECEIVED an abort goes on where its SYN ended (§3.10.5); what answers a bad acknowledgment has that one's number, and
        // acknowledges nothing.
        let aborts = matches!(self.state_of_sender(), State::SynRecv)
            && segment.flags.any(TcpFlags::ACK)
            && own.has(Evidence::SYN_ACK)
            && segment.seq == own.nxt;
        if !self.state_of_sender().is_synchronized() && !aborts {
            return;
        }
        // What an end in SYN-SENT answers a bad acknowledgment with acknowledges nothing itself.
        if own.has(Evidence::SYN_ON_LIVE) && !segment.flags.any(TcpFlags::ACK) {
            // It had sent a SYN and got the old connection's ACK: that one is over, and it is still trying to connect.
            self.set_verdict(self.verdict().with_state(self.sender, State::SynSent, true));
            if self.state_of_receiver().is_closed() {
                self.facts.add(Fact::Closed);
            }
            return;
        }
        if aborts {
            self.set_verdict(self.verdict().with_state(self.sender, State::Closed, true));
        }
        self.send(Event::SentRst);
        self.set_verdict(self.verdict().with_reset_by(self.sender, true));
    }
}
