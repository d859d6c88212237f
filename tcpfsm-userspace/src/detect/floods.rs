//! Floods of segments that belong to no connection: SYN-ACKs, resets, ACKs.
//!
//! Strays are told as a sample in which each says how many it stands for.

use tcpfsm_common::{
    abi::{EventKind, Verdict},
    fact::Fact,
    segment::SegmentKind,
};

use super::{
    AnomalyKind, Seen,
    rates::{Hit, Spec, any_port, no_base},
};

pub(super) const SPECS: &[Spec] = &[
    Spec {
        // Reflected off servers all over: what they have in common is whom they hit.
        kind: AnomalyKind::SynackFlood,
        hit: |seen| is_stray(seen, SegmentKind::SynAck).then(|| hit(seen, any_port(seen.target().ip()))),
        base: no_base,
        base_has_hits: false,
        by_source: false,
        technique: None,
    },
    Spec {
        kind: AnomalyKind::RstFlood,
        hit: |seen| is_stray(seen, SegmentKind::Rst).then(|| hit(seen, any_port(seen.target().ip()))),
        // One that is reset so often because it sends so many strays itself, a scanner, is not flooded.
        base: |seen| {
            let provokes =
                seen.kind() == EventKind::Stray && seen.event().tcp_flags().kind() != SegmentKind::Rst;
            [provokes.then(|| (any_port(seen.source()), seen.event().weight())), None]
        },
        base_has_hits: false,
        by_source: false,
        technique: None,
    },
    Spec {
        // By service: one that tries many ports with ACKs scans.
        kind: AnomalyKind::AckFlood,
        hit: |seen| is_stray(seen, SegmentKind::Ack).then(|| hit(seen, seen.target())),
        // After a start, connections from before send strays until they are picked up.
        base: |seen| {
            if !seen.has(Fact::MidstreamPickup) {
                return [None, None];
            }
            [seen.target(), seen.address(seen.sender())].map(|end| Some((end, 1)))
        },
        base_has_hits: false,
        by_source: false,
        technique: None,
    },
];

fn is_stray(seen: &Seen<'_>, kind: SegmentKind) -> bool {
    seen.kind() == EventKind::Stray
        && seen.has(Fact::NoSession)
        && seen.event().tcp_flags().kind() == kind
        // A reset that answers a stray was asked for.
        && !(kind == SegmentKind::Rst && seen.before().has(Verdict::CANDIDATE))
}

fn hit(seen: &Seen<'_>, group: std::net::SocketAddr) -> Hit {
    Hit { group, weight: seen.event().weight(), example: seen.example(seen.sender().other()) }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    use super::*;
    use crate::{
        config::Rules,
        detect::{Finding, rates::Rates, tests::Sweeps},
        pipeline::synthetic::{Conversation, RESP},
    };

    /// Strays between as many pairs of ports, and after each its answer.
    fn found(strays: u16, flags: u16, answer: Option<u16>) -> Vec<Finding> {
        let (mut rates, mut sweeps) = (Rates::new(&Rules::default(), &[SPECS]), Sweeps::default());
        for port in 1..=strays {
            let mut talk = Conversation::from_port(port);
            sweeps.tell(&mut rates, &talk.stray(End::Low, flags));
            if let Some(answer) = answer {
                // A new record: so is the answer to a segment whose flags make none.
                sweeps.tell(&mut rates, &Conversation::from_port(port).stray(End::High, answer));
            }
        }
        sweeps.end(&mut rates, 2_000_000_000)
    }

    #[test]
    fn each_flood_has_its_kind() {
        for (flags, kind, group) in [
            (TcpFlags::SYN | TcpFlags::ACK, AnomalyKind::SynackFlood, RESP.ip()),
            (TcpFlags::RST, AnomalyKind::RstFlood, RESP.ip()),
            (TcpFlags::ACK, AnomalyKind::AckFlood, RESP.ip()),
        ] {
            assert_eq!(found(999, flags, None), []);
            let [start] = found(1_000, flags, None)[..] else { panic!("{kind:?}") };
            assert_eq!((start.kind, start.count), (kind, 1_000));
            assert_eq!(start.oldest.key.socket_addr(start.oldest.end).ip(), group);
        }
    }

    #[test]
    fn a_scanner_is_not_flooded_by_the_resets_it_asks_for() {
        assert_eq!(found(2_000, TcpFlags::FIN, Some(TcpFlags::RST | TcpFlags::ACK)), []);
    }

    #[test]
    fn connections_from_before_are_no_flood() {
        let (mut rates, mut sweeps) = (Rates::new(&Rules::default(), &[SPECS]), Sweeps::default());
        for port in 1..=2_000 {
            let mut talk = Conversation::from_port(port);
            sweeps.tell(&mut rates, &talk.stray(End::Low, TcpFlags::ACK));
            sweeps.tell(&mut rates, &talk.segment(End::High, TcpFlags::ACK, 0));
        }
        assert_eq!(sweeps.end(&mut rates, 2_000_000_000), []);
    }

    #[test]
    fn a_sample_counts_for_what_it_stands_for() {
        let (mut rates, mut sweeps) = (Rates::new(&Rules::default(), &[SPECS]), Sweeps::default());
        for port in 1..=16 {
            let mut stray = Conversation::from_port(port).stray(End::Low, TcpFlags::ACK);
            stray.event.weight = 64;
            sweeps.tell(&mut rates, &stray);
        }
        assert_eq!(sweeps.end(&mut rates, 2_000_000_000)[0].count, 1_024);
    }
}
