//! A story to the kinds of anomaly that it shows. Pure.

use tcpfsm_common::fsm::{DEFAULT_STUCK_SECONDS, State};

use super::story::{Origin, Story};
use crate::{detect::AnomalyKind, report::Side};

/// Retransmissions below this say nothing about a connection,
const FEW_RTX: u32 = 8;
/// nor do those that are less than one in so many segments.
const RTX_SHARE: u64 = 10;

/// Facts that alone name an anomaly.
const BY_FACT: [(&str, AnomalyKind); 17] = [
    ("rst_injection_suspected", AnomalyKind::RstInjection),
    ("connect_refused", AnomalyKind::ConnectRefused),
    ("connect_unreachable", AnomalyKind::ConnectUnreachable),
    ("handshake_aborted", AnomalyKind::HandshakeAborted),
    ("syn_on_live_flow", AnomalyKind::PeerGone),
    ("reset", AnomalyKind::ConnectionAborted),
    ("tw_assassination", AnomalyKind::TwAssassination),
    ("rst_inexact", AnomalyKind::RstInexact),
    ("rst_out_of_window", AnomalyKind::RstOutOfWindow),
    ("zero_window_probe", AnomalyKind::ZeroWindowStall),
    ("bad_flags", AnomalyKind::IllegalSegments),
    ("bad_option", AnomalyKind::IllegalSegments),
    ("data_after_fin", AnomalyKind::IllegalSegments),
    ("fin_seq_changed", AnomalyKind::IllegalSegments),
    ("synack_bad_ack", AnomalyKind::IllegalSegments),
    ("syn_rtx", AnomalyKind::HandshakeRetransmission),
    ("synack_rtx", AnomalyKind::HandshakeRetransmission),
];

/// What this connection shows, the most telling first, each kind once.
#[must_use]
pub fn diagnose(story: &Story) -> Vec<AnomalyKind> {
    let mut found = Vec::new();
    let mut add = |kind| {
        if !found.contains(&kind) {
            found.push(kind);
        }
    };
    for side in Side::ALL {
        if let Some(kind) = stuck(story, side) {
            add(kind);
        }
    }
    // Asked again, and nothing has come back: that is more than a SYN that was lost.
    if story.has("syn_rtx") && story.orig_end.state == State::SynSent && !story.resp_end.confirmed {
        add(AnomalyKind::SynSentStuck);
    }
    // A SYN-ACK again after the client believed itself connected: the server had no room for it.
    if story.has("synack_rtx") && story.has("state_rollback") {
        add(AnomalyKind::AcceptQueueOverflow);
    }
    let reason = story.close_reason.as_deref();
    if reason == Some("timeout") && !story.has("established") && story.origin == Origin::Seen {
        add(AnomalyKind::ConnectTimeout);
    }
    for (fact, kind) in BY_FACT {
        if story.has(fact) {
            add(kind);
        }
    }
    let disagrees = |side: Side| story.kernel_state.is_some_and(|kernel| kernel != story.end(side).state);
    if super::tell::own_side(story).is_some_and(disagrees) {
        add(AnomalyKind::ViewMismatch);
    }
    for side in Side::ALL {
        let end = story.end(side);
        if end.rtx >= FEW_RTX && u64::from(end.rtx) * RTX_SHARE >= end.pkts {
            add(AnomalyKind::RetransmissionStorm);
        }
    }
    found
}

