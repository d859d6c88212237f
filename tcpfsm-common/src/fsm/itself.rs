//! A socket that connected to itself (RFC 9293 §3.5, a simultaneous open with oneself): one socket is both ends.

use super::{
    Event, State,
    desk::{Desk, Note},
    track::Track,
};
use crate::{
    abi::{CloseReason, Evidence},
    fact::Fact,
    segment::{Segment, SegmentKind},
};

impl<D: Desk> Track<'_, D> {
    /// Every segment is sent and received by the same socket, so what happens at one end happens at both.
    #[inline(always)]
    pub(super) fn itself(&mut self, own: &mut Evidence, _peer: &Evidence, segment: &Segment) {
        self.facts.add(Fact::SelfConnect);
        let known = self.is_current(own);
        match segment.flags.kind() {
            SegmentKind::Invalid => self.facts.add(Fact::BadFlags),
            SegmentKind::Syn => {
                if known && own.iss == segment.seq {
                    self.facts.add(Fact::SynRtx);
                } else {
                    self.facts.add(Fact::Open);
                    self.next_generation();
                    self.set_verdict(self.verdict().with_originator(self.sender));
                    own.start(segment, self.verdict().generation() as u8);
                    self.both(State::SynSent);
                }
            }
            SegmentKind::SynAck => {
                if known && own.iss == segment.seq && segment.ack == own.nxt {
                    self.facts.add(Fact::SimultaneousOpen);
                    self.happens(Event::RcvdSyn);
                    self.happens(Event::RcvdAckOfSyn);
                } else {
                    self.facts.add(Fact::SynAckOdd);
                }
            }
            SegmentKind::Ack | SegmentKind::Fin => {
                if !known {
                    self.facts.add(Fact::NoSession);
                    return;
                }
                let had_fin = own.has(Evidence::FIN);
                let before = *own;
                own.accept(segment, &before, |note| matches!(note, Note::Acked), &mut self.facts);
                if own.has(Evidence::FIN) && !had_fin {
                    // It left before it came back: §3.6 figure 13.
                    self.happens(Event::SentFin);
                    self.happens(Event::RcvdFin);
                }
                if had_fin && !segment.ack.before(own.nxt) {
                    self.happens(Event::FinAcked);
                }
            }
            SegmentKind::Rst => {
                if known && segment.seq == own.nxt && !self.verdict().is_closed() {
                    self.facts.add(Fact::Reset);
                    self.set_verdict(self.verdict().with_close_reason(CloseReason::ResetByOriginator));
                    self.both(State::Closed);
                } else {
                    self.facts.add(Fact::RstIgnored);
                }
            }
        }
    }

    #[inline(always)]
    fn happens(&mut self, event: Event) {
        self.send(event);
        self.receive_at(self.receiver, event);
        self.both(self.state_of_sender());
    }

    /// Each end is in this state, and has proved it.
    #[inline(always)]
    fn both(&mut self, state: State) {
        let verdict = self.verdict().with_state(self.sender, state, true);
        self.set_verdict(verdict.with_state(self.receiver, state, true));
    }
}
