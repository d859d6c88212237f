//! The TC entry points: egress, and ingress where XDP cannot be had.

use aya_ebpf::{macros::classifier, programs::TcContext};
use tcpfsm_common::abi::{Counters, Hook};

use crate::{
    bytes::Linear,
    stats::salt,
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
fn look_egress(ctx: &TcContext, counters: &mut Counters) -> usize {
    look(ctx, counters, Hook::TcEgress)
}

#[inline(never)]
fn look_ingress(ctx: &TcContext, counters: &mut Counters) -> usize {
    look(ctx, counters, Hook::TcIngress)
}

#[inline(always)]
fn look(ctx: &TcContext, counters: &mut Counters, hook: Hook) -> usize {
    let linear = Linear::of_skb(ctx, salt(counters));
    // SAFETY: the context is the program's own.
    track::look(&linear, &Meta { hook, ifindex: || unsafe { (*ctx.skb.skb).ifindex } }, counters)
}
