//! When to look at a connection again.

use std::{cmp::Reverse, collections::BinaryHeap};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::replay) enum Timer {
    /// Was the connection attempt answered?
    Attempt,
    /// Is a connection of which one side closed over?
    Expire,
    /// Both sides closed, or one reset: forget it.
    Delete,
    /// Was nothing heard for too long?
    Inactivity,
}

/// A connection that a timer may wake: its slot, and which of the slot's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::replay) struct Sleeper {
    pub(in crate::replay) slot: u32,
    pub(in crate::replay) serial: u32,
    pub(in crate::replay) timer: Timer,
    /// Timers of an earlier epoch of the connection were cancelled.
    pub(in crate::replay) epoch: u8,
}

/// All timers, by time; those of one instant in the order in which they were set.
#[derive(Default)]
pub(in crate::replay) struct Timers {
    heap: BinaryHeap<Reverse<(i64, u64, Sleeper)>>,
    count: u64,
}

impl Timers {
    pub(super) fn set(&mut self, time: i64, sleeper: Sleeper) {
        self.count += 1;
        self.heap.push(Reverse((time, self.count, sleeper)));
    }

    /// The next timer that is due.
    #[inline]
    pub(in crate::replay) fn due(&mut self, now: i64) -> Option<Sleeper> {
        let Reverse((time, ..)) = self.heap.peek()?;
        if *time > now {
            return None;
        }
        self.heap.pop().map(|Reverse((.., sleeper))| sleeper)
    }
}
