//! Flows of which the sweep has nothing to say: nearly all of them, nearly always.

use super::State;
use crate::{
    abi::{FlowRecord, SweepRequest, Verdict},
    fact::{Fact, Facts},
    flow::End,
};

/// Whether both ends are settled in ESTABLISHED, and neither their time has run out nor is anything amiss: the sweep has
/// only to count them.
///
/// Where this says yes, [`expire`](super::expire) changes nothing and [`conditions`](super::conditions) finds nothing. A
/// property test holds it to that. It may say no of a flow of which they have nothing to say either.
#[inline(always)]
#[must_use]
pub fn is_calm(record: &FlowRecord, verdict: Verdict, request: &SweepRequest) -> bool {
    // Read at once: each is on a cache line of its own, and few of them are in a cache.
    let FlowRecord { shared, sent: [low, high] } = record;
    let is_answered = low.nxt.0 == high.ack.0 && high.nxt.0 == low.ack.0;
    let (low, high) = (low.last_seen(), high.last_seen());
    let silent = request.now.saturating_sub(low.max(high));
    let silent_end = request.now.saturating_sub(low.min(high));
    let is_within = |limit: u64| limit == 0 || silent < limit;
    verdict.is_settled()
        && is_within(request.timeout[verdict.slot(End::Low)])
        && is_within(request.idle)
        && (request.unanswered == 0
            || low.abs_diff(high) < request.unanswered
                && (is_answered || silent_end < request.unanswered / 4))
        && request.stuck[State::Established as usize] == 0
        && shared.rtx[0] < request.rtx
        && shared.rtx[1] < request.rtx
        && !Facts(shared.facts).has(Fact::ZeroWindowProbe)
}
