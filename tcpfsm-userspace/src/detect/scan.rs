//! One source that tries many addresses or ports, and what it gets from them: nothing, or a refusal.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
};

use tcpfsm_common::{
    abi::{Conditions, EventKind},
    fact::Fact,
    fsm::State,
    segment::TcpFlags,
};

use super::{
    AnomalyKind, Detector, Dwelling, Finding, Seen, SweepEnd,
    finding::permille,
    ongoing::{Ongoing, Present},
    window::Window,
};
use crate::config::{Rule, Rules};

/// Sources remembered. A SYN flood from forged addresses brings any number, with one target each.
const MAX_SOURCES: usize = 4_096;

/// Targets remembered, of all sources together.
const MAX_TARGETS: usize = 65_536;

/// A source and its technique.
type Scanner = (IpAddr, &'static str);

/// Finds port scans.
pub(super) struct PortScan {
    rule: Rule,
    scanners: HashMap<Scanner, Attempts>,
    targets: usize,
    ongoing: Ongoing<Scanner>,
    overflow: u64,
}

struct Attempts {
    /// What was tried in vain, and when last.
    targets: HashMap<SocketAddr, u64>,
    successes: Window,
    example: Dwelling,
}

impl PortScan {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            rule: rules[AnomalyKind::PortScan],
            scanners: HashMap::new(),
            targets: 0,
            ongoing: Ongoing::new(AnomalyKind::PortScan),
            overflow: 0,
        }
    }

    fn failed(&mut self, scanner: Scanner, target: SocketAddr, seen: &Seen<'_>) {
        let time = seen.event().time;
        let room = self.scanners.len() < MAX_SOURCES;
        let attempts = match self.scanners.entry(scanner) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if room => new.insert(Attempts {
                targets: HashMap::new(),
                successes: Window::default(),
                example: Dwelling { service: target, ..seen.example(seen.originator()) },
            }),
            Entry::Vacant(_) => {
                self.overflow += 1;
                return;
            }
        };
        match attempts.targets.entry(target) {
            Entry::Occupied(mut known) => *known.get_mut() = time,
            Entry::Vacant(new) if self.targets < MAX_TARGETS => {
                new.insert(time);
                self.targets += 1;
            }
            Entry::Vacant(_) => self.overflow += 1,
        }
    }

    /// What looked like an ACK scan was the middle of a connection.
    fn picked_up(&mut self, seen: &Seen<'_>) {
        for end in [seen.sender(), seen.sender().other()] {
            let scanner = (seen.address(end).ip(), "ack");
            if let Some(attempts) = self.scanners.get_mut(&scanner)
                && attempts.targets.remove(&seen.address(end.other())).is_some()
            {
                self.targets -= 1;
            }
        }
    }
}

/// The technique of a segment that belongs to no connection.
fn technique(flags: TcpFlags) -> Option<&'static str> {
    const XMAS: u16 = TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG;
    const ALL: u16 = XMAS | TcpFlags::SYN | TcpFlags::RST | TcpFlags::ACK;
    match flags.0 & ALL {
        0 => Some("null"),
        TcpFlags::FIN => Some("fin"),
        XMAS => Some("xmas"),
        TcpFlags::ACK => Some("ack"),
        flags if flags == TcpFlags::FIN | TcpFlags::ACK => Some("maimon"),
        flags if flags & (TcpFlags::ACK | TcpFlags::RST) == 0 => Some("other"),
        _ => None,
    }
}

/// Whether a connection request failed, or goes unanswered for long.
fn is_vain(seen: &Seen<'_>) -> bool {
    let orig = seen.originator();
    seen.has(Fact::ConnectRefused)
        || seen.has(Fact::ConnectUnreachable)
        || seen.has(Fact::HandshakeAborted)
        || seen.is_in(Conditions::STUCK, orig) && seen.after().state(orig) == State::SynSent
}

