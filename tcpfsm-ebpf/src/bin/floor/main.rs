//! Floor programs: the least that a flow tracker can do with a packet, piece by piece. `cargo xtask bench` measures
//! the tracker against them in the same run. Nothing of the tracker is used here but the version of its events.
//!
//! ```text
//! parse.rs    Ethernet, IP, TCP, the endpoints in order
//! vary.rs     another packet each time, then a tail call
//! plan.rs     which packet (shared with the bench)
//! memory.rs   loads and stores at any address                (unsafe)
//! maps.rs     every map
//! ```

#![no_std]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key is large: it is looked up where it lies"
)]
#![no_main]
#![expect(
    missing_docs,
    reason = "each program's comment stands in its list, from where the attribute macros lose it"
)]
#![feature(asm_experimental_arch)]

mod maps;
mod memory;
mod parse;
mod plan;
mod vary;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE, xdp_action,
    },
    helpers::generated::{bpf_for_each_map_elem, bpf_ringbuf_query},
    macros::{classifier, raw_tracepoint, xdp},
    programs::{RawTracePointContext, TcContext, XdpContext},
};
use core::hint::black_box;

use crate::{
    maps::{Event, FLOOR_EVENTS, FLOOR16, FLOOR40, Flow, NEXT, SEEN},
    parse::{Key16, key16, key40},
    vary::{vary4, vary6},
};

/// `TCX_NEXT`.
const NEXT_PROGRAM: i32 = -1;

/// The license that some helpers ask for.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The first eight bytes of an event as the tracker's consumer takes it: version, kind (a fact), family 4.
const EVENT_HEAD: u64 = tcpfsm_common::abi::ABI_VERSION as u64 | 1 << 8 | 2 << 16 | 4 << 24;

/// Counts something in `SEEN`.
#[inline(always)]
fn count(what: usize) {
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        // SAFETY: the map's one element; the floor runs on one CPU.
        unsafe { (*seen)[what & 7] += 1 };
    }
}

/// As the tracker does: the consumer is woken only where a quarter of the ring is filled, which one in 256 looks for.
#[inline(always)]
fn wake_up() -> u64 {
    // SAFETY: the map's one element; the ring is one.
    let is_filling = SEEN.get_ptr(0).is_some_and(|seen| unsafe {
        let of = |what: u32| bpf_ringbuf_query(&raw const FLOOR_EVENTS as *mut c_void, u64::from(what));
        (*seen)[3] % 256 == 0 && of(BPF_RB_AVAIL_DATA) > of(BPF_RB_RING_SIZE) / 4
    });
    u64::from(if is_filling { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

macro_rules! floors {
    ($($(#[$doc:meta])* $xdp:ident, $tc:ident => $body:expr;)*) => {$(
        $(#[$doc])*
        #[xdp(frags)]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            let body: fn(usize, usize) = $body;
            body(ctx.data(), ctx.data_end());
            xdp_action::XDP_PASS
        }

        $(#[$doc])*
        #[classifier]
        pub fn $tc(ctx: TcContext) -> i32 {
            let body: fn(usize, usize) = $body;
            body(ctx.data(), ctx.data_end());
            NEXT_PROGRAM
        }
    )*};
}

floors! {
    /// Nothing.
    floor_empty, floor_empty_tc => |_, _| {};
    /// Parses.
    floor_parse, floor_parse_tc => |data, end| {
        black_box(key16(data, end).is_some());
    };
    /// Parses and looks the flow up: **L**.
    floor_lookup, floor_lookup_tc => |data, end| {
        if let Some(key) = key16(data, end)
            && FLOOR16.get_ptr_mut(&key).is_none()
        {
            count(0);
        }
    };
    /// The same with IPv6.
    floor_lookup6, floor_lookup6_tc => |data, end| {
        if let Some(key) = key40(data, end)
            && FLOOR40.get_ptr_mut(&key).is_none()
        {
            count(0);
        }
    };
    /// Parses, looks the flow up, and puts it in where it is missing.
    floor_insert, floor_insert_tc => |data, end| {
        if let Some(key) = key16(data, end)
            && FLOOR16.get_ptr_mut(&key).is_none()
        {
            count(0);
            let flow = Flow { state: 1, last: 0, rest: [0; 14] };
            let _ = FLOOR16.insert(&key, &flow, u64::from(BPF_ANY));
        }
    };
    /// Parses, and sends an event: reserve, fill, submit.
    floor_event, floor_event_tc => |data, end| {
        if key16(data, end).is_some() {
            match FLOOR_EVENTS.reserve(0) {
                Some(mut entry) => {
                    let event: *mut Event = entry.as_mut_ptr();
                    // The tracker's version and kind, then whatever: a consumer parses it.
                    // SAFETY: the room is the event's, and filled whole.
                    unsafe { event.write(Event([EVENT_HEAD, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])) };
                    entry.submit(wake_up());
                    count(3);
                }
                None => count(4),
            }
        }
    };
    /// The same as `floor_insert` with IPv6.
    floor_insert6, floor_insert6_tc => |data, end| {
        if let Some(key) = key40(data, end)
            && FLOOR40.get_ptr_mut(&key).is_none()
        {
            count(0);
            let flow = Flow { state: 1, last: 0, rest: [0; 14] };
            let _ = FLOOR40.insert(&key, &flow, u64::from(BPF_ANY));
        }
    };
}

macro_rules! varies {
    ($($(#[$doc:meta])* $xdp:ident, $tc:ident => $vary:expr;)*) => {$(
        $(#[$doc])*
        #[xdp(frags)]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            $vary(ctx.data(), ctx.data_end());
            // SAFETY: nothing here needs dropping.
            unsafe { NEXT.tail_call(&ctx, 0) };
            // The bench checks for this: nothing was called.
            xdp_action::XDP_ABORTED
        }

        $(#[$doc])*
        #[classifier]
        pub fn $tc(ctx: TcContext) -> i32 {
            $vary(ctx.data(), ctx.data_end());
            // SAFETY: nothing here needs dropping.
            unsafe { NEXT.tail_call(&ctx, 0) };
            2
        }
    )*};
}

varies! {
    /// The next IPv4 packet.
    vary_ipv4, vary_ipv4_tc => vary4::<14>;
    /// The next IPv4 packet behind one VLAN tag.
    vary_vlan, vary_vlan_tc => vary4::<18>;
    /// The next IPv6 packet.
    vary_ipv6, vary_ipv6_tc => vary6::<14>;
}

/// The bare walk over all IPv4 flows: reads when each was last seen.
#[raw_tracepoint]
pub fn floor_walk(_ctx: RawTracePointContext) -> i32 {
    let mut context = 0_u64;
    // SAFETY: the callback has the key and value types of the map.
    unsafe {
        bpf_for_each_map_elem(
            &raw const FLOOR16 as *mut c_void,
            visit as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
    }
    0
}

unsafe extern "C" fn visit(
    _map: *mut c_void,
    _key: *const Key16,
    flow: *mut Flow,
    _context: *mut c_void,
) -> i64 {
    count(1);
    // SAFETY: the walk gives an element.
    let (state, last) = unsafe { ((*flow).state, (*flow).last) };
    if last < state {
        count(2);
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
