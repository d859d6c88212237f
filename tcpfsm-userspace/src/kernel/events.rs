//! The events: what packets made, in the lanes of their CPUs, and all others, in the ring. They come out in one order, that of their
//! times. Whoever reads naps and drains; the kernel programs wake us only where the ring fills faster than that.

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use tcpfsm_common::abi::FlowEvent;
use tokio::io::{Interest, unix::AsyncFd};

use super::{lanes::Lanes, loader::Kernel, names};
use crate::{clock::monotonic_ns, error::Result};

/// Between an event's time and the moment in which it can be seen, a verdict is installed and the event written; an interrupt may
/// come in between. What is younger than this waits for the next look.
pub const SETTLES: Duration = Duration::from_micros(250);

/// The reading ends of the ring and of the lanes.
pub struct Events {
    ring: RingBuf<MapData>,
    lanes: Lanes,
    /// A record of the ring that waits for its turn.
    held: Held,
}

impl Events {
    /// Takes ring and lanes out of the loaded object.
    ///
    /// # Errors
    /// The object has none.
    pub fn take(kernel: &mut Kernel) -> Result<Self> {
        let (ring, lanes) = (kernel.take_map(names::EVENTS)?, Lanes::take(kernel)?);
        Ok(Self { ring, lanes, held: Held::default() })
    }

    /// Readable each time that the kernel programs find a quarter of the ring filled.
    ///
    /// # Errors
    /// The reactor does not take it.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn filling(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let ring = self.ring.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is its own, and nobody else's to close.
        Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
    }

    /// Hands out what was there a moment before it was called, `limit` records at most; says how many.
    ///
    /// What rests on a change that was made on another CPU has a later time: each takes its time before it makes its change. So what
    /// is older than [`SETTLES`] is all there to be seen, and can be put in order; the rest has to wait for what it may rest on.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let Self { ring, lanes, held } = self;
        let mut count = 0;
        loop {
            let now = monotonic_ns().saturating_sub(SETTLES.as_nanos() as u64);
            lanes.look();
            held.fill(ring);
            let before = count;
            while count < limit {
                let of_ring = held.time();
                if let Some((lane, bound)) = lanes.earliest(now.min(of_ring)) {
                    count += lanes.read(lane, bound, limit - count, &mut take);
                } else if of_ring < now {
                    take(&held.record);
                    held.record.clear();
                    held.fill(ring);
                    count += 1;
                } else {
                    break;
                }
            }
            // What is held may be too young yet.
            if count >= limit || held.record.is_empty() || count == before {
                break;
            }
        }
        lanes.look();
        count
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.lanes).finish()
    }
}

/// A record of the ring, taken out; empty where there is none.
#[derive(Default)]
struct Held {
    record: Vec<u8>,
}

impl Held {
    /// Takes the next record out of the ring, if there is none yet.
    fn fill(&mut self, ring: &mut RingBuf<MapData>) {
        if self.record.is_empty()
            && let Some(record) = ring.next()
        {
            self.record.extend_from_slice(&record);
        }
    }

    /// When it was; never where there is none, always where it has no time.
    fn time(&self) -> u64 {
        if self.record.is_empty() {
            return u64::MAX;
        }
        let at = std::mem::offset_of!(FlowEvent, time);
        self.record.get(at..at + 8).and_then(|time| time.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }
}
