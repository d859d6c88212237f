//! CLOSE-WAIT that rises steadily at a service: a leak, before any threshold.

use std::collections::hash_map::Entry;

use tcpfsm_common::{abi::Health, flow::End, fsm::State};

use super::{
    AnomalyKind, Detector, Dwelling, Finding, QuickMap, Seen, SweepEnd,
    members::Group,
    ongoing::{Ongoing, Present},
};
use crate::config::{Rule, Rules};

/// Parts of the window. What counts is the lowest number in each: what comes and goes does not.
const PARTS: usize = 6;

/// Services watched.
const MAX_LEVELS: usize = 4_096;

/// Finds leaks.
pub(super) struct CloseWaitLeak {
    rule: Rule,
    levels: QuickMap<Group, Level>,
    ongoing: Ongoing<Group>,
    events_lost: u64,
    overflow: u64,
}

/// How many ends of a group are in CLOSE-WAIT.
struct Level {
    now: u64,
    lowest: u64,
    /// The lowest of each part of the window, the newest first.
    parts: [Option<u64>; PARTS],
    part: u64,
    example: Dwelling,
}

impl Level {
    /// By how much it rose, if it did nothing but rise.
    fn rise(&self) -> Option<u64> {
        let mut steps = 0;
        let mut later = self.parts[0]?;
        for &part in &self.parts[1..] {
            let earlier = part?;
            if earlier > later {
                return None;
            }
            steps += usize::from(earlier < later);
            later = earlier;
        }
        // One jump is a crowd that left at once; a leak drips.
        (steps + 2 >= PARTS).then(|| self.parts[0].unwrap_or(0) - later)
    }

    fn advance(&mut self, part: u64) {
        for _ in 0..part.saturating_sub(self.part).min(PARTS as u64) {
            self.parts.rotate_right(1);
            self.parts[0] = Some(self.lowest);
            self.lowest = self.now;
        }
        self.part = self.part.max(part);
    }

    fn is_forgotten(&self) -> bool {
        self.now == 0 && self.lowest == 0 && self.parts.iter().flatten().all(|&part| part == 0)
    }
}

impl CloseWaitLeak {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            rule: rules[AnomalyKind::CloseWaitLeak],
            levels: QuickMap::default(),
            ongoing: Ongoing::new(AnomalyKind::CloseWaitLeak),
            events_lost: 0,
            overflow: 0,
        }
    }

    fn part_of(&self, time: u64) -> u64 {
        time / (self.rule.window_ns() / PARTS as u64).max(1)
    }
}

