//! Flows of which the sweep has nothing to say: nearly all of them, nearly always.

use super::State;
use crate::{
    abi::{FlowRecord, SweepRequest, Verdict},
    fact::{Fact, Facts},
};

/// What the sweep asks of a flow that it only counts, worked out once for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Calm {
    /// Since when one of its ends must have been heard.
    heard: u64,
    /// The last segments of its ends must be less than this apart.
    apart: u64,
    /// Since when both ends must have been heard, if one has not acknowledged all that the other sent.
    answered: u64,
    /// Fewer segments of an end than this must have been sent again.
    rtx: u64,
}

impl Calm {
    /// What this request asks of them.
    #[inline(always)]
    #[must_use]
    pub const fn of(request: &SweepRequest) -> Self {
        const ESTABLISHED: usize = State::Established as usize;
        let SweepRequest { now, timeout, stuck, idle, unanswered, rtx, .. } = request;
        let (by_timeout, by_idle) = (since(*now, timeout[ESTABLISHED]), since(*now, *idle));
        let heard = if by_timeout > by_idle { by_timeout } else { by_idle };
        Self {
            // Where time in ESTABLISHED is bounded, each flow must be looked at.
            heard: if stuck[ESTABLISHED] == 0 { heard } else { u64::MAX },
            apart: if *unanswered == 0 { u64::MAX } else { *unanswered },
            answered: if *unanswered == 0 { 0 } else { after(*now, *unanswered / 4) },
            rtx: *rtx as u64,
        }
    }

    /// Whether both ends of a flow are settled in ESTABLISHED, and neither their time has run out nor is anything amiss: the
    /// sweep has only to count them.
    ///
    /// Where this says yes, [`expire`](super::expire) changes nothing and [`conditions`](super::conditions) finds nothing. A
    /// property test holds it to that. It may say no of a flow of which they have nothing to say either.
    #[inline(always)]
    #[must_use]
    pub fn is_calm(&self, record: &FlowRecord, verdict: Verdict) -> bool {
        let FlowRecord { shared, sent: [low, high] } = record;
        let (seen_low, seen_high) = (low.last_seen(), high.last_seen());
        let (first, last) = if seen_low < seen_high { (seen_low, seen_high) } else { (seen_high, seen_low) };
        verdict.is_settled()
            && last >= self.heard
            && last - first < self.apart
            && (first >= self.answered || (low.nxt.0 == high.ack.0 && high.nxt.0 == low.ack.0))
            && u64::from(shared.rtx[0]) < self.rtx
            && u64::from(shared.rtx[1]) < self.rtx
            && !Facts(shared.facts).has(Fact::ZeroWindowProbe)
    }
}

/// [`after`], and the beginning of time if there is no limit.
#[inline(always)]
const fn since(now: u64, limit: u64) -> u64 {
    if limit == 0 { 0 } else { after(now, limit) }
}

/// The first moment that is less than `limit` ago.
#[inline(always)]
const fn after(now: u64, limit: u64) -> u64 {
    match now.checked_sub(limit) {
        Some(before) => before.saturating_add(1),
        None => 0,
    }
}
