//! The TC entry points: egress, and ingress where XDP cannot be had.

use aya_ebpf::{macros::classifier, programs::TcContext};
use tcpfsm_common::abi::Hook;

use crate::{
    bytes::Linear,
    track::{self, Meta},
};

/// `TCX_NEXT`: the next program decides. `TC_ACT_OK` would end other people's chains. On clsact the same
/// number is `TC_ACT_UNSPEC`, which goes on to the next filter.
const TCX_NEXT: i32 = -1;

/// Watches egress.
#[classifier]
pub fn tcpfsm_egress(ctx: TcContext) -> i32 {
    track::packet(&ctx, Hook::TcEgress, look_egress);
    TCX_NEXT
}

/// Watches ingress.
#[classifier]
pub fn tcpfsm_ingress(ctx: TcContext) -> i32 {
    track::packet(&ctx, Hook::TcIngress, look_ingress);
    TCX_NEXT
}

#[inline(never)]
fn look_egress(ctx: &TcContext) -> usize {
    look(ctx, Hook::TcEgress)
}

#[inline(never)]
fn look_ingress(ctx: &TcContext) -> usize {
    look(ctx, Hook::TcIngress)
}

#[inline(always)]
fn look(ctx: &TcContext, hook: Hook) -> usize {
    let Some(linear) = Linear::of_skb(ctx) else { return 0 };
    // SAFETY: the context is the program's own.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // A segment that TSO or GRO holds together is one packet here: its length is the skb's.
    track::look(&linear, &Meta { hook, ifindex, wire_len: ctx.len() as usize })
}
