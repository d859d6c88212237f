//! Handshakes that the responder answered and nobody completed: a SYN flood, a scan, a broken return path.
//!
//! A SYN that nobody answered is none: its responder has no state that it proved.

use tcpfsm_common::{
    flow::{End, FlowKey},
    fsm::State,
};

use super::{AnomalyKind, Detector, Dwelling, Finding, dwellers::Dwellers};
use crate::report::{Severity, Side};

/// From here on a backlog of 128, the usual `somaxconn` of old, is full.
const CRITICAL: u64 = 128;

/// Finds half-open handshakes.
#[derive(Debug)]
pub struct HalfOpen(Dwellers);

impl HalfOpen {
    /// `report_every`: the sweep repeats itself about a flow after so many sweeps.
    #[must_use]
    pub fn new(report_every: u32) -> Self {
        Self(Dwellers::new(AnomalyKind::HalfOpen, report_every))
    }
}

impl Detector for HalfOpen {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::HalfOpen]
    }

    fn dwelling(&mut self, dwelling: &Dwelling, sweep: u32) {
        if dwelling.state == State::SynRecv && dwelling.confirmed && dwelling.side == Side::Resp {
            self.0.insert(dwelling, sweep);
        }
    }

    fn left(&mut self, key: &FlowKey, end: End) {
        self.0.remove(key, end);
    }

    fn swept(&mut self, now: u64, sweep: u32) -> Vec<Finding> {
        self.0.swept(
            now,
            sweep,
            |count| {
                if count >= CRITICAL { Severity::Critical } else { Severity::Warning }
            },
        )
    }

    fn active(&self, kind: AnomalyKind) -> usize {
        if self.kinds().contains(&kind) { self.0.active() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::flow::FlowKey4;

    use super::*;
    use crate::report::Phase;

    const SECOND: u64 = 1_000_000_000;

    fn dwelling(port: u16, since: u64) -> Dwelling {
        let key = FlowKey4 { addr: [1, 2], port: [port, 80], scope: 0 };
        Dwelling {
            key: FlowKey::V4(key),
            end: End::High,
            side: Side::Resp,
            state: State::SynRecv,
            confirmed: true,
            since,
            service: ([10, 0, 0, 2], 80).into(),
            ifindex: 1,
        }
    }

    #[test]
    fn it_begins_grows_and_ends() {
        let mut detector = HalfOpen::new(12);
        detector.dwelling(&dwelling(1, 7 * SECOND), 1);
        detector.dwelling(&dwelling(2, 5 * SECOND), 1);
        let [start] = detector.swept(20 * SECOND, 1)[..] else { panic!("one start") };
        assert_eq!((start.phase, start.count, start.oldest.since), (Phase::Start, 2, 5 * SECOND));
        assert_eq!(start.severity, Severity::Warning);

        detector.dwelling(&dwelling(3, 8 * SECOND), 2);
        assert_eq!(detector.swept(25 * SECOND, 2), [], "one more of three is no news");
        for port in 4..200 {
            detector.dwelling(&dwelling(port, 9 * SECOND), 3);
        }
        let [update] = detector.swept(30 * SECOND, 3)[..] else { panic!("one update") };
        assert_eq!((update.phase, update.count, update.severity), (Phase::Update, 199, Severity::Critical));
        assert_eq!(detector.active(AnomalyKind::HalfOpen), 1);

        for port in 1..200 {
            detector.left(&dwelling(port, 0).key, End::High);
        }
        let [end] = detector.swept(35 * SECOND, 4)[..] else { panic!("one end") };
        assert_eq!((end.phase, end.count, end.peak, end.first_seen), (Phase::End, 0, 199, 20 * SECOND));
        assert_eq!(detector.active(AnomalyKind::HalfOpen), 0);
        assert_eq!(detector.swept(40 * SECOND, 5), []);
    }

    #[test]
    fn one_that_goes_on_is_repeated_every_minute() {
        let mut detector = HalfOpen::new(1);
        let mut reported = 0;
        for sweep in 1..=25 {
            detector.dwelling(&dwelling(1, 0), sweep);
            reported += detector.swept(u64::from(sweep) * 5 * SECOND, sweep).len();
        }
        assert_eq!(reported, 3, "start, and two minutes");
    }

    #[test]
    fn a_flow_that_the_sweep_no_longer_names_is_gone() {
        let mut detector = HalfOpen::new(3);
        detector.dwelling(&dwelling(1, 0), 1);
        assert_eq!(detector.swept(SECOND, 1).len(), 1);
        for sweep in 2..=8 {
            assert_eq!(detector.swept(u64::from(sweep) * SECOND, sweep), []);
        }
        assert_eq!(detector.swept(9 * SECOND, 9)[0].phase, Phase::End);
    }

    #[test]
    fn an_unanswered_syn_is_not_half_open() {
        let mut detector = HalfOpen::new(12);
        detector.dwelling(&Dwelling { confirmed: false, ..dwelling(1, 0) }, 1);
        detector.dwelling(&Dwelling { state: State::SynSent, side: Side::Orig, ..dwelling(2, 0) }, 1);
        assert_eq!(detector.swept(SECOND, 1), []);
    }
}
