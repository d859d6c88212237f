//! Packet memory, proved to the verifier.

use core::arch::asm;

use aya_ebpf::programs::{TcContext, XdpContext};
use tcpfsm_common::packet::PacketBytes;

use crate::maps::BLUR;

/// How much of a packet must be in its linear part before it is parsed: Ethernet, three tags, IPv6 with
/// extensions, TCP with options.
const HEADERS: u32 = 192;

/// The linear part of a packet, between two pointers that the verifier follows.
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    start: usize,
    end: usize,
    /// Map memory through which an offset goes to be forgotten.
    blur: *mut u64,
}

impl Linear {
    /// The first buffer of a frame: drivers leave the headers there, also of a multi-buffer frame.
    #[inline(always)]
    pub(crate) fn of_xdp(ctx: &XdpContext) -> Option<Self> {
        Some(Self { start: ctx.data(), end: ctx.data_end(), blur: BLUR.get_ptr_mut(0)? })
    }

    /// The linear part of an skb; headers that a driver left in fragments are pulled in first, which
    /// changes where the kernel keeps them, not what they say.
    #[inline(always)]
    pub(crate) fn of_skb(ctx: &TcContext) -> Option<Self> {
        let wanted = ctx.len().min(HEADERS);
        if ctx.data() + wanted as usize > ctx.data_end() {
            let _ = ctx.pull_data(wanted);
        }
        Some(Self { start: ctx.data(), end: ctx.data_end(), blur: BLUR.get_ptr_mut(0)? })
    }
}

impl PacketBytes for Linear {
    #[inline(always)]
    fn blur(&self, offset: usize, mask: usize) -> usize {
        // SAFETY: this CPU's own element.
        unsafe {
            self.blur.write_volatile(offset as u64);
            self.blur.read_volatile() as usize & mask
        }
    }

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
        // SAFETY: `start..start + N` lies in the packet.
        Some(unsafe { load(start) })
    }
}

/// Loads `N` bytes, four, two or one at a time.
///
/// A byte array has no alignment, so LLVM would load it byte by byte. The machine loads words at any address,
/// and the verifier lets it where the kernel does so itself; only Rust has no way to say that but assembly.
///
/// # Safety
/// `at..at + N` must be readable.
#[inline(always)]
unsafe fn load<const N: usize>(at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    let (words, rest) = bytes.as_chunks_mut::<4>();
    let mut from = at;
    for word in words {
        let value: u64;
        // SAFETY: the caller's promise.
        unsafe {
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) value, in(reg) from, options(pure, readonly, nostack))
        };
        *word = (value as u32).to_ne_bytes();
        from += 4;
    }
    match rest {
        [a, b, tail @ ..] => {
            let value: u64;
            // SAFETY: the caller's promise.
            unsafe {
                asm!("{0} = *(u16 *)({1} + 0)", out(reg) value, in(reg) from, options(pure, readonly, nostack))
            };
            [*a, *b] = (value as u16).to_ne_bytes();
            if let [c] = tail {
                // SAFETY: the caller's promise.
                *c = unsafe { load_byte(from + 2) };
            }
        }
        // SAFETY: the caller's promise.
        [a] => *a = unsafe { load_byte(from) },
        [] => {}
    }
    bytes
}

#[inline(always)]
unsafe fn load_byte(at: usize) -> u8 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe { asm!("{0} = *(u8 *)({1} + 0)", out(reg) value, in(reg) at, options(pure, readonly, nostack)) };
    value as u8
}
