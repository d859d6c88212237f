//! Handshakes that fail: refused, timed out, unreachable, aborted.

use tcpfsm_common::{
    abi::{CloseReason, EventKind},
    fact::Fact,
    fsm::State,
};

use super::{
    AnomalyKind, Seen,
    rates::{Base, Hit, Spec},
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        kind: AnomalyKind::ConnectRefused,
        hit: |seen| seen.has(Fact::ConnectRefused).then(|| failed(seen)),
        base: opened,
        base_has_hits: true,
        by_source: false,
        technique: None,
    },
    Spec {
        kind: AnomalyKind::ConnectTimeout,
        hit: |seen| is_timeout(seen).then(|| failed(seen)),
        base: opened,
        base_has_hits: true,
        by_source: false,
        technique: None,
    },
    Spec {
        kind: AnomalyKind::ConnectUnreachable,
        hit: |seen| seen.has(Fact::ConnectUnreachable).then(|| failed(seen)),
        base: opened,
        base_has_hits: true,
        by_source: false,
        technique: None,
    },
    Spec {
        kind: AnomalyKind::HandshakeAborted,
        hit: |seen| seen.has(Fact::HandshakeAborted).then(|| failed(seen)),
        base: opened,
        base_has_hits: true,
        by_source: false,
        technique: None,
    },
];

/// Whether the sweep gave up on a SYN that nobody answered. The responder, which nobody has seen, may have more time.
fn is_timeout(seen: &Seen<'_>) -> bool {
    matches!(seen.kind(), EventKind::Closed | EventKind::Expired)
        && seen.event().flags == 0
        && seen.before().state(seen.originator()) == State::SynSent
        && seen.after().state(seen.originator()).is_closed()
        && matches!(seen.after().close_reason(), CloseReason::Timeout | CloseReason::Open)
}

fn failed(seen: &Seen<'_>) -> Hit {
    Hit { group: seen.service(), weight: seen.event().weight(), example: seen.example(seen.originator()) }
}

/// Connection requests at the service.
fn opened(seen: &Seen<'_>) -> Base {
    [seen.has(Fact::Open).then(|| (seen.service(), seen.event().weight())), None]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Rules,
        detect::{
            rates::Rates,
            tests::{Sweeps, refused},
        },
        pipeline::synthetic::Conversation,
    };
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    fn rates() -> Rates {
        let rules = Rules::default();
        let one = |rules: Rules, kind| rules.with(kind, |rule| rule.count = Some(1));
        let rules = [
            AnomalyKind::ConnectRefused,
            AnomalyKind::ConnectTimeout,
            AnomalyKind::ConnectUnreachable,
            AnomalyKind::HandshakeAborted,
        ]
        .into_iter()
        .fold(rules, one);
        Rates::new(&rules, &[SPECS])
    }

    fn found(observations: &[crate::source::live::Observation]) -> Vec<AnomalyKind> {
        let (mut rates, mut sweeps) = (rates(), Sweeps::default());
        observations.iter().for_each(|seen| sweeps.tell(&mut rates, seen));
        let now = observations.last().unwrap().event.time;
        sweeps.end(&mut rates, now).iter().map(|finding| finding.kind).collect()
    }

    #[test]
    fn every_failure_has_its_kind() {
        assert_eq!(found(&refused(1, 0)), [AnomalyKind::ConnectRefused]);

        let mut talk = Conversation::new();
        let syn = talk.segment(End::Low, TcpFlags::SYN, 0);
        let unreachable = talk.unreachable();
        assert_eq!(found(&[syn, unreachable]), [AnomalyKind::ConnectUnreachable]);

        let mut talk = Conversation::new();
        let syn = talk.segment(End::Low, TcpFlags::SYN, 0);
        let expired = talk.expire(200_000_000_000);
        assert_eq!(found(&[syn, expired]), [AnomalyKind::ConnectTimeout]);

        // As with [timeouts] syn_sent below syn_recv: the originator has given up, the responder is still thought of.
        let mut talk = Conversation::new();
        let syn = talk.segment(End::Low, TcpFlags::SYN, 0);
        let mut expired = talk.expire(200_000_000_000);
        let before = tcpfsm_common::abi::Verdict(expired.event.before);
        expired.event.kind = EventKind::Expired as u8;
        expired.event.after = before.with_state(End::Low, State::Closed, false).0;
        assert_eq!(found(&[syn, expired]), [AnomalyKind::ConnectTimeout]);

        let mut talk = Conversation::new();
        let all = [
            talk.segment(End::Low, TcpFlags::SYN, 0),
            talk.segment(End::High, TcpFlags::SYN | TcpFlags::ACK, 0),
            talk.segment(End::Low, TcpFlags::RST, 0),
        ];
        assert_eq!(found(&all), [AnomalyKind::HandshakeAborted]);

        assert_eq!(found(&Conversation::new().ordinary_life()), []);
    }
}
