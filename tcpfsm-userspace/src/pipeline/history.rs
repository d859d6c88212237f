//! The last events of all flows, and those of flows that live on, for whoever asks to have one explained.
//!
//! What is stuck has said its last before thousands of others came and went. So when the last events are more than is kept of
//! them, those of flows that have not ended since are put aside.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use foldhash::fast::RandomState;
use tcpfsm_common::{
    abi::{EventKind, FlowEvent},
    flow::FlowKey,
};

use crate::source::live::{Observation, Totals};

/// Events remembered of all flows (about 3 MB), and as many again of flows that live on.
const MAX_EVENTS: usize = 16_384;

/// So many of the last events make room at once.
const ROOM: usize = MAX_EVENTS / 2;

/// Where room is needed again sooner than this after the last time, all that makes room is forgotten: under a flood the engine
/// has other work. Nanoseconds.
const CALM: u64 = 100_000_000;

/// Of a flow that lives on only so many of the newest are put aside: one that tells much must not push others out.
const MAX_OF_FLOW: usize = 64;

/// Of one batch at most so many are remembered: under a flood a sample is enough, and the engine has other work.
const MAX_OF_BATCH: usize = 512;

/// What is remembered.
#[derive(Debug, Default)]
pub struct History {
    events: Mutex<Events>,
}

#[derive(Debug, Default)]
struct Events {
    /// The last ones of all flows.
    last: VecDeque<Remembered>,
    /// Earlier ones, of flows that had not ended when these made room.
    lasting: VecDeque<Remembered>,
    /// The time of the event for which room was made last.
    room_made: u64,
}

/// An event that no sweep made: so nothing but its totals came with it.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    kind: EventKind,
    event: FlowEvent,
    totals: Option<Totals>,
}

impl Remembered {
    const fn observation(&self) -> Observation {
        let Self { kind, event, totals } = *self;
        Observation { kind, event, totals, sight: None }
    }
}

/// The history, open for one batch.
#[derive(Debug)]
pub struct Page<'a> {
    events: MutexGuard<'a, Events>,
    noted: usize,
}

impl Page<'_> {
    /// Takes an event of the batch, if it tells something about its flow's life and there is room.
    pub fn note(&mut self, observation: &Observation) {
        let lives = match observation.kind {
            EventKind::Verdict
            | EventKind::Fact
            | EventKind::Expired
            | EventKind::Closed
            | EventKind::Host => true,
            EventKind::Stuck | EventKind::Stray => false,
        };
        if !lives || self.noted == MAX_OF_BATCH {
            return;
        }
        self.noted += 1;
        let &Observation { kind, event, totals, sight: _ } = observation;
        self.events.push(Remembered { kind, event, totals });
    }
}

impl Events {
    fn push(&mut self, event: Remembered) {
        if self.last.len() == MAX_EVENTS {
            let now = event.event.time;
            if now.saturating_sub(self.room_made) < CALM {
                self.last.drain(..ROOM);
            } else {
                self.put_aside();
            }
            self.room_made = now;
        }
        self.last.push_back(event);
    }

    /// Makes room, and keeps what tells of flows that live on.
    fn put_aside(&mut self) {
        // Where each flow ended last.
        let mut ends: HashMap<FlowKey, usize, RandomState> = HashMap::default();
        for (at, told) in self.last.iter().enumerate() {
            if told.kind == EventKind::Closed {
                ends.insert(told.event.key(), at);
            }
        }
        let Self { last, lasting, .. } = self;
        // Of what ended a moment ago all is kept that was.
        let end_of = |told: &Remembered| ends.get(&told.event.key()).filter(|&&end| end < ROOM);
        lasting.retain(|told| end_of(told).is_none());
        let lives_on = |(at, told): &(usize, Remembered)| end_of(told).is_none_or(|end| end < at);
        lasting.extend(last.drain(..ROOM).enumerate().filter(lives_on).map(|(_, told)| told));
        let mut counts: HashMap<FlowKey, usize, RandomState> = HashMap::default();
        for told in &*lasting {
            *counts.entry(told.event.key()).or_default() += 1;
        }
        lasting.retain(|told| {
            let left = counts.entry(told.event.key()).or_default();
            let is_newest = *left <= MAX_OF_FLOW;
            *left = left.saturating_sub(1);
            is_newest
        });
        lasting.drain(..lasting.len().saturating_sub(MAX_EVENTS));
    }

    fn iter(&self) -> impl Iterator<Item = &Remembered> {
        self.lasting.iter().chain(&self.last)
    }
}

