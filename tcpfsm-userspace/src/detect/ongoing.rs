//! The life of an anomaly: it begins, goes on, and ends; how often that is reported.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
};

use super::{AnomalyKind, Dwelling, Finding};
use crate::report::{Phase, Severity};

/// Groups with a report of their own; a scan of many ports can make any number.
pub(super) const MAX_GROUPS: usize = 1_024;

/// An anomaly that goes on is reported again after this long, then after twice as long, and so on …
const REPEAT_NS: u64 = 60_000_000_000;

/// … up to this; or at once when its count has doubled, or it matters more than was told.
const LONGEST_REPEAT_NS: u64 = 15 * REPEAT_NS;

/// What is going on in a group now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Present {
    pub(super) count: u64,
    pub(super) oldest: Dwelling,
    pub(super) source: Option<IpAddr>,
    pub(super) technique: Option<&'static str>,
    pub(super) permille: Option<u16>,
}

impl Present {
    pub(super) const fn new(count: u64, oldest: Dwelling) -> Self {
        Self { count, oldest, source: None, technique: None, permille: None }
    }
}

/// The anomalies of one kind that were reported and are not over, by group.
#[derive(Debug)]
pub(super) struct Ongoing<G> {
    kind: AnomalyKind,
    groups: HashMap<G, Life>,
    /// The last sweep.
    now: u64,
    overflow: u64,
}

#[derive(Debug)]
struct Life {
    first_seen: u64,
    peak: u64,
    reported_count: u64,
    reported_severity: Severity,
    reported_at: u64,
    repeat: u64,
    last: Present,
}

impl<G: Hash + Eq + Copy> Ongoing<G> {
    pub(super) fn new(kind: AnomalyKind) -> Self {
        Self { kind, groups: HashMap::new(), now: 0, overflow: 0 }
    }

    /// What goes on, as of the last sweep.
    pub(super) fn going_on(&self) -> Vec<Finding> {
        let &Self { kind, ref groups, now, .. } = self;
        let phase = |life: &Life| if life.first_seen == now { Phase::Start } else { Phase::Update };
        groups.values().map(|life| life.finding(kind, phase(life), now)).collect()
    }

    /// Groups that went unreported because too many others were going on.
    pub(super) const fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Whether an anomaly goes on in a group: what began ends at half of what it began with.
    pub(super) fn is_going_on(&self, group: &G) -> bool {
        self.groups.contains_key(group)
    }

    /// Compares what is going on now with what was reported. Most of what changes is not worth an event; whoever asks has it
    /// from [`going_on`](Self::going_on).
    pub(super) fn update(
        &mut self,
        now: u64,
        present: impl IntoIterator<Item = (G, Present)>,
    ) -> Vec<Finding> {
        let Self { kind, groups, now: last, overflow } = self;
        *last = now;
        let mut findings = Vec::new();
        let mut there = HashSet::new();
        for (group, present) in present {
            there.insert(group);
            let room = groups.len() < MAX_GROUPS;
            match groups.entry(group) {
                Entry::Occupied(mut entry) => {
                    let life = entry.get_mut();
                    // How it is done may show later than that it is done, and is not forgotten.
                    let known = life.last.technique;
                    let explained = known.is_none() && present.technique.is_some();
                    life.last = Present { technique: present.technique.or(known), ..present };
                    life.peak = life.peak.max(present.count);
                    let doubled = present.count >= life.reported_count.saturating_mul(2);
                    let due = now.saturating_sub(life.reported_at) >= life.repeat;
                    // Told once: a count that wavers around the line must first be told to have fallen below it.
                    let severity = severity(*kind, present.count);
                    let worse = severity > life.reported_severity;
                    if doubled || explained || worse || due {
                        if due && !doubled {
                            life.repeat = life.repeat.saturating_mul(2).min(LONGEST_REPEAT_NS);
                        }
                        life.reported_count = present.count;
                        life.reported_severity = severity;
                        life.reported_at = now;
                        findings.push(life.finding(*kind, Phase::Update, now));
                    }
                }
                Entry::Vacant(new) if room => {
                    let life = new.insert(Life {
                        first_seen: now,
                        peak: present.count,
                        reported_count: present.count,
                        reported_severity: severity(*kind, present.count),
                        reported_at: now,
                        repeat: REPEAT_NS,
                        last: present,
                    });
                    findings.push(life.finding(*kind, Phase::Start, now));
                }
                Entry::Vacant(_) => *overflow += 1,
            }
        }
        groups.retain(|group, life| {
            let goes_on = there.contains(group);
            if !goes_on {
                findings.push(life.finding(*kind, Phase::End, now));
            }
            goes_on
        });
        findings.sort_by_key(|finding| (finding.oldest.since, finding.oldest.service));
        findings
    }
}