impl Detector for PortScan {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::PortScan]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if seen.kind() == EventKind::Stray {
            if let Some(technique) = technique(seen.event().tcp_flags()) {
                self.failed((seen.source(), technique), seen.target(), seen);
            }
            return;
        }
        let client = || seen.address(seen.originator()).ip();
        if is_vain(seen) {
            self.failed((client(), "syn"), seen.service(), seen);
        } else if self.scanners.is_empty() {
        } else if seen.has(Fact::Established) {
            if let Some(attempts) = self.scanners.get_mut(&(client(), "syn")) {
                attempts.successes.add(seen.event().time, self.rule.window_ns(), 1);
            }
        } else if seen.has(Fact::MidstreamPickup) {
            self.picked_up(seen);
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let Self { rule, scanners, targets, ongoing, .. } = self;
        let length = rule.window_ns();
        let crowded = scanners.len() > MAX_SOURCES / 2;
        let mut present = Vec::new();
        *targets = 0;
        scanners.retain(|scanner, attempts| {
            attempts.targets.retain(|_, time| sweep.now.saturating_sub(*time) < length);
            let failed = attempts.targets.len();
            // One of many with one target each: the room is wanted for those that go on.
            if failed == 0 || (crowded && failed == 1) {
                return false;
            }
            *targets += failed;
            let failed = failed as u64;
            let tried = failed + attempts.successes.sum(sweep.now, length);
            let enough = if ongoing.is_going_on(scanner) {
                failed >= rule.least().div_ceil(2)
            } else {
                failed >= rule.least() && rule.is_share(failed, tried)
            };
            if enough {
                present.push((
                    *scanner,
                    Present {
                        source: Some(scanner.0),
                        technique: Some(scanner.1),
                        permille: Some(permille(failed, tried)),
                        ..Present::new(failed, attempts.example)
                    },
                ));
            }
            true
        });
        ongoing.update(sweep.now, present)
    }

    fn going_on(&self) -> Vec<Finding> {
        self.ongoing.going_on()
    }

    fn overflow(&self) -> u64 {
        self.overflow + self.ongoing.overflow()
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::flow::End;

    use super::*;
    use crate::{
        detect::tests::{Sweeps, refused},
        pipeline::synthetic::{Conversation, ORIG},
        report::Phase,
    };

    const SECOND: u64 = 1_000_000_000;

    fn scan() -> (PortScan, Sweeps) {
        (PortScan::new(&Rules::default()), Sweeps::default())
    }

    #[test]
    fn each_technique_is_told_by_its_flags() {
        for (flags, name) in [
            (0, "null"),
            (TcpFlags::FIN, "fin"),
            (TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG, "xmas"),
            (TcpFlags::ACK, "ack"),
            (TcpFlags::FIN | TcpFlags::ACK, "maimon"),
            (TcpFlags::SYN | TcpFlags::FIN, "other"),
        ] {
            let (mut scan, mut sweeps) = scan();
            for port in 1..=25 {
                let mut talk = Conversation::between(40_000, port);
                sweeps.tell(&mut scan, &talk.stray(End::Low, flags));
            }
            let [start] = sweeps.end(&mut scan, 2 * SECOND)[..] else { panic!("{name}") };
            assert_eq!((start.technique, start.source, start.count), (Some(name), Some(ORIG.ip()), 25));
            assert_eq!(sweeps.end(&mut scan, 70 * SECOND)[0].phase, Phase::End);
        }
    }

    #[test]
    fn a_syn_scan_is_many_targets_not_many_tries() {
        let (mut scan, mut sweeps) = scan();
        for port in 1..=100 {
            refused(port, 0).iter().for_each(|seen| sweeps.tell(&mut scan, seen));
        }
        assert_eq!(sweeps.end(&mut scan, 2 * SECOND), [], "one service that is down");
        for service in 1..=24 {
            refused(1, service).iter().for_each(|seen| sweeps.tell(&mut scan, seen));
        }
        let [start] = sweeps.end(&mut scan, 3 * SECOND)[..] else { panic!("one") };
        assert_eq!((start.technique, start.count, start.permille), (Some("syn"), 25, Some(1_000)));
    }

    #[test]
    fn a_crawler_whose_calls_mostly_succeed_is_none() {
        let (mut scan, mut sweeps) = scan();
        for service in 1..=40 {
            refused(1, service).iter().for_each(|seen| sweeps.tell(&mut scan, seen));
            for port in [1_000, 1_001] {
                let mut talk = Conversation::between(port, service);
                talk.handshake().iter().for_each(|seen| sweeps.tell(&mut scan, seen));
            }
        }
        assert_eq!(sweeps.end(&mut scan, 2 * SECOND), []);
    }

    #[test]
    fn connections_from_before_are_no_ack_scan() {
        let (mut scan, mut sweeps) = scan();
        for port in 1..=100 {
            let mut talk = Conversation::between(40_000, port);
            sweeps.tell(&mut scan, &talk.stray(End::Low, TcpFlags::ACK));
            sweeps.tell(&mut scan, &talk.segment(End::High, TcpFlags::ACK, 0));
        }
        assert_eq!((sweeps.end(&mut scan, 2 * SECOND), scan.targets), (vec![], 0));
    }

    #[test]
    fn forged_sources_are_bounded_and_make_room() {
        let (mut scan, mut sweeps) = scan();
        for source in 0..MAX_SOURCES as u32 + 100 {
            let mut stray = Conversation::new().stray(End::Low, 0);
            stray.event.addr[0][0] = source;
            sweeps.tell(&mut scan, &stray);
        }
        assert_eq!(scan.overflow(), 100);
        assert_eq!(sweeps.end(&mut scan, 2 * SECOND), []);
        assert!(scan.scanners.is_empty());
    }
}
