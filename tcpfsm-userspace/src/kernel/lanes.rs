//! The lanes: each CPU's own way for its packets' events, read where the kernel programs write them.

use std::{
    fmt, io,
    mem::offset_of,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::Ordering,
};

use aya::maps::MapData;
use tcpfsm_common::abi::{ClosedEvent, EventKind, FlowEvent, LANE_PLACES, LanePlace, LaneRead};

use super::{bpf_error, loader::Kernel, names, sys::SharedWords};
use crate::error::Result;

/// Words of a place, and of what the daemon says that it has read.
const PLACE: usize = size_of::<LanePlace>() / 8;
const READ: usize = size_of::<LaneRead>() / 8;
const NUMBER: usize = offset_of!(LanePlace, number) / 8;
const EVENT: usize = offset_of!(LanePlace, event) / 8;
const TIME: usize = EVENT + offset_of!(FlowEvent, time) / 8;
/// Words of an event that ended no flow.
const SHORT: usize = size_of::<FlowEvent>() / 8;
const LONG: usize = size_of::<ClosedEvent>() / 8;

/// A lane in which nothing waits.
const NOTHING: u64 = u64::MAX;

/// The reading ends of all lanes; `M` keeps what they lie in.
pub(super) struct Lanes<M = MapData> {
    places: SharedWords,
    read: SharedWords,
    lanes: Vec<Lane>,
    /// Programs that are loaded later name the maps by these descriptors.
    _maps: [M; 2],
}

/// What can be mapped.
pub(super) trait Memory {
    fn memory(&self) -> BorrowedFd<'_>;
}

impl Memory for MapData {
    fn memory(&self) -> BorrowedFd<'_> {
        self.fd().as_fd()
    }
}

/// The reading end of one.
#[derive(Clone, Copy)]
struct Lane {
    /// How many events were read.
    read: u64,
    /// The time of the next one; [`NOTHING`] where none is there.
    next: u64,
}

impl Lanes {
    /// Takes the lanes out of the loaded object.
    pub(super) fn take(kernel: &mut Kernel) -> Result<Self> {
        let places = kernel.take_array(names::LANES)?;
        let read = kernel.take_array(names::LANES_READ)?;
        let info = read.info().map_err(|error| bpf_error("ask for the number of lanes")(&error))?;
        Self::map([places, read], info.max_entries() as usize)
            .map_err(|error| bpf_error("read the lanes in memory")(&error))
    }
}

impl<M: Memory> Lanes<M> {
    /// So many lanes, which are read from their beginning: their places, and how far they were read.
    fn map(maps: [M; 2], count: usize) -> io::Result<Self> {
        let [places, read] = &maps;
        Ok(Self {
            places: SharedWords::map(places.memory(), count * LANE_PLACES as usize * PLACE)?,
            read: SharedWords::map(read.memory(), count * READ)?,
            lanes: vec![Lane { read: 0, next: NOTHING }; count],
            _maps: maps,
        })
    }

    /// Looks into every lane, and lets the kernel programs have the places that were read.
    pub(super) fn look(&mut self) {
        for at in 0..self.lanes.len() {
            self.read[at * READ].store(self.lanes[at].read, Ordering::Release);
            if self.lanes[at].next == NOTHING {
                self.lanes[at].next = self.time_of_next(at);
            }
        }
    }

    /// The lane whose next event is the earliest, if it is before `end`, and how long that stays so.
    pub(super) fn earliest(&self, end: u64) -> Option<(usize, u64)> {
        let (mut first, mut time, mut bound) = (0, NOTHING, end);
        for (at, lane) in self.lanes.iter().enumerate() {
            if lane.next < time {
                bound = bound.min(time);
                (first, time) = (at, lane.next);
            } else {
                bound = bound.min(lane.next);
            }
        }
        (time < end).then_some((first, bound))
    }

    /// Hands out the events of a lane, the next one and what follows it before `bound`, `limit` at most; says how many.
    pub(super) fn read(&mut self, at: usize, bound: u64, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit && (count == 0 || self.lanes[at].next < bound) {
            self.fetch_ahead(at);
            take(self.event(at));
            count += 1;
            self.lanes[at].read += 1;
            self.lanes[at].next = self.time_of_next(at);
        }
        count
    }

    /// Asks memory for the event after the next one, which another CPU may have written: it comes while this one is worked off.
    fn fetch_ahead(&self, at: usize) {
        let place = self.place(at, 2);
        self.places.fetch(place);
        self.places.fetch(place + SHORT);
    }

    /// A lane's next event, which is there.
    fn event(&self, at: usize) -> &[u8] {
        let event = self.place(at, 0) + EVENT;
        // SAFETY: the event is there, and its CPU writes this place again only after `look` has said that it was read.
        let of = |words| unsafe { self.places.bytes(event..event + words) };
        let short = of(SHORT);
        let is_long = short[offset_of!(FlowEvent, kind)] == EventKind::Closed as u8;
        if is_long { of(LONG) } else { short }
    }

