//! Ends of flows that are in a condition, remembered from sweep to sweep and grouped by service.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

use tcpfsm_common::flow::{End, FlowKey};

use super::{Dwelling, ongoing::Present};
use crate::report::Side;

/// Ends remembered per detector: a flood can make any number.
pub(super) const MAX_MEMBERS: usize = 65_536;

/// Sweeps begin a few milliseconds early or late: what lasts from one to another has lasted for its threshold.
const JITTER_NS: u64 = 50_000_000;

/// For a condition of which every sweep speaks.
pub(super) const EVERY_SWEEP: u32 = 0;

/// What flows of one group have in common: the service, and which end of it is concerned.
pub(super) type Group = (SocketAddr, Side);

/// Ends in a condition.
#[derive(Debug)]
pub(super) struct Members {
    ends: HashMap<(FlowKey, End), Member>,
    report_every: u32,
    overflow: u64,
}

#[derive(Debug)]
struct Member {
    dwelling: Dwelling,
    /// The sweep that named it last, and when.
    sweep: u32,
    until: u64,
}

impl Members {
    /// `report_every`: the sweep repeats itself about a flow after so many sweeps.
    pub(super) fn new(report_every: u32) -> Self {
        Self { ends: HashMap::new(), report_every, overflow: 0 }
    }

    /// An end is in the condition at `now`; since when, is what was said the first time.
    pub(super) fn insert(&mut self, dwelling: &Dwelling, sweep: u32, now: u64) {
        let room = self.ends.len() < MAX_MEMBERS;
        match self.ends.entry((dwelling.key, dwelling.end)) {
            Entry::Occupied(mut known) => {
                let since = known.get().dwelling.since.min(dwelling.since);
                *known.get_mut() = Member { dwelling: Dwelling { since, ..*dwelling }, sweep, until: now };
            }
            Entry::Vacant(new) if room => {
                new.insert(Member { dwelling: *dwelling, sweep, until: now });
            }
            Entry::Vacant(_) => self.overflow += 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn remove(&mut self, key: &FlowKey, end: End) {
        self.ends.remove(&(*key, end));
    }

    /// How many found no room; each is counted as often as the sweep names it.
    pub(super) const fn overflow(&self) -> u64 {
        self.overflow
    }

    /// Forgets whom the sweep no longer names, and counts by group those that had lasted for `after` when it named
    /// them last.
    pub(super) fn grouped(&mut self, sweep: u32, after: u64) -> HashMap<Group, Present> {
        // The sweep repeats itself about every flow; one it is silent about left without an event: what it was in
        // ends without one, it was evicted, or the event was lost.
        let patience = self.report_every.saturating_add(1);
        self.ends.retain(|_, member| sweep.wrapping_sub(member.sweep) <= patience);
        let mut groups: HashMap<Group, Present> = HashMap::new();
        for Member { dwelling, until, .. } in self.ends.values() {
            if until.saturating_sub(dwelling.since) + JITTER_NS < after {
                continue;
            }
            groups
                .entry((dwelling.service, dwelling.side))
                .and_modify(|present| {
                    present.count += 1;
                    if dwelling.since < present.oldest.since {
                        present.oldest = *dwelling;
                    }
                })
                .or_insert(Present::new(1, *dwelling));
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::tests::dwelling;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_oldest_stands_for_its_group() {
        let mut members = Members::new(12);
        members.insert(&Dwelling { since: 7, ..dwelling(1) }, 1, 9);
        members.insert(&Dwelling { since: 5, ..dwelling(2) }, 1, 9);
        members.insert(&Dwelling { since: 9, ..dwelling(2) }, 2, 9);
        members.insert(&Dwelling { side: Side::Orig, ..dwelling(3) }, 1, 9);
        let groups = members.grouped(2, 0);
        let service = dwelling(1).service;
        assert_eq!((groups.len(), groups[&(service, Side::Resp)].count), (2, 2));
        assert_eq!(groups[&(service, Side::Resp)].oldest.since, 5, "not as late as it was said last");
    }

    #[test]
    fn silence_does_not_make_it_last() {
        let mut members = Members::new(3);
        members.insert(&dwelling(1), 1, 0);
        members.insert(&dwelling(1), 4, 15 * SECOND);
        assert_eq!(members.grouped(8, 16 * SECOND).len(), 0, "what it is now, the sweep does not say");
        members.insert(&dwelling(1), 8, 16 * SECOND - 1_000_000);
        assert_eq!(members.grouped(8, 16 * SECOND).len(), 1);
    }

    #[test]
    fn a_flow_that_the_sweep_no_longer_names_is_gone() {
        let mut members = Members::new(3);
        members.insert(&dwelling(1), 1, 0);
        assert_eq!(members.grouped(5, 0).len(), 1);
        assert_eq!(members.grouped(6, 0).len(), 0);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut members = Members::new(3);
        for port in 0..=u16::MAX {
            members.insert(&dwelling(port), 1, 0);
        }
        assert_eq!(members.overflow(), 0);
        let other = Dwelling { end: End::Low, ..dwelling(1) };
        members.insert(&other, 1, 0);
        assert_eq!(members.overflow(), 1);
        members.remove(&other.key, End::High);
        members.insert(&other, 1, 0);
        assert_eq!(members.overflow(), 1);
    }
}
