//! A second truth: what the kernel lists of its sockets at some moments, the small ones of TIME-WAIT and the requests
//! among them, beside what the tracker had said by then.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tcpfsm_common::fsm::State;

use super::lives::{End, Moved};
use super::score::Side;
use super::tracker::Said;
use crate::lab::{Netns, sockets};

/// Whoever moved so shortly before or after a listing is not judged by it. Microseconds.
const UNREST: i64 = 100_000;
/// Linux keeps TIME-WAIT for 60 s after the last FIN, and its timers are seconds late; the tracker counts from the
/// first and looks every 5 s. What is nearly as old may be gone on one side and not on the other.
const OLD: i64 = 55_000_000;

/// One listing.
#[derive(Debug)]
pub struct Listing {
    /// Wall clock, microseconds: when the listing began and ended.
    taken: [i64; 2],
    states: HashMap<End, State>,
}

impl Listing {
    /// Lists the sockets of a namespace.
    pub fn take(namespace: &Netns) -> Result<Self> {
        let began = now();
        let sockets = sockets::list(namespace)?;
        let states = sockets.into_iter().filter_map(|socket| {
            let end = End { local: socket.local, remote: socket.remote };
            (socket.state != "listen").then_some((end, socket.state.parse().ok()?))
        });
        Ok(Self { states: states.collect(), taken: [began, now()] })
    }

    /// Whether anything is still to be expected: some end is neither over nor waiting for its time to run out.
    pub fn is_at_rest(&self) -> bool {
        self.states.values().all(|state| matches!(state, State::TimeWait | State::FinWait2))
    }

    /// Whether an end's full socket was, by its last record before, in a state that it is not in here: then a record is
    /// missing. `wall` as in [`compare`].
    pub fn contradicts(&self, end: End, moves: &[Moved], wall: i64) -> bool {
        let before = |moved: &&Moved| (moved.at.cast_signed() + wall) / 1_000 < self.taken[0] - UNREST;
        moves.iter().rfind(before).is_some_and(|last| {
            last.to != State::Closed && moves.last() == Some(last) && self.states.get(&end) != Some(&last.to)
        })
    }

    /// How many ends are in which state.
    pub fn by_state(&self) -> HashMap<State, u64> {
        let mut counts = HashMap::new();
        for &state in self.states.values() {
            *counts.entry(state).or_default() += 1;
        }
        counts
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// What the listings of one side said of the tracker.
#[derive(Debug, Default)]
pub struct Agreement {
    pub listings: u64,
    /// States compared, and equal ones among them.
    pub compared: u64,
    pub equal: u64,
    /// Not judged: on the move, or TIME-WAITs about to end.
    pub unsettled: u64,
    pub differences: Vec<Difference>,
}

/// An end that the kernel lists in another state than the tracker said.
#[derive(Debug)]
pub struct Difference {
    pub end: End,
    pub kernel: State,
    pub tracker: State,
    /// When the listing began, wall clock in microseconds.
    pub listed: i64,
    /// What the tracepoint told of the end, and what the tracker.
    pub moves: Vec<Moved>,
    pub steps: Vec<Said>,
}

/// Judges the listings of a side. `wall` is what to add to a CLOCK_MONOTONIC nanosecond, in nanoseconds.
pub fn compare(listings: &[Listing], side: &Side<'_>, wall: i64) -> Agreement {
    let mut agreement = Agreement { listings: listings.len() as u64, ..Agreement::default() };
    for Listing { taken: [began, ended], states } in listings {
        for end in side.ends() {
            let said = side.account.by_end.get(&end).map_or(&[][..], Vec::as_slice);
            let moved = side.lives.by_end.get(&end).map_or(&[][..], Vec::as_slice);
            let kernel = states.get(&end).copied().unwrap_or_default();
            let Some(tracker) = state_at(said, *began) else {
                // Nothing was said of it yet, and nothing is there.
                agreement.unsettled += u64::from(kernel != State::Closed);
                continue;
            };
            if is_restless(said, moved, *began - UNREST..*ended + UNREST, wall) || tracker.2 {
                agreement.unsettled += 1;
                continue;
            }
            agreement.compared += 1;
            if kernel == tracker.0 || kernel == State::Closed && tracker.0 == State::Listen {
                agreement.equal += 1;
            } else {
                agreement.differences.push(Difference {
                    end,
                    kernel,
                    tracker: tracker.0,
                    listed: *began,
                    moves: moved.to_vec(),
                    steps: said.to_vec(),
                });
            }
        }
    }
    agreement
}

/// The state that the tracker had told of by then, since when, and whether that is a TIME-WAIT about to end, or ended
/// by its time.
fn state_at(said: &[Said], time: i64) -> Option<(State, i64, bool)> {
    let last = said.iter().rev().find(|step| step.at <= time)?;
    let waits = |state| matches!(state, State::TimeWait | State::FinWait2);
    let ending = waits(last.to) && time - last.at > OLD || waits(last.from) && &*last.why == "timeout";
    Some((last.to, last.at, ending))
}

fn is_restless(said: &[Said], moved: &[Moved], window: std::ops::Range<i64>, wall: i64) -> bool {
    let kernel = moved.iter().map(|moved| (moved.at.cast_signed() + wall) / 1_000);
    said.iter().map(|step| step.at).chain(kernel).any(|at| window.contains(&at))
}
