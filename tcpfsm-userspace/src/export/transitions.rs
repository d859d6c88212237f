//! The metrics of transitions: every usual one has a series, and a few others.

use tcpfsm_common::{
    abi::Counters,
    fsm::{self, State},
};

use super::exposition::Page;
use crate::report::Side;

/// Transitions outside the diagram (roll-backs) that get a series of their own; the rest share one.
const MAX_UNUSUAL: usize = 6;

/// Transitions outside the diagram that have a series of their own: the first that were seen, for good, since a series that
/// goes away and comes back counts anew.
#[derive(Clone, Debug, Default)]
pub struct Unusual(Vec<(Side, State, State)>);

impl Unusual {
    /// Takes in what was seen since.
    pub fn note(&mut self, counters: &Counters) {
        for (at, count) in each_transition(counters) {
            let (_, from, to) = at;
            if self.0.len() < MAX_UNUSUAL && count > 0 && !is_usual(from, to) && !self.0.contains(&at) {
                self.0.push(at);
            }
        }
    }
}

/// Renders them.
pub(super) fn render(page: &mut Page, counters: &Counters, Unusual(unusual): &Unusual) {
    page.family("tcpfsm_transitions_total", "counter", "Transitions of connection ends.");
    let mut others = [0; 2];
    for (at, count) in each_transition(counters) {
        let (side, from, to) = at;
        if is_usual(from, to) || unusual.contains(&at) {
            let labels = [("from", from.name()), ("to", to.name()), ("side", side.name())];
            page.sample("tcpfsm_transitions_total", &labels, count);
        } else {
            others[side as usize & 1] += count;
        }
    }
    for (side, count) in Side::ALL.into_iter().zip(others) {
        if count > 0 {
            let labels = [("from", "other"), ("to", "other"), ("side", side.name())];
            page.sample("tcpfsm_transitions_total", &labels, count);
        }
    }
}

/// Every transition there could be, and how often it was seen.
fn each_transition(counters: &Counters) -> impl Iterator<Item = ((Side, State, State), u64)> {
    Side::ALL.into_iter().zip(&counters.transitions).flat_map(|(side, by_state)| {
        State::ALL.into_iter().zip(by_state).flat_map(move |(from, by_next)| {
            State::ALL.into_iter().zip(by_next).map(move |(to, &count)| ((side, from, to), count))
        })
    })
}

/// Whether the diagram has this transition. Closing from anywhere by reset or timeout is in it.
fn is_usual(from: State, to: State) -> bool {
    fsm::Event::ALL.into_iter().any(|event| fsm::next(from, event) == Some(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unusual_transition_keeps_its_series() {
        let each = each_transition(&Counters::ZERO);
        let unusual: Vec<_> = each
            .map(|(at, _)| at)
            .filter(|(side, from, to)| *side == Side::Orig && !is_usual(*from, *to))
            .collect();
        let (mut counters, mut shown) = (Counters::ZERO, Unusual::default());
        // From the last in the table's order to the first.
        let mut see = |&(_, from, to): &(Side, State, State)| {
            counters.transitions[0][from as usize][to as usize] += 1;
            shown.note(&counters);
            let mut page = Page::default();
            render(&mut page, &counters, &shown);
            page.into_text().lines().map(str::to_owned).collect()
        };
        let pages: Vec<Vec<String>> = unusual.iter().rev().take(MAX_UNUSUAL + 1).map(&mut see).collect();
        let [.., before, after] = &pages[..] else { panic!("some are unusual") };
        assert!(before.iter().all(|line| after.contains(line)), "{before:?} {after:?}");
        let shared = after.iter().filter(|line| line.contains("from=\"other\"")).count();
        assert_eq!((after.len(), shared), (before.len() + 1, 1));
    }
}
