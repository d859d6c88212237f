//! The last events of all flows, for whoever asks to have one explained.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tcpfsm_common::{
    abi::{EventKind, FlowEvent},
    flow::FlowKey,
};

use crate::source::live::{Observation, Totals};

/// Events remembered (about 3 MB).
const MAX_EVENTS: usize = 16_384;

/// Of one batch at most so many are remembered: under a flood a sample is enough, and the engine has other work.
const MAX_OF_BATCH: usize = 512;

/// The last events of all flows.
#[derive(Debug, Default)]
pub struct History {
    events: Mutex<VecDeque<Remembered>>,
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
    events: MutexGuard<'a, VecDeque<Remembered>>,
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
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        let &Observation { kind, event, totals, sight: _ } = observation;
        self.events.push_back(Remembered { kind, event, totals });
    }
}

impl History {
    /// Opens it for a batch; what is oldest is forgotten for what is noted.
    pub fn page(&self) -> Page<'_> {
        Page { events: self.lock(), noted: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Remembered>> {
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
        for _ in 0..2 * MAX_EVENTS / MAX_OF_BATCH {
            add(&history, &crowd);
        }
        add(&history, &handshake);
        let events = history.events.lock().unwrap();
        assert_eq!(events.len(), MAX_EVENTS);
        assert_eq!(events.back().map(Remembered::observation), handshake.last().copied());
    }
}
