//! A verdict changed because the host's own sockets know better: by compare-and-swap here, since the daemon has none.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tcpfsm_common::abi::{Correction, Counters, EventKind, Verdict};

use crate::{
    change, clock,
    flow_table::{self, Key},
    maps::CORRECTION,
    stats,
};

/// Makes the change that lies in `CORRECTION`. Never attached: the daemon starts it through BPF_PROG_TEST_RUN.
#[raw_tracepoint]
pub fn tcpfsm_correct(_ctx: RawTracePointContext) -> i32 {
    let (Some(request), Some(counters)) = (CORRECTION.get_ptr_mut(0), stats::between_packets()) else {
        return 0;
    };
    // SAFETY: an array element; the daemon does not touch it while this runs.
    let request = unsafe { &mut *request };
    let done = if request.family == 4 {
        correct(&request.key4(), request, counters)
    } else {
        correct(&request.key6(), request, counters)
    };
    request.done = done.into();
    0
}

#[inline(always)]
fn correct<K: Key>(key: &K, request: &Correction, counters: &mut Counters) -> bool {
    let (before, after) = (Verdict(request.before), Verdict(request.after));
    // A flow is in one of its two maps; while it moves to the other, this copy is marked and differs.
    for (found, map) in [(key.find_flow(), K::FLOWS), (key.find_embryo(), K::EMBRYOS)] {
        let Some(record) = found else { continue };
        let now = clock::fine();
        // SAFETY: the maps gave the elements.
        if unsafe { flow_table::install(record, before, after) } {
            // That an end is held, or no longer, is a note for the sweep: nothing has happened.
            if (before.0 ^ after.0) & Verdict::STATES_AND_GENERATION != 0 {
                stats::moved(counters, map, before, after);
                // SAFETY: as above.
                unsafe { change::book(EventKind::Host, key, record, before, after, now, counters) };
            }
            return true;
        }
    }
    false
}
