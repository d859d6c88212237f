//! Beginnings that were not seen, and closed ends that go on sending.

use super::{Event, State, desk::Desk, track::Track};
use crate::{
    abi::{CloseReason, Evidence, Verdict},
    fact::Fact,
    segment::{Segment, TcpFlags},
};

/// The same for an end that sends on after "its" reset.
const STRIKES_AFTER_RESET: u16 = 2;

impl<D: Desk> Track<'_, D> {
    /// Both ends are closed, or nothing is known: does this segment begin a flow in mid-stream?
    #[inline(always)]
    pub(super) fn picks_up(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
        let candidate = self.verdict().has(Verdict::CANDIDATE);
        if !candidate && (own.has(Evidence::SEEN) || peer.has(Evidence::SEEN)) {
            // An earlier connection that ended: is one of its ends still alive?
            return self.is_current(own);
        }
        if self.config.strict {
            self.facts.add(Fact::NoSession);
            return false;
        }
        if !candidate || !self.is_current(own) && !self.is_current(peer) {
            self.next_generation();
            self.set_verdict(self.verdict().with(Verdict::CANDIDATE, true).with_originator(self.sender));
        }
        if !self.is_current(own) {
            own.start(segment, self.verdict().generation() as u8);
            if segment.flags.any(TcpFlags::FIN) {
                own.flags |= Evidence::FIN;
                own.nxt = segment.end_seq();
            }
        } else {
            own.strike();
        }
        let answered =
            self.is_current(peer) && !segment.ack.before(peer.iss) && !segment.ack.after(peer.sent_to());
        if segment.len == 0 && !answered && own.strikes() < STRIKES_AFTER_RESET {
            self.facts.add(Fact::NoSession);
            return false;
        }
        self.facts.add(Fact::MidstreamPickup);
        own.clear_strikes();
        if own.has(Evidence::FIN) {
            own.flags &= !Evidence::FIN;
            own.nxt = own.nxt.minus(1);
        }
        self.set_verdict(self.verdict().with(Verdict::CANDIDATE, false).with(Verdict::PICKED_UP, true));
        if peer.has(Evidence::SYN_ACK) && self.is_current(peer) {
            self.set_verdict(self.verdict().with_state(self.receiver, State::SynRecv, true));
        } else {
            self.receive(Event::Pickup);
            if self.is_current(peer) && peer.has(Evidence::FIN) {
                self.receive(Event::SentFin);
            }
        }
        self.send(Event::Pickup);
        true
    }

    /// The first ACK from an end in this generation. Says whether its evidence may be used from here on.
    #[inline(always)]
    pub(super) fn joins(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
        if own.has(Evidence::SEEN) && !self.verdict().has(Verdict::PICKED_UP) {
            // It still speaks of the connection before.
            if self.verdict().has(Verdict::REOPENING) {
                // A bare ACK in answer to a SYN: TIME-WAIT did not take it.
                self.facts.add(Fact::TwSynOld);
                self.set_verdict(self.verdict().with(Verdict::REOPENING, false));
                self.roll_back(self.sender, State::TimeWait, true);
            }
            return false;
        }
        let fits = self.is_current(peer) && segment.ack.after(peer.iss) && !segment.ack.after(peer.sent_to())
            || self.verdict().has(Verdict::PICKED_UP | Verdict::ONE_SIDED);
        if !fits {
            self.facts.add(Fact::AckUnseen);
            return false;
        }
        own.start(segment, self.verdict().generation() as u8);
        if self.state_of_sender().is_embryonic() || self.state_of_receiver().is_embryonic() {
            // The SYN-ACK was missed.
            self.facts.add(Fact::CaptureGap);
            self.send(Event::Pickup);
            self.receive(Event::Pickup);
        }
        true
    }

    /// An end without a connection that sends: a straggler, a FIN again, or proof that it is alive after all.
    /// Says whether the segment is to be left alone.
    #[inline(always)]
    pub(super) fn is_silent_sender(&mut self, own: &mut Evidence, segment: &Segment) -> bool {
        if !self.state_of_sender().is_closed() {
            return false;
        }
        let previous = self.verdict().previous(self.sender);
        if self.verdict().was_reset_by(self.sender) {
            own.strike();
            if own.strikes() < STRIKES_AFTER_RESET {
                return true;
            }
            self.facts.add(Fact::RstInjectionSuspected);
            self.set_verdict(self.verdict().with_reset_by(self.sender, false));
            self.roll_back(self.sender, previous, true);
            return false;
        }
        match previous {
            // It was thought to have been reset by a second SYN, and speaks as only who is connected does.
            State::SynRecv if segment.len > 0 || segment.flags.any(TcpFlags::FIN) => {
                self.roll_back(self.sender, State::Established, true);
                false
            }
            State::LastAck => {
                let fin_again = segment.flags.any(TcpFlags::FIN) && own.has(Evidence::FIN);
                if !fin_again && segment.len > 0 {
                    self.facts.add(Fact::DataAfterFin);
                }
                !fin_again
            }
            // Its time ran out here, but not there.
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::TimeWait
                if matches!(self.verdict().close_reason(), CloseReason::Timeout | CloseReason::Open)
                    && !self.verdict().was_reset_by(self.receiver) =>
            {
                self.roll_back(self.sender, previous, true);
                false
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::TimeWait
            | State::Closed
            | State::Listen
            | State::SynSent
            | State::SynRecv => true,
        }
    }
}
