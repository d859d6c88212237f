//! Kernel events to the steps of each end. Pure.

use tcpfsm_common::{
    abi::{CloseReason, FlowEvent, Verdict},
    fact::Facts,
    flow::{End, FlowKey},
    fsm::State,
};

use super::cause::{flag_letters, why};
use crate::{
    report::{Cause, ConnClosed, Flow, Side, Transition},
    source::live::{Observation, Totals},
};

/// One end's step from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which end.
    pub end: End,
    /// Where it was.
    pub from: State,
    /// Where it is.
    pub to: State,
    /// Whether that end itself proved it.
    pub confirmed: bool,
    /// How long it was in the earlier state; 0 where that is not known.
    pub dwell_ns: u64,
}

/// The steps that an event tells of: the sender's before the receiver's, as the machine takes them.
pub fn steps(event: &FlowEvent) -> impl Iterator<Item = Step> + use<> {
    let (before, after) = (event.verdict_before(), event.verdict_after());
    let opened = before.generation() != after.generation();
    let (since, time) = (event.since, event.time);
    let sender = event.sender_end();
    [sender, sender.other()].into_iter().filter_map(move |end| {
        let (from, to) = after.transition(before, end)?;
        let known_since = since[end as usize & 1];
        // The time before a connection is nobody's dwell time.
        let timed = !opened && !from.is_closed() && known_since != 0;
        let dwell_ns = if timed { time.saturating_sub(known_since) } else { 0 };
        Some(Step { end, from, to, confirmed: after.is_confirmed(end), dwell_ns })
    })
}

/// Originator and responder, in this order.
#[must_use]
pub fn orientation(verdict: Verdict) -> [End; 2] {
    let originator = verdict.originator();
    [originator, originator.other()]
}

/// The role of an end.
pub(crate) fn side_of(verdict: Verdict, end: End) -> Side {
    if verdict.originator() == end { Side::Orig } else { Side::Resp }
}

/// The address of originator and responder.
pub(super) fn addresses(key: &FlowKey, verdict: Verdict) -> [std::net::SocketAddr; 2] {
    orientation(verdict).map(|end| key.socket_addr(end))
}

/// A step as it is reported.
pub(super) fn transition(observation: &Observation, step: &Step, flow: Flow) -> Transition {
    let &Observation { kind, ref event, .. } = observation;
    let &Step { end, from, to, confirmed, dwell_ns } = step;
    let after = event.verdict_after();
    // The sweep's events, and those of ICMP errors, have no flags.
    let by_segment = event.flags != 0;
    Transition {
        flow,
        side: side_of(after, end),
        from,
        to,
        confirmed,
        dwell_ns,
        cause: Cause {
            dir: by_segment.then(|| after.direction(event.sender_end())),
            flags: flag_letters(event.tcp_flags()),
            why: why(kind, event, end, from, to).into(),
        },
        proc: None,
        unowned: None,
        sample: event.weight,
    }
}

/// The end of a flow as it is reported.
pub(super) fn conn_closed(event: &FlowEvent, totals: &Totals, flow: Flow) -> ConnClosed {
    let after = event.verdict_after();
    let [orig, resp] = orientation(after);
    let of = |end: End, pair: [u64; 2]| pair[end as usize & 1];
    let &Totals { packets, bytes, opened, facts } = totals;
    let reason = after.close_reason();
    // One that connects anew is not in the connection that is over.
    let state = |end| if after.state(end) == State::TimeWait { State::TimeWait } else { State::Closed };
    ConnClosed {
        flow,
        // The sweep closes what fell silent; the verdict may not say so when only one end did.
        reason: if reason == CloseReason::Open { CloseReason::Timeout } else { reason }.name().into(),
        orig_state: state(orig),
        resp_state: state(resp),
        duration_ns: if opened == 0 { 0 } else { event.time.saturating_sub(opened) },
        orig_pkts: of(orig, packets),
        resp_pkts: of(resp, packets),
        orig_bytes: of(orig, bytes),
        resp_bytes: of(resp, bytes),
        facts: Facts(facts).iter().map(|fact| fact.name().into()).collect(),
        proc: None,
        unowned: None,
        sample: event.weight,
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{abi::EventKind, fact::Fact, segment::TcpFlags};

    use super::*;
    use crate::pipeline::synthetic::{Conversation, RESP};

    #[test]
    fn a_whole_life_step_by_step() {
        let mut talk = Conversation::new();
        let seen: Vec<String> = talk
            .ordinary_life()
            .iter()
            .flat_map(|o| {
                let after = o.event.verdict_after();
                steps(&o.event)
                    .map(|s| format!("{} {} {}", side_of(after, s.end).name(), s.from.name(), s.to.name()))
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(
            seen,
            [
                "orig closed syn_sent",
                "resp listen syn_recv",
                "orig syn_sent established",
                "resp syn_recv established",
                "orig established fin_wait1",
                "resp established close_wait",
                "orig fin_wait1 fin_wait2",
                "resp close_wait last_ack",
                "orig fin_wait2 time_wait",
                "resp last_ack closed",
            ]
        );
    }

    #[test]
    fn another_generation_starts_from_its_own_beginning() {
        let mut talk = Conversation::new();
        talk.ordinary_life();
        talk.renumber([900_000, 2_000_000]);
        let observation = talk.segment(End::Low, TcpFlags::SYN, 0);
        let steps: Vec<_> = steps(&observation.event).collect();
        assert_eq!(
            steps.iter().map(|s| (s.end, s.from, s.to, s.dwell_ns)).collect::<Vec<_>>(),
            [
                // §3.6.1: from TIME-WAIT it may reopen; how long it was there is the earlier connection's story.
                (End::Low, State::TimeWait, State::SynSent, 0),
                (End::High, State::Listen, State::SynRecv, 0)
            ]
        );
    }

    #[test]
    fn confirmation_alone_is_no_step() {
        let before = Verdict::default().with_state(End::Low, State::Established, false);
        let after = before.with_state(End::Low, State::Established, true);
        let event = FlowEvent { before: before.0, after: after.0, ..FlowEvent::new(EventKind::Verdict) };
        assert_eq!(steps(&event).count(), 0);
    }

    #[test]
    fn totals_follow_the_roles() {
        let mut talk = Conversation::new();
        let last = talk.ordinary_life().pop().unwrap();
        let totals = last.totals.unwrap();
        let flow = talk.flow();
        let closed = conn_closed(&last.event, &totals, flow.clone());
        assert_eq!(closed.reason, "finish");
        assert_eq!((closed.orig_state, closed.resp_state), (State::TimeWait, State::Closed));
        assert_eq!((closed.orig_pkts, closed.resp_pkts), (4, 3));
        assert_eq!(closed.flow.resp, RESP);
        assert!(closed.duration_ns > 0);
        assert!(closed.facts.iter().any(|fact| fact == Fact::Established.name()));
    }

    #[test]
    fn the_cause_names_direction_and_flags() {
        let mut talk = Conversation::new();
        let observation = talk.segment(End::Low, TcpFlags::SYN, 0);
        let step = steps(&observation.event).next().unwrap();
        let transition = transition(&observation, &step, talk.flow());
        assert_eq!(transition.cause.flags, "S");
        assert_eq!(transition.cause.why, "syn");
        assert_eq!(transition.cause.dir, Some(tcpfsm_common::flow::Direction::Original));
    }
}
