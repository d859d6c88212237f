//! Much of what is sent is sent again: on a service's flows, or on the whole host.

use std::{collections::HashMap, net::SocketAddr};

use tcpfsm_common::{
    abi::{Conditions, Counters, EventKind, Outcome},
    fact::Fact,
    flow::{End, FlowKey, FlowKey4},
    fsm::State,
};

use super::{
    AnomalyKind, Detector, Dwelling, Finding, Seen, SweepEnd,
    finding::permille,
    members::MAX_MEMBERS,
    ongoing::{Ongoing, Present},
    window::Window,
};
use crate::{
    config::{Rule, Rules},
    report::Side,
};

/// Sweeps after which a flow that is no longer named is forgotten.
const PATIENCE: u32 = 120;

/// Finds storms.
pub(super) struct RetransmissionStorm {
    rule: Rule,
    flows: HashMap<(FlowKey, End), Sent>,
    services: HashMap<SocketAddr, Tally>,
    host: Tally,
    counted: Option<[u64; 2]>,
    /// None stands for the whole host.
    ongoing: Ongoing<Option<SocketAddr>>,
    overflow: u64,
}

/// What an end had sent when the sweep named it last.
struct Sent {
    rtx: u32,
    packets: u64,
    sweep: u32,
}

#[derive(Default)]
struct Tally {
    rtx: Window,
    packets: Window,
    example: Option<Dwelling>,
}

impl RetransmissionStorm {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            rule: rules[AnomalyKind::RetransmissionStorm],
            flows: HashMap::new(),
            services: HashMap::new(),
            host: Tally::default(),
            counted: None,
            ongoing: Ongoing::new(AnomalyKind::RetransmissionStorm),
            overflow: 0,
        }
    }

    /// One end of a flow that retransmits much: what it sent since it was named last.
    fn flow(&mut self, seen: &Seen<'_>, end: End) {
        let Some(sight) = seen.sight() else { return };
        let at = end as usize & 1;
        let now = Sent { rtx: sight.rtx[at], packets: sight.packets[at], sweep: seen.sweep };
        let (rtx, packets) = match self.flows.get(&(seen.key(), end)) {
            Some(before) => {
                (u64::from(now.rtx.saturating_sub(before.rtx)), now.packets.saturating_sub(before.packets))
            }
            None if self.flows.len() >= MAX_MEMBERS => {
                self.overflow += 1;
                return;
            }
            // How long ago that was, nobody knows.
            None => (0, 0),
        };
        self.flows.insert((seen.key(), end), now);
        let (time, length) = (seen.event().time, self.rule.window_ns());
        let tally = self.services.entry(seen.service()).or_default();
        tally.rtx.add(time, length, rtx);
        tally.packets.add(time, length, packets);
        let example = seen.dwelling(end, seen.after().state(end), time);
        tally.example.get_or_insert(example);
        if rtx > 0 {
            self.host.example = Some(example);
        }
    }
}

/// Retransmissions, and packets of known connections.
fn counted(counters: &Counters) -> [u64; 2] {
    let tracked = counters.packets.iter().map(|hook| hook[Outcome::Tracked as usize]).sum();
    [counters.facts[Fact::Rtx as usize], tracked]
}

impl Tally {
    fn judge(&mut self, rule: &Rule, going_on: bool, now: u64) -> Option<(u64, u16)> {
        let (rtx, packets) = (self.rtx.sum(now, rule.window_ns()), self.packets.sum(now, rule.window_ns()));
        let enough = if going_on {
            rtx >= rule.least().div_ceil(2)
        } else {
            rtx >= rule.least() && rule.is_share(rtx, packets)
        };
        enough.then(|| (rtx, permille(rtx, packets)))
    }
}