impl Detector for CloseWaitLeak {
    fn kinds(&self) -> &'static [AnomalyKind] {
        &[AnomalyKind::CloseWaitLeak]
    }

    fn seen(&mut self, seen: &Seen<'_>) {
        if seen.sight().is_some() {
            return;
        }
        for end in [End::Low, End::High] {
            let Some(left) = seen.left(end) else { continue };
            let entered = seen.after().state(end) == State::CloseWait;
            if !entered && left != State::CloseWait {
                continue;
            }
            let part = self.part_of(seen.event().time);
            let group = (seen.service(), seen.side(end));
            let room = self.levels.len() < MAX_LEVELS;
            match self.levels.entry(group) {
                Entry::Occupied(mut known) => {
                    let level = known.get_mut();
                    level.advance(part);
                    level.now = if entered { level.now + 1 } else { level.now.saturating_sub(1) };
                    level.lowest = level.lowest.min(level.now);
                }
                Entry::Vacant(new) if entered && room => {
                    let example = seen.dwelling(end, State::CloseWait, seen.event().time);
                    new.insert(Level { now: 1, lowest: 0, parts: [None; PARTS], part, example });
                }
                Entry::Vacant(_) => self.overflow += u64::from(entered),
            }
        }
    }

    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding> {
        let lost = sweep.counters.health[Health::EventsLost as usize];
        if lost != self.events_lost {
            // The count is no longer right.
            self.events_lost = lost;
            self.levels.clear();
        }
        let part = self.part_of(sweep.now);
        let Self { rule, levels, ongoing, .. } = self;
        let mut present = Vec::new();
        levels.retain(|group, level| {
            level.advance(part);
            let wanted = if ongoing.is_going_on(group) { rule.least().div_ceil(2) } else { rule.least() };
            if level.rise().is_some_and(|rise| rise >= wanted) {
                present.push((*group, Present::new(level.now, level.example)));
            }
            !level.is_forgotten()
        });
        ongoing.update(sweep.now, present)
    }

    fn going_on(&self) -> Vec<Finding> {
        self.ongoing.going_on()
    }

    fn overflow(&self) -> u64 {
        self.overflow + self.ongoing.overflow()
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::segment::TcpFlags;

    use super::*;
    use crate::{detect::tests::Sweeps, pipeline::synthetic::Conversation, report::Phase};

    const SECOND: u64 = 1_000_000_000;

    /// One connection at `second` whose client closes; and its server too, `after` seconds later.
    fn client_closes(
        sweeps: &mut Sweeps,
        leak: &mut CloseWaitLeak,
        port: u16,
        second: u64,
        server_closes: bool,
    ) {
        let mut talk = Conversation::from_port(port);
        talk.now = second * SECOND;
        talk.handshake();
        sweeps.tell(leak, &talk.segment(End::Low, TcpFlags::FIN | TcpFlags::ACK, 0));
        if server_closes {
            sweeps.tell(leak, &talk.segment(End::High, TcpFlags::FIN | TcpFlags::ACK, 0));
        }
    }

    fn run(drips: impl Fn(u64) -> (u16, bool)) -> Option<u64> {
        let (mut leak, mut sweeps) = (CloseWaitLeak::new(&Rules::default()), Sweeps::default());
        let mut port = 0;
        for second in (0..900).step_by(5) {
            let (count, server_closes) = drips(second);
            for _ in 0..count {
                port += 1;
                client_closes(&mut sweeps, &mut leak, port, second, server_closes);
            }
            if !sweeps.end(&mut leak, second * SECOND).is_empty() {
                return Some(second);
            }
        }
        None
    }

    #[test]
    fn a_drip_is_a_leak_after_one_window() {
        let found = run(|second| (u16::from(second % 20 == 0), false)).unwrap();
        assert!((250..=350).contains(&found), "{found}");
    }

    #[test]
    fn what_comes_and_goes_is_none() {
        assert_eq!(run(|_| (20, true)), None);
    }

    #[test]
    fn a_jump_is_none() {
        assert_eq!(run(|second| (if second == 100 { 500 } else { 0 }, false)), None);
    }

    #[test]
    fn it_ends_when_the_rise_does() {
        let (mut leak, mut sweeps) = (CloseWaitLeak::new(&Rules::default()), Sweeps::default());
        let mut phases = Vec::new();
        for second in 0..1_000 {
            if second < 400 && second % 10 == 0 {
                client_closes(&mut sweeps, &mut leak, second as u16, second, false);
            }
            phases.extend(sweeps.end(&mut leak, second * SECOND).iter().map(|finding| finding.phase));
        }
        assert_eq!((phases.first(), phases.last()), (Some(&Phase::Start), Some(&Phase::End)), "{phases:?}");
    }

    #[test]
    fn lost_events_begin_it_anew() {
        let (mut leak, mut sweeps) = (CloseWaitLeak::new(&Rules::default()), Sweeps::default());
        client_closes(&mut sweeps, &mut leak, 1, 1, false);
        assert_eq!(leak.levels.len(), 1);
        sweeps.counters.health[Health::EventsLost as usize] = 1;
        sweeps.end(&mut leak, SECOND);
        assert!(leak.levels.is_empty());
    }
}
