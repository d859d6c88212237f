//! The desk on which one segment is worked: the BPF stack is too small for it.

use core::sync::atomic::AtomicU64;

use tcpfsm_common::{
    abi::{EventKey, EventKind, Evidence, FlowEvent, FlowRecord, Outcome, Verdict},
    fact::{Fact, Facts},
    flow::End,
    fsm::Step,
    segment::{Segment, TcpFlags},
};

use crate::{maps::DESK, track::Meta};

/// One segment, what the machine makes of it, and the event that will tell of it.
#[repr(C, align(8))]
pub(crate) struct Work {
    /// Filled as the work goes on; sent if there is something to tell.
    pub(crate) event: FlowEvent,
    /// The sender's evidence, a copy: it is written back whole.
    pub(crate) own: Evidence,
    /// A record that is not in a map yet, or on its way to another.
    pub(crate) record: FlowRecord,
    pub(crate) segment: Segment,
    /// Where the machine keeps the verdict, out of the verifier's sight.
    pub(crate) verdict: AtomicU64,
}

impl Work {
    /// Clears the desk for a segment.
    #[inline(always)]
    pub(crate) fn begin<K: EventKey>(
        key: &K,
        sender: End,
        segment: &Segment,
        meta: &Meta,
    ) -> Option<&'static mut Self> {
        let desk = DESK.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element; programs on these hooks run with softirqs off and do not nest.
        let work = unsafe { &mut *desk };
        work.event = FlowEvent::new(EventKind::Verdict);
        key.fill(&mut work.event);
        work.event.hook = meta.hook as u8;
        work.event.sender = sender as u8;
        work.event.ifindex = meta.ifindex;
        work.event.flags = segment.flags.0;
        work.event.len = segment.len;
        work.segment = *segment;
        Some(work)
    }

    #[inline(always)]
    pub(crate) fn sender(&self) -> End {
        self.event.sender_end()
    }

    /// What the machine said last.
    #[inline(always)]
    pub(crate) fn step(&self) -> Step {
        Step { verdict: Verdict(self.event.after), facts: Facts(self.event.facts) }
    }

    #[inline(always)]
    pub(crate) fn set_step(&mut self, before: Verdict, step: &Step) {
        self.event.before = before.0;
        self.event.after = step.verdict.0;
        self.event.facts = step.facts.0;
    }

    /// Makes the numbers of the event relative to each end's initial one.
    #[inline(always)]
    pub(crate) fn relate(&mut self, own: &Evidence, peer: &Evidence) {
        self.event.seq = self.segment.seq.0.wrapping_sub(own.iss.0);
        self.event.ack = if self.segment.flags.any(TcpFlags::ACK) {
            self.segment.ack.0.wrapping_sub(peer.iss.0)
        } else {
            0
        };
    }

    #[inline(always)]
    pub(crate) fn outcome(&self) -> usize {
        let facts = Facts(self.event.facts);
        let outcome = if facts.has(Fact::BadFlags) {
            Outcome::BadFlags
        } else if facts.has(Fact::NoSession) {
            Outcome::NoSession
        } else {
            Outcome::Tracked
        };
        outcome as usize
    }
}
