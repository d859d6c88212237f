//! The work on one segment: what every part of the machine uses.

use super::{
    Event, State, after,
    desk::{Desk, Note, is_noted},
    step::{Config, Step},
};
use crate::{
    abi::{CloseReason, Evidence, Verdict},
    fact::{Fact, Facts},
    flow::End,
    segment::Segment,
};

/// The work on one segment.
pub(super) struct Track<'a, D> {
    pub(super) desk: &'a D,
    pub(super) sender: End,
    pub(super) receiver: End,
    pub(super) facts: Facts,
    pub(super) config: Config,
}

impl<'a, D: Desk> Track<'a, D> {
    #[inline(always)]
    pub(super) fn begin(desk: &'a D, verdict: Verdict, sender: End, config: Config) -> Self {
        let mut track = Self { desk, sender, receiver: sender.other(), facts: Facts::default(), config };
        track.set_verdict(verdict);
        track
    }

    #[inline(always)]
    pub(super) fn verdict(&self) -> Verdict {
        self.desk.verdict()
    }

    #[inline(always)]
    pub(super) fn set_verdict(&mut self, verdict: Verdict) {
        self.desk.set_verdict(verdict);
    }

    /// Writes down a decision that is needed more than once: kept in a register, every use of it would double
    /// the paths that the verifier follows.
    #[inline(always)]
    pub(super) fn note(&self, note: Note, decision: bool) {
        let bit = 1 << note as u64;
        let notes = self.desk.notes();
        self.desk.set_notes(if decision { notes | bit } else { notes & !bit });
    }

    /// A decision written down with [`Self::note`].
    #[inline(always)]
    pub(super) fn is(&self, note: Note) -> bool {
        is_noted(self.desk, note)
    }

    #[inline(always)]
    pub(super) fn state_of_sender(&self) -> State {
        self.verdict().state(self.sender)
    }

    #[inline(always)]
    pub(super) fn state_of_receiver(&self) -> State {
        self.verdict().state(self.receiver)
    }

    /// The sender did this: its new state is proved by the segment itself.
    #[inline(always)]
    pub(super) fn send(&mut self, event: Event) {
        let from = self.state_of_sender();
        let to = after(from, event);
        if to as u8 != from as u8 {
            self.set_verdict(self.verdict().with_state(self.sender, to, true));
        }
    }

    /// This was done to the receiver: its new state is assumed until it sends something that proves it.
    #[inline(always)]
    pub(super) fn receive(&mut self, event: Event) {
        self.receive_at(self.receiver, event);
    }

    #[inline(always)]
    pub(super) fn receive_at(&mut self, end: End, event: Event) {
        let from = self.verdict().state(end);
        let to = after(from, event);
        if to as u8 != from as u8 {
            self.set_verdict(self.verdict().with_state(end, to, false));
        }
    }

    /// The wire disproved an assumption about `end`.
    #[inline(always)]
    pub(super) fn roll_back(&mut self, end: End, to: State, confirmed: bool) {
        self.facts.add(Fact::StateRollback);
        self.set_verdict(self.verdict().with_state(end, to, confirmed));
    }

    #[inline(always)]
    pub(super) fn confirm_sender(&mut self) {
        self.set_verdict(self.verdict().with_state(self.sender, self.state_of_sender(), true));
    }

    /// Whether evidence is of the flow's present generation.
    #[inline(always)]
    pub(super) fn is_current(&self, evidence: &Evidence) -> bool {
        evidence.has(Evidence::SEEN) && evidence.generation == self.verdict().generation() as u8
    }

    #[inline(always)]
    pub(super) fn next_generation(&mut self) {
        self.set_verdict(self.verdict().next_generation());
    }

    /// Closes the books: facts that follow from the verdict before and after.
    #[inline(always)]
    pub(super) fn conclude(mut self, before: Verdict) -> Step {
        if !self.verdict().is_embryonic()
            && (before.state(End::Low).is_embryonic() || before.state(End::High).is_embryonic())
        {
            self.facts.add(Fact::Established);
        }
        if self.verdict().is_over() && !before.is_over() {
            self.facts.add(Fact::Closed);
            if matches!(self.verdict().close_reason(), CloseReason::Open) {
                self.set_verdict(self.verdict().with_close_reason(CloseReason::Finish));
            }
        } else if !self.verdict().is_over()
            && !self.facts.has(Fact::Closed)
            && (self.verdict().0 ^ before.0) & Verdict::STATES_AND_GENERATION != 0
        {
            self.set_verdict(self.verdict().with_close_reason(CloseReason::Open));
        }
        Step { verdict: self.verdict(), facts: self.facts }
    }

    #[inline(always)]
    pub(super) fn invalid(&mut self, _own: &mut Evidence, _peer: &Evidence, _segment: &Segment) {
        self.facts.add(Fact::BadFlags);
    }
}
