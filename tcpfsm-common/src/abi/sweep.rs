//! The sweep's question and answer: one walk over a flow map inside the kernel.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::STATE_SLOTS;
use crate::flow::End;

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
    /// How long nothing may go over an established connection before it is reported as idle.
    pub idle: u64,
    /// How long an end may go on sending without hearing from the other. One with data outstanding is told after a
    /// quarter of it, so that the daemon sees whether it sends again.
    pub unanswered: u64,
    /// From how many retransmissions of one end on a flow is looked at for their share.
    pub rtx: u32,
    /// At least one of so many segments of that end must be a retransmission; 0 means never.
    pub rtx_share: u32,
    /// The number of this sweep, never 0: a stuck flow is reported again only after `report_every` sweeps.
    pub number: u32,
    /// See `number`.
    pub report_every: u32,
    /// The same for conditions other than being stuck: what ends them makes no event, so they are told again sooner.
    /// See [`Conditions::told_again_after`].
    pub conditions_every: u32,
    /// Flow maps that are known to be empty, a bit each by number: walking their buckets would find nothing.
    pub empty: u32,
}

/// What the sweep found about a flow: a set of bits, by end where it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions(pub u64);

impl Conditions {
    /// The low end is longer in its state than the threshold; the next bit stands for the high end.
    pub const STUCK: u64 = 1;
    /// The low end's window is closed, and the high end probes it; the next bit for the high end's window.
    pub const ZERO_WINDOW: u64 = 1 << 2;
    /// The low end goes on sending and hears nothing; the next bit for the high end.
    pub const UNANSWERED: u64 = 1 << 4;
    /// Much of what the low end sends is sent again; the next bit for the high end.
    pub const RETRANSMITS: u64 = 1 << 6;
    /// Nothing goes over an established connection.
    pub const IDLE: u64 = 1 << 8;

    /// Whether `condition` holds for `end`.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, condition: u64, end: End) -> bool {
        self.0 & condition << end as u64 != 0
    }

    /// Whether nothing was found.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// After how many sweeps it is told again. Every sweep speaks of closed windows and missing answers: they may end
    /// at any moment, without an event, and are judged by the second.
    #[inline(always)]
    #[must_use]
    pub const fn told_again_after(self, request: &SweepRequest) -> u32 {
        const STUCK: u64 = Conditions::STUCK | Conditions::STUCK << 1;
        const ACUTE: u64 = Conditions::ZERO_WINDOW
            | Conditions::ZERO_WINDOW << 1
            | Conditions::UNANSWERED
            | Conditions::UNANSWERED << 1;
        if self.0 & ACUTE != 0 {
            1
        } else if self.0 & !STUCK != 0 {
            request.conditions_every
        } else {
            request.report_every
        }
    }
}

/// What the sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SweepReport {
    /// Flows in the map.
    pub flows: u64,
    /// The same by [`Verdict::flow_slot`](super::Verdict::flow_slot).
    pub by_state: [u64; STATE_SLOTS],
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
        let Self { flows, by_state, states, assumed, stuck, stuck_since, expired, removed } = other;
        self.flows += flows;
        self.expired += expired;
        self.removed += removed;
        let Self {
            by_state: by_state_sum, states: states_sum, assumed: assumed_sum, stuck: stuck_sum, ..
        } = self;
        let sums = states_sum.as_flattened_mut().iter_mut();
        let sums = sums.chain(by_state_sum).chain(assumed_sum).chain(stuck_sum);
        let terms = states.as_flattened().iter().chain(by_state).chain(assumed).chain(stuck);
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
