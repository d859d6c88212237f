//! Segments that no conforming stack sends: impossible flags, or impossible in that state.

use tcpfsm_common::fact::{Fact, Facts};

use super::{
    AnomalyKind, Seen,
    rates::{Hit, Spec, any_port, no_base},
};

pub(super) const SPECS: &[Spec] = &[Spec {
    kind: AnomalyKind::IllegalSegments,
    hit: |seen| is_illegal(seen).then(|| sent(seen)),
    base: no_base,
    base_has_hits: false,
    by_source: true,
    technique: None,
}];

fn is_illegal(seen: &Seen<'_>) -> bool {
    const ILLEGAL: Facts = Facts::of(&[
        Fact::BadFlags,
        Fact::DataAfterFin,
        Fact::FinSeqChanged,
        Fact::DataBeforeHandshake,
        Fact::BadAckInHandshake,
        Fact::SynAckBadAck,
        Fact::SynAckOdd,
        Fact::RstWithData,
    ]);
    seen.facts().any(ILLEGAL)
}

fn sent(seen: &Seen<'_>) -> Hit {
    Hit {
        group: any_port(seen.source()),
        weight: seen.event().weight(),
        example: seen.example(seen.sender()),
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    use super::*;
    use crate::{
        config::Rules,
        detect::{Detector as _, rates::Rates, tests::Sweeps},
        pipeline::synthetic::{Conversation, ORIG},
    };

    #[test]
    fn ten_of_one_source_are_an_anomaly() {
        let (mut rates, mut sweeps) = (Rates::new(&Rules::default(), &[SPECS]), Sweeps::default());
        for port in 1..=10 {
            let mut talk = Conversation::from_port(port);
            sweeps.tell(&mut rates, &talk.segment(End::Low, TcpFlags::SYN | TcpFlags::FIN, 0));
        }
        let [start] = sweeps.end(&mut rates, 2_000_000_000)[..] else { panic!("one") };
        assert_eq!((start.count, start.source), (10, Some(ORIG.ip())));
        assert_eq!(rates.going_on(), [start]);
    }
}
