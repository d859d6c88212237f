//! How many flows the kernel evicted from full maps: LRU maps do not tell, so it is what is missing from the books.
//!
//! The kernel programs book every flow that comes into a state of a map and every one that goes out of it; whoever wins
//! the verdict does, so each is booked once. The sweep counts what is there. Came, less went, less there: evicted.
//!
//! Flows come and go while the sweep walks. What came is therefore read before the walk, and what went after it: a
//! flow that moved meanwhile then makes the difference smaller, never larger. The walk itself may miss a flow whose
//! neighbour is being recycled under its feet; so an eviction counts once a second sweep finds it too. Nothing is counted
//! that did not happen, and when the map is calm for two sweeps the count is exact.

use tcpfsm_common::{
    abi::{ByMapAndState, FLOW_MAPS, STATE_SLOTS},
    fsm::State,
};

use super::sweep::SweepReports;

/// None of any kind.
pub const NONE: ByMapAndState = [[0; STATE_SLOTS]; FLOW_MAPS];

/// Evictions so far, by map and state.
#[derive(Clone, Debug)]
pub struct Evictions {
    /// Flows that the daemon put into the maps itself.
    seeded: ByMapAndState,
    /// What the last sweep made it at least.
    found: ByMapAndState,
    /// What two sweeps made it at least.
    counted: ByMapAndState,
}

impl Default for Evictions {
    fn default() -> Self {
        Self::new(NONE)
    }
}

impl Evictions {
    /// `seeded`: the flows that were put into the maps without the kernel programs, which book their own.
    #[must_use]
    pub const fn new(seeded: ByMapAndState) -> Self {
        Self { seeded, found: NONE, counted: NONE }
    }

    /// Takes in a sweep: the books of what came as they were before it, of what went as they were after it, and
    /// what it found. Gives all evictions so far.
    pub fn swept(
        &mut self,
        came: &ByMapAndState,
        went: &ByMapAndState,
        there: &SweepReports,
    ) -> ByMapAndState {
        let Self { seeded, found, counted } = self;
        for (map, report) in there.iter().enumerate() {
            for state in 0..STATE_SLOTS {
                let booked = came[map][state] + seeded[map][state];
                let missing = booked.saturating_sub(went[map][state] + report.by_state[state]);
                let last = std::mem::replace(&mut found[map][state], missing);
                counted[map][state] = counted[map][state].max(missing.min(last));
            }
        }
        *counted
    }
}

/// How many of the evicted were connected: had completed the handshake, and were not over.
#[must_use]
pub fn connected(evicted: &ByMapAndState) -> u64 {
    let is_connected = |state: State| state.is_synchronized() && state != State::TimeWait;
    evicted
        .iter()
        .flat_map(|by_state| State::ALL.into_iter().zip(by_state))
        .filter(|(state, _)| is_connected(*state))
        .map(|(_, count)| count)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: usize = State::Established as usize;

    /// Numbers of one map in one state.
    fn in_flows4(state: usize, count: u64) -> ByMapAndState {
        let mut numbers = NONE;
        numbers[0][state] = count;
        numbers
    }

    fn there(count: u64) -> SweepReports {
        let mut reports = SweepReports::default();
        reports[0].by_state[ESTABLISHED] = count;
        reports
    }

    fn swept(evictions: &mut Evictions, came: u64, went: u64, there_now: u64) -> u64 {
        let (came, went) = (in_flows4(ESTABLISHED, came), in_flows4(ESTABLISHED, went));
        evictions.swept(&came, &went, &there(there_now))[0][ESTABLISHED]
    }

    #[test]
    fn what_is_missing_twice_was_evicted() {
        let mut evictions = Evictions::new(in_flows4(ESTABLISHED, 5));
        assert_eq!(swept(&mut evictions, 95, 10, 90), 0, "5 of the daemon's, 95 more, 10 less");
        assert_eq!(swept(&mut evictions, 95, 10, 87), 0, "3 are missing: once is not enough");
        assert_eq!(swept(&mut evictions, 95, 10, 88), 2, "one of them was only missed");
        assert_eq!(swept(&mut evictions, 95, 10, 88), 2);
    }

    #[test]
    fn flows_that_move_during_the_walk_are_no_evictions() {
        let mut evictions = Evictions::default();
        for _ in 0..3 {
            // 50 came after the books were read and are there; 20 left behind the walk's back.
            assert_eq!(swept(&mut evictions, 100, 30, 140), 0);
        }
        assert_eq!(swept(&mut evictions, 150, 30, 110), 0);
        assert_eq!(swept(&mut evictions, 150, 30, 110), 10);
        assert_eq!(swept(&mut evictions, 160, 50, 130), 10, "never less than before");
    }

    #[test]
    fn only_those_who_were_connected_count_as_closed() {
        let states = [State::Closed, State::SynRecv, State::Established, State::CloseWait, State::TimeWait];
        let mut evicted = NONE;
        for (at, state) in states.into_iter().enumerate() {
            evicted[at % FLOW_MAPS][state as usize] = 10_u64.pow(at as u32);
        }
        assert_eq!(connected(&evicted), 1_100);
    }
}
