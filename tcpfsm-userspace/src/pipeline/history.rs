//! The last events of all flows, for whoever asks to have one explained.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tcpfsm_common::{abi::EventKind, flow::FlowKey};

use crate::source::live::Observation;

/// Events remembered (about 3 MB).
const MAX_EVENTS: usize = 16_384;

/// Of one batch at most so many are remembered: under a flood a sample is enough, and the engine has other work.
const MAX_OF_BATCH: usize = 512;

/// The last events of all flows.
#[derive(Debug, Default)]
pub struct History {
    events: Mutex<VecDeque<Observation>>,
}

/// What of one batch is to be remembered.
#[derive(Debug, Default)]
pub struct Page(Vec<Observation>);

impl Page {
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
        if lives && self.0.len() < MAX_OF_BATCH {
            self.0.push(*observation);
        }
    }
}

impl History {
    /// Remembers a batch; what is oldest is forgotten for it.
    pub fn add(&self, page: Page) {
        if page.0.is_empty() {
            return;
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let excess = (events.len() + page.0.len()).saturating_sub(MAX_EVENTS);
        events.drain(..excess);
        events.extend(page.0);
    }

    /// What is remembered of one flow since it was last opened, in order.
    #[must_use]
    pub fn of(&self, key: &FlowKey) -> Vec<Observation> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Observation> =
            events.iter().filter(|observation| observation.event.key() == *key).copied().collect();
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

    fn page(events: &[Observation]) -> Page {
        let mut page = Page::default();
        events.iter().for_each(|event| page.note(event));
        page
    }

    #[test]
    fn a_flow_is_remembered_since_it_was_opened() {
        let history = History::default();
        let mut talk = Conversation::new();
        let life = talk.ordinary_life();
        history.add(page(&life));
        assert_eq!(history.of(&talk.key), life);
        talk.renumber([90_000, 95_000]);
        let again = talk.handshake();
        history.add(page(&again));
        assert_eq!(history.of(&talk.key), again, "not the earlier connection");
        assert_eq!(history.of(&FlowKey::V4(Default::default())), []);

        let history = History::default();
        let untold = &Conversation::new().ordinary_life()[2..];
        history.add(page(&life));
        history.add(page(untold));
        assert_eq!(history.of(&talk.key), untold, "its opening was not told");
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let history = History::default();
        let mut talk = Conversation::new();
        let handshake = talk.handshake();
        let crowd = vec![handshake[0]; 4 * MAX_OF_BATCH];
        for _ in 0..2 * MAX_EVENTS / MAX_OF_BATCH {
            history.add(page(&crowd));
        }
        history.add(page(&handshake));
        let events = history.events.lock().unwrap();
        assert_eq!(events.len(), MAX_EVENTS);
        assert_eq!(events.back(), handshake.last());
    }
}
