//! The XDP entry point, for ingress.

use core::ffi::c_void;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use tcpfsm_common::abi::{Counters, FlowRecord, Hook};

use crate::{
    bytes::Linear,
    track::{self, Course, Left, Sight},
    work::Work,
};

/// Watches ingress and passes every packet on.
#[xdp(frags)]
pub fn tcpfsm_xdp(ctx: XdpContext) -> u32 {
    track::packet(&ctx, Hook::Xdp);
    xdp_action::XDP_PASS
}

impl Sight for XdpContext {
    #[inline(always)]
    fn again(ctx: *mut c_void) -> Self {
        Self::new(ctx.cast())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn beginning(&self) -> Linear {
        Linear::of_xdp(self)
    }

    #[inline(never)]
    fn pick_up(&self, found: *mut FlowRecord, course: &mut Course, work: &mut Work) -> *mut FlowRecord {
        track::pick_up(self, found, course, work)
    }

    #[inline(never)]
    fn behind_tag(&self, hook: Hook) -> bool {
        track::behind_tag(self, hook)
    }

    #[inline(never)]
    fn look(&self, counters: &mut Counters, course: &mut Course, work: &mut Work) -> *mut FlowRecord {
        track::look(self, counters, course, work)
    }

    #[inline(never)]
    fn look6(&self, counters: &mut Counters, offset: usize, hook: Hook, work: &mut Work) -> Left {
        track::look6(self, counters, offset, hook, work)
    }
}