impl Detector for RetransmissionStorm {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::RetransmissionStorm]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if seen.kind() != EventKind::Stuck {
            return;
        }
        for end in [End::Low, End::High] {
            if seen.is_in(Conditions::RETRANSMITS, end) {
                self.flow(seen, end);
            }
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let Self { rule, flows, services, host, counted: before, ongoing, .. } = self;
        let (now, length) = (sweep.now, rule.window_ns());
        flows.retain(|_, sent| sweep.number.wrapping_sub(sent.sweep) <= PATIENCE);
        let totals = counted(sweep.counters);
        let [rtx, packets] = before.replace(totals).unwrap_or(totals);
        host.rtx.add(now, length, totals[0].saturating_sub(rtx));
        host.packets.add(now, length, totals[1].saturating_sub(packets));
        let mut present = Vec::new();
        services.retain(|service, tally| {
            let group = Some(*service);
            let going_on = ongoing.is_going_on(&group);
            if let (Some((count, share)), Some(example)) = (tally.judge(rule, going_on, now), tally.example) {
                present.push((group, Present { permille: Some(share), ..Present::new(count, example) }));
            }
            tally.packets.sum(now, length) > 0
                || tally.example.is_some_and(|e| now.saturating_sub(e.since) < length)
        });
        if let Some((count, share)) = host.judge(rule, ongoing.is_going_on(&None), now) {
            let example = host.example.unwrap_or_else(|| nobody(now));
            let host_wide =
                Present { permille: Some(share), technique: Some("host"), ..Present::new(count, example) };
            present.push((None, host_wide));
        }
        ongoing.update(now, present)
    }

    fn going_on(&self) -> Vec<Finding> {
        self.ongoing.going_on()
    }

    fn overflow(&self) -> u64 {
        self.overflow + self.ongoing.overflow()
    }
}

/// No flow stands out: many that are too short to be named.
fn nobody(now: u64) -> Dwelling {
    let key = FlowKey::V4(FlowKey4::default());
    Dwelling {
        key,
        end: End::Low,
        side: Side::Orig,
        state: State::Established,
        confirmed: false,
        since: now,
        service: key.socket_addr(End::High),
        ifindex: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detect::tests::Sweeps,
        pipeline::synthetic::{Conversation, RESP},
        report::Phase,
    };

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_flow_that_repeats_itself_names_its_service() {
        let (mut storm, mut sweeps) = (RetransmissionStorm::new(&Rules::default()), Sweeps::default());
        let mut talk = Conversation::new();
        talk.handshake();
        for (rtx, packets, found) in [(400, 1_000, 0), (700, 2_000, 0), (1_000, 3_000, 1)] {
            talk.now += 15 * SECOND;
            talk.record.shared.rtx[0] = rtx;
            talk.record.sent[0].packets = packets;
            sweeps.tell(&mut storm, &talk.stuck(Conditions::RETRANSMITS));
            let findings = sweeps.end(&mut storm, talk.now);
            assert_eq!(findings.len(), found, "{findings:?}");
            assert!(
                findings.iter().all(|f| (f.oldest.service, f.count, f.permille) == (RESP, 600, Some(300)))
            );
        }
        assert_eq!(sweeps.end(&mut storm, talk.now + 120 * SECOND)[0].phase, Phase::End);
    }

    #[test]
    fn many_short_flows_make_the_hosts_storm() {
        let (mut storm, mut sweeps) = (RetransmissionStorm::new(&Rules::default()), Sweeps::default());
        let mut found = Vec::new();
        for second in 1..=5_u64 {
            sweeps.counters.facts[Fact::Rtx as usize] = 200 * second;
            sweeps.counters.packets[0][Outcome::Tracked as usize] = 1_000 * second;
            found.push(sweeps.end(&mut storm, second * SECOND));
        }
        assert_eq!(
            found.iter().map(Vec::len).collect::<Vec<_>>(),
            [0, 0, 0, 1, 0],
            "what was before does not count"
        );
        assert_eq!((found[3][0].technique, found[3][0].permille), (Some("host"), Some(200)));
    }

    #[test]
    fn ordinary_loss_is_none() {
        let (mut storm, mut sweeps) = (RetransmissionStorm::new(&Rules::default()), Sweeps::default());
        for second in 1..=60_u64 {
            sweeps.counters.facts[Fact::Rtx as usize] = 10_000 * second;
            sweeps.counters.packets[0][Outcome::Tracked as usize] = 1_000_000 * second;
            assert_eq!(sweeps.end(&mut storm, second * SECOND), []);
        }
    }
}
