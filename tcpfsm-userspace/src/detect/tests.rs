//! What the detectors' tests share, and what holds for all of them together.

use std::collections::HashSet;

use tcpfsm_common::{
    abi::{Conditions, Counters},
    flow::{End, FlowKey, FlowKey4},
    fsm::State,
    segment::TcpFlags,
};

use super::{AnomalyKind, Detector, Dwelling, Finding, Repeats, Seen, SweepEnd, all};
use crate::{
    config::Config,
    pipeline::synthetic::Conversation,
    report::{Phase, Side},
    source::live::Observation,
};

pub(super) const REPEATS: Repeats = Repeats { stuck: 12, conditions: 3 };

/// An end in SYN-RECEIVED at 10.0.0.2:80.
pub(super) fn dwelling(port: u16) -> Dwelling {
    Dwelling {
        key: FlowKey::V4(FlowKey4 { addr: [1, 2], port: [port, 80], scope: 0 }),
        end: End::High,
        side: Side::Resp,
        state: State::SynRecv,
        confirmed: true,
        since: 0,
        service: ([10, 0, 0, 2], 80).into(),
        ifindex: 1,
    }
}

/// A connection request of a client's `port` to a service (0 for the usual one) that is refused.
pub(super) fn refused(port: u16, service: u16) -> Vec<Observation> {
    let mut talk =
        if service == 0 { Conversation::from_port(port) } else { Conversation::between(port, service) };
    vec![talk.segment(End::Low, TcpFlags::SYN, 0), talk.segment(End::High, TcpFlags::RST | TcpFlags::ACK, 0)]
}

/// Sweeps one after the other.
pub(super) struct Sweeps {
    number: u32,
    pub(super) counters: Counters,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self { number: 1, counters: Counters::ZERO }
    }
}

impl Sweeps {
    pub(super) fn tell(&self, detector: &mut dyn Detector, observation: &Observation) {
        detector.seen(&Seen { observation, sweep: self.number });
    }

    pub(super) fn end(&mut self, detector: &mut dyn Detector, now: u64) -> Vec<Finding> {
        let number = self.number;
        self.number += 1;
        detector.swept(&SweepEnd { now, number, counters: &self.counters, services: &[], full_queues: &[] })
    }
}

#[test]
fn every_kind_has_one_detector() {
    let detectors = all(&Config::default(), REPEATS, 28_232);
    let mut found = HashSet::new();
    for kind in detectors.iter().flat_map(|detector| detector.kinds()) {
        assert!(found.insert(*kind), "{kind:?} has two");
    }
    assert!(found.insert(AnomalyKind::ViewMismatch), "it is told of comparisons by the engine");
    assert_eq!(found.len(), AnomalyKind::ALL.len());
}

#[test]
fn a_kind_that_is_off_is_silent() {
    let config = Config {
        detect: AnomalyKind::ALL
            .into_iter()
            .fold(Config::default().detect, |rules, kind| rules.with(kind, |rule| rule.enabled = false)),
        ..Config::default()
    };
    assert!(all(&config, REPEATS, 28_232).is_empty());
}

/// Ten thousand connections that come, talk and go: not one anomaly.
#[test]
fn healthy_connections_are_no_anomaly() {
    let mut detectors = all(&Config::default(), REPEATS, 28_232);
    let mut sweeps = Sweeps::default();
    for port in 1..=10_000 {
        let mut talk = Conversation::from_port(port);
        talk.now += u64::from(port) * 1_000_000;
        let mut life = talk.ordinary_life();
        life.push(talk.expire(talk.now + 61_000_000_000));
        for observation in &life {
            detectors.iter_mut().for_each(|detector| sweeps.tell(detector.as_mut(), observation));
        }
        if port % 1_000 == 0 {
            for detector in &mut detectors {
                assert_eq!(sweeps.end(detector.as_mut(), talk.now), []);
            }
        }
    }
    assert!(detectors.iter().all(|detector| detector.overflow() == 0));
}

/// Whatever the sweep repeats of a flow's past, it is not counted again.
#[test]
fn a_sweep_brings_no_old_news() {
    let mut detectors = all(&Config::default(), REPEATS, 28_232);
    let mut sweeps = Sweeps::default();
    let mut talk = Conversation::new();
    talk.segment(End::Low, TcpFlags::SYN, 0);
    talk.record.shared.facts = u64::MAX;
    for _ in 0..1_000 {
        let stuck = talk.stuck(Conditions::STUCK);
        detectors.iter_mut().for_each(|detector| sweeps.tell(detector.as_mut(), &stuck));
    }
    for detector in &mut detectors {
        let findings = sweeps.end(detector.as_mut(), talk.now);
        assert!(
            findings.iter().all(|finding| finding.phase == Phase::Start && finding.count < 3),
            "{findings:?}"
        );
    }
}
