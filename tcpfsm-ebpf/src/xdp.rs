//! The XDP entry point, for ingress.

use aya_ebpf::{
    bindings::xdp_action, helpers::generated::bpf_xdp_get_buff_len, macros::xdp, programs::XdpContext,
};
use tcpfsm_common::abi::Hook;

use crate::{
    bytes::Linear,
    track::{self, Meta},
};

/// Watches ingress and passes every packet on.
#[xdp(frags)]
pub fn tcpfsm_xdp(ctx: XdpContext) -> u32 {
    track::packet(&ctx, Hook::Xdp, look);
    xdp_action::XDP_PASS
}

#[inline(never)]
fn look(ctx: &XdpContext) -> usize {
    let Some(linear) = Linear::of_xdp(ctx) else { return 0 };
    // SAFETY: the context is the program's own.
    let wire_len = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    track::look(&linear, &Meta { hook: Hook::Xdp, ifindex: ctx.ingress_ifindex() as u32, wire_len })
}
