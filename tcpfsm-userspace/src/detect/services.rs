//! What the kernel counted per service: SYN floods, accept queues that are full, handshakes sent again.
//!
//! A flood is judged by how many handshakes hang and how few complete, never by the rate of SYNs: a crowd of
//! clients completes what it begins.

use std::collections::HashMap;

use tcpfsm_common::{
    abi::{ServiceKey, ServiceRecord},
    fact::Fact,
    flow::End,
    fsm::State,
};

use super::{
    AnomalyKind, Detector, Dwelling, Finding, Seen, SweepEnd,
    finding::permille,
    ongoing::{Ongoing, Present},
    window::Window,
};
use crate::{
    config::{Rule, Rules},
    report::{Phase, Side},
};

/// Linux sends a SYN-ACK again after a second; a service that has not after three keeps no state: SYN cookies.
const COOKIES_SHOW_AFTER: u64 = 3_000_000_000;

/// Judges services.
pub(super) struct Services {
    flood: Rule,
    queue: Rule,
    again: Rule,
    known: HashMap<ServiceKey, Track>,
    floods: Ongoing<ServiceKey>,
    queues: Ongoing<ServiceKey>,
    agains: Ongoing<ServiceKey>,
    /// Examples: the last handshake that began and is not complete, the last that the server did not take, the last sent again.
    last: [Option<Dwelling>; 3],
    evicted: u64,
}

/// One service from sweep to sweep.
#[derive(Default)]
struct Track {
    record: ServiceRecord,
    /// Within the flood's window.
    opened: Window,
    answered: Window,
    completed: Window,
    answered_again: Window,
    /// Within the window of retransmissions.
    requests: Window,
    again: Window,
    /// Within the accept queue's window.
    unaccepted: Window,
    /// Since when too many handshakes hang.
    hanging_since: Option<u64>,
}

impl Services {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            flood: rules[AnomalyKind::SynFlood],
            queue: rules[AnomalyKind::AcceptQueueOverflow],
            again: rules[AnomalyKind::HandshakeRetransmission],
            known: HashMap::new(),
            floods: Ongoing::new(AnomalyKind::SynFlood),
            queues: Ongoing::new(AnomalyKind::AcceptQueueOverflow),
            agains: Ongoing::new(AnomalyKind::HandshakeRetransmission),
            last: [None; 3],
            evicted: 0,
        }
    }

    /// The first of these examples that is of the service.
    fn example(&self, which: &[usize], key: &ServiceKey, state: State, now: u64) -> Dwelling {
        let service = key.address();
        let last = which.iter().filter_map(|&at| self.last.get(at).copied().flatten());
        last.into_iter().find(|last| last.service == service).unwrap_or_else(|| nobody_at(key, state, now))
    }

    fn flood(&mut self, key: &ServiceKey, sweep: &SweepEnd<'_>) -> Option<Present> {
        let length = self.flood.window_ns();
        let track = self.known.get_mut(key)?;
        let (half_open, half_open_answered) = track.record.half_open_at(sweep.number);
        let half_open = u64::from(half_open);
        let opened = track.opened.sum(sweep.now, length);
        let answered = track.answered.sum(sweep.now, length);
        let completed = track.completed.sum(sweep.now, length);
        let least = self.flood.least();
        let wanted = if self.floods.is_going_on(key) { least.div_ceil(2) } else { least };
        // Nobody answers: it is down, or filtered, and its clients are no flood.
        let alive = answered > 0 || half_open_answered > 0;
        // The share is the other way round here: few complete.
        if half_open < wanted || opened == 0 || !alive || self.flood.is_share(completed, opened) {
            track.hanging_since = None;
            return None;
        }
        let since = *track.hanging_since.get_or_insert(sweep.now);
        let answered_again = track.answered_again.sum(sweep.now, length);
        let technique = if answered < opened / 2 {
            Some("backlog_full")
        } else if answered_again > 0 {
            Some("backlog")
        } else if sweep.now.saturating_sub(since) >= COOKIES_SHOW_AFTER {
            Some("syn_cookies")
        } else {
            // It does not show yet.
            None
        };
        Some(Present {
            technique,
            permille: Some(permille(completed, opened)),
            ..Present::new(half_open, self.example(&[0], key, State::SynRecv, sweep.now))
        })
    }

    /// When a flood is over, nothing hangs that could stand for it, and what hung last may be a client that was let in: it is the
    /// service that was flooded.
    fn all_over(&self, last: Dwelling, now: u64) -> Dwelling {
        let service = self.known.keys().find(|key| key.address() == last.service);
        service.map_or(last, |key| nobody_at(key, last.state, now))
    }

    fn queue(&mut self, key: &ServiceKey, now: u64) -> Option<Present> {
        let length = self.queue.window_ns();
        let unaccepted = self.known.get_mut(key)?.unaccepted.sum(now, length);
        let wanted = wanted(&self.queue, self.queues.is_going_on(key));
        (unaccepted >= wanted)
            .then(|| Present::new(unaccepted, self.example(&[1, 2], key, State::SynRecv, now)))
    }

    fn again(&mut self, key: &ServiceKey, now: u64) -> Option<Present> {
        let length = self.again.window_ns();
        let track = self.known.get_mut(key)?;
        let again = track.again.sum(now, length);
        let requests = track.requests.sum(now, length);
        let going_on = self.agains.is_going_on(key);
        let enough =
            again >= wanted(&self.again, going_on) && (going_on || self.again.is_share(again, requests));
        enough.then(|| Present {
            permille: Some(permille(again, requests.max(again))),
            ..Present::new(again, self.example(&[2], key, State::SynRecv, now))
        })
    }
}

