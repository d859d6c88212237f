//! The kernel's counters, summed over CPUs.

use std::borrow::Borrow;

use aya::maps::{MapData, MapError, PerCpuArray};
use tcpfsm_common::abi::Counters;

use super::{bpf_error, loader::Kernel, names, pod::Raw};
use crate::error::Result;

/// Reads the counters.
pub struct CounterMap(PerCpuArray<MapData, Raw<Counters>>);

impl CounterMap {
    /// Takes the map out of the loaded object.
    ///
    /// # Errors
    /// The object has none, or one of another size.
    pub fn take(kernel: &mut Kernel) -> Result<Self> {
        kernel.take_map(names::COUNTERS).map(Self)
    }

    /// The sums now.
    ///
    /// # Errors
    /// The system call failed.
    pub fn read(&self) -> Result<Counters> {
        sum(&self.0).map_err(|error| bpf_error("read the counters")(&error))
    }
}

/// All CPUs' counters, of packets and of the sweep, added up.
///
/// # Errors
/// The system call failed.
pub fn sum<M: Borrow<MapData>>(map: &PerCpuArray<M, Raw<Counters>>) -> Result<Counters, MapError> {
    let mut sum = Counters::ZERO;
    for whose in 0..map.len() {
        map.get(&whose, 0)?.iter().for_each(|Raw(counters)| sum.add(counters));
    }
    Ok(sum)
}
