//! The kernel's counters, summed over CPUs.

use aya::maps::{MapData, PerCpuArray};
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
        let mut sum = Counters::ZERO;
        // Those of packets, and those of the sweep.
        for whose in 0..self.0.len() {
            let values = self.0.get(&whose, 0).map_err(|error| bpf_error("read the counters")(&error))?;
            for Raw(counters) in values.iter() {
                sum.add(counters);
            }
        }
        Ok(sum)
    }
}
