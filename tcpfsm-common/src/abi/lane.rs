//! The lanes: each CPU's own way for its packets' events. Nothing in it is written by two.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{ClosedEvent, FlowEvent};

/// Places in a lane, a power of two: more than gathers in a nap of the daemon, and few enough to stay in the CPU's own cache.
pub const LANE_PLACES: u32 = 1024;

/// A place in a lane: room for one event, on cache lines of its own: two for what ended no flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LanePlace {
    /// How many events were put into the lane up to this one: written last, so whoever finds it here finds the event too.
    pub number: u64,
    /// The event. Where it ended no flow, it is a [`FlowEvent`] and the rest is what an earlier one left.
    pub event: ClosedEvent,
    /// Fills the cache line.
    pub unused: [u64; 3],
}

/// How many events of a lane the daemon has read. On a cache line of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LaneRead {
    /// The number.
    pub events: u64,
    /// Fills the cache line.
    pub unused: [u64; 7],
}

const _: () = assert!(LANE_PLACES.is_power_of_two());
const _: () = assert!(size_of::<LanePlace>() == 192 && size_of::<LaneRead>() == 64);
const _: () = assert!(offset_of!(LanePlace, event) + size_of::<FlowEvent>() <= 128);