/// The end that a kind is about in this story: whose program is to be looked at. None where it is about both, or does
/// not show. Where it is either, this host's.
#[must_use]
pub fn concerned(story: &Story, kind: AnomalyKind) -> Option<Side> {
    let own = super::tell::own_side(story).unwrap_or(Side::Orig);
    let first = |is_it: &dyn Fn(Side) -> bool| [own, own.other()].into_iter().find(|&side| is_it(side));
    let state_is = |state| first(&|side| story.end(side).state == state);
    match kind {
        AnomalyKind::CloseWaitStuck | AnomalyKind::CloseWaitLeak => state_is(State::CloseWait),
        AnomalyKind::FinWait1Stuck => state_is(State::FinWait1),
        AnomalyKind::FinWait2Stuck => state_is(State::FinWait2),
        AnomalyKind::LastAckStuck => state_is(State::LastAck),
        AnomalyKind::ClosingStuck => state_is(State::Closing),
        AnomalyKind::HalfOpen => state_is(State::SynRecv),
        AnomalyKind::ZeroWindowStall => first(&|side| story.end(side).zero_window),
        AnomalyKind::AcceptQueueOverflow => Some(Side::Resp),
        AnomalyKind::SynSentStuck
        | AnomalyKind::IdleEstablished
        | AnomalyKind::PeerGone
        | AnomalyKind::SynFlood
        | AnomalyKind::SynackFlood
        | AnomalyKind::RstFlood
        | AnomalyKind::AckFlood
        | AnomalyKind::PortScan
        | AnomalyKind::ConnectRefused
        | AnomalyKind::ConnectTimeout
        | AnomalyKind::ConnectUnreachable
        | AnomalyKind::HandshakeAborted
        | AnomalyKind::HandshakeRetransmission
        | AnomalyKind::ConnectionAborted
        | AnomalyKind::RstStorm
        | AnomalyKind::RstInexact
        | AnomalyKind::RstOutOfWindow
        | AnomalyKind::RstInjection
        | AnomalyKind::TwAssassination
        | AnomalyKind::IllegalSegments
        | AnomalyKind::TimeWaitPressure
        | AnomalyKind::RetransmissionStorm
        | AnomalyKind::ViewMismatch => None,
    }
}

