//! How long an end may stay silent in a state, and what happens when it did.

use super::{Event, State, after};
use crate::{
    abi::{CloseReason, FlowRecord, SweepRequest, Verdict},
    flow::End,
};

/// Default time of silence after which an end counts as closed, in seconds, by state.
///
/// `closed` and `listen`: how long a flow with both ends closed stays in the map for stragglers. The others
/// follow Linux where Linux has a timer (`tcp_syn_retries` 6: 127 s; `tcp_synack_retries` 5: 63 s;
/// `tcp_fin_timeout` 60 s; `TCP_TIMEWAIT_LEN` 60 s) and `nf_conntrack` where it has none (5 days established).
/// A leaked CLOSE_WAIT lives as long as its process, so it gets as long as an established one.
///
/// In FIN_WAIT2 Linux has that timer for orphans only. A program that keeps its socket may wait there for ever, and that it
/// keeps it, the wire does not tell: an end whose socket the daemon has found in the state is [held](Verdict::is_held).
pub const DEFAULT_TIMEOUT_SECONDS: [u64; 11] = [10, 10, 130, 70, 432_000, 300, 120, 432_000, 120, 120, 60];

/// Default time in a state after which an end is stuck, in seconds; 0 where staying is normal.
///
/// FIN_WAIT2: longer than Linux keeps one whose program has closed (`tcp_fin_timeout` 60 s).
pub const DEFAULT_STUCK_SECONDS: [u64; 11] = [0, 0, 10, 10, 0, 60, 90, 60, 30, 60, 0];

/// What the clock says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The verdict after the ends whose time ran out are closed.
    pub verdict: Verdict,
    /// Whether nothing is left of the flow: both ends have been closed for long enough.
    pub remove: bool,
}

/// Ends the states whose time ran out. Silence counts from the flow's last segment, from either end; for
/// TIME_WAIT, time counts from the state's beginning, which a FIN sent again moves. An end that its socket holds is not
/// ended: its time is as long as the socket's.
#[inline(always)]
#[must_use]
pub fn expire(record: &FlowRecord, request: &SweepRequest) -> Expiry {
    let before = Verdict(record.shared.verdict);
    let silent = request.now.saturating_sub(record.last_seen());
    let mut verdict = before;
    let mut ended = 0;
    for (end, since) in [End::Low, End::High].into_iter().zip(record.shared.since) {
        let state = before.state(end);
        let in_state = request.now.saturating_sub(since);
        let elapsed = if matches!(state, State::TimeWait) { in_state } else { silent };
        let timeout = request.timeout[before.slot(end)];
        if timeout == 0 || elapsed < timeout {
            continue;
        }
        if state.is_closed() {
            ended += 1;
        } else if !before.is_held(end) {
            verdict = verdict.with_state(end, after(state, Event::Expired), false);
        }
    }
    if verdict.0 != before.0 {
        verdict = with_its_peer(with_its_peer(verdict, End::Low), End::High);
        if verdict.is_over() && matches!(verdict.close_reason(), CloseReason::Open) {
            verdict = verdict.with_close_reason(CloseReason::Timeout);
        }
    }
    Expiry { verdict, remove: ended == 2 }
}

