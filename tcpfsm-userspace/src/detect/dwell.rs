//! Ends that stay too long in a state, or in a condition that the sweep sees.

use std::sync::LazyLock;

use tcpfsm_common::{
    abi::{Conditions, EventKind},
    flow::End,
    fsm::State,
};

use super::{
    AnomalyKind, Detector, Finding, Repeats, Seen, SweepEnd,
    members::{EVERY_SWEEP, Group, Members},
    ongoing::Ongoing,
};
use crate::{
    config::{Rule, Rules},
    report::Side,
};

/// What an end must be in to be a dweller, one line per kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dwell {
    /// In this state for longer than its threshold. `proved`: only if the end itself showed it.
    State { state: State, side: Option<Side>, proved: bool },
    /// Nothing goes over the connection.
    Idle,
    /// Its window is closed, and its peer knocks.
    ZeroWindow,
}

const fn state(state: State) -> Dwell {
    Dwell::State { state, side: None, proved: false }
}

const DWELLS: [(AnomalyKind, Dwell); 9] = [
    // With its ACK of the FIN the end has proved it. Without, the FIN may never have come.
    (AnomalyKind::CloseWaitStuck, Dwell::State { state: State::CloseWait, side: None, proved: true }),
    (AnomalyKind::FinWait1Stuck, state(State::FinWait1)),
    (AnomalyKind::FinWait2Stuck, state(State::FinWait2)),
    (AnomalyKind::LastAckStuck, state(State::LastAck)),
    (AnomalyKind::ClosingStuck, state(State::Closing)),
    (AnomalyKind::SynSentStuck, state(State::SynSent)),
    // A SYN that nobody answered is no half-open handshake: its responder has no state that it proved.
    (AnomalyKind::HalfOpen, Dwell::State { state: State::SynRecv, side: Some(Side::Resp), proved: true }),
    (AnomalyKind::IdleEstablished, Dwell::Idle),
    (AnomalyKind::ZeroWindowStall, Dwell::ZeroWindow),
];

/// The detectors of all these kinds that are wanted. Nearly every event finds no dweller anywhere, and asks this instead of each.
#[derive(Debug)]
pub(super) struct Dwells {
    detectors: Vec<DwellDetector>,
    has_members: bool,
}

impl Dwells {
    pub(super) fn new(rules: &Rules, repeats: Repeats) -> Self {
        let wanted = DWELLS.into_iter().filter(|&(kind, _)| rules[kind].enabled);
        let detectors = wanted.map(|(kind, dwell)| DwellDetector::new(kind, dwell, rules, repeats)).collect();
        Self { detectors, has_members: false }
    }
}

impl Detector for Dwells {
    fn kinds(&self) -> &'static [AnomalyKind] {
        static KINDS: LazyLock<Vec<AnomalyKind>> =
            LazyLock::new(|| DWELLS.into_iter().map(|(kind, _)| kind).collect());
        &KINDS
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if self.has_members || seen.kind() == EventKind::Stuck {
            self.detectors.iter_mut().for_each(|detector| detector.seen(seen));
            self.has_members = self.detectors.iter().any(|detector| !detector.members.is_empty());
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        self.detectors.iter_mut().flat_map(|detector| detector.swept(sweep)).collect()
    }

    fn going_on(&self) -> Vec<Finding> {
        self.detectors.iter().flat_map(|detector| detector.ongoing.going_on()).collect()
    }

    fn overflow(&self) -> u64 {
        self.detectors.iter().map(DwellDetector::overflow).sum()
    }
}

/// Finds the dwellers of one kind.
#[derive(Debug)]
struct DwellDetector {
    dwell: Dwell,
    rule: Rule,
    members: Members,
    ongoing: Ongoing<Group>,
}

