//! Ends that the wire shows in one state and the kernel's own socket in another, lastingly.
//!
//! Mostly the wire is not seen whole (another path, a full ring of the card), or the socket has more to say
//! than it could send yet: a FIN that waits behind a closed window.

use tcpfsm_common::flow::{End, FlowKey};

use super::{AnomalyKind, Detector, Dwelling, Finding, dwellers::Dwellers};
use crate::report::Severity;

/// Finds lasting differences. Each comparison names all there are.
#[derive(Debug)]
pub struct ViewMismatch {
    differing: Dwellers,
    comparison: u32,
}

impl Default for ViewMismatch {
    fn default() -> Self {
        Self::new()
    }
}

impl ViewMismatch {
    /// Nothing differs.
    #[must_use]
    pub fn new() -> Self {
        // Whoever is not named in two comparisons running agrees again.
        Self { differing: Dwellers::new(AnomalyKind::ViewMismatch, 0), comparison: 0 }
    }

    /// A comparison was made, and these differ.
    pub fn compared(&mut self, differing: impl IntoIterator<Item = Dwelling>) {
        self.comparison = self.comparison.wrapping_add(1);
        for dwelling in differing {
            self.differing.insert(&dwelling, self.comparison);
        }
    }
}

impl Detector for ViewMismatch {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::ViewMismatch]
    }

    fn dwelling(&mut self, _: &Dwelling, _: u32) {}

    fn left(&mut self, key: &FlowKey, end: End) {
        self.differing.remove(key, end);
    }

    fn swept(&mut self, now: u64, _: u32) -> Vec<Finding> {
        self.differing.swept(now, self.comparison, |_| Severity::Info)
    }

    fn active(&self, kind: AnomalyKind) -> usize {
        if kind == AnomalyKind::ViewMismatch { self.differing.active() } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{flow::FlowKey4, fsm::State};

    use super::*;
    use crate::report::{Phase, Side};

    #[test]
    fn it_begins_with_the_first_comparison_and_ends_when_they_agree() {
        let differing = Dwelling {
            key: FlowKey::V4(FlowKey4 { addr: [1, 2], port: [3, 80], scope: 0 }),
            end: End::High,
            side: Side::Resp,
            state: State::Established,
            confirmed: true,
            since: 5,
            service: ([10, 0, 0, 2], 80).into(),
            ifindex: 1,
        };
        let mut detector = ViewMismatch::new();
        assert_eq!(detector.swept(1, 1), []);
        detector.compared([differing]);
        let [start] = detector.swept(2, 2)[..] else { panic!("one") };
        assert_eq!((start.phase, start.count, start.kind), (Phase::Start, 1, AnomalyKind::ViewMismatch));
        for sweep in 3..9 {
            assert_eq!(detector.swept(sweep.into(), sweep), [], "no comparison, no news");
        }
        detector.compared([]);
        detector.compared([]);
        assert_eq!(detector.swept(9, 9)[0].phase, Phase::End);

        detector.compared([differing]);
        assert_eq!(detector.swept(10, 10)[0].phase, Phase::Start);
        detector.left(&differing.key, End::High);
        assert_eq!(detector.swept(11, 11)[0].phase, Phase::End, "the wire moved on");
    }
}
