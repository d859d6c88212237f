//! The sweep's question and answer: one walk over a flow map inside the kernel.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::STATE_SLOTS;

/// What the sweep is to look for. Times are nanoseconds; 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SweepRequest {
    /// `CLOCK_MONOTONIC` now.
    pub now: u64,
    /// How long an end may stay silent in each state (by [`State`](crate::fsm::State) code) before it counts
    /// as closed. For `closed` and `listen`: how long a flow with both ends closed stays in the map.
    pub timeout: [u64; STATE_SLOTS],
    /// How long an end may stay in each state before it is reported as stuck.
    pub stuck: [u64; STATE_SLOTS],
    /// The number of this sweep, never 0: a stuck flow is reported again only after `report_every` sweeps.
    pub number: u32,
    /// See `number`.
    pub report_every: u32,
}

/// What the sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SweepReport {
    /// Flows in the map.
    pub flows: u64,
    /// Ends by side (originator first) and state.
    pub states: [[u64; STATE_SLOTS]; 2],
    /// Of these, ends whose state is assumed.
    pub assumed: [u64; STATE_SLOTS],
    /// Ends longer in their state than the threshold.
    pub stuck: [u64; STATE_SLOTS],
    /// The oldest of these: when it entered the state; 0 when there is none.
    pub stuck_since: [u64; STATE_SLOTS],
    /// Ends whose time ran out.
    pub expired: u64,
    /// Flows removed from the map.
    pub removed: u64,
}

impl SweepReport {
    /// Adds what was found in another map.
    pub fn add(&mut self, other: &Self) {
        let Self { flows, states, assumed, stuck, stuck_since, expired, removed } = other;
        self.flows += flows;
        self.expired += expired;
        self.removed += removed;
        let sums = self.states.as_flattened_mut().iter_mut().chain(&mut self.assumed).chain(&mut self.stuck);
        let terms = states.as_flattened().iter().chain(assumed).chain(stuck);
        for (sum, term) in sums.zip(terms) {
            *sum += term;
        }
        for (oldest, since) in self.stuck_since.iter_mut().zip(stuck_since) {
            if *since != 0 && (*oldest == 0 || since < oldest) {
                *oldest = *since;
            }
        }
    }
}
