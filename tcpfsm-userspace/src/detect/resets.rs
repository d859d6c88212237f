//! Resets: who aborts, who resets too much, and resets that somebody else may have sent.

use std::net::SocketAddr;

use tcpfsm_common::{
    abi::EventKind,
    fact::{Fact, Facts},
    flow::End,
};

use super::{
    AnomalyKind, Seen,
    rates::{Hit, Spec, any_port, no_base},
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        kind: AnomalyKind::ConnectionAborted,
        hit: |seen| seen.has(Fact::Reset).then(|| at_service(seen, seen.sender())),
        base: |seen| {
            // A reset ends what was over already where that was taken back.
            [
                (seen.kind() == EventKind::Closed || seen.has(Fact::Reset))
                    .then(|| (seen.service(), seen.event().weight())),
                None,
            ]
        },
        base_has_hits: true,
        by_source: false,
        technique: None,
    },
    Spec {
        kind: AnomalyKind::RstStorm,
        hit: |seen| is_reset(seen).then(|| of_sender(seen)),
        base: no_base,
        base_has_hits: false,
        by_source: true,
        technique: None,
    },
    by_service(AnomalyKind::RstInexact, |seen| {
        seen.has(Fact::RstInexact).then(|| at_service(seen, seen.sender().other()))
    }),
    by_service(AnomalyKind::RstOutOfWindow, |seen| {
        seen.has(Fact::RstOutOfWindow).then(|| at_service(seen, seen.sender().other()))
    }),
    by_service(AnomalyKind::RstInjection, |seen| {
        // It goes on sending: the end that was reset is the other one.
        seen.has(Fact::RstInjectionSuspected).then(|| at_service(seen, seen.sender().other()))
    }),
    by_service(AnomalyKind::TwAssassination, |seen| {
        seen.has(Fact::TwAssassination).then(|| at_service(seen, seen.sender().other()))
    }),
];

const fn by_service(kind: AnomalyKind, hit: fn(&Seen<'_>) -> Option<Hit>) -> Spec {
    Spec { kind, hit, base: no_base, base_has_hits: false, by_source: false, technique: None }
}

fn at_service(seen: &Seen<'_>, end: End) -> Hit {
    let group: SocketAddr = seen.service();
    Hit { group, weight: seen.event().weight(), example: seen.example(end) }
}

fn of_sender(seen: &Seen<'_>) -> Hit {
    Hit {
        group: any_port(seen.source()),
        weight: seen.event().weight(),
        example: seen.example(seen.sender()),
    }
}

/// A reset of a known connection. Refusals are an answer, and have a kind of their own.
fn is_reset(seen: &Seen<'_>) -> bool {
    const RESETS: Facts = Facts::of(&[
        Fact::Reset,
        Fact::HandshakeAborted,
        Fact::RstInexact,
        Fact::RstOutOfWindow,
        Fact::RstIgnored,
        Fact::RstAfterClose,
        Fact::TwAssassination,
    ]);
    seen.facts().any(RESETS) && !seen.has(Fact::ConnectRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Rules,
        detect::{Finding, rates::Rates, tests::Sweeps},
        pipeline::synthetic::{Conversation, ORIG, RESP},
        source::live::Observation,
    };
    use tcpfsm_common::segment::TcpFlags;

    fn found(least: u64, observations: &[Observation]) -> Vec<Finding> {
        let rules = SPECS
            .iter()
            .fold(Rules::default(), |rules, spec| rules.with(spec.kind, |rule| rule.count = Some(least)));
        let (mut rates, mut sweeps) = (Rates::new(&rules, &[SPECS]), Sweeps::default());
        observations.iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        let now = observations.last().unwrap().event.time;
        sweeps.end(&mut rates, now)
    }

    fn kinds(findings: &[Finding]) -> Vec<AnomalyKind> {
        findings.iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn an_abort_is_the_senders_and_a_reset_of_its_address() {
        let mut talk = Conversation::new();
        let mut all = talk.handshake();
        all.push(talk.segment(End::Low, TcpFlags::RST | TcpFlags::ACK, 0));
        let findings = found(1, &all);
        assert_eq!(kinds(&findings), [AnomalyKind::ConnectionAborted, AnomalyKind::RstStorm]);
        assert_eq!((findings[0].oldest.end, findings[0].oldest.service), (End::Low, RESP));
        assert_eq!((findings[1].source, findings[0].source), (Some(ORIG.ip()), None));
        assert_eq!(found(2, &all), []);
    }

    #[test]
    fn one_that_speaks_on_after_its_reset_was_forged() {
        let mut talk = Conversation::new();
        let mut all = talk.handshake();
        all.push(talk.segment(End::Low, TcpFlags::RST, 0));
        for _ in 0..3 {
            all.push(talk.segment(End::Low, TcpFlags::PSH | TcpFlags::ACK, 100));
        }
        assert!(kinds(&found(1, &all)).contains(&AnomalyKind::RstInjection));
    }

    #[test]
    fn resets_that_do_not_fit_have_kinds_of_their_own() {
        for (offset, kind) in [(100, AnomalyKind::RstInexact), (1 << 30, AnomalyKind::RstOutOfWindow)] {
            let mut talk = Conversation::new();
            let mut all = talk.handshake();
            talk.renumber([1_001 + offset, 5_001]);
            all.push(talk.segment(End::Low, TcpFlags::RST | TcpFlags::ACK, 0));
            assert!(kinds(&found(1, &all)).contains(&kind), "{kind:?}");
        }
    }

    #[test]
    fn a_time_wait_cut_short() {
        let mut talk = Conversation::new();
        let mut all = talk.ordinary_life();
        // Only an exact reset is taken (RFC 5961 §3.2).
        all.push(talk.segment(End::High, TcpFlags::RST, 0));
        assert!(kinds(&found(1, &all)).contains(&AnomalyKind::TwAssassination));
    }
}
