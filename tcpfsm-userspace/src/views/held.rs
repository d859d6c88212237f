//! Ends that the clock is to leave alone, since their socket is still in the state. Pure.
//!
//! A program may keep a half-closed socket for as long as it likes, and of that the wire shows nothing. So the comparison notes
//! in the verdict that it has found the socket in the end's state, before the end's time runs out, and takes the note away
//! once it finds something else. The sweep ends no end with such a note.

use std::mem::take;

use tcpfsm_common::{
    abi::{CloseReason, Conditions, FlowRecord, SweepRequest, Verdict},
    flow::{End, FlowKey},
    fsm::State,
};

use crate::source::live::Observation;

/// A note costs a system call, so it is made once this part of the time has passed in silence; most flows never come so far.
const PART: u64 = 4;

/// Stuck flows that wait to be looked at.
pub(super) const MAX_WAITING: usize = 65_536;

/// Whether an end in this state may be held. Handshakes are not compared, and in TIME_WAIT Linux has the same clock, which a
/// socket may run ahead of unnoticed.
const fn can_be_held(state: State) -> bool {
    state.is_synchronized() && !matches!(state, State::TimeWait)
}

/// The verdict once an end was given its socket's state: if its time is up already, the next sweep is not to end it.
pub(super) const fn with_socket_in(verdict: Verdict, end: End, state: State) -> Verdict {
    verdict.with_state(end, state, true).with_held(end, can_be_held(state))
}

/// Whether an end whose socket is in `kernel` is to be held, or stay so.
pub(super) fn is_to_be_held(
    record: &FlowRecord,
    verdict: Verdict,
    end: End,
    kernel: Option<State>,
    request: &SweepRequest,
) -> bool {
    match kernel {
        // Gone: once that has lasted, it is the comparison that closes it.
        None => verdict.is_held(end),
        Some(kernel) if kernel != verdict.state(end) => false,
        Some(_) if verdict.is_held(end) => true,
        Some(kernel) => {
            let (silent, timeout) =
                (request.now.saturating_sub(record.last_seen()), request.timeout[verdict.slot(end)]);
            can_be_held(kernel) && timeout != 0 && silent >= timeout / PART
        }
    }
}

/// Whether nothing but the clock ended an end: nobody was in time to ask for its socket, which is in `kernel` as the end was.
pub(super) fn was_ended_by_the_clock(verdict: Verdict, end: End, kernel: State) -> bool {
    let was_reset = verdict.was_reset_by(End::Low) || verdict.was_reset_by(End::High);
    verdict.state(end).is_closed()
        && !verdict.is_confirmed(end)
        && verdict.previous(end) == kernel
        && can_be_held(kernel)
        && !was_reset
        && matches!(verdict.close_reason(), CloseReason::Open | CloseReason::Timeout)
}

/// Flows that a sweep has named as stuck: they are looked at first, so that also among very many flows the clock does not end what
/// somebody is told of.
#[derive(Debug, Default)]
pub struct StuckFlows(Vec<FlowKey>);

impl StuckFlows {
    /// Takes in what was seen: flows with an end that may have to be held and is not.
    pub fn note(&mut self, observation: &Observation) {
        let Some(sight) = &observation.sight else { return };
        let verdict = observation.event.verdict_after();
        let is_waiting = |end| {
            sight.conditions.has(Conditions::STUCK, end)
                && can_be_held(verdict.state(end))
                && !verdict.is_held(end)
        };
        if self.0.len() < MAX_WAITING && (is_waiting(End::Low) || is_waiting(End::High)) {
            self.0.push(observation.event.key());
        }
    }

    /// Gives what was noted, and begins anew.
    pub fn take(&mut self) -> Vec<FlowKey> {
        take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::synthetic::Conversation;

    const SECOND: u64 = 1_000_000_000;

    fn half_closed() -> Verdict {
        Verdict::default().with_state(End::Low, State::FinWait2, true).with_state(
            End::High,
            State::CloseWait,
            true,
        )
    }

    /// Whether the low end is to be held, after so many seconds of silence.
    fn after(seconds: u64, verdict: Verdict, kernel: Option<State>) -> bool {
        let mut request = SweepRequest { now: seconds * SECOND, ..SweepRequest::default() };
        request.timeout = [120 * SECOND; 16];
        is_to_be_held(&FlowRecord::default(), verdict, End::Low, kernel, &request)
    }

    #[test]
    fn a_socket_in_the_same_state_is_noted_before_the_time_is_up() {
        let verdict = half_closed();
        assert!(!after(29, verdict, Some(State::FinWait2)), "no need yet");
        assert!(after(30, verdict, Some(State::FinWait2)));
        assert!(!after(30, verdict, Some(State::TimeWait)) && !after(30, verdict, None));
        let time_wait = verdict.with_state(End::Low, State::TimeWait, true);
        assert!(!after(60, time_wait, Some(State::TimeWait)), "it has its own clock");
        let request = SweepRequest { now: 300 * SECOND, ..SweepRequest::default() };
        let kernel = Some(State::FinWait2);
        let held = is_to_be_held(&FlowRecord::default(), verdict, End::Low, kernel, &request);
        assert!(!held, "a state without a timeout needs none");
    }

    #[test]
    fn who_is_given_its_sockets_state_is_held_in_it() {
        let given = |state| with_socket_in(half_closed(), End::Low, state);
        assert!(given(State::FinWait2).is_held(End::Low) && !given(State::FinWait2).is_held(End::High));
        assert_eq!(given(State::LastAck).state(End::Low), State::LastAck);
        for state in [State::SynSent, State::SynRecv, State::TimeWait] {
            assert!(!given(state).is_held(End::Low), "{}", state.name());
        }
    }

    #[test]
    fn a_note_stays_until_the_socket_is_seen_elsewhere() {
        let held = half_closed().with_held(End::Low, true);
        assert!(after(0, held, Some(State::FinWait2)), "it was heard of again");
        assert!(after(300, held, None), "whether it is gone takes more than a look");
        assert!(!after(300, held, Some(State::TimeWait)));
    }

    #[test]
    fn what_the_clock_ended_is_told_from_what_a_segment_did() {
        let expired = half_closed().with_state(End::Low, State::Closed, false);
        let by_clock = |verdict| was_ended_by_the_clock(verdict, End::Low, State::FinWait2);
        assert!(by_clock(expired) && by_clock(expired.with_close_reason(CloseReason::Timeout)));
        assert!(!was_ended_by_the_clock(expired, End::Low, State::TimeWait), "it was in another state");
        assert!(!by_clock(half_closed()));
        assert!(!by_clock(expired.with_reset_by(End::High, true)));
        assert!(!by_clock(expired.with_close_reason(CloseReason::Finish)));
        assert!(!by_clock(expired.with_state(End::Low, State::Closed, true)));
    }

    #[test]
    fn stuck_flows_wait_until_they_are_held() {
        let mut talk = Conversation::new();
        talk.handshake();
        let mut stuck = StuckFlows::default();
        stuck.note(&talk.stuck(0));
        stuck.note(&talk.stuck(Conditions::IDLE));
        assert_eq!(stuck.take(), []);
        let mut seen = talk.stuck(Conditions::STUCK);
        stuck.note(&seen);
        assert_eq!(stuck.take(), [seen.event.key()]);
        assert_eq!(stuck.take(), []);
        seen.event.after = seen.event.verdict_after().with_held(End::Low, true).0;
        stuck.note(&seen);
        seen.event.after = seen.event.verdict_after().with_state(End::Low, State::SynRecv, true).0;
        stuck.note(&seen);
        assert_eq!(stuck.take(), []);
    }
}
