//! Kinds of anomaly that are too many of something within a window. Each is a line of data, a [`Spec`].

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

pub(super) use super::bases::Base;
use super::{
    AnomalyKind, Detector, Dwelling, Finding, Seen, SweepEnd,
    bases::{BaseOf, Bases, may_count},
    finding::permille,
    ongoing::{MAX_GROUPS, Ongoing, Present},
    window::Window,
};
use crate::config::{Rule, Rules};

/// Groups in which something was counted of late, per kind.
const MAX_TALLIES: usize = 4 * MAX_GROUPS;

/// What is counted for one kind of anomaly, and for whom.
pub(super) struct Spec {
    pub(super) kind: AnomalyKind,
    /// One of these, if it counts: whose it is, and how many it stands for.
    pub(super) hit: fn(&Seen<'_>) -> Option<Hit>,
    /// The same for what the share is of. Kinds whose rule has no share need none.
    pub(super) base: BaseOf,
    /// Whether the hits are part of the base, or come on top of it.
    pub(super) base_has_hits: bool,
    /// Whether the group is a source, rather than a service.
    pub(super) by_source: bool,
    /// How it is noticed, where a kind has several ways.
    pub(super) technique: Option<&'static str>,
}

/// Something that counts.
pub(super) struct Hit {
    /// What such things are grouped by: a service; or an address with port 0, where the port means nothing.
    pub(super) group: SocketAddr,
    /// How many it stands for.
    pub(super) weight: u64,
    /// The end that it is about.
    pub(super) example: Dwelling,
}

/// For kinds that are judged by their number alone.
pub(super) const fn no_base(_: &Seen<'_>) -> Base {
    [None, None]
}

/// An address as a group.
pub(super) const fn any_port(address: std::net::IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

/// The detector of all these kinds.
pub(super) struct Rates {
    kinds: Vec<Rate>,
    /// What was before the first hit; kinds that share the count and the window share these.
    bases: Vec<Bases>,
    /// Whether any kind counts its base now: there was a hit of late.
    has_bases: bool,
    overflow: u64,
}

struct Rate {
    spec: &'static Spec,
    rule: Rule,
    /// Which of the bases is its own.
    base: Option<usize>,
    tallies: HashMap<SocketAddr, Tally>,
    ongoing: Ongoing<SocketAddr>,
}

/// What was counted in one group.
struct Tally {
    hits: Window,
    base: Window,
    /// The first of those that count now.
    example: Dwelling,
}

impl Rates {
    pub(super) fn new(rules: &Rules, specs: &[&'static [Spec]]) -> Self {
        let mut bases: Vec<Bases> = Vec::new();
        let kinds = specs
            .iter()
            .flat_map(|specs| specs.iter())
            .filter(|spec| rules[spec.kind].enabled)
            .map(|spec| {
                let rule = rules[spec.kind];
                let base = rule.percent.map(|_| {
                    let shared = bases.iter().position(|base| base.is(spec.base, rule.window_ns()));
                    shared.unwrap_or_else(|| {
                        bases.push(Bases::new(spec.base, rule.window_ns()));
                        bases.len() - 1
                    })
                });
                Rate { spec, rule, base, tallies: HashMap::new(), ongoing: Ongoing::new(spec.kind) }
            })
            .collect();
        Self { kinds, bases, has_bases: false, overflow: 0 }
    }
}

impl Detector for Rates {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[
            AnomalyKind::ConnectRefused,
            AnomalyKind::ConnectTimeout,
            AnomalyKind::ConnectUnreachable,
            AnomalyKind::HandshakeAborted,
            AnomalyKind::ConnectionAborted,
            AnomalyKind::RstStorm,
            AnomalyKind::RstInexact,
            AnomalyKind::RstOutOfWindow,
            AnomalyKind::RstInjection,
            AnomalyKind::TwAssassination,
            AnomalyKind::IllegalSegments,
            AnomalyKind::SynackFlood,
            AnomalyKind::RstFlood,
            AnomalyKind::AckFlood,
        ]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        let Self { kinds, bases, has_bases, overflow } = self;
        // An ordinary event is no hit, and part of a base only where there were hits.
        if !seen.is_ordinary() {
            for rate in &mut *kinds {
                rate.hit(seen, bases, overflow);
                *has_bases |= rate.has_base();
            }
        }
        if *has_bases {
            kinds.iter_mut().filter(|rate| rate.has_base()).for_each(|rate| rate.base(seen));
        }
        // After the kinds: a first hit that is part of its base would count twice.
        if may_count(seen) {
            bases.iter_mut().for_each(|base| base.seen(seen));
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        self.bases.iter_mut().for_each(|base| base.swept(sweep.now));
        let findings = self.kinds.iter_mut().flat_map(|rate| rate.swept(sweep.now)).collect();
        self.has_bases = self.kinds.iter().any(Rate::has_base);
        findings
    }

    fn going_on(&self) -> Vec<Finding> {
        self.kinds.iter().flat_map(|rate| rate.ongoing.going_on()).collect()
    }

    fn overflow(&self) -> u64 {
        let kinds = self.kinds.iter().map(|rate| rate.ongoing.overflow());
        self.overflow + kinds.chain(self.bases.iter().map(Bases::overflow)).sum::<u64>()
    }
}

impl Rate {
    /// Whether there is anything whose base is to be counted.
    fn has_base(&self) -> bool {
        self.base.is_some() && !self.tallies.is_empty()
    }

    /// Counts it if it is a hit.
    fn hit(&mut self, seen: &Seen<'_>, bases: &[Bases], overflow: &mut u64) {
        let Self { spec, rule, base, tallies, .. } = self;
        let Some(Hit { group, weight, example }) = (spec.hit)(seen) else { return };
        let room = tallies.len() < MAX_TALLIES;
        let tally = match tallies.entry(group) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if room => {
                let before = base.and_then(|base| bases.get(base)).map(|base| base.of_group(&group));
                new.insert(Tally { hits: Window::default(), base: before.unwrap_or_default(), example })
            }
            Entry::Vacant(_) => {
                *overflow += 1;
                return;
            }
        };
        tally.hits.add(seen.event().time, rule.window_ns(), weight);
    }

    /// Counts it if it is part of the base of a group in which there were hits.
    fn base(&mut self, seen: &Seen<'_>) {
        for (group, weight) in (self.spec.base)(seen).iter().flatten() {
            if let Some(tally) = self.tallies.get_mut(group) {
                tally.base.add(seen.event().time, self.rule.window_ns(), *weight);
            }
        }
    }

    fn swept(&mut self, now: u64) -> Vec<Finding> {
        let Self { spec, rule, tallies, ongoing, .. } = self;
        let length = rule.window_ns();
        let mut present = Vec::new();
        tallies.retain(|group, tally| {
            let hits = tally.hits.sum(now, length);
            if hits == 0 {
                return false;
            }
            let base = tally.base.sum(now, length);
            let whole = if spec.base_has_hits { base.max(hits) } else { base + hits };
            let enough = if ongoing.is_going_on(group) {
                hits >= rule.least().div_ceil(2)
            } else {
                hits >= rule.least() && rule.is_share(hits, whole)
            };
            if enough {
                present.push((
                    *group,
                    Present {
                        source: spec.by_source.then_some(group.ip()),
                        technique: spec.technique,
                        permille: rule.percent.map(|_| permille(hits, whole)),
                        ..Present::new(hits, tally.example)
                    },
                ));
            }
            true
        });
        ongoing.update(now, present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::{
            floods, handshake, illegal, peer_gone, resets,
            tests::{Sweeps, refused},
        },
        pipeline::synthetic::{Conversation, RESP},
        report::Phase,
    };
    use tcpfsm_common::{fact::Fact, flow::End, segment::TcpFlags};

    const SECOND: u64 = 1_000_000_000;

    fn rates() -> Rates {
        Rates::new(&Rules::default(), &[handshake::SPECS])
    }

    #[test]
    fn nine_are_none_and_ten_are_one() {
        let (mut rates, mut sweeps) = (rates(), Sweeps::default());
        for port in 1..=9 {
            refused(port, 0).iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        }
        assert_eq!(sweeps.end(&mut rates, 2 * SECOND), []);
        refused(10, 0).iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        let [start] = sweeps.end(&mut rates, 3 * SECOND)[..] else { panic!("one") };
        assert_eq!((start.kind, start.count), (AnomalyKind::ConnectRefused, 10));
        assert_eq!((start.oldest.service, start.permille), (RESP, Some(1_000)));
        assert_eq!(rates.going_on(), [start]);
        assert_eq!(sweeps.end(&mut rates, 40 * SECOND), [], "within the window it goes on");
        assert_eq!(sweeps.end(&mut rates, 70 * SECOND)[0].phase, Phase::End);
    }

    #[test]
    fn one_of_a_sample_counts_for_what_it_stands_for() {
        let (mut rates, mut sweeps) = (rates(), Sweeps::default());
        for mut seen in refused(1, 0) {
            seen.event.weight = 64;
            sweeps.tell(&mut rates, &seen);
        }
        assert_eq!(sweeps.end(&mut rates, 2 * SECOND)[0].count, 64);
    }

    #[test]
    fn a_small_share_is_no_anomaly() {
        let (mut rates, mut sweeps) = (rates(), Sweeps::default());
        refused(1, 0).iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        for port in 100..130 {
            Conversation::from_port(port).handshake().iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        }
        for port in 2..=20 {
            refused(port, 0).iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        }
        assert_eq!(sweeps.end(&mut rates, 2 * SECOND), [], "20 of 50");
        for port in 21..=40 {
            refused(port, 0).iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        }
        assert_eq!(sweeps.end(&mut rates, 3 * SECOND).len(), 1, "40 of 70");
    }

    /// [`Seen::is_ordinary`] spares the kinds every ordinary event, so no kind may count one.
    #[test]
    fn what_is_ordinary_is_no_hit() {
        let specs = [handshake::SPECS, resets::SPECS, illegal::SPECS, floods::SPECS, peer_gone::SPECS];
        let mut talk = Conversation::new();
        let mut life = talk.ordinary_life();
        life.push(talk.stray(End::Low, TcpFlags::RST));
        life.push(talk.expire(talk.now + 300 * SECOND));
        let (mut hits, mut ordinary) = (0, 0);
        for (event, fact) in life.iter().flat_map(|event| Fact::ALL.map(|fact| (event, fact))) {
            let mut told = *event;
            told.event.facts |= 1 << fact as u64;
            for flags in [event.event.flags, 0, TcpFlags::RST, TcpFlags::SYN] {
                told.event.flags = flags;
                let seen = Seen { observation: &told, sweep: 1 };
                let hit = specs.into_iter().flatten().find(|spec| (spec.hit)(&seen).is_some());
                assert!(hit.is_none() || !seen.is_ordinary(), "{:?}: {told:?}", hit.map(|spec| spec.kind));
                hits += usize::from(hit.is_some());
                ordinary += usize::from(seen.is_ordinary());
            }
        }
        assert!(hits > 100 && ordinary > 50, "{hits} hits, {ordinary} ordinary");
        assert!(life.iter().filter(|event| Seen { observation: event, sweep: 1 }.is_ordinary()).count() > 5);
    }

    /// What `wrk` does when its time is over: it resets all connections at once, the last of thousands.
    fn aborts(good: u16, bad: u16) -> Vec<Finding> {
        let (mut rates, mut sweeps) = (Rates::new(&Rules::default(), &[resets::SPECS]), Sweeps::default());
        for port in 1..=good {
            let life = Conversation::from_port(port).ordinary_life();
            life.iter().for_each(|seen| sweeps.tell(&mut rates, seen));
            if port % 1_000 == 0 {
                assert_eq!(sweeps.end(&mut rates, SECOND), []);
            }
        }
        for port in 1..=bad {
            let mut talk = Conversation::from_port(20_000 + port);
            talk.handshake().iter().for_each(|seen| sweeps.tell(&mut rates, seen));
            sweeps.tell(&mut rates, &talk.segment(End::Low, TcpFlags::RST | TcpFlags::ACK, 0));
        }
        sweeps.end(&mut rates, 2 * SECOND)
    }

    #[test]
    fn the_whole_is_what_was_before_the_first_hit_too() {
        assert_eq!(aborts(10_000, 31), []);
        let [start] = aborts(9, 31)[..] else { panic!("one") };
        assert_eq!((start.kind, start.count), (AnomalyKind::ConnectionAborted, 31));
        assert_eq!(start.permille, Some(775), "31 of 40");
    }

    #[test]
    fn kinds_with_the_same_whole_share_it() {
        assert_eq!(rates().bases.len(), 2, "three of a minute, and connect_timeout");
        assert_eq!(Rates::new(&Rules::default(), &[illegal::SPECS]).bases.len(), 0);
    }
}
