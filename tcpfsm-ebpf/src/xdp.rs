//! The XDP entry point, for ingress.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use tcpfsm_common::abi::{Counters, Hook};

use crate::{
    bytes::Linear,
    stats::salt,
    track::{self, Meta},
};

/// Watches ingress and passes every packet on.
#[xdp(frags)]
pub fn tcpfsm_xdp(ctx: XdpContext) -> u32 {
    track::packet(&ctx, Hook::Xdp, look);
    xdp_action::XDP_PASS
}

#[inline(never)]
fn look(ctx: &XdpContext, counters: &mut Counters) -> usize {
    let linear = Linear::of_xdp(ctx, salt(counters));
    track::look(&linear, &Meta { hook: Hook::Xdp, ifindex: || ctx.ingress_ifindex() as u32 }, counters)
}
