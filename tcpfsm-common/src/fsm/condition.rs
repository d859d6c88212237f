//! What the sweep sees in a flow that no single segment told: silence where an answer is due.

use super::State;
use crate::{
    abi::{Conditions, Evidence, FlowRecord, SweepRequest, Verdict},
    fact::{Fact, Facts},
    flow::End,
};

/// Looks at a flow as it is at `request.now`.
#[inline(always)]
#[must_use]
pub fn conditions(record: &FlowRecord, verdict: Verdict, request: &SweepRequest) -> Conditions {
    let mut found = 0;
    for end in [End::Low, End::High] {
        let at = end as usize & 1;
        let in_state = request.now.saturating_sub(record.shared.since[at]);
        let stuck = request.stuck[verdict.slot(end)];
        if stuck != 0 && in_state >= stuck {
            found |= Conditions::STUCK << end as u64;
        }
        if is_open(verdict.state(end)) {
            let (own, peer) = (&record.sent[at], &record.sent[at ^ 1]);
            if own.has(Evidence::ZERO_WINDOW) && Facts(record.shared.facts).has(Fact::ZeroWindowProbe) {
                found |= Conditions::ZERO_WINDOW << end as u64;
            }
            if is_unanswered(own, peer, request) {
                found |= Conditions::UNANSWERED << end as u64;
            }
            let rtx = record.shared.rtx[at];
            if request.rtx_share != 0
                && rtx >= request.rtx
                && u64::from(rtx) * u64::from(request.rtx_share) >= own.packets
            {
                found |= Conditions::RETRANSMITS << end as u64;
            }
        }
    }
    let established = |end| matches!(verdict.state(end), State::Established);
    let silent = request.now.saturating_sub(record.last_seen());
    if request.idle != 0 && silent >= request.idle && established(End::Low) && established(End::High) {
        found |= Conditions::IDLE;
    }
    Conditions(found)
}

/// Whether an end in this state may send data. After its FIN its dwell time tells the same.
#[inline(always)]
const fn is_open(state: State) -> bool {
    matches!(state, State::Established | State::CloseWait)
}

/// Whether `own`'s end sends, and its peer, which was heard before, says nothing.
///
/// What is outstanding is sent again after twice as long each time: silence counts until now, not until the last
/// segment. Without anything outstanding only what was sent late asks for an answer: a keepalive.
#[inline(always)]
const fn is_unanswered(own: &Evidence, peer: &Evidence, request: &SweepRequest) -> bool {
    let (sent, heard) = (own.last_seen(), peer.last_seen());
    let silent = if own.nxt.0 == peer.ack.0 {
        sent.saturating_sub(heard) >= request.unanswered
    } else {
        sent > heard && request.now.saturating_sub(heard) >= request.unanswered / 4
    };
    request.unanswered != 0 && peer.has(Evidence::SEEN) && own.generation == peer.generation && silent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seq::SeqNum;

    const SECOND: u64 = 1_000_000_000;

    fn record(states: [State; 2], seen: [u64; 2]) -> FlowRecord {
        let mut record = FlowRecord::default();
        record.shared.verdict =
            Verdict::default().with_state(End::Low, states[0], true).with_state(End::High, states[1], true).0;
        for (sent, seen) in record.sent.iter_mut().zip(seen) {
            sent.flags = Evidence::SEEN | Evidence::EDGE;
            sent.stamp = seen * SECOND;
        }
        record
    }

    fn found(record: &FlowRecord, now: u64) -> Conditions {
        let mut request = SweepRequest {
            now: now * SECOND,
            idle: 1_000 * SECOND,
            unanswered: 15 * SECOND,
            rtx: 10,
            rtx_share: 5,
            ..SweepRequest::default()
        };
        request.stuck[State::CloseWait as usize] = 60 * SECOND;
        conditions(record, Verdict(record.shared.verdict), &request)
    }

    const BOTH: [State; 2] = [State::Established; 2];

    #[test]
    fn one_that_sends_on_without_an_answer() {
        assert!(found(&record(BOTH, [20, 10]), 21).is_empty(), "not yet");
        let mut record = record(BOTH, [26, 10]);
        assert_eq!(found(&record, 30), Conditions(Conditions::UNANSWERED));
        record.sent.swap(0, 1);
        assert!(found(&record, 30).has(Conditions::UNANSWERED, End::High));
        record.sent[0].generation = 1;
        assert!(found(&record, 30).is_empty(), "that was the connection before");
        record.sent[0].generation = 0;
        record.sent[0].flags = 0;
        assert!(found(&record, 30).is_empty(), "one-sided views say nothing");
    }

    #[test]
    fn what_is_outstanding_is_told_of_before_it_is_due() {
        let mut record = record(BOTH, [11, 10]);
        assert!(found(&record, 30).is_empty(), "a last ACK needs no answer");
        record.sent[0].nxt = SeqNum(100);
        assert!(found(&record, 13).is_empty());
        assert_eq!(found(&record, 14), Conditions(Conditions::UNANSWERED));
        record.sent[0].stamp = 10 * SECOND;
        assert!(found(&record, 14).is_empty(), "the peer spoke last");
    }

    #[test]
    fn a_closed_window_counts_once_it_is_probed() {
        let mut record = record(BOTH, [20, 20]);
        record.sent[1].flags |= Evidence::ZERO_WINDOW;
        assert!(found(&record, 21).is_empty());
        record.shared.facts = 1 << Fact::ZeroWindowProbe as u64;
        assert_eq!(found(&record, 21), Conditions(Conditions::ZERO_WINDOW << 1));
    }

    #[test]
    fn idle_needs_both_ends_established() {
        assert_eq!(found(&record(BOTH, [20, 20]), 1_020), Conditions(Conditions::IDLE));
        assert!(found(&record(BOTH, [20, 21]), 1_020).is_empty());
        assert!(found(&record([State::FinWait2, State::Established], [20, 20]), 1_020).is_empty());
    }

    #[test]
    fn retransmissions_need_a_number_and_a_share() {
        let mut record = record(BOTH, [20, 20]);
        record.sent[0].packets = 100;
        record.sent[0].nxt = SeqNum(1);
        record.shared.rtx = [19, 9];
        assert!(found(&record, 21).is_empty());
        record.shared.rtx = [20, 9];
        assert_eq!(found(&record, 21), Conditions(Conditions::RETRANSMITS));
    }

    #[test]
    fn stuck_is_told_by_end() {
        let record = record([State::FinWait2, State::CloseWait], [20, 20]);
        let request = SweepRequest { report_every: 12, conditions_every: 3, ..SweepRequest::default() };
        assert_eq!(found(&record, 61).told_again_after(&request), 12);
        assert!(found(&record, 61).has(Conditions::STUCK, End::High));
        assert!(!found(&record, 61).has(Conditions::STUCK, End::Low), "no threshold");
        assert!(found(&record, 59).is_empty());
    }
}
