//! Resets of open connections that carry no ACK: "no such connection here", unless the peer goes on as if nothing were.
//!
//! A reset is only as true as its sender. What the machine has to take back later (`rst_injection_suspected`, or the
//! closed state itself) was somebody else's, so a reset counts after it has stood for a while, and no longer than it stands.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

use tcpfsm_common::{
    fact::Fact,
    flow::{End, FlowKey},
    fsm::State,
    segment::TcpFlags,
};

use super::{
    AnomalyKind, Dwelling, Finding, Seen, SweepEnd,
    members::MAX_MEMBERS,
    ongoing::{Ongoing, Present},
};
use crate::config::Rule;

/// Whoever did not send "its" reset mostly sends on within this: it takes two segments to prove it.
const STANDS_AFTER: u64 = 2_000_000_000;

/// How this is noticed.
const TECHNIQUE: &str = "reset";

/// The resets within the window, by flow.
pub(super) struct Disowned {
    rule: Rule,
    resets: HashMap<FlowKey, Told>,
    ongoing: Ongoing<SocketAddr>,
    overflow: u64,
}

struct Told {
    /// Who resets.
    sender: End,
    /// The other end, and when it was reset.
    survivor: Dwelling,
    /// How many it stands for.
    weight: u64,
}

impl Disowned {
    pub(super) fn new(rule: Rule) -> Self {
        Self { rule, resets: HashMap::new(), ongoing: Ongoing::new(AnomalyKind::PeerGone), overflow: 0 }
    }

    pub(super) fn seen(&mut self, seen: &Seen<'_>) {
        let sender = seen.sender();
        if disowns(seen) {
            let told = Told { sender, survivor: seen.example(sender.other()), weight: seen.event().weight() };
            let room = self.resets.len() < MAX_MEMBERS;
            match self.resets.entry(seen.key()) {
                Entry::Occupied(mut known) => *known.get_mut() = told,
                Entry::Vacant(new) if room => {
                    new.insert(told);
                }
                Entry::Vacant(_) => self.overflow += 1,
            }
        } else if !self.resets.is_empty()
            && speaks_on(seen)
            && self.resets.get(&seen.key()).is_some_and(|told| told.sender == sender)
        {
            self.resets.remove(&seen.key());
        }
    }

    pub(super) fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let Self { rule, resets, ongoing, .. } = self;
        let ago = |told: &Told| sweep.now.saturating_sub(told.survivor.since);
        let stands_after = STANDS_AFTER.min(rule.window_ns() / 2);
        resets.retain(|_, told| ago(told) < rule.window_ns());
        let mut groups: HashMap<SocketAddr, Present> = HashMap::new();
        for told in resets.values().filter(|told| ago(told) >= stands_after) {
            let &Told { survivor, weight, .. } = told;
            let present = groups
                .entry(survivor.service)
                .or_insert(Present { technique: Some(TECHNIQUE), ..Present::new(0, survivor) });
            present.count += weight;
            if survivor.since < present.oldest.since {
                present.oldest = survivor;
            }
        }
        groups.retain(|group, present| {
            let least = rule.least();
            present.count >= if ongoing.is_going_on(group) { least.div_ceil(2) } else { least }
        });
        ongoing.update(sweep.now, groups)
    }

    pub(super) fn going_on(&self) -> Vec<Finding> {
        self.ongoing.going_on()
    }

    pub(super) fn overflow(&self) -> u64 {
        self.overflow + self.ongoing.overflow()
    }
}

/// Programs that abort send RST with ACK. A bare one answers a segment of a connection that is not known.
fn disowns(seen: &Seen<'_>) -> bool {
    let bare = seen.event().tcp_flags().0 & (TcpFlags::RST | TcpFlags::ACK) == TcpFlags::RST;
    seen.has(Fact::Reset) && bare && seen.before().state(seen.sender()) == State::Established
}