/// An end that has been in its state for longer than the default threshold.
fn stuck(story: &Story, side: Side) -> Option<AnomalyKind> {
    let end = story.end(side);
    let threshold = DEFAULT_STUCK_SECONDS[end.state as usize] * 1_000_000_000;
    if threshold == 0 || end.dwell_ns < threshold {
        return None;
    }
    match end.state {
        State::CloseWait => Some(AnomalyKind::CloseWaitStuck),
        State::FinWait1 => Some(AnomalyKind::FinWait1Stuck),
        // Where the other end is in CLOSE_WAIT, that is the cause and this the symptom.
        State::FinWait2 if story.end(side.other()).state != State::CloseWait => {
            Some(AnomalyKind::FinWait2Stuck)
        }
        State::LastAck => Some(AnomalyKind::LastAckStuck),
        State::Closing => Some(AnomalyKind::ClosingStuck),
        State::SynSent => Some(AnomalyKind::SynSentStuck),
        // Merely assumed, the SYN may never have arrived.
        State::SynRecv if end.confirmed => Some(AnomalyKind::HalfOpen),
        State::FinWait2
        | State::SynRecv
        | State::Closed
        | State::Listen
        | State::Established
        | State::TimeWait => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        explain::{story::EndStory, tell::bare},
        pipeline::synthetic::{ORIG, RESP},
        report::Local,
    };

    fn story(states: [State; 2], seconds: u64, facts: &[&'static str]) -> Story {
        let end = |state| EndStory {
            state,
            confirmed: true,
            dwell_ns: seconds * 1_000_000_000,
            pkts: 50,
            ..EndStory::default()
        };
        Story {
            orig_end: end(states[0]),
            resp_end: end(states[1]),
            facts: facts.iter().map(|&fact| fact.into()).collect(),
            ..bare(ORIG, RESP, Vec::new())
        }
    }

    #[test]
    fn the_cause_comes_and_the_symptom_does_not() {
        use State::{CloseWait, Closed, Established, FinWait2, TimeWait};
        let leak = story([FinWait2, CloseWait], 3_600, &["established", "half_closed"]);
        assert_eq!(diagnose(&leak), [AnomalyKind::CloseWaitStuck]);
        assert_eq!(diagnose(&story([FinWait2, CloseWait], 5, &[])), [], "not for long enough");
        assert_eq!(diagnose(&story([TimeWait, Closed], 30, &["open", "established", "closed"])), []);
        assert_eq!(
            diagnose(&story([Established; 2], 9_000, &["established"])),
            [],
            "being open is no anomaly"
        );
    }

    #[test]
    fn facts_speak_for_themselves() {
        let refused = story([State::Closed; 2], 1, &["open", "connect_refused"]);
        assert_eq!(diagnose(&refused), [AnomalyKind::ConnectRefused]);
        let forged = story([State::Established; 2], 1, &["reset", "rst_injection_suspected"]);
        assert_eq!(diagnose(&forged)[0], AnomalyKind::RstInjection);
        let full = story([State::Established, State::SynRecv], 1, &["synack_rtx", "state_rollback"]);
        assert_eq!(diagnose(&full)[0], AnomalyKind::AcceptQueueOverflow);
        let mut asking = story([State::SynSent, State::SynRecv], 3, &["open", "syn_rtx"]);
        assert_eq!(diagnose(&asking)[0], AnomalyKind::HandshakeRetransmission, "somebody has answered");
        asking.resp_end.confirmed = false;
        assert_eq!(diagnose(&asking)[0], AnomalyKind::SynSentStuck);
        let mut silent = story([State::Closed; 2], 1, &["open", "syn_rtx"]);
        silent.close_reason = Some("timeout".into());
        assert_eq!(diagnose(&silent)[0], AnomalyKind::ConnectTimeout);
    }

    #[test]
    fn a_kind_is_about_the_end_that_is_in_it() {
        use State::{CloseWait, Established, FinWait2, SynRecv, SynSent};
        let mut leak = story([FinWait2, CloseWait], 3_600, &[]);
        for local in [None, Some(Local::Orig), Some(Local::Resp), Some(Local::Both)] {
            leak.local = local;
            assert_eq!(concerned(&leak, AnomalyKind::CloseWaitStuck), Some(Side::Resp), "whoever looks");
            assert_eq!(concerned(&leak, AnomalyKind::FinWait2Stuck), Some(Side::Orig));
            assert_eq!(concerned(&leak, AnomalyKind::LastAckStuck), None);
        }
        let asking = story([SynSent, SynRecv], 20, &[]);
        assert_eq!(concerned(&asking, AnomalyKind::SynSentStuck), None, "who does not answer may be here");
        assert_eq!(concerned(&asking, AnomalyKind::HalfOpen), Some(Side::Resp));
        let mut both = story([State::Closing; 2], 60, &[]);
        both.local = Some(Local::Resp);
        assert_eq!(concerned(&both, AnomalyKind::ClosingStuck), Some(Side::Resp), "this host's first");
        let mut full = story([Established; 2], 60, &[]);
        assert_eq!(concerned(&full, AnomalyKind::ZeroWindowStall), None, "it is open again");
        full.resp_end.zero_window = true;
        assert_eq!(concerned(&full, AnomalyKind::ZeroWindowStall), Some(Side::Resp));
    }

    /// A kind that is about one end has words for the case that it is another host's, and no other has.
    #[test]
    fn what_is_about_one_end_has_words_for_the_other_host() {
        for kind in AnomalyKind::ALL {
            let is_about_one = State::ALL.into_iter().any(|state| {
                let mut story = story([state; 2], 60, &[]);
                story.resp_end.zero_window = true;
                concerned(&story, kind).is_some()
            });
            assert_eq!(crate::explain::texts::of(kind).remote.is_some(), is_about_one, "{}", kind.name());
        }
    }

    #[test]
    fn the_socket_and_the_counts_are_looked_at_too() {
        let mut open = story([State::Established; 2], 1, &[]);
        open.kernel_state = Some(State::FinWait1);
        assert_eq!(diagnose(&open), [], "whose socket?");
        open.local = Some(Local::Orig);
        assert_eq!(diagnose(&open), [AnomalyKind::ViewMismatch]);
        open.kernel_state = Some(State::Established);
        open.resp_end.rtx = 12;
        assert_eq!(diagnose(&open), [AnomalyKind::RetransmissionStorm]);
    }
}
