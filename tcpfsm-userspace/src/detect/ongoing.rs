//! The life of an anomaly: it begins, goes on, and ends; how often that is reported.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{AnomalyKind, Dwelling, Finding};
use crate::report::{Phase, Severity};

/// Groups with a report of their own; a scan of many ports can make any number.
pub(super) const MAX_GROUPS: usize = 1_024;

/// An anomaly that goes on is reported again after this long, then after twice as long, and so on …
const REPEAT_NS: u64 = 60_000_000_000;

/// … up to this; or at once when its count has doubled.
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
    overflow: u64,
}

#[derive(Debug)]
struct Life {
    id: u64,
    first_seen: u64,
    peak: u64,
    reported_count: u64,
    reported_at: u64,
    repeat: u64,
    last: Present,
}

impl<G: Hash + Eq + Copy> Ongoing<G> {
    pub(super) fn new(kind: AnomalyKind) -> Self {
        Self { kind, groups: HashMap::new(), overflow: 0 }
    }

    pub(super) fn active(&self) -> usize {
        self.groups.len()
    }

    /// Groups that went unreported because too many others were going on.
    pub(super) const fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Whether an anomaly goes on in a group: what began ends at half of what it began with.
    pub(super) fn is_going_on(&self, group: &G) -> bool {
        self.groups.contains_key(group)
    }

    /// Compares what is going on now with what was reported.
    pub(super) fn update(
        &mut self,
        now: u64,
        present: impl IntoIterator<Item = (G, Present)>,
    ) -> Vec<Finding> {
        let Self { kind, groups, overflow } = self;
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
                    if doubled || explained || due {
                        if due && !doubled {
                            life.repeat = life.repeat.saturating_mul(2).min(LONGEST_REPEAT_NS);
                        }
                        life.reported_count = present.count;
                        life.reported_at = now;
                        findings.push(life.finding(*kind, Phase::Update, now));
                    }
                }
                Entry::Vacant(new) if room => {
                    let life = new.insert(Life {
                        id: new_id(),
                        first_seen: now,
                        peak: present.count,
                        reported_count: present.count,
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
        let &Self { id, first_seen, peak, last, .. } = self;
        let Present { count, oldest, source, technique, permille } = last;
        let over = phase == Phase::End;
        Finding {
            id,
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

/// A number that no anomaly of any kind had before.
fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// How much so many of a kind matter.
fn severity(kind: AnomalyKind, count: u64) -> Severity {
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
        assert_eq!(ongoing.update(SECOND, there(999)), [], "not twice as many");
        let [update] = ongoing.update(2 * SECOND, there(1_000))[..] else { panic!("one update") };
        assert_eq!((update.phase, update.count, update.severity), (Phase::Update, 1_000, Severity::Critical));
        assert_eq!((ongoing.active(), ongoing.is_going_on(&1)), (1, true));
        let [end] = ongoing.update(3 * SECOND, there(0))[..] else { panic!("one end") };
        assert_eq!((end.phase, end.count, end.peak, end.first_seen), (Phase::End, 0, 1_000, 0));
        assert_eq!((ongoing.active(), ongoing.update(4 * SECOND, there(0)).len()), (0, 0));
    }

    #[test]
    fn one_is_known_by_its_number_whatever_its_example() {
        let mut ongoing = Ongoing::new(AnomalyKind::RetransmissionStorm);
        let of = |group, port| (group, Present::new(500, dwelling(port)));
        let [one, other] = ongoing.update(0, [of(1, 1), of(2, 1)])[..] else { panic!("two starts") };
        assert_ne!(one.id, other.id, "of one time and one example");
        let ends: Vec<u64> = {
            ongoing.update(SECOND, [of(1, 7), of(2, 8)]);
            ongoing.update(2 * SECOND, []).iter().map(|end| end.id).collect()
        };
        assert!(ends.len() == 2 && ends.contains(&one.id) && ends.contains(&other.id), "{ends:?}");
        assert!(!ends.contains(&ongoing.update(3 * SECOND, [of(1, 1)])[0].id), "another time is another one");
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
        assert_eq!((ongoing.active(), ongoing.overflow()), (MAX_GROUPS, 10));
    }
}