/// Whether the sender turns out to be alive after what was taken for its end.
fn speaks_on(seen: &Seen<'_>) -> bool {
    let sender = seen.sender();
    seen.has(Fact::RstInjectionSuspected)
        || seen.has(Fact::StateRollback)
            && seen.before().state(sender).is_closed()
            && !seen.after().state(sender).is_closed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Rules,
        detect::{
            peer_gone::PeerGone,
            tests::{REPEATS, Sweeps},
        },
        pipeline::synthetic::Conversation,
        report::Phase,
    };

    const SECOND: u64 = 1_000_000_000;

    fn detector(least: u64) -> PeerGone {
        PeerGone::new(&Rules::default().with(AnomalyKind::PeerGone, |rule| rule.count = Some(least)))
    }

    /// A connection whose server is reset in the client's name.
    fn reset(port: u16, detector: &mut PeerGone, sweeps: &Sweeps) -> Conversation {
        let mut talk = Conversation::from_port(port);
        talk.handshake();
        talk.segment(End::High, TcpFlags::ACK, 100);
        sweeps.tell(detector, &talk.segment(End::Low, TcpFlags::RST, 0));
        talk
    }

    fn speak_on(talk: &mut Conversation, detector: &mut PeerGone, sweeps: &Sweeps) {
        for _ in 0..2 {
            sweeps.tell(detector, &talk.segment(End::Low, TcpFlags::PSH | TcpFlags::ACK, 10));
        }
    }

    #[test]
    fn a_reset_that_stands_is_told_once_it_has_stood() {
        let (mut detector, mut sweeps) = (detector(1), Sweeps::default());
        let talk = reset(1, &mut detector, &sweeps);
        assert_eq!(sweeps.end(&mut detector, talk.now + SECOND), [], "it may still be another's");
        let [start] = sweeps.end(&mut detector, talk.now + 2 * SECOND)[..] else { panic!("one") };
        assert_eq!((start.technique, start.oldest.end, start.count), (Some("reset"), End::High, 1));
        assert_eq!(sweeps.end(&mut detector, talk.now + 59 * SECOND), []);
        assert_eq!(sweeps.end(&mut detector, talk.now + 60 * SECOND)[0].phase, Phase::End);
    }

    #[test]
    fn forged_resets_are_no_peer_that_is_gone() {
        let mut detectors = crate::detect::all(&crate::config::Config::default(), REPEATS, 28_232);
        let mut sweeps = Sweeps::default();
        let mut now = 0;
        for port in 1..=10 {
            let mut talk = Conversation::from_port(port);
            let mut all = talk.handshake();
            all.push(talk.segment(End::Low, TcpFlags::RST, 0));
            for _ in 0..2 {
                all.push(talk.segment(End::Low, TcpFlags::PSH | TcpFlags::ACK, 10));
            }
            for detector in &mut detectors {
                all.iter().for_each(|seen| sweeps.tell(detector.as_mut(), seen));
            }
            now = talk.now;
        }
        let found: Vec<_> = (0..=5)
            .flat_map(|second| {
                let now = now + second * SECOND;
                let found: Vec<_> =
                    detectors.iter_mut().flat_map(|detector| sweeps.end(detector.as_mut(), now)).collect();
                found
            })
            .map(|finding| (finding.kind, finding.phase))
            .collect();
        assert_eq!(found, [(AnomalyKind::RstInjection, Phase::Start)]);
    }

    #[test]
    fn one_that_proves_to_be_forged_late_is_taken_back() {
        let (mut detector, mut sweeps) = (detector(2), Sweeps::default());
        let mut talks = [1, 2].map(|port| reset(port, &mut detector, &sweeps));
        let now = talks[1].now + 3 * SECOND;
        assert_eq!(sweeps.end(&mut detector, now)[0].count, 2);
        talks.iter_mut().for_each(|talk| talk.now = now);
        speak_on(&mut talks[0], &mut detector, &sweeps);
        assert_eq!(sweeps.end(&mut detector, now + SECOND), [], "half of them still stand");
        speak_on(&mut talks[1], &mut detector, &sweeps);
        assert_eq!(sweeps.end(&mut detector, now + 2 * SECOND)[0].phase, Phase::End);
    }

    #[test]
    fn a_window_shorter_than_the_wait_still_finds_some() {
        let rules = Rules::default().with(AnomalyKind::PeerGone, |rule| {
            rule.count = Some(1);
            rule.window = Some(std::time::Duration::from_secs(1));
        });
        let (mut detector, mut sweeps) = (PeerGone::new(&rules), Sweeps::default());
        let talk = reset(1, &mut detector, &sweeps);
        assert_eq!(sweeps.end(&mut detector, talk.now + SECOND / 2).len(), 1);
    }
}
