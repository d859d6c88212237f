//! Ends that the wire shows in one state and the kernel's own socket in another, lastingly.
//!
//! Mostly the wire is not seen whole (another path, a full ring of the card), or the socket has more to say
//! than it could send yet: a FIN that waits behind a closed window.

use tcpfsm_common::{abi::EventKind, flow::End};

use super::{
    AnomalyKind, Detector, Dwelling, Finding, Seen, SweepEnd,
    members::{EVERY_SWEEP, Group, Members},
    ongoing::Ongoing,
};
use crate::config::{Rule, Rules};

/// Finds lasting differences. Each comparison names all there are.
#[derive(Debug)]
pub struct ViewMismatch {
    rule: Rule,
    differing: Members,
    ongoing: Ongoing<Group>,
    comparison: u32,
}

impl ViewMismatch {
    /// Nothing differs.
    #[must_use]
    pub fn new(rules: &Rules) -> Self {
        Self {
            rule: rules[AnomalyKind::ViewMismatch],
            // Whoever is not named in two comparisons running agrees again.
            differing: Members::new(EVERY_SWEEP),
            ongoing: Ongoing::new(AnomalyKind::ViewMismatch),
            comparison: 0,
        }
    }

    /// A comparison was made, and these differ.
    pub fn compared(&mut self, differing: impl IntoIterator<Item = Dwelling>) {
        self.comparison = self.comparison.wrapping_add(1);
        for dwelling in differing {
            // How long it lasts is not asked: whoever compares waits until it does.
            self.differing.insert(&dwelling, self.comparison, dwelling.since);
        }
    }
}

impl Detector for ViewMismatch {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::ViewMismatch]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if self.differing.is_empty() || seen.kind() == EventKind::Stuck {
            return;
        }
        for end in [End::Low, End::High] {
            if seen.left(end).is_some() {
                self.differing.remove(&seen.key(), end);
            }
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let Self { rule, differing, ongoing, comparison } = self;
        if !rule.enabled {
            return Vec::new();
        }
        let present: Vec<_> = differing
            .grouped(*comparison, 0)
            .into_iter()
            .filter(|(group, present)| present.count >= rule.least() || ongoing.is_going_on(group))
            .collect();
        ongoing.update(sweep.now, present)
    }

    fn going_on(&self) -> Vec<Finding> {
        self.ongoing.going_on()
    }

    fn overflow(&self) -> u64 {
        self.differing.overflow() + self.ongoing.overflow()
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{flow::End, segment::TcpFlags};

    use super::*;
    use crate::{detect::tests::Sweeps, pipeline::synthetic::Conversation, report::Phase};

    #[test]
    fn it_begins_with_the_first_comparison_and_ends_when_they_agree() {
        let mut talk = Conversation::new();
        talk.handshake();
        let stuck = talk.stuck(0);
        let seen = Seen { observation: &stuck, sweep: 1 };
        let differing = seen.dwelling(End::High, talk.verdict().state(End::High), 5);
        let (mut detector, mut sweeps) = (ViewMismatch::new(&Rules::default()), Sweeps::default());
        assert_eq!(sweeps.end(&mut detector, 1), []);
        detector.compared([differing]);
        let [start] = sweeps.end(&mut detector, 2)[..] else { panic!("one") };
        assert_eq!((start.phase, start.count, start.kind), (Phase::Start, 1, AnomalyKind::ViewMismatch));
        for now in 3..9 {
            assert_eq!(sweeps.end(&mut detector, now), [], "no comparison, no news");
        }
        detector.compared([]);
        detector.compared([]);
        assert_eq!(sweeps.end(&mut detector, 9)[0].phase, Phase::End);

        detector.compared([differing]);
        assert_eq!(sweeps.end(&mut detector, 10)[0].phase, Phase::Start);
        sweeps.tell(&mut detector, &talk.segment(End::High, TcpFlags::FIN | TcpFlags::ACK, 0));
        assert_eq!(sweeps.end(&mut detector, 11)[0].phase, Phase::End, "the wire moved on");
    }
}
