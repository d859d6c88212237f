//! The event ring. Whoever reads naps and drains; the kernel programs wake us only where it fills faster than that.

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

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

    /// Readable each time that the kernel programs find a quarter of the ring filled.
    ///
    /// # Errors
    /// The reactor does not take it.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn filling(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let ring = self.0.as_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is its own, and nobody else's to close.
        Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
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