/// An ESTABLISHED that was only ever assumed ends with the peer that never completed the handshake.
#[inline(always)]
fn with_its_peer(verdict: Verdict, end: End) -> Verdict {
    let unproved = matches!(verdict.state(end), State::Established) && !verdict.is_confirmed(end);
    if unproved && !verdict.is_held(end) && verdict.state(end.other()).is_closed() {
        verdict.with_state(end, State::Closed, false)
    } else {
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(low: State, high: State, since: [u64; 2], last_seen: u64) -> FlowRecord {
        let mut record = FlowRecord::default();
        record.shared.verdict =
            Verdict::default().with_state(End::Low, low, true).with_state(End::High, high, true).0;
        record.shared.since = since;
        record.sent[0].stamp = last_seen;
        record
    }

    fn request(now: u64) -> SweepRequest {
        let mut request = SweepRequest { now, ..SweepRequest::default() };
        for (timeout, seconds) in request.timeout.iter_mut().zip(DEFAULT_TIMEOUT_SECONDS) {
            *timeout = seconds * SECOND;
        }
        request
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn time_wait_counts_from_its_beginning() {
        let record = record(State::TimeWait, State::Closed, [10 * SECOND; 2], 60 * SECOND);
        assert_eq!(expire(&record, &request(69 * SECOND)).verdict.state(End::Low), State::TimeWait);
        assert_eq!(expire(&record, &request(70 * SECOND)).verdict.state(End::Low), State::Closed);
    }

    #[test]
    fn silence_counts_from_the_last_segment() {
        let record = record(State::SynSent, State::SynRecv, [0; 2], 100 * SECOND);
        let expiry = expire(&record, &request(171 * SECOND));
        assert_eq!(expiry.verdict.state(End::Low), State::SynSent);
        assert_eq!(expiry.verdict.state(End::High), State::Closed);
        let expiry = expire(&record, &request(231 * SECOND));
        assert_eq!(expiry.verdict.close_reason(), CloseReason::Timeout);
        assert!(!expiry.remove);
    }

    #[test]
    fn who_is_held_is_not_ended_and_its_peer_is() {
        let mut record = record(State::FinWait2, State::FinWait2, [0; 2], 100 * SECOND);
        let verdict = Verdict(record.shared.verdict);
        record.shared.verdict = verdict.with_held(End::Low, true).0;
        let after = expire(&record, &request(1_000 * SECOND)).verdict;
        assert_eq!((after.state(End::Low), after.state(End::High)), (State::FinWait2, State::Closed));
        assert_eq!(after.close_reason(), CloseReason::Open);
        record.shared.verdict =
            verdict.with_state(End::High, State::Closed, true).with_held(End::Low, true).0;
        let expiry = expire(&record, &request(1_000 * SECOND));
        assert_eq!(expiry, Expiry { verdict: Verdict(record.shared.verdict), remove: false });
        // The note is of another state.
        let moved_on = Verdict(record.shared.verdict).with_state(End::Low, State::LastAck, true);
        record.shared.verdict = moved_on.0;
        assert!(expire(&record, &request(1_000 * SECOND)).verdict.is_closed());
    }

    #[test]
    fn an_established_that_is_held_does_not_go_with_its_peer() {
        let mut record = record(State::Established, State::FinWait2, [0; 2], 100 * SECOND);
        let unproved = Verdict(record.shared.verdict).with_state(End::Low, State::Established, false);
        record.shared.verdict = unproved.with_held(End::Low, true).0;
        let after = expire(&record, &request(221 * SECOND)).verdict;
        assert_eq!((after.state(End::Low), after.state(End::High)), (State::Established, State::Closed));
    }

    #[test]
    fn an_assumed_end_of_a_handshake_that_never_completed_goes_with_it() {
        let mut record = record(State::Established, State::SynRecv, [0; 2], 100 * SECOND);
        let verdict = Verdict(record.shared.verdict);
        assert_eq!(expire(&record, &request(171 * SECOND)).verdict.state(End::Low), State::Established);
        record.shared.verdict = verdict.with_state(End::Low, State::Established, false).0;
        assert!(expire(&record, &request(171 * SECOND)).verdict.is_closed());
    }

    #[test]
    fn a_closed_flow_lingers_and_goes() {
        let record = record(State::Closed, State::Closed, [0; 2], 100 * SECOND);
        let before = Verdict(record.shared.verdict);
        assert_eq!(
            expire(&record, &request(109 * SECOND)),
            Expiry { verdict: before, remove: false },
            "a stray that is remembered has no reason to have closed, and is given none"
        );
        assert!(expire(&record, &request(111 * SECOND)).remove);
    }

    #[test]
    fn the_last_end_to_close_gives_the_reason_though_the_other_is_in_time_wait() {
        let mut record = record(State::TimeWait, State::LastAck, [100 * SECOND; 2], 100 * SECOND);
        let mut request = request(131 * SECOND);
        request.timeout[State::LastAck as usize] = 30 * SECOND;
        let over = expire(&record, &request).verdict;
        assert_eq!((over.state(End::Low), over.state(End::High)), (State::TimeWait, State::Closed));
        assert_eq!(over.close_reason(), CloseReason::Timeout);
        // One that ended by itself keeps its own.
        record.shared.verdict = over.with_close_reason(CloseReason::Finish).0;
        let closed = expire(&record, &self::request(161 * SECOND)).verdict;
        assert!(closed.is_closed());
        assert_eq!(closed.close_reason(), CloseReason::Finish);
    }

    /// P40 of the conformance table: the sweep's clock may read a little earlier than the one of a segment that came
    /// meanwhile, and neither wraps.
    #[test]
    fn a_clock_that_reads_earlier_ends_nothing() {
        let record = record(State::TimeWait, State::LastAck, [100 * SECOND; 2], 100 * SECOND);
        let before = Verdict(record.shared.verdict);
        assert_eq!(expire(&record, &request(99 * SECOND)), Expiry { verdict: before, remove: false });
        assert!(expire(&record, &request(u64::MAX)).verdict.is_closed());
    }
}