    fn time_of_next(&self, at: usize) -> u64 {
        let place = self.place(at, 0);
        // Whoever sees the number sees the event.
        let is_there = self.places[place + NUMBER].load(Ordering::Acquire) == self.lanes[at].read + 1;
        if is_there { self.places[place + TIME].load(Ordering::Relaxed) } else { NOTHING }
    }

    /// Where the words of a lane's next event begin, or those of one that comes so many after it.
    fn place(&self, at: usize, after: usize) -> usize {
        let places = LANE_PLACES as usize;
        (at * places + (self.lanes[at].read as usize + after) % places) * PLACE
    }
}

impl<M> fmt::Debug for Lanes<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lanes", self.lanes.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    impl Memory for OwnedFd {
        fn memory(&self) -> BorrowedFd<'_> {
            self.as_fd()
        }
    }

    /// Two lanes in memory that is no map's, and how many events were put into each.
    struct Written {
        lanes: Lanes<OwnedFd>,
        put: [u64; 2],
    }

    impl Written {
        fn new() -> Self {
            let memory = |bytes: usize| {
                let memory = memfd_create("lanes", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&memory, bytes as u64).unwrap();
                memory
            };
            let (places, read) = (2 * LANE_PLACES as usize * PLACE * 8, 2 * READ * 8);
            Self { lanes: Lanes::map([memory(places), memory(read)], 2).unwrap(), put: [0; 2] }
        }

        /// What the kernel programs do; the port tells the events apart.
        fn put(&mut self, lane: usize, kind: EventKind, time: u64, port: u16) {
            let event = FlowEvent { time, port: [port, 0], ..FlowEvent::new(kind) };
            let place = lane * LANE_PLACES as usize + self.put[lane] as usize % LANE_PLACES as usize;
            self.put[lane] += 1;
            let place = &self.lanes.places[place * PLACE..][..PLACE];
            let words: [u64; size_of::<FlowEvent>() / 8] = zerocopy::transmute!(event);
            for (to, word) in place[EVENT..].iter().zip(words) {
                to.store(word, Ordering::Relaxed);
            }
            place[NUMBER].store(self.put[lane], Ordering::Release);
        }

        /// Ports and lengths of what is there before a time, in order.
        fn read(&mut self, end: u64) -> Vec<(u16, usize)> {
            let mut seen = Vec::new();
            self.lanes.look();
            while let Some((lane, bound)) = self.lanes.earliest(end) {
                self.lanes.read(lane, bound, usize::MAX, |record| {
                    let (event, _) = <FlowEvent as zerocopy::FromBytes>::read_from_prefix(record).unwrap();
                    seen.push((event.port[0], record.len()));
                });
            }
            self.lanes.look();
            seen
        }
    }

    #[test]
    fn two_lanes_come_out_in_one_order() {
        let mut written = Written::new();
        assert_eq!(written.read(NOTHING), [], "places that were never written");
        for (lane, time, port) in [(0, 10, 1), (0, 30, 3), (0, 50, 5), (1, 20, 2), (1, 30, 4), (1, 60, 6)] {
            written.put(lane, EventKind::Verdict, time, port);
        }
        let ports = |seen: Vec<(u16, usize)>| seen.into_iter().map(|(port, _)| port).collect::<Vec<_>>();
        assert_eq!(ports(written.read(50)), [1, 2, 3, 4], "what is later waits");
        written.put(1, EventKind::Verdict, 70, 7);
        assert_eq!(ports(written.read(NOTHING)), [5, 6, 7]);
        assert_eq!(written.read(NOTHING), []);
    }

    #[test]
    fn the_totals_come_with_an_end() {
        let mut written = Written::new();
        written.put(0, EventKind::Closed, 1, 1);
        written.put(0, EventKind::Fact, 2, 2);
        assert_eq!(written.read(NOTHING), [(1, size_of::<ClosedEvent>()), (2, size_of::<FlowEvent>())]);
    }

    #[test]
    fn a_lane_is_read_round_and_round_and_says_how_far() {
        let mut written = Written::new();
        let half = LANE_PLACES as u16 / 2;
        for round in 0..5 {
            for event in 0..half {
                written.put(1, EventKind::Verdict, u64::from(round * half + event), event);
            }
            assert!(written.read(NOTHING).into_iter().map(|(port, _)| port).eq(0..half));
            assert_eq!(written.lanes.read[READ].load(Ordering::Relaxed), u64::from((round + 1) * half));
        }
        assert_eq!(written.lanes.read[0].load(Ordering::Relaxed), 0, "the other lane");
    }

    #[test]
    fn no_more_is_read_than_asked_for() {
        let mut written = Written::new();
        (1..=3).for_each(|port| written.put(0, EventKind::Verdict, 5, port));
        written.lanes.look();
        let (lane, bound) = written.lanes.earliest(NOTHING).unwrap();
        assert_eq!(written.lanes.read(lane, bound, 2, |_| ()), 2);
        assert_eq!(written.read(NOTHING), [(3, size_of::<FlowEvent>())]);
    }
}