impl Life {
    fn finding(&self, kind: AnomalyKind, phase: Phase, time: u64) -> Finding {
        let &Self { first_seen, peak, last, .. } = self;
        let Present { count, oldest, source, technique, permille } = last;
        let over = phase == Phase::End;
        Finding {
            kind,
            phase,
            severity: severity(kind, if over { peak } else { count }),
            count: if over { 0 } else { count },
            peak,
            first_seen,
            time,
            oldest,
            source,
            technique,
            permille,
        }
    }
}

/// How much so many of a kind matter.
pub fn severity(kind: AnomalyKind, count: u64) -> Severity {
    /// From here on the usual limit of open files (1024) is near.
    const FILES: u64 = 900;
    /// From here on a backlog of 128, the usual `somaxconn` of old, is full.
    const BACKLOG: u64 = 128;
    let critical_from = match kind {
        AnomalyKind::IdleEstablished
        | AnomalyKind::FinWait2Stuck
        | AnomalyKind::ViewMismatch
        | AnomalyKind::RstOutOfWindow => return Severity::Info,
        AnomalyKind::SynFlood | AnomalyKind::RstInjection | AnomalyKind::AcceptQueueOverflow => 0,
        AnomalyKind::CloseWaitStuck | AnomalyKind::CloseWaitLeak => FILES,
        AnomalyKind::HalfOpen => BACKLOG,
        AnomalyKind::FinWait1Stuck
        | AnomalyKind::LastAckStuck
        | AnomalyKind::ClosingStuck
        | AnomalyKind::SynSentStuck
        | AnomalyKind::ZeroWindowStall
        | AnomalyKind::PeerGone
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
        | AnomalyKind::TwAssassination
        | AnomalyKind::IllegalSegments
        | AnomalyKind::TimeWaitPressure
        | AnomalyKind::RetransmissionStorm => return Severity::Warning,
    };
    if count >= critical_from { Severity::Critical } else { Severity::Warning }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests::dwelling;

    const SECOND: u64 = 1_000_000_000;

    fn there(count: u64) -> Vec<(u8, Present)> {
        if count == 0 { vec![] } else { vec![(1, Present::new(count, dwelling(1)))] }
    }

    /// The table of docs/anomalies.md says how much each kind matters.
    #[test]
    fn the_page_says_the_severities() {
        let page = include_str!("../../../docs/anomalies.md");
        for kind in AnomalyKind::ALL {
            let begin = format!("| `{}` |", kind.name());
            let row = page.lines().find(|line| line.starts_with(&begin)).unwrap();
            let said = row.split(" | ").nth(3).unwrap();
            let (least, most) = (severity(kind, 1), severity(kind, u64::MAX));
            if least == most {
                assert_eq!(said, least.name(), "{row}");
            } else {
                let from: u64 = said.strip_prefix("warning; critical from ").unwrap().parse().unwrap();
                let around = [severity(kind, from - 1), severity(kind, from)];
                assert_eq!(around, [Severity::Warning, Severity::Critical], "{row}");
            }
        }
    }

    #[test]
    fn how_it_is_done_is_told_once_it_shows() {
        let mut ongoing = Ongoing::new(AnomalyKind::SynFlood);
        let done = |technique| [(1, Present { technique, ..Present::new(500, dwelling(1)) })];
        assert_eq!(ongoing.update(0, done(None))[0].technique, None);
        let [update] = ongoing.update(SECOND, done(Some("backlog")))[..] else { panic!("one update") };
        assert_eq!((update.phase, update.technique), (Phase::Update, Some("backlog")));
        assert_eq!(ongoing.update(2 * SECOND, done(Some("syn_cookies"))), [], "until the next");
        let [end] = ongoing.update(3 * SECOND, [])[..] else { panic!("one end") };
        assert_eq!(end.technique, Some("syn_cookies"));
    }

    #[test]
    fn it_begins_doubles_and_ends() {
        let mut ongoing = Ongoing::new(AnomalyKind::CloseWaitStuck);
        let [start] = ongoing.update(0, there(500))[..] else { panic!("one start") };
        assert_eq!((start.phase, start.count, start.severity), (Phase::Start, 500, Severity::Warning));
        assert_eq!(ongoing.update(SECOND, there(899)), [], "not twice as many");
        let [update] = ongoing.update(2 * SECOND, there(1_000))[..] else { panic!("one update") };
        assert_eq!((update.phase, update.count, update.severity), (Phase::Update, 1_000, Severity::Critical));
        assert_eq!((ongoing.going_on().len(), ongoing.is_going_on(&1)), (1, true));
        let [end] = ongoing.update(3 * SECOND, there(0))[..] else { panic!("one end") };
        assert_eq!((end.phase, end.count, end.peak, end.first_seen), (Phase::End, 0, 1_000, 0));
        assert_eq!((ongoing.going_on(), ongoing.update(4 * SECOND, there(0))), (vec![], vec![]));
    }

    #[test]
    fn whoever_asks_has_it_as_of_the_last_sweep() {
        let mut ongoing = Ongoing::new(AnomalyKind::CloseWaitStuck);
        let sweep = |ongoing: &mut Ongoing<u8>, second, count, since| {
            let oldest = Dwelling { since, ..dwelling(1) };
            let told = ongoing.update(second * SECOND, [(1, Present::new(count, oldest))]);
            let [now] = ongoing.going_on()[..] else { panic!("one goes on") };
            (told.len(), now.phase, now.count, now.peak, now.oldest.since, now.time / SECOND)
        };
        assert_eq!(sweep(&mut ongoing, 10, 40, 1), (1, Phase::Start, 40, 40, 1, 10));
        assert_eq!(sweep(&mut ongoing, 15, 70, 1), (0, Phase::Update, 70, 70, 1, 15));
        assert_eq!(sweep(&mut ongoing, 20, 1, 9), (0, Phase::Update, 1, 70, 9, 20), "the others were closed");
    }

    #[test]
    fn it_is_told_when_it_matters_more() {
        let mut ongoing = Ongoing::new(AnomalyKind::CloseWaitStuck);
        let mut told = Vec::new();
        for (second, count) in [(0, 600), (5, 899), (10, 950), (15, 890), (20, 950), (75, 890), (80, 950)] {
            let findings = ongoing.update(second * SECOND, there(count));
            told.extend(findings.iter().map(|finding| (second, finding.severity)));
            assert_eq!(ongoing.going_on()[0].severity, severity(AnomalyKind::CloseWaitStuck, count));
        }
        let (warning, critical) = (Severity::Warning, Severity::Critical);
        assert_eq!(told, [(0, warning), (10, critical), (75, warning), (80, critical)]);
    }

    #[test]
    fn one_that_goes_on_is_told_ever_more_rarely() {
        let mut ongoing = Ongoing::new(AnomalyKind::HalfOpen);
        let told: Vec<u64> =
            (0..=3_600).filter(|second| !ongoing.update(second * SECOND, there(1)).is_empty()).collect();
        assert_eq!(told, [0, 60, 180, 420, 900, 1_800, 2_700, 3_600]);
    }

    #[test]
    fn groups_without_room_are_counted() {
        let mut ongoing = Ongoing::new(AnomalyKind::HalfOpen);
        let many = (0..MAX_GROUPS + 10).map(|group| (group, Present::new(1, dwelling(1))));
        assert_eq!(ongoing.update(0, many).len(), MAX_GROUPS);
        assert_eq!((ongoing.going_on().len(), ongoing.overflow()), (MAX_GROUPS, 10));
    }
}
