//! SYN and SYN-ACK: beginnings, reopenings, simultaneous opens (RFC 9293 §3.5, §3.10.7.2–4; RFC 5961 §4; RFC 6191).

use core::hint::black_box;

use super::{
    Event, State,
    desk::{Desk, Note},
    track::Track,
    window::{rcv_nxt, timestamp_ahead, window_edge},
};
use crate::{
    abi::{Evidence, Verdict},
    fact::Fact,
    segment::Segment,
};

/// What there is to do about a SYN, once its sender's state is looked at.
enum Answer {
    Nothing = 0,
    Opens = 1,
    IntoHandshake = 2,
}

impl<D: Desk> Track<'_, D> {
    #[inline(always)]
    pub(super) fn syn(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if segment.len > 0 {
            self.facts.add(Fact::SynData);
        }
        let known = self.is_current(own) && own.has(Evidence::SYN);
        let again = known && own.iss == segment.seq;
        // Each of them stands once, below: the verifier follows it for each place where it stands.
        let answer = match self.state_of_sender() {
            State::Closed | State::Listen | State::TimeWait => {
                if again && self.is_too_late(own, peer, segment) {
                    self.facts.add(Fact::SynInEstablished);
                    Answer::Nothing
                } else {
                    Answer::Opens
                }
            }
            State::SynSent if again => {
                self.facts.add(Fact::SynRtx);
                self.syn_arrives(own, segment);
                Answer::Nothing
            }
            State::SynSent => match self.state_of_receiver() {
                State::SynRecv => Answer::IntoHandshake,
                State::Closed
                | State::Listen
                | State::SynSent
                | State::Established
                | State::FinWait1
                | State::FinWait2
                | State::CloseWait
                | State::Closing
                | State::LastAck
                | State::TimeWait => Answer::Opens,
            },
            State::SynRecv => {
                if again {
                    self.facts.add(Fact::SynRtx);
                } else if known {
                    self.facts.add(Fact::SynDiffIsn);
                } else {
                    // §3.5 figure 8: it sent a SYN of its own where a SYN-ACK was expected.
                    self.facts.add(Fact::SimultaneousOpen);
                    own.start(segment, self.verdict().generation() as u8);
                    self.confirm_sender();
                    self.receive(Event::RcvdSyn);
                }
                Answer::Nothing
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {
                let supposed = matches!(self.state_of_sender(), State::Established)
                    && !self.verdict().is_confirmed(self.sender);
                if supposed && again {
                    // It never got the SYN-ACK that was seen.
                    self.facts.add(Fact::SynRtx);
                    self.roll_back(self.sender, State::SynSent, true);
                    Answer::Nothing
                } else if supposed && matches!(self.state_of_receiver(), State::SynRecv) {
                    // Nor did another, which is in its place; or it is a forger's.
                    own.flags |= Evidence::SYN_ON_LIVE;
                    Answer::IntoHandshake
                } else if !again && self.state_of_receiver().is_closed() {
                    // Its connection is over, which it did not say, or was not heard to say.
                    Answer::Opens
                } else {
                    self.facts.add(Fact::SynInEstablished);
                    if !again {
                        own.remember_second_syn(segment);
                    }
                    own.flags |= Evidence::SYN_ON_LIVE;
                    Answer::Nothing
                }
            }
        };
        match black_box(answer as u8) {
            0 => {}
            1 => self.open(own, peer, segment),
            _ => self.syn_into_handshake(own, peer, segment),
        }
    }

    /// A copy of this connection's own SYN, sent again before its SYN-ACK came, and overtaken by all that followed:
    /// whether its receiver, who is still in the connection or in its TIME-WAIT, opens nothing for it.
    #[inline(always)]
    fn is_too_late(&self, own: &Evidence, peer: &Evidence, segment: &Segment) -> bool {
        match self.state_of_receiver() {
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => true,
            State::TimeWait => !self.reopens_time_wait(own, peer, segment),
            State::Closed | State::Listen | State::SynSent | State::SynRecv => false,
        }
    }

    /// A SYN from an end that has no connection.
    #[inline(always)]
    fn open(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if self.verdict().has(Verdict::CANDIDATE)
            && self.is_current(peer)
            && peer.has(Evidence::SYN_ACK)
            && peer.last_ack == segment.seq.plus(1)
        {
            // The SYN-ACK was seen before the SYN that it answers.
            self.facts.add(Fact::Open);
            self.set_verdict(self.verdict().with(Verdict::CANDIDATE, false).with_originator(self.sender));
            own.start(segment, self.verdict().generation() as u8);
            self.set_verdict(self.verdict().with_state(self.receiver, State::SynRecv, true));
            self.send(Event::SentSyn);
            self.receive_at(self.sender, Event::RcvdSynAck);
            return;
        }
        let receiver = self.state_of_receiver();
        self.note(Note::Reopens, self.reopens_time_wait(own, peer, segment));
        let (had_timestamp, recent) = (own.has(Evidence::TIMESTAMPS), own.tsval);
        if (self.is_current(own) || self.is_current(peer)) && !self.verdict().has(Verdict::CANDIDATE) {
            self.facts.add(Fact::PortReuse);
        }
        self.facts.add(Fact::Open);
        self.next_generation();
        self.set_verdict(self.verdict().with_originator(self.sender));
        own.start(segment, self.verdict().generation() as u8);
        self.set_verdict(self.verdict().with_state(self.sender, State::SynSent, true));
        match receiver {
            State::Closed | State::Listen => {
                self.set_verdict(self.verdict().with_state(self.receiver, State::Listen, false));
                self.receive(Event::RcvdSyn);
            }
            State::TimeWait => {
                if self.is(Note::Reopens) {
                    self.facts.add(Fact::TwReuse);
                    self.receive(Event::RcvdSyn);
                    self.set_verdict(self.verdict().with(Verdict::REOPENING, true));
                } else {
                    self.facts.add(Fact::TwSynOld);
                    // TIME-WAIT goes on; its last timestamp is what a later SYN must beat.
                    if had_timestamp && recent.wrapping_sub(own.tsval).cast_signed() > 0 {
                        own.tsval = recent;
                        own.flags |= Evidence::TIMESTAMPS;
                    }
                }
            }
            State::SynSent => {
                self.facts.add(Fact::SimultaneousOpen);
                self.receive(Event::RcvdSyn);
            }
            State::SynRecv => self.facts.add(Fact::SynDiffIsn),
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => self.facts.add(Fact::SynOnLiveFlow),
        }
    }

    /// §3.6.1, RFC 6191: TIME-WAIT takes a SYN beyond everything received, or with a newer timestamp; none with an older one.
    #[inline(always)]
    fn reopens_time_wait(&self, own: &Evidence, peer: &Evidence, segment: &Segment) -> bool {
        let ahead = timestamp_ahead(own, segment);
        ahead > 0 || ahead == 0 && segment.seq.after(rcv_nxt(own, peer))
    }

    /// The same SYN again.
    #[inline(always)]
    fn syn_arrives(&mut self, own: &mut Evidence, segment: &Segment) {
        match self.state_of_receiver() {
            State::Closed | State::Listen => {
                self.set_verdict(self.verdict().with_state(self.receiver, State::Listen, false));
                self.receive(Event::RcvdSyn);
            }
            State::TimeWait => {
                if timestamp_ahead(own, segment) > 0 {
                    self.facts.add(Fact::TwReuse);
                    own.tsval = segment.options.tsval;
                    self.receive(Event::RcvdSyn);
                    self.set_verdict(self.verdict().with(Verdict::REOPENING, true));
                }
            }
            State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {}
        }
    }

    /// Another SYN to an end in SYN-RECEIVED (§3.10.7.4): in the window it ends the handshake. That end was only
    /// assumed to have got the first SYN; if it did not, it answers the second, which is therefore remembered.
    #[inline(always)]
    fn syn_into_handshake(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if own.is_second_syn(segment.seq) {
            self.facts.add(Fact::SynRtx);
            own.strike();
            return;
        }
        own.remember_second_syn(segment);
        let rcv = rcv_nxt(own, peer);
        if !segment.seq.before(rcv) && segment.seq.before(window_edge(peer, rcv)) {
            self.facts.add(Fact::SynDiffIsn);
            self.receive(Event::RcvdRst);
        } else {
            self.facts.add(Fact::OutOfWindow);
        }
    }

    #[inline(always)]
    pub(super) fn syn_ack(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        let acks_first =
            peer.has(Evidence::SYN) && segment.ack.after(peer.iss) && !segment.ack.after(peer.nxt);
        let acks_second = !peer.has(Evidence::SYN_ON_LIVE) && peer.second_syn_has(segment.ack);
        let acks_syn = self.is_current(peer) && (acks_first || acks_second);
        let again = self.is_current(own) && own.has(Evidence::SYN) && own.iss == segment.seq;
        match self.state_of_receiver() {
            State::SynSent | State::SynRecv => {
                if acks_syn {
                    self.syn_ack_arrives(own, peer, segment, again);
                } else {
                    self.facts.add(Fact::SynAckBadAck);
                }
            }
            State::Closed | State::Listen => {
                if again {
                    self.facts.add(Fact::SynAckRtx);
                } else if self.verdict().is_closed() {
                    // Its SYN was missed or comes late, or it is backscatter: remember, but show nothing.
                    self.facts.add(Fact::NoSession);
                    self.next_generation();
                    self.set_verdict(
                        self.verdict().with(Verdict::CANDIDATE, true).with_originator(self.receiver),
                    );
                    own.start(segment, self.verdict().generation() as u8);
                    own.flags |= Evidence::SYN_ACK;
                } else {
                    self.facts.add(Fact::SynAckOdd);
                }
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                if again && own.has(Evidence::SYN_ACK) {
                    self.facts.add(Fact::SynAckRtx);
                    let supposed = match self.state_of_sender() {
                        State::Established => true,
                        // It may have proved ESTABLISHED before.
                        State::CloseWait => own.nxt == own.iss.plus(1),
                        State::Closed
                        | State::Listen
                        | State::SynSent
                        | State::SynRecv
                        | State::FinWait1
                        | State::FinWait2
                        | State::Closing
                        | State::LastAck
                        | State::TimeWait => false,
                    };
                    if supposed && !self.verdict().is_confirmed(self.sender) {
                        // The ACK that was seen to complete the handshake never arrived, nor did a FIN behind it.
                        self.roll_back(self.sender, State::SynRecv, true);
                    }
                } else if again {
                    // The answer to a crossing SYN (§3.5 figure 8).
                    own.flags |= Evidence::SYN_ACK;
                } else {
                    self.facts.add(Fact::SynAckOdd);
                }
            }
        }
        own.last_ack = segment.ack;
    }

    /// A SYN-ACK that acknowledges its receiver's SYN.
    #[inline(always)]
    fn syn_ack_arrives(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment, again: bool) {
        let current = self.is_current(own);
        let settled = again && matches!(self.state_of_sender(), State::Established);
        let goes_on = match self.state_of_sender() {
            State::SynRecv | State::SynSent | State::Closed | State::Listen | State::TimeWait => {
                if again && own.has(Evidence::SYN_ACK) {
                    self.facts.add(Fact::SynAckRtx);
                } else if !again && current {
                    self.facts.add(Fact::SynAckOdd);
                }
                true
            }
            State::Established => {
                if again && own.has(Evidence::SYN_ACK) && !self.verdict().is_confirmed(self.sender) {
                    self.facts.add(Fact::SynAckRtx);
                    self.roll_back(self.sender, State::SynRecv, true);
                }
                again || !current
            }
            State::FinWait1 | State::FinWait2 | State::CloseWait | State::Closing | State::LastAck => {
                !current
            }
        };
        if !goes_on {
            self.facts.add(Fact::SynAckOdd);
            return;
        }
        if !again {
            own.start(segment, self.verdict().generation() as u8);
            if self.state_of_sender().is_synchronized() && !matches!(self.state_of_sender(), State::TimeWait)
            {
                // It was thought to be in the connection before, and is in none.
                self.set_verdict(self.verdict().with_state(self.sender, State::Listen, false));
            }
        }
        if !settled {
            self.send(Event::SentSynAck);
            self.confirm_sender();
        }
        own.flags |= Evidence::SYN_ACK;
        own.take_window(segment, peer, &mut self.facts);
        self.set_verdict(self.verdict().with(Verdict::REOPENING, false));
        if peer.has(Evidence::SYN_DATA) && matches!(self.state_of_receiver(), State::SynSent) {
            let accepted = segment.ack.after(peer.iss.plus(1));
            self.facts.add(if accepted { Fact::TfoAccepted } else { Fact::TfoIgnored });
        }
        self.receive(Event::RcvdSynAck);
    }
}
