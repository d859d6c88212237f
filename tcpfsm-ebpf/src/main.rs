//! The kernel side of tcpfsm.
//!
//! ```text
//! xdp.rs tc.rs   entry points: every packet is passed on, whatever happened here
//! bytes.rs       packet memory, and copies of headers             (unsafe)
//! clock.rs       the coarse clock, read once a tick, and the fine one
//! track.rs       plain and settled? ─► done; or else parse ─► key ─► look up ─► the machine
//! machine.rs     the machine on one segment, and the books          (unsafe)
//! icmp.rs        what an ICMP error does to a flow                  (unsafe)
//! work.rs        the desk on which that is done
//! flow_table.rs  the flow maps: find, insert, promote             (unsafe)
//! early.rs       handshakes straight into the flow map
//! filter.rs      which flows cannot be in an embryonic map             (unsafe)
//! emit.rs        events into the lanes, and else the ring            (unsafe)
//! lane.rs        a packet's event into its CPU's lane             (unsafe)
//! stats.rs       per-CPU counters
//! services.rs    handshakes counted per service                     (unsafe)
//! strays.rs      segments of no connection, told in part
//! sample.rs      events of what moves no connection, told in part   (unsafe)
//! change.rs      the books of what no segment changed               (unsafe)
//! sweep.rs       the walk over all flows, inside the kernel       (unsafe)
//! correct.rs     a verdict changed because the host's sockets know better (unsafe)
//! maps.rs        every map
//! atomics.rs     the compare-and-swap that Rust's bpf target lacks (unsafe)
//! ```

#![no_std]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key is large: it is looked up where it lies"
)]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomics;
mod bytes;
mod change;
mod clock;
mod correct;
mod early;
mod emit;
mod filter;
mod flow_table;
mod icmp;
mod lane;
mod machine;
mod maps;
mod sample;
mod services;
mod stats;
mod strays;
mod sweep;
mod tc;
mod track;
mod work;
mod xdp;

/// What the kernel checks before it grants helpers reserved for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
