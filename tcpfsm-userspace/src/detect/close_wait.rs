//! Ends stuck in CLOSE-WAIT: the peer has closed, and the program does not close its socket. A leak.

use tcpfsm_common::{
    flow::{End, FlowKey},
    fsm::State,
};

use super::{AnomalyKind, Detector, Dwelling, Finding, dwellers::Dwellers};
use crate::report::Severity;

/// From here on the usual limit of open files (1024) is near.
const CRITICAL: u64 = 900;

/// Finds ends stuck in CLOSE-WAIT.
#[derive(Debug)]
pub struct CloseWait(Dwellers);

impl CloseWait {
    /// `report_every`: the sweep repeats itself about a flow after so many sweeps.
    #[must_use]
    pub fn new(report_every: u32) -> Self {
        Self(Dwellers::new(AnomalyKind::CloseWaitStuck, report_every))
    }
}

impl Detector for CloseWait {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::CloseWaitStuck]
    }

    fn dwelling(&mut self, dwelling: &Dwelling, sweep: u32) {
        // Assumed will do: nothing that the end sends proves CLOSE-WAIT better than an ACK of the FIN.
        if dwelling.state == State::CloseWait {
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
    use crate::report::{Phase, Side};

    fn dwelling(port: u16, side: Side, state: State) -> Dwelling {
        Dwelling {
            key: FlowKey::V4(FlowKey4 { addr: [1, 2], port: [port, 80], scope: 0 }),
            end: End::Low,
            side,
            state,
            confirmed: false,
            since: 5,
            service: ([10, 0, 0, 2], 80).into(),
            ifindex: 1,
        }
    }

    #[test]
    fn each_side_of_a_service_is_an_anomaly_of_its_own() {
        let mut detector = CloseWait::new(12);
        detector.dwelling(&dwelling(1, Side::Orig, State::CloseWait), 1);
        detector.dwelling(&dwelling(2, Side::Resp, State::CloseWait), 1);
        detector.dwelling(&dwelling(3, Side::Resp, State::FinWait1), 1);
        let findings = detector.swept(100, 1);
        assert_eq!(findings.len(), 2, "clients that leak are not the server's leak");
        assert!(findings.iter().all(|finding| finding.phase == Phase::Start && finding.count == 1));
    }
}
