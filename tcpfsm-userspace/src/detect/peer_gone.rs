//! One end is gone, and the other does not know it: a peer that crashed, was unplugged, or began anew.

use std::collections::HashMap;

use tcpfsm_common::{
    abi::{Conditions, EventKind},
    fact::Fact,
    flow::{End, FlowKey},
    fsm::State,
    segment::TcpFlags,
};

use super::{
    AnomalyKind, Detector, Finding, Repeats, Seen, SweepEnd,
    members::{Group, MAX_MEMBERS, Members},
    ongoing::{Ongoing, Present},
    rates::{Hit, Rates, Spec, no_base},
};
use crate::config::{Rule, Rules};

/// What a single segment tells of it.
const SPECS: &[Spec] = &[
    Spec {
        // A bare reset of an established connection: "no such socket here". Programs that abort send RST with ACK.
        kind: AnomalyKind::PeerGone,
        hit: |seen| {
            let bare = seen.event().tcp_flags().0 & (TcpFlags::RST | TcpFlags::ACK) == TcpFlags::RST;
            let was_open = seen.before().state(seen.sender()) == State::Established;
            (seen.has(Fact::Reset) && bare && was_open).then(|| survivor(seen))
        },
        base: no_base,
        base_has_hits: false,
        by_source: false,
        technique: Some("reset"),
    },
    Spec {
        // It connects anew from the same port: it has forgotten that it is connected.
        kind: AnomalyKind::PeerGone,
        hit: |seen| {
            (seen.has(Fact::SynInEstablished) || seen.has(Fact::SynOnLiveFlow)).then(|| survivor(seen))
        },
        base: no_base,
        base_has_hits: false,
        by_source: false,
        technique: Some("syn"),
    },
];

fn survivor(seen: &Seen<'_>) -> Hit {
    Hit { group: seen.service(), weight: seen.event().weight(), example: seen.example(seen.sender().other()) }
}

/// Finds ends that speak to nobody.
pub(super) struct PeerGone {
    rule: Rule,
    unanswered: Members,
    ongoing: Ongoing<Group>,
    told: Rates,
    /// Ends with nothing outstanding, and when they were seen to send last: one segment without an answer may be
    /// a window update, which needs none.
    probing: HashMap<(FlowKey, End), (u64, u32)>,
    patience: u32,
    overflow: u64,
}

impl PeerGone {
    pub(super) fn new(rules: &Rules, repeats: Repeats) -> Self {
        Self {
            rule: rules[AnomalyKind::PeerGone],
            unanswered: Members::new(repeats.conditions),
            ongoing: Ongoing::new(AnomalyKind::PeerGone),
            told: Rates::new(rules, &[SPECS]),
            probing: HashMap::new(),
            patience: repeats.conditions.saturating_mul(20),
            overflow: 0,
        }
    }

    /// Whether silence is no answer: data is outstanding, or this is the second probe.
    fn is_due(&mut self, seen: &Seen<'_>, end: End) -> bool {
        let Some(sight) = seen.sight() else { return false };
        let at = end as usize & 1;
        if sight.unacked[at] != 0 {
            return true;
        }
        let room = self.probing.len() < MAX_MEMBERS;
        match self.probing.get_mut(&(seen.key(), end)) {
            Some((first, sweep)) => {
                *sweep = seen.sweep;
                *first < sight.seen[at]
            }
            None if room => {
                self.probing.insert((seen.key(), end), (sight.seen[at], seen.sweep));
                false
            }
            None => {
                self.overflow += 1;
                false
            }
        }
    }

    fn forget(&mut self, key: &FlowKey, end: End) {
        self.unanswered.remove(key, end);
        if !self.probing.is_empty() {
            self.probing.remove(&(*key, end));
        }
    }
}