impl DwellDetector {
    fn new(kind: AnomalyKind, dwell: Dwell, rules: &Rules, repeats: Repeats) -> Self {
        let repeat = match dwell {
            Dwell::State { .. } => repeats.stuck,
            Dwell::Idle => repeats.conditions,
            Dwell::ZeroWindow => EVERY_SWEEP,
        };
        Self { dwell, rule: rules[kind], members: Members::new(repeat), ongoing: Ongoing::new(kind) }
    }

    /// Since when an end has been what this detector looks for, if it is.
    fn since(&self, seen: &Seen<'_>, end: End) -> Option<u64> {
        let event = seen.event();
        match self.dwell {
            Dwell::State { state, side, proved } => (seen.is_in(Conditions::STUCK, end)
                && seen.after().state(end) == state
                && side.is_none_or(|side| seen.side(end) == side)
                && (!proved || seen.after().is_confirmed(end)))
            .then_some(event.since[end as usize & 1]),
            Dwell::Idle => (seen.is_idle() && seen.originator().other() == end)
                .then(|| seen.sight().map_or(event.time, |sight| sight.seen[0].max(sight.seen[1]))),
            // When it closed is not known; since when it is seen to be closed will do.
            Dwell::ZeroWindow => seen.is_in(Conditions::ZERO_WINDOW, end).then_some(event.time),
        }
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if self.members.is_empty() && seen.kind() != EventKind::Stuck {
            return;
        }
        let key = seen.key();
        match seen.kind() {
            EventKind::Stuck => {
                for end in [End::Low, End::High] {
                    match self.since(seen, end) {
                        Some(since) => {
                            let dwelling = seen.dwelling(end, seen.after().state(end), since);
                            self.members.insert(&dwelling, seen.sweep, seen.event().time);
                        }
                        // The sweep speaks of the flow and not of this: it is over.
                        None => self.members.remove(&key, end),
                    }
                }
            }
            EventKind::Verdict | EventKind::Expired | EventKind::Closed | EventKind::Host => {
                for end in [End::Low, End::High] {
                    if seen.left(end).is_some() {
                        self.members.remove(&key, end);
                    }
                }
            }
            EventKind::Fact | EventKind::Stray => {}
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let least = self.rule.least();
        // What [stuck] says is in the sweep's own judgement already; idle too.
        let after = if self.dwell == Dwell::Idle { 0 } else { self.rule.after_ns() };
        let groups = self.members.grouped(sweep.number, after);
        let ongoing = &self.ongoing;
        let present: Vec<_> = groups
            .into_iter()
            .filter(|(group, present)| present.count >= least || ongoing.is_going_on(group))
            .collect();
        self.ongoing.update(sweep.now, present)
    }

    fn overflow(&self) -> u64 {
        self.members.overflow() + self.ongoing.overflow()
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::segment::TcpFlags;

    use super::*;
    use crate::{
        detect::tests::{REPEATS, Sweeps},
        pipeline::synthetic::{Conversation, RESP},
        report::Phase,
    };

    const SECOND: u64 = 1_000_000_000;

    fn detector(kind: AnomalyKind) -> Dwells {
        let off = |rules: Rules, kind| rules.with(kind, |rule| rule.enabled = false);
        let rules = DWELLS.into_iter().map(|(kind, _)| kind).filter(|&other| other != kind);
        Dwells::new(&rules.fold(Rules::default(), off), REPEATS)
    }

    #[test]
    fn a_half_open_handshake_is_found_and_forgotten() {
        let mut detector = detector(AnomalyKind::HalfOpen);
        let mut sweeps = Sweeps::default();
        let mut talk = Conversation::new();
        talk.segment(End::Low, TcpFlags::SYN, 0);
        sweeps.tell(&mut detector, &talk.stuck(Conditions::STUCK << 1));
        assert_eq!(sweeps.end(&mut detector, talk.now), [], "unanswered");
        talk.segment(End::High, TcpFlags::SYN | TcpFlags::ACK, 0);
        talk.now += 11 * SECOND;
        sweeps.tell(&mut detector, &talk.stuck(Conditions::STUCK << 1));
        let [start] = sweeps.end(&mut detector, talk.now)[..] else { panic!("one") };
        assert_eq!(
            (start.oldest.side, start.oldest.state, start.oldest.service),
            (Side::Resp, State::SynRecv, RESP)
        );
        let last = talk.segment(End::Low, TcpFlags::ACK, 0);
        sweeps.tell(&mut detector, &last);
        assert_eq!(sweeps.end(&mut detector, talk.now)[0].phase, Phase::End);
    }

    #[test]
    fn a_close_wait_is_found_at_its_end_only() {
        let mut sweeps = Sweeps::default();
        let mut talk = Conversation::new();
        talk.handshake();
        talk.segment(End::Low, TcpFlags::FIN | TcpFlags::ACK, 0);
        talk.segment(End::High, TcpFlags::ACK, 0);
        talk.now += 61 * SECOND;
        for (kind, _) in DWELLS {
            let mut detector = detector(kind);
            sweeps.tell(&mut detector, &talk.stuck(Conditions::STUCK << 1));
            let findings = sweeps.end(&mut detector, talk.now);
            let expected = kind == AnomalyKind::CloseWaitStuck;
            assert_eq!(findings.len(), usize::from(expected), "{kind:?}");
            assert!(findings.iter().all(|finding| finding.oldest.side == Side::Resp && finding.count == 1));
        }
    }

    #[test]
    fn fewer_than_the_rule_wants_are_no_anomaly() {
        let mut detector = detector(AnomalyKind::FinWait1Stuck);
        let mut sweeps = Sweeps::default();
        for port in 1..=3 {
            let mut talk = Conversation::from_port(port);
            talk.handshake();
            talk.segment(End::Low, TcpFlags::FIN | TcpFlags::ACK, 0);
            sweeps.tell(&mut detector, &talk.stuck(Conditions::STUCK));
            assert_eq!(sweeps.end(&mut detector, talk.now).len(), usize::from(port == 3));
        }
        let kinds: Vec<_> = detector.going_on().iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, [AnomalyKind::FinWait1Stuck]);
    }

    #[test]
    fn a_closed_window_must_stay_closed() {
        let mut detector = detector(AnomalyKind::ZeroWindowStall);
        let mut sweeps = Sweeps::default();
        let mut talk = Conversation::new();
        talk.handshake();
        let start = talk.now;
        for second in [0, 5, 10, 15, 20, 25] {
            talk.now = start + second * SECOND;
            sweeps.tell(&mut detector, &talk.stuck(Conditions::ZERO_WINDOW << 1));
            assert_eq!(sweeps.end(&mut detector, talk.now), []);
        }
        assert_eq!(
            sweeps.end(&mut detector, start + 30 * SECOND),
            [],
            "it has opened, says this sweep's silence"
        );
        talk.now = start + 35 * SECOND;
        sweeps.tell(&mut detector, &talk.stuck(Conditions::ZERO_WINDOW << 1));
        assert_eq!(sweeps.end(&mut detector, talk.now)[0].phase, Phase::Start);
        sweeps.tell(&mut detector, &talk.stuck(Conditions::STUCK));
        assert_eq!(
            sweeps.end(&mut detector, talk.now)[0].phase,
            Phase::End,
            "the sweep has nothing more to say of it"
        );
    }

    #[test]
    fn idle_ones_are_found_in_numbers() {
        let mut detector = detector(AnomalyKind::IdleEstablished);
        let mut sweeps = Sweeps::default();
        for port in 1..=10 {
            assert_eq!(sweeps.end(&mut detector, 9_000 * SECOND), []);
            for port in 1..=port {
                let mut talk = Conversation::from_port(port);
                talk.handshake();
                talk.now += 9_000 * SECOND;
                sweeps.tell(&mut detector, &talk.stuck(Conditions::IDLE));
            }
        }
        let [start] = sweeps.end(&mut detector, 9_000 * SECOND)[..] else { panic!("one") };
        assert_eq!((start.count, start.oldest.since), (10, 1_003_000_000 & !0xffff));
    }
}