fn wanted(rule: &Rule, going_on: bool) -> u64 {
    if going_on { rule.least().div_ceil(2) } else { rule.least() }
}

impl Track {
    /// Adds what was counted since the last sweep.
    fn advance(
        &mut self,
        now: u64,
        record: &ServiceRecord,
        queue_is_full: bool,
        [flood, queue, again]: [u64; 3],
    ) {
        let before = self.record;
        // One that was evicted and came back begins anew.
        let before = if record.opened < before.opened { ServiceRecord::default() } else { before };
        let passed = |count: fn(&ServiceRecord) -> u64| count(record).saturating_sub(count(&before));
        let unaccepted = passed(|record| record.unaccepted);
        let opened = passed(|record| record.opened);
        self.opened.add(now, flood, opened);
        self.answered.add(now, flood, passed(|record| record.answered));
        self.completed.add(now, flood, passed(|record| record.established).saturating_sub(unaccepted));
        self.answered_again.add(now, flood, passed(|record| record.synack_rtx));
        // What it does not take after the handshake, and what it does not even answer.
        let syn_rtx = passed(|record| record.syn_rtx);
        self.unaccepted.add(now, queue, unaccepted + if queue_is_full { syn_rtx } else { 0 });
        self.requests.add(now, again, opened);
        self.again.add(now, again, syn_rtx + passed(|record| record.synack_rtx));
        self.record = *record;
    }
}

impl Detector for Services {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::SynFlood, AnomalyKind::AcceptQueueOverflow, AnomalyKind::HandshakeRetransmission]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        let again = seen.has(Fact::SynAckRtx);
        for (last, is_one) in self.last.iter_mut().zip([
            seen.has(Fact::Open),
            again && seen.has(Fact::StateRollback),
            again || seen.has(Fact::SynRtx),
        ]) {
            if is_one {
                let responder = seen.originator().other();
                *last = Some(seen.dwelling(responder, State::SynRecv, seen.event().time));
            }
        }
        // Whoever completes the handshake is no example of those that hang.
        let [begun, ..] = &mut self.last;
        if seen.has(Fact::Established) && begun.is_some_and(|begun| begun.key == seen.key()) {
            *begun = None;
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let lengths = [self.flood.window_ns(), self.queue.window_ns(), self.again.window_ns()];
        let mut now_there = HashMap::with_capacity(sweep.services.len());
        for (key, record) in sweep.services {
            let mut track = self.known.remove(key).unwrap_or_default();
            track.advance(sweep.now, record, sweep.full_queues.contains(key), lengths);
            now_there.insert(*key, track);
        }
        // What is left was there and is no more: the map needed the room.
        self.evicted += self.known.len() as u64;
        self.known = now_there;
        let (mut floods, mut queues, mut agains) = (Vec::new(), Vec::new(), Vec::new());
        for (key, _) in sweep.services {
            floods.extend(self.flood(key, sweep).map(|present| (*key, present)));
            queues.extend(self.queue(key, sweep.now).map(|present| (*key, present)));
            agains.extend(self.again(key, sweep.now).map(|present| (*key, present)));
        }
        let mut findings = Vec::new();
        for (rule, ongoing, present) in [
            (&self.flood, &mut self.floods, floods),
            (&self.queue, &mut self.queues, queues),
            (&self.again, &mut self.agains, agains),
        ] {
            if rule.enabled {
                findings.extend(ongoing.update(sweep.now, present));
            }
        }
        for over in findings.iter_mut().filter(|finding| finding.phase == Phase::End) {
            if over.kind == AnomalyKind::SynFlood {
                over.oldest = self.all_over(over.oldest, sweep.now);
            }
        }
        findings
    }

    fn going_on(&self) -> Vec<Finding> {
        let Self { floods, queues, agains, .. } = self;
        [floods, queues, agains].into_iter().flat_map(Ongoing::going_on).collect()
    }

    fn overflow(&self) -> u64 {
        self.evicted + self.floods.overflow() + self.queues.overflow() + self.agains.overflow()
    }
}

