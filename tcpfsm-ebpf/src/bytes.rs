//! Packet memory, proved to the verifier.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use tcpfsm_common::packet::PacketBytes;

/// The linear part of a packet, between two pointers that the verifier follows.
pub(crate) struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub(crate) fn of_xdp(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    #[inline(always)]
    pub(crate) fn of_skb(ctx: &TcContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }
}

impl PacketBytes for Linear {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.start + offset;
        let mut limit = start + N;
        // LLVM turns `start + 1 > end` into `start >= end`, from which the verifier learns no range: a
        // move that it cannot look through keeps the comparison as it is written.
        // SAFETY: the register is moved to itself.
        unsafe { asm!("{0} = {0}", inout(reg) limit) };
        if limit > self.end {
            return None;
        }
        // SAFETY: `start..start + N` lies in the packet; byte arrays have no alignment.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

/// A packet whose headers are not in its linear part, read through a helper: slow, and rare.
pub(crate) enum Scattered {
    Xdp(*mut xdp_md),
    Skb(*mut __sk_buff),
}

impl Scattered {
    #[inline(always)]
    pub(crate) fn of_xdp(ctx: &XdpContext) -> Self {
        Self::Xdp(ctx.ctx)
    }

    #[inline(always)]
    pub(crate) fn of_skb(ctx: &TcContext) -> Self {
        Self::Skb(ctx.as_ptr().cast())
    }
}

impl PacketBytes for Scattered {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut buffer = [0_u8; N];
        let to = buffer.as_mut_ptr().cast();
        // SAFETY: the helper writes N bytes into a buffer of N bytes, or fails.
        let result = unsafe {
            match self {
                Self::Xdp(ctx) => bpf_xdp_load_bytes(*ctx, offset as u32, to, N as u32),
                Self::Skb(ctx) => bpf_skb_load_bytes(ctx.cast(), offset as u32, to, N as u32),
            }
        };
        (result == 0).then_some(buffer)
    }
}
