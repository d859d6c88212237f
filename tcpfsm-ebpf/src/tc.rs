//! The TC entry points: egress, and ingress where XDP cannot be had.

use core::ffi::c_void;

use aya_ebpf::{macros::classifier, programs::TcContext};
use tcpfsm_common::abi::{Counters, FlowRecord, Hook};

use crate::{
    bytes::Linear,
    track::{self, Course, Left, Sight},
    work::Work,
};

/// `TCX_NEXT`: the next program decides. `TC_ACT_OK` would end other people's chains. On clsact the same
/// number is `TC_ACT_UNSPEC`, which goes on to the next filter.
const TCX_NEXT: i32 = -1;

/// Watches egress.
#[classifier]
pub fn tcpfsm_egress(ctx: TcContext) -> i32 {
    track::packet(&ctx, Hook::TcEgress);
    TCX_NEXT
}

/// Watches ingress.
#[classifier]
pub fn tcpfsm_ingress(ctx: TcContext) -> i32 {
    track::packet(&ctx, Hook::TcIngress);
    TCX_NEXT
}

impl Sight for TcContext {
    #[inline(always)]
    fn again(ctx: *mut c_void) -> Self {
        Self::new(ctx.cast())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn beginning(&self) -> Linear {
        Linear::of_skb(self)
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