/// The service itself, where no flow is at hand to stand for it.
fn nobody_at(key: &ServiceKey, state: State, now: u64) -> Dwelling {
    Dwelling {
        key: key.flow(),
        end: End::High,
        side: Side::Resp,
        state,
        confirmed: false,
        since: now,
        service: key.address(),
        ifindex: 0,
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{abi::Counters, segment::TcpFlags};

    use super::*;
    use crate::pipeline::synthetic::{Conversation, ORIG, RESP};

    const SECOND: u64 = 1_000_000_000;
    const KEY: ServiceKey =
        ServiceKey { addr: [u32::from_ne_bytes([10, 0, 0, 2]), 0, 0, 0], port: 80, family: 4, scope: 0 };

    fn judge(services: &mut Services, second: u32, record: ServiceRecord) -> Vec<Finding> {
        judge_with(services, second, record, &[])
    }

    fn judge_with(
        services: &mut Services,
        second: u32,
        record: ServiceRecord,
        full_queues: &[ServiceKey],
    ) -> Vec<Finding> {
        let record = ServiceRecord { sweep: second, ..record };
        services.swept(&SweepEnd {
            now: u64::from(second) * SECOND,
            number: second,
            counters: &Counters::ZERO,
            services: &[(KEY, record)],
            full_queues,
        })
    }

    fn flood(opened: u64, answered: u64, established: u64, half_open: u32) -> ServiceRecord {
        ServiceRecord {
            opened,
            answered,
            established,
            half_open,
            half_open_answered: u32::from(answered > 0),
            ..ServiceRecord::default()
        }
    }

    #[test]
    fn a_crowd_that_completes_is_no_flood_whatever_its_rate() {
        let mut services = Services::new(&Rules::default());
        for second in 1..60 {
            let clients = u64::from(second) * 1_000_000;
            assert_eq!(judge(&mut services, second, flood(clients, clients, clients - 5_000, 5_000)), []);
        }
    }

    #[test]
    fn a_server_that_is_down_is_not_flooded() {
        let mut services = Services::new(&Rules::default());
        assert_eq!(judge(&mut services, 1, flood(1_000, 0, 0, 1_000)), []);
    }

    #[test]
    fn what_hangs_is_a_flood_until_it_stops() {
        let mut services = Services::new(&Rules::default());
        assert_eq!(judge(&mut services, 1, flood(127, 127, 0, 127)), []);
        let [start] = judge(&mut services, 2, flood(900, 300, 45, 855))[..] else { panic!("one") };
        assert_eq!((start.kind, start.count), (AnomalyKind::SynFlood, 855));
        assert_eq!((start.technique, start.permille), (Some("backlog_full"), Some(50)));
        assert_eq!(start.oldest.service, "10.0.0.2:80".parse().unwrap());
        assert_eq!(judge(&mut services, 11, flood(900, 300, 45, 500)), [], "it goes on");
        assert_eq!(judge(&mut services, 13, flood(900, 300, 45, 500))[0].phase, Phase::End, "no new ones");
    }

    /// A client that gets in while the flood goes on is no example of it, and none of what it was when it is over.
    #[test]
    fn a_client_that_was_let_in_does_not_stand_for_the_flood() {
        let mut services = Services::new(&Rules::default());
        let service = ServiceKey { port: RESP.port(), ..KEY };
        let sweep = |services: &mut Services, second: u32, half_open| {
            let opened = if half_open == 0 { 1_000 } else { u64::from(second) * 1_000 };
            let record = ServiceRecord { sweep: second, ..flood(opened, opened, 0, half_open) };
            let found = services.swept(&SweepEnd {
                now: u64::from(second) * SECOND,
                number: second,
                counters: &Counters::ZERO,
                services: &[(service, record)],
                full_queues: &[],
            });
            (found, services.going_on())
        };
        let tell = |services: &mut Services, all: &[crate::source::live::Observation]| {
            all.iter().for_each(|observation| services.seen(&Seen { observation, sweep: 1 }));
        };
        let client = |finding: &Finding| finding.oldest.key.socket_addr(finding.oldest.end.other());
        let mut forged = Conversation::new();
        tell(&mut services, &[forged.segment(End::Low, TcpFlags::SYN, 0)]);
        let (start, _) = sweep(&mut services, 1, 500);
        assert_eq!((start[0].oldest.service, client(&start[0])), (RESP, ORIG));
        tell(&mut services, &Conversation::from_port(7).handshake());
        let (_, now) = sweep(&mut services, 2, 500);
        assert!(client(&now[0]).ip().is_unspecified(), "{now:?}");
        tell(&mut services, &[Conversation::from_port(9).segment(End::Low, TcpFlags::SYN, 0)]);
        assert_eq!(client(&sweep(&mut services, 3, 500).1[0]).port(), 9);
        let (over, _) = sweep(&mut services, 4, 0);
        assert_eq!((over[0].phase, over[0].oldest.service), (Phase::End, RESP));
        assert!(client(&over[0]).ip().is_unspecified(), "{over:?}");
    }

    #[test]
    fn cookies_show_by_what_is_not_sent_again() {
        for (rtx, told) in [
            // As many each time: no update is due but the one that says how.
            (0, [Some(None), None, None, Some(Some("syn_cookies")), None]),
            (50, [Some(None), Some(Some("backlog")), None, None, None]),
        ] {
            let mut services = Services::new(&Rules::default());
            for (second, told) in (1..).zip(told) {
                let opened = u64::from(second) * 1_000;
                let record = ServiceRecord {
                    synack_rtx: rtx * u64::from(second - 1),
                    ..flood(opened, opened, 0, 1_000)
                };
                let findings = judge(&mut services, second, record);
                let found = findings.iter().find(|finding| finding.kind == AnomalyKind::SynFlood);
                assert_eq!(found.map(|finding| finding.technique), told, "{second}: {findings:?}");
            }
        }
    }

    #[test]
    fn a_server_that_does_not_accept_is_told() {
        let mut services = Services::new(&Rules::default());
        let record = |unaccepted| ServiceRecord {
            opened: 10,
            established: 10 + unaccepted,
            unaccepted,
            synack_rtx: unaccepted,
            ..ServiceRecord::default()
        };
        assert_eq!(judge(&mut services, 1, record(4)), []);
        let kinds: Vec<_> = judge(&mut services, 2, record(10)).iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, [AnomalyKind::AcceptQueueOverflow, AnomalyKind::HandshakeRetransmission]);
    }

    #[test]
    fn syns_that_a_full_queue_drops_are_told_too() {
        for (full_queues, told) in [(&[][..], false), (&[KEY][..], true)] {
            let mut services = Services::new(&Rules::default());
            let record = |syn_rtx| ServiceRecord { syn_rtx, ..flood(10 + syn_rtx, 10, 10, 0) };
            judge(&mut services, 1, record(0));
            let findings = judge_with(&mut services, 2, record(5), full_queues);
            let found: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.count)).collect();
            let due = told.then_some((AnomalyKind::AcceptQueueOverflow, 5));
            assert_eq!(found, Vec::from_iter(due), "{findings:?}");
        }
    }

    #[test]
    fn services_that_vanish_are_counted() {
        let mut services = Services::new(&Rules::default());
        judge(&mut services, 1, flood(1, 1, 1, 0));
        let empty = SweepEnd {
            now: 2 * SECOND,
            number: 2,
            counters: &Counters::ZERO,
            services: &[],
            full_queues: &[],
        };
        services.swept(&empty);
        assert_eq!(services.overflow(), 1);
    }
}