impl History {
    /// Opens it for a batch; what is oldest is forgotten for what is noted.
    pub fn page(&self) -> Page<'_> {
        Page { events: self.lock(), noted: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of one flow since it was last opened, in order.
    #[must_use]
    pub fn of(&self, key: &FlowKey) -> Vec<Observation> {
        let events = self.lock();
        let mut found: Vec<Observation> =
            events.iter().filter(|told| told.event.key() == *key).map(Remembered::observation).collect();
        // The same addresses and ports may have been used before. Under a flood the opening may not have been told: what
        // comes after an end and does not go on from there is another connection's too.
        let opened = (0..found.len()).rev().find(|&at| {
            let earlier = at.checked_sub(1).and_then(|before| found.get(before));
            let is_another = |earlier: &Observation| {
                earlier.kind == EventKind::Closed && !found[at].event.follows(&earlier.event)
            };
            found[at].event.opens() || earlier.is_some_and(is_another)
        });
        found.drain(..opened.unwrap_or(0));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::synthetic::Conversation;

    fn add(history: &History, events: &[Observation]) {
        let mut page = history.page();
        events.iter().for_each(|event| page.note(event));
    }

    #[test]
    fn a_flow_is_remembered_since_it_was_opened() {
        let history = History::default();
        let mut talk = Conversation::new();
        let life = talk.ordinary_life();
        add(&history, &life);
        assert_eq!(history.of(&talk.key), life);
        talk.renumber([90_000, 95_000]);
        let again = talk.handshake();
        add(&history, &again);
        assert_eq!(history.of(&talk.key), again, "not the earlier connection");
        assert_eq!(history.of(&FlowKey::V4(Default::default())), []);

        let history = History::default();
        let untold = &Conversation::new().ordinary_life()[2..];
        add(&history, &life);
        add(&history, untold);
        assert_eq!(history.of(&talk.key), untold, "its opening was not told");
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let history = History::default();
        let mut talk = Conversation::new();
        let handshake = talk.handshake();
        let crowd = vec![handshake[0]; 4 * MAX_OF_BATCH];
        for _ in 0..6 * MAX_EVENTS / MAX_OF_BATCH {
            add(&history, &crowd);
        }
        add(&history, &handshake);
        let events = history.events.lock().unwrap();
        assert!(events.last.len() <= MAX_EVENTS && events.lasting.len() <= MAX_EVENTS);
        assert_eq!(events.last.back().map(Remembered::observation), handshake.last().copied());
    }

    /// So many connections come and go, one after the other, so many nanoseconds apart.
    fn come_and_go(history: &History, connections: std::ops::Range<u32>, apart: u64) {
        for number in connections {
            let mut life = Conversation::from_port(20_000 + (number % 10_000) as u16).ordinary_life();
            life.iter_mut().for_each(|told| told.event.time += u64::from(number) * apart);
            add(history, &life);
        }
    }

    #[test]
    fn who_lives_on_is_remembered_while_others_come_and_go() {
        let history = History::default();
        let mut talk = Conversation::new();
        let life = talk.ordinary_life();
        let (begun, ended) = life.split_at(life.len() - 1);
        add(&history, begun);
        come_and_go(&history, 0..20_000, 1_000_000);
        assert_eq!(history.of(&talk.key), begun, "it goes on");
        let aside = history.events.lock().unwrap().lasting.len();
        assert!(aside < begun.len() + 64, "{aside} are put aside, nearly all of flows that ended");

        add(&history, ended);
        assert_eq!(history.of(&talk.key), life, "it ended a moment ago");
        come_and_go(&history, 20_000..40_000, 1_000_000);
        assert_eq!(history.of(&talk.key), [], "it ended long ago");
    }

    #[test]
    fn who_tells_much_pushes_nobody_out() {
        let history = History::default();
        let mut talk = Conversation::new();
        let handshake = talk.handshake();
        add(&history, &handshake);
        let mut chatty = Conversation::from_port(1);
        let opening = chatty.handshake();
        add(&history, &opening);
        for number in 0..8 * MAX_EVENTS {
            let mut fact = opening[2];
            fact.event.time += number as u64 * 100_000;
            add(&history, &[Observation { kind: EventKind::Fact, ..fact }]);
        }
        assert_eq!(history.of(&talk.key), handshake);
        let events = history.events.lock().unwrap();
        assert!(events.lasting.len() <= handshake.len() + MAX_OF_FLOW, "{}", events.lasting.len());
    }

    #[test]
    fn a_flood_is_not_searched_for_who_lives_on() {
        let history = History::default();
        come_and_go(&history, 0..5_000, 100);
        let mut talk = Conversation::new();
        add(&history, &talk.handshake());
        come_and_go(&history, 5_000..20_000, 100);
        assert_eq!(history.of(&talk.key), []);
    }
}
