//! One end is gone, and the other does not know it: a peer that crashed, was unplugged, or began anew.

use std::collections::{HashMap, hash_map::Entry};

use tcpfsm_common::{
    abi::{Conditions, EventKind},
    fact::Fact,
    flow::{End, FlowKey},
};

use super::{
    AnomalyKind, Detector, Finding, Seen, SweepEnd,
    disowned::Disowned,
    members::{EVERY_SWEEP, Group, MAX_MEMBERS, Members},
    ongoing::{Ongoing, Present},
    rates::{Hit, Rates, Spec, no_base},
};
use crate::config::{Rule, Rules};

/// What a single segment tells of it.
pub(super) const SPECS: &[Spec] = &[Spec {
    // It connects anew from the same port: it has forgotten that it is connected.
    kind: AnomalyKind::PeerGone,
    hit: |seen| (seen.has(Fact::SynInEstablished) || seen.has(Fact::SynOnLiveFlow)).then(|| survivor(seen)),
    base: no_base,
    base_has_hits: false,
    by_source: false,
    technique: Some("syn"),
}];

fn survivor(seen: &Seen<'_>) -> Hit {
    Hit { group: seen.service(), weight: seen.event().weight(), example: seen.example(seen.sender().other()) }
}

/// Finds ends that speak to nobody.
pub(super) struct PeerGone {
    rule: Rule,
    unanswered: Members,
    ongoing: Ongoing<Group>,
    told: Rates,
    disowned: Disowned,
    probing: HashMap<(FlowKey, End), Probe>,
    overflow: u64,
}

/// An end that waits for an answer, as it was seen first.
struct Probe {
    /// When it had sent last.
    sent: u64,
    /// When its peer had been heard last.
    heard: u64,
    /// The sweep that named it last.
    sweep: u32,
}

impl PeerGone {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            rule: rules[AnomalyKind::PeerGone],
            unanswered: Members::new(EVERY_SWEEP),
            ongoing: Ongoing::new(AnomalyKind::PeerGone),
            told: Rates::new(rules, &[SPECS]),
            disowned: Disowned::new(rules[AnomalyKind::PeerGone]),
            probing: HashMap::new(),
            overflow: 0,
        }
    }

    /// Whether silence is no answer. Nothing was heard for the threshold; and what was sent into that silence, it may
    /// be after a long rest, was seen half of that ago, and has been sent again since. A single segment may be a
    /// window update, which needs no answer, or its answer may have been missed.
    fn is_due(&mut self, seen: &Seen<'_>, end: End) -> bool {
        let Some(sight) = seen.sight() else { return false };
        let at = end as usize & 1;
        let (sent, heard) = (sight.seen[at], sight.seen[at ^ 1]);
        let room = self.probing.len() < MAX_MEMBERS;
        let probe = match self.probing.entry((seen.key(), end)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if room => new.insert(Probe { sent, heard, sweep: seen.sweep }),
            Entry::Vacant(_) => {
                self.overflow += 1;
                return false;
            }
        };
        if probe.heard != heard {
            *probe = Probe { sent, heard, sweep: seen.sweep };
        }
        probe.sweep = seen.sweep;
        let (now, after) = (seen.event().time, self.rule.after_ns());
        sent > probe.sent && now.saturating_sub(heard) >= after && now.saturating_sub(probe.sent) >= after / 2
    }

    fn forget(&mut self, key: &FlowKey, end: End) {
        self.unanswered.remove(key, end);
        self.probing.remove(&(*key, end));
    }
}

