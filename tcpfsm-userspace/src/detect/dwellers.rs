//! Flows beyond their threshold, grouped by service: the part that the dwell detectors share.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

use tcpfsm_common::flow::{End, FlowKey};

use super::{AnomalyKind, Dwelling, Finding};
use crate::report::{Phase, Severity, Side};

/// Flows remembered per detector: a flood can make any number.
pub const MAX_MEMBERS: usize = 65_536;

/// Groups with a report of their own; a scan of many ports can make any number.
const MAX_GROUPS: usize = 1_024;

/// An anomaly that goes on is reported again after this long, or when its count has doubled.
const REPEAT_NS: u64 = 60_000_000_000;

/// What flows of one group have in common.
type Group = (SocketAddr, Side);

/// Flows beyond the threshold of one state, and the anomalies they make.
#[derive(Debug)]
pub(super) struct Dwellers {
    kind: AnomalyKind,
    members: HashMap<(FlowKey, End), Member>,
    groups: HashMap<Group, Ongoing>,
    report_every: u32,
}

#[derive(Debug)]
struct Member {
    dwelling: Dwelling,
    sweep: u32,
}

/// An anomaly that was reported and is not over.
#[derive(Debug)]
struct Ongoing {
    first_seen: u64,
    peak: u64,
    reported_count: u64,
    reported_at: u64,
    oldest: Dwelling,
}

impl Dwellers {
    pub(super) fn new(kind: AnomalyKind, report_every: u32) -> Self {
        Self { kind, members: HashMap::new(), groups: HashMap::new(), report_every }
    }

    pub(super) fn insert(&mut self, dwelling: &Dwelling, sweep: u32) {
        let room = self.members.len() < MAX_MEMBERS;
        match self.members.entry((dwelling.key, dwelling.end)) {
            Entry::Occupied(mut known) => *known.get_mut() = Member { dwelling: *dwelling, sweep },
            Entry::Vacant(new) if room => {
                new.insert(Member { dwelling: *dwelling, sweep });
            }
            Entry::Vacant(_) => {}
        }
    }

    pub(super) fn remove(&mut self, key: &FlowKey, end: End) {
        if !self.members.is_empty() {
            self.members.remove(&(*key, end));
        }
    }

    pub(super) fn active(&self) -> usize {
        self.groups.len()
    }

    /// Counts the groups anew and compares them with what was reported.
    pub(super) fn swept(&mut self, now: u64, sweep: u32, severity: impl Fn(u64) -> Severity) -> Vec<Finding> {
        // The sweep repeats itself about every flow; one it is silent about left without an event: it was
        // evicted, or the event was lost.
        let patience = self.report_every.saturating_mul(2).saturating_add(1);
        self.members.retain(|_, member| sweep.wrapping_sub(member.sweep) <= patience);

        let mut now_there: HashMap<Group, (u64, Dwelling)> = HashMap::new();
        for Member { dwelling, .. } in self.members.values() {
            now_there
                .entry((dwelling.service, dwelling.side))
                .and_modify(|(count, oldest)| {
                    *count += 1;
                    if dwelling.since < oldest.since {
                        *oldest = *dwelling;
                    }
                })
                .or_insert((1, *dwelling));
        }

        let kind = self.kind;
        let mut findings = Vec::new();
        self.groups.retain(|group, ongoing| {
            if now_there.contains_key(group) {
                return true;
            }
            findings.push(ongoing.finding(kind, Phase::End, severity(ongoing.peak), 0, now));
            false
        });
        for (group, (count, oldest)) in now_there {
            let room = self.groups.len() < MAX_GROUPS;
            match self.groups.entry(group) {
                Entry::Occupied(mut known) => {
                    let ongoing = known.get_mut();
                    ongoing.oldest = oldest;
                    ongoing.peak = ongoing.peak.max(count);
                    let doubled = count >= ongoing.reported_count.saturating_mul(2);
                    if doubled || now.saturating_sub(ongoing.reported_at) >= REPEAT_NS {
                        ongoing.reported_count = count;
                        ongoing.reported_at = now;
                        findings.push(ongoing.finding(kind, Phase::Update, severity(count), count, now));
                    }
                }
                Entry::Vacant(new) if room => {
                    let ongoing = new.insert(Ongoing {
                        first_seen: now,
                        peak: count,
                        reported_count: count,
                        reported_at: now,
                        oldest,
                    });
                    findings.push(ongoing.finding(kind, Phase::Start, severity(count), count, now));
                }
                Entry::Vacant(_) => {}
            }
        }
        findings.sort_by_key(|finding| (finding.oldest.since, finding.oldest.service));
        findings
    }
}

impl Ongoing {
    fn finding(&self, kind: AnomalyKind, phase: Phase, severity: Severity, count: u64, time: u64) -> Finding {
        let &Self { first_seen, peak, oldest, .. } = self;
        Finding { kind, phase, severity, count, peak, first_seen, time, oldest }
    }
}
