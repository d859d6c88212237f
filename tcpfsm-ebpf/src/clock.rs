//! The time of a packet: the kernel's coarse clock, which moves with the tick. That of an event: the fine one.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns, generated::bpf_ktime_get_coarse_ns};
use tcpfsm_common::abi::Counters;

/// `CLOCK_MONOTONIC` as of the last tick; at most one tick behind the coarse clock.
///
/// The coarse clock moves only when the tick's count does, which the verifier turns into one load (kernel 5.5). So the
/// clock is read once a tick, and otherwise remembered: reading it each time cost 15 of 115 ns.
#[inline(always)]
pub(crate) fn coarse(counters: &mut Counters) -> u64 {
    // SAFETY: helpers without arguments.
    let tick = unsafe { bpf_jiffies64() };
    if counters.clock[0] != tick {
        // SAFETY: as above.
        counters.clock = [tick, unsafe { bpf_ktime_get_coarse_ns() }];
    }
    counters.clock[1]
}

/// `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn fine() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}
