//! The event ring. The kernel programs never wake us: whoever reads naps and drains.

use std::fmt;

use aya::maps::{MapData, RingBuf};

use super::{loader::Kernel, names};
use crate::error::Result;

/// The reading end of the ring.
pub struct EventRing(RingBuf<MapData>);

impl EventRing {
    /// Takes the ring out of the loaded object.
    ///
    /// # Errors
    /// The object has none.
    pub fn take(kernel: &mut Kernel) -> Result<Self> {
        kernel.take_map(names::EVENTS).map(Self)
    }

    /// Hands out records until the ring is empty or `limit` were read; says how many.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit {
            match self.0.next() {
                Some(record) => take(&record),
                None => break,
            }
            count += 1;
        }
        count
    }
}

impl fmt::Debug for EventRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventRing")
    }
}