impl Detector for PeerGone {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::PeerGone]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        self.told.seen(seen);
        let key = seen.key();
        match seen.kind() {
            EventKind::Stuck => {
                for end in [End::Low, End::High] {
                    if !seen.is_in(Conditions::UNANSWERED, end) {
                        self.forget(&key, end);
                    } else if self.is_due(seen, end) {
                        let last_heard = seen.sight().map_or(0, |sight| sight.seen[end.other() as usize & 1]);
                        let dwelling = seen.dwelling(end, seen.after().state(end), last_heard);
                        self.unanswered.insert(&dwelling, seen.sweep);
                    }
                }
            }
            EventKind::Verdict | EventKind::Expired | EventKind::Closed | EventKind::Host => {
                for end in [End::Low, End::High] {
                    if seen.left(end).is_some() {
                        self.forget(&key, end);
                    }
                }
            }
            EventKind::Fact | EventKind::Stray => {}
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let Self { rule, unanswered, ongoing, told, probing, patience, .. } = self;
        probing.retain(|_, (_, named)| sweep.number.wrapping_sub(*named) <= *patience);
        let present: Vec<_> = unanswered
            .grouped(sweep.now, sweep.number, 0)
            .into_iter()
            .filter(|(group, present)| present.count >= rule.least() || ongoing.is_going_on(group))
            .map(|(group, present)| (group, Present { technique: Some("unanswered"), ..present }))
            .collect();
        let mut findings = ongoing.update(sweep.now, present);
        findings.extend(told.swept(sweep));
        findings
    }

    fn active(&self, kind: AnomalyKind) -> usize {
        if kind == AnomalyKind::PeerGone { self.ongoing.active() + self.told.active(kind) } else { 0 }
    }

    fn overflow(&self) -> u64 {
        self.overflow + self.unanswered.overflow() + self.ongoing.overflow() + self.told.overflow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::tests::{REPEATS, Sweeps},
        pipeline::synthetic::Conversation,
    };

    const SECOND: u64 = 1_000_000_000;

    fn detector() -> PeerGone {
        let rules = Rules::default().with(AnomalyKind::PeerGone, |rule| rule.count = Some(1));
        PeerGone::new(&rules, REPEATS)
    }

    #[test]
    fn data_that_nobody_acknowledges() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        let heard = talk.now;
        talk.now += 40 * SECOND;
        talk.segment(End::Low, TcpFlags::ACK, 100);
        sweeps.tell(&mut detector, &talk.stuck(Conditions::UNANSWERED));
        let [start] = sweeps.end(&mut detector, talk.now)[..] else { panic!("one") };
        assert_eq!((start.technique, start.oldest.end), (Some("unanswered"), End::Low));
        assert!(start.oldest.since <= heard, "since it was last heard of");
        sweeps.tell(&mut detector, &talk.stuck(0));
        assert_eq!(sweeps.end(&mut detector, talk.now).len(), 1, "over");
    }

    #[test]
    fn a_keepalive_may_be_a_window_update_two_are_none() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        for found in [0, 0, 1] {
            sweeps.tell(&mut detector, &talk.stuck(Conditions::UNANSWERED));
            assert_eq!(sweeps.end(&mut detector, talk.now).len(), found);
            if found == 0 && detector.probing.values().all(|(_, sweep)| *sweep > 1) {
                talk.now += 75 * SECOND;
                talk.renumber([1_000, 5_001]);
                talk.segment(End::Low, TcpFlags::ACK, 0);
            }
        }
    }

    #[test]
    fn no_such_socket_and_a_syn_from_the_same_port() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        talk.segment(End::Low, TcpFlags::ACK, 100);
        sweeps.tell(&mut detector, &talk.segment(End::High, TcpFlags::RST, 0));
        let [start] = sweeps.end(&mut detector, talk.now)[..] else { panic!("one") };
        assert_eq!((start.technique, start.oldest.end), (Some("reset"), End::Low));

        let mut talk = Conversation::from_port(7);
        talk.handshake();
        talk.segment(End::Low, TcpFlags::ACK, 100);
        talk.renumber([90_000_000, 5_001]);
        sweeps.tell(&mut detector, &talk.segment(End::Low, TcpFlags::SYN, 0));
        let [start] = sweeps.end(&mut detector, talk.now)[..] else { panic!("one") };
        assert_eq!((start.technique, start.oldest.end), (Some("syn"), End::High));
    }

    #[test]
    fn a_program_that_aborts_is_not_gone() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        sweeps.tell(&mut detector, &talk.segment(End::High, TcpFlags::RST | TcpFlags::ACK, 0));
        assert_eq!(sweeps.end(&mut detector, talk.now), []);
    }
}
