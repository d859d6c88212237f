//! TIME-WAIT against the local ports: a client that closes first can use each port once a minute per destination.

use std::{
    collections::hash_map::Entry,
    net::{IpAddr, SocketAddr},
};

use tcpfsm_common::{abi::Health, fsm::State};

use super::{
    AnomalyKind, Detector, Dwelling, Finding, QuickMap, Seen, SweepEnd,
    finding::permille,
    ongoing::{Ongoing, Present},
};
use crate::config::{Rule, Rules};

/// Pairs of a local address and a destination watched.
const MAX_PAIRS: usize = 8_192;

/// Whose ports, and towards which destination.
type Pair = (IpAddr, SocketAddr);

/// Finds destinations for which the local ports run out.
pub(super) struct TimeWaitPressure {
    rule: Rule,
    local_ports: u64,
    pairs: QuickMap<Pair, (u64, Dwelling)>,
    ongoing: Ongoing<Pair>,
    events_lost: u64,
    overflow: u64,
}

impl TimeWaitPressure {
    /// `local_ports`: how many there are (`ip_local_port_range`).
    pub(super) fn new(rules: &Rules, local_ports: u64) -> Self {
        Self {
            rule: rules[AnomalyKind::TimeWaitPressure],
            local_ports: local_ports.max(1),
            pairs: QuickMap::default(),
            ongoing: Ongoing::new(AnomalyKind::TimeWaitPressure),
            events_lost: 0,
            overflow: 0,
        }
    }
}

impl Detector for TimeWaitPressure {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::TimeWaitPressure]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if seen.sight().is_some() {
            return;
        }
        // A server's TIME-WAIT takes nobody's port: it is the originator's that run out.
        let client = seen.originator();
        let Some(left) = seen.left(client) else { return };
        let entered = seen.after().state(client) == State::TimeWait;
        if !entered && seen.before().state(client) != State::TimeWait && left != State::TimeWait {
            return;
        }
        let pair = (seen.address(client).ip(), seen.service());
        let room = self.pairs.len() < MAX_PAIRS;
        match self.pairs.entry(pair) {
            Entry::Occupied(mut known) => {
                let count = &mut known.get_mut().0;
                *count = if entered { *count + 1 } else { count.saturating_sub(1) };
                if *count == 0 {
                    known.remove();
                }
            }
            Entry::Vacant(new) if entered && room => {
                new.insert((1, seen.dwelling(client, State::TimeWait, seen.event().time)));
            }
            Entry::Vacant(_) => self.overflow += u64::from(entered),
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let lost = sweep.counters.health[Health::EventsLost as usize];
        if lost != self.events_lost {
            // The counts are no longer right.
            self.events_lost = lost;
            self.pairs.clear();
        }
        let Self { rule, local_ports, pairs, ongoing, .. } = self;
        let present: Vec<_> = pairs
            .iter()
            .filter(|(pair, (count, _))| {
                let count = if ongoing.is_going_on(pair) { count * 2 } else { *count };
                rule.is_share(count, *local_ports)
            })
            .map(|(pair, &(count, example))| {
                (
                    *pair,
                    Present { permille: Some(permille(count, *local_ports)), ..Present::new(count, example) },
                )
            })
            .collect();
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
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    use super::*;
    use crate::{
        detect::tests::Sweeps,
        pipeline::synthetic::{Conversation, ORIG, RESP},
        report::Phase,
    };

    #[test]
    fn eight_of_ten_ports_are_too_many() {
        let (mut detector, mut sweeps) = (TimeWaitPressure::new(&Rules::default(), 10), Sweeps::default());
        let mut talks = Vec::new();
        for port in 1..=8 {
            assert_eq!(sweeps.end(&mut detector, 1), []);
            let mut talk = Conversation::from_port(port);
            talk.ordinary_life().iter().for_each(|seen| sweeps.tell(&mut detector, seen));
            talks.push(talk);
        }
        let [start] = sweeps.end(&mut detector, 1)[..] else { panic!("one") };
        assert_eq!((start.count, start.permille), (8, Some(800)));
        assert_eq!((start.oldest.service, start.oldest.key.socket_addr(End::Low).ip()), (RESP, ORIG.ip()));
        for talk in &mut talks {
            sweeps.tell(&mut detector, &talk.expire(100_000_000_000));
        }
        assert_eq!(sweeps.end(&mut detector, 2)[0].phase, Phase::End);
        assert!(detector.pairs.is_empty());
    }

    #[test]
    fn a_port_used_again_is_counted_once() {
        let (mut detector, sweeps) = (TimeWaitPressure::new(&Rules::default(), 10), Sweeps::default());
        let mut talk = Conversation::new();
        for life in 1..=20_u32 {
            talk.renumber([life * 1_000_000, life * 2_000_000]);
            talk.ordinary_life().iter().for_each(|seen| sweeps.tell(&mut detector, seen));
        }
        assert_eq!(detector.pairs.values().map(|(count, _)| *count).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_server_that_closes_first_needs_no_ports() {
        let (mut detector, mut sweeps) = (TimeWaitPressure::new(&Rules::default(), 1), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        for (end, flags) in [
            (End::High, TcpFlags::FIN | TcpFlags::ACK),
            (End::Low, TcpFlags::FIN | TcpFlags::ACK),
            (End::High, TcpFlags::ACK),
        ] {
            sweeps.tell(&mut detector, &talk.segment(end, flags, 0));
        }
        assert_eq!(talk.verdict().state(End::High), State::TimeWait);
        assert_eq!(sweeps.end(&mut detector, 1), []);
    }
}