impl Detector for PeerGone {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::PeerGone]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        self.told.seen(seen);
        self.disowned.seen(seen);
        if self.unanswered.is_empty() && self.probing.is_empty() && seen.kind() != EventKind::Stuck {
            return;
        }
        let key = seen.key();
        match seen.kind() {
            EventKind::Stuck => {
                for end in [End::Low, End::High] {
                    if !seen.is_in(Conditions::UNANSWERED, end) {
                        self.forget(&key, end);
                    } else if self.is_due(seen, end) {
                        let last_heard = seen.sight().map_or(0, |sight| sight.seen[end.other() as usize & 1]);
                        let dwelling = seen.dwelling(end, seen.after().state(end), last_heard);
                        self.unanswered.insert(&dwelling, seen.sweep, seen.event().time);
                    } else {
                        self.unanswered.remove(&key, end);
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
        let Self { rule, unanswered, ongoing, told, disowned, probing, .. } = self;
        // Every sweep names them: one that was not named twice was answered, or is gone.
        probing.retain(|_, probe| sweep.number.wrapping_sub(probe.sweep) <= 1);
        let present: Vec<_> = unanswered
            .grouped(sweep.number, 0)
            .into_iter()
            .filter(|(group, present)| present.count >= rule.least() || ongoing.is_going_on(group))
            .map(|(group, present)| (group, Present { technique: Some("unanswered"), ..present }))
            .collect();
        let mut findings = ongoing.update(sweep.now, present);
        findings.extend(told.swept(sweep));
        findings.extend(disowned.swept(sweep));
        findings
    }

    fn going_on(&self) -> Vec<Finding> {
        let Self { ongoing, told, disowned, .. } = self;
        [ongoing.going_on(), told.going_on(), disowned.going_on()].concat()
    }

    fn overflow(&self) -> u64 {
        let Self { unanswered, ongoing, told, disowned, overflow, .. } = self;
        overflow + unanswered.overflow() + ongoing.overflow() + told.overflow() + disowned.overflow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::tests::Sweeps, pipeline::synthetic::Conversation};
    use tcpfsm_common::segment::TcpFlags;

    const SECOND: u64 = 1_000_000_000;

    fn detector() -> PeerGone {
        let rules = Rules::default().with(AnomalyKind::PeerGone, |rule| rule.count = Some(1));
        PeerGone::new(&rules)
    }

    #[test]
    fn data_that_nobody_acknowledges() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        let heard = talk.now;
        // Sent again after twice as long each time, and swept every five seconds.
        let found = unanswered(&mut detector, &mut sweeps, &mut talk, &[6_200, 12_600, 25_400], 10..=35);
        let [start] = found[..] else { panic!("{found:?}") };
        assert_eq!((start.technique, start.oldest.end), (Some("unanswered"), End::Low));
        assert!(start.oldest.since <= heard, "since it was last heard of");
        assert_eq!((start.time - heard) / SECOND, 30, "not when it is sent again next");
        sweeps.tell(&mut detector, &talk.stuck(0));
        assert_eq!(sweeps.end(&mut detector, talk.now).len(), 1, "over");
    }

    #[test]
    fn one_that_rested_has_time_to_answer() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        let heard = talk.now;
        let sent = [600_000, 600_200, 600_600, 601_400, 603_000, 606_200, 612_600];
        let found = unanswered(&mut detector, &mut sweeps, &mut talk, &sent, 601..=625);
        let [start] = found[..] else { panic!("{found:?}") };
        assert_eq!((start.time - heard) / SECOND, 616, "seen at 601, and half of the threshold later");
    }

    #[test]
    fn whoever_answers_now_and_then_is_not_gone() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        for _ in 0..10 {
            let quiet = unanswered(&mut detector, &mut sweeps, &mut talk, &[8_000, 16_000], 8..=23);
            assert_eq!(quiet, []);
            talk.segment(End::High, TcpFlags::ACK, 0);
        }
    }

    /// What is found while the low end sends at these milliseconds, in sweeps at every fifth of these seconds.
    fn unanswered(
        detector: &mut PeerGone,
        sweeps: &mut Sweeps,
        talk: &mut Conversation,
        sent: &[u64],
        seconds: std::ops::RangeInclusive<u64>,
    ) -> Vec<Finding> {
        let (start, mut sent, mut found) = (talk.now, sent.iter().peekable(), Vec::new());
        for second in seconds.step_by(5) {
            while let Some(millisecond) = sent.next_if(|millisecond| **millisecond <= second * 1_000) {
                talk.now = start + millisecond * 1_000_000;
                talk.segment(End::Low, TcpFlags::PSH | TcpFlags::ACK, 100);
            }
            talk.now = start + second * SECOND;
            sweeps.tell(detector, &talk.stuck(Conditions::UNANSWERED));
            found.extend(sweeps.end(detector, talk.now));
        }
        found
    }

    #[test]
    fn a_keepalive_may_be_a_window_update_two_are_none() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        for (seconds, probes, found) in [(40, true, 0), (5, false, 0), (75, true, 1)] {
            talk.now += seconds * SECOND;
            if probes {
                talk.renumber([1_000, 5_001]);
                talk.segment(End::Low, TcpFlags::ACK, 0);
            }
            sweeps.tell(&mut detector, &talk.stuck(Conditions::UNANSWERED));
            assert_eq!(sweeps.end(&mut detector, talk.now).len(), found, "{seconds}");
        }
    }

    #[test]
    fn a_syn_from_the_same_port() {
        let (mut detector, mut sweeps) = (detector(), Sweeps::default());
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
        assert_eq!(sweeps.end(&mut detector, talk.now + 10 * SECOND), []);
    }
}
