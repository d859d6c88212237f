//! Resets (RFC 9293 §3.5.2, §3.5.3; RFC 5961 §3 as Linux does it; RFC 1337).

use super::{
    Event, State,
    desk::Desk,
    track::Track,
    window::{rcv_nxt, window_edge},
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
            Answer::Accepted => self.accepted(own),
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
                // outside of it with an acknowledgment. Who refuses that one had none: the first SYN was lost.
                let has_none = matches!(self.state_of_sender(), State::SynRecv)
                    && !self.verdict().is_confirmed(self.sender);
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
                let exact = exact || segment.seq == rcv.minus(1) || Self::at_sack_edge(own, segment);
                Self::window_answer(exact, peer, segment, rcv)
            }
            State::Established | State::FinWait1 | State::FinWait2 => {
                Self::window_answer(exact || Self::at_sack_edge(own, segment), peer, segment, rcv)
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
    fn at_sack_edge(own: &Evidence, segment: &Segment) -> bool {
        own.has_hole() && segment.seq == own.ooo_end
    }

    #[inline(always)]
    fn accepted(&mut self, own: &Evidence) {
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
        self.sender_is_gone(own);
    }

    /// A bare reset whose number its peer just acknowledged says "no such socket here": its sender is gone,
    /// whatever the peer makes of it.
    #[inline(always)]
    fn sender_may_be_gone(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        if !segment.flags.any(TcpFlags::ACK) && peer.has(Evidence::SEEN) && segment.seq == peer.last_ack {
            self.sender_is_gone(own);
        }
    }

    #[inline(always)]
    fn sender_is_gone(&mut self, own: &Evidence) {
        if !self.state_of_sender().is_synchronized() {
            return;
        }
        if own.has(Evidence::SYN_ON_LIVE) {
            // It had sent a SYN and got the old connection's ACK: it is still trying to connect.
            self.set_verdict(self.verdict().with_state(self.sender, State::SynSent, true));
            return;
        }
        self.send(Event::SentRst);
        self.set_verdict(self.verdict().with_reset_by(self.sender, true));
    }
}
