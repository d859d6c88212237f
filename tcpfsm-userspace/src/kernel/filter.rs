//! The filter of embryos: each sweep fills one of its two sets anew.

use std::{
    io,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use tcpfsm_common::abi::{EmbryoFilter, FILTER_SLOTS};

use super::{bpf_error, lanes::Memory, loader::Kernel, names, sys::SharedWords};
use crate::error::Result;

const COMPLETE: usize = offset_of!(EmbryoFilter, complete) / 8;
const SETS: usize = offset_of!(EmbryoFilter, sets) / 8;
const SET: usize = FILTER_SLOTS / 8;

/// The filter; `M` keeps what it lies in.
pub(super) struct Filter<M = MapData> {
    words: SharedWords,
    _map: M,
}

impl Filter {
    /// Takes the filter out of the loaded object.
    pub(super) fn take(kernel: &mut Kernel) -> Result<Self> {
        let map = kernel.take_array(names::EMBRYO_FILTER)?;
        Self::map(map).map_err(|error| bpf_error("reach the filter of embryos")(&error))
    }
}

impl<M: Memory> Filter<M> {
    fn map(map: M) -> io::Result<Self> {
        let words = SharedWords::map(map.memory(), size_of::<EmbryoFilter>() / 8)?;
        Ok(Self { words, _map: map })
    }

    /// Clears the set that packets do not ask. To be called before anything is read that says whether a map is to be swept.
    pub(super) fn begin(&self) {
        for word in self.set(self.unfinished()) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Has packets ask that set, in which the sweep has marked all embryos that it found.
    pub(super) fn finish(&self) {
        self.words[COMPLETE].store(self.unfinished() as u64 + 1, Ordering::Release);
    }

    fn unfinished(&self) -> usize {
        EmbryoFilter::unfinished(self.words[COMPLETE].load(Ordering::Relaxed))
    }

    fn set(&self, index: usize) -> &[AtomicU64] {
        &self.words[SETS + index * SET..][..SET]
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn a_set_is_filled_while_the_other_is_asked() {
        let memory: OwnedFd = memfd_create("filter", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, size_of::<EmbryoFilter>() as u64).unwrap();
        let filter = Filter::map(memory).unwrap();
        let marks =
            |set: usize| filter.set(set).iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
        for asked in [1, 2, 1, 2] {
            // What a flow leaves in both sets when it comes.
            for set in [0, 1] {
                filter.set(set)[7].store(1, Ordering::Relaxed);
            }
            filter.begin();
            assert!(marks(asked - 1) == 0 && marks(2 - asked) > 0, "the other is left alone");
            // What the sweep leaves.
            filter.set(asked - 1)[3].store(1, Ordering::Relaxed);
            filter.finish();
            assert_eq!(filter.words[COMPLETE].load(Ordering::Relaxed), asked as u64);
        }
        assert_eq!((marks(0), marks(1)), (2, 1), "the first was cleared longer ago");
    }
}
