//! Packet memory, proved to the verifier.

use core::arch::asm;

use aya_ebpf::{
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use tcpfsm_common::{
    packet::{PacketBytes, PacketHead},
    segment::TcpOptions,
};

use crate::{maps::HEADERS, work::Work};

/// A packet whose bytes the kernel copies out at an offset.
pub(crate) trait Source {
    /// Copies `len` bytes at `offset`; says whether they were there.
    ///
    /// # Safety
    /// `to..to + len` must be writable, and `len` not 0.
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool;

    /// How long the packet is, beyond its first buffer too.
    fn len(&self) -> usize;
}

impl Source for XdpContext {
    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: the program's own context, and the caller's promise.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset, to.cast(), len) == 0 }
    }

    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the program's own context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }
}

impl Source for TcContext {
    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(self.skb.skb.cast(), offset, to.cast(), len) == 0 }
    }

    /// A segment that TSO or GRO holds together is one packet here: its length is the skb's.
    #[inline(always)]
    fn len(&self) -> usize {
        self.len() as usize
    }
}

/// What lies in one piece at a packet's beginning, between two pointers that the verifier follows: the linear part of an skb,
/// the first buffer of a frame. A driver may have left headers, or all there is, in fragments.
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

    /// The same as if there were no VLAN tag, if there is one.
    #[inline(always)]
    pub(crate) fn behind_tag(&self) -> Option<Self> {
        const VLAN: u32 = 0x8100_0000;
        let head = self.head::<18>()?;
        let is_tagged = u32::from_be_bytes(head.quad::<12>()) & 0xffff_0000 == VLAN;
        // The addresses before it, which are four bytes off now, nobody reads.
        is_tagged.then_some(Self { start: self.start + 4, end: self.end })
    }

    /// Whether the `len` bytes at `start` are there.
    #[inline(always)]
    fn holds(&self, start: usize, len: usize) -> bool {
        let mut limit = start + len;
        // LLVM turns `start + 1 > end` into `start >= end`, from which the verifier learns no range: a
        // move that it cannot look through keeps the comparison as it is written.
        // SAFETY: the register is moved to itself.
        unsafe { asm!("{0} = {0}", inout(reg) limit) };
        limit <= self.end
    }
}

/// The first `N` bytes of a packet, which the verifier has seen to be there.
#[derive(Clone, Copy)]
pub(crate) struct Head<const N: usize>(usize);

impl<const N: usize> PacketHead for Head<N> {
    #[inline(always)]
    fn quad<const AT: usize>(&self) -> [u8; 4] {
        const { assert!(AT + 4 <= N, "beyond the head") };
        let value: u64;
        // SAFETY: it lies in the head.
        unsafe {
            asm!(
                "{0} = *(u32 *)({1} + {2})", out(reg) value, in(reg) self.0, const AT,
                options(pure, readonly, nostack),
            );
        }
        (value as u32).to_ne_bytes()
    }

    #[inline(always)]
    fn pair<const AT: usize>(&self) -> [u8; 2] {
        const { assert!(AT + 2 <= N, "beyond the head") };
        let value: u64;
        // SAFETY: it lies in the head.
        unsafe {
            asm!(
                "{0} = *(u16 *)({1} + {2})", out(reg) value, in(reg) self.0, const AT,
                options(pure, readonly, nostack),
            );
        }
        (value as u16).to_ne_bytes()
    }
}

impl PacketBytes for Linear {
    type Head<const N: usize> = Head<N>;

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<Head<N>> {
        self.holds(self.start, N).then_some(Head(self.start))
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.start + offset;
        if !self.holds(start, N) {
            return None;
        }
        // SAFETY: `start..start + N` lies in the packet.
        Some(unsafe { load(start) })
    }
}

/// Where a packet's headers are copied to.
#[repr(C, align(8))]
pub(crate) struct HeaderBytes {
    bytes: [u8; Self::MAX + 40],
    /// How many of them are the packet's.
    len: u64,
}

impl HeaderBytes {
    /// How much of a packet is looked at: Ethernet, tags, an IP header with options or extensions, TCP with options, and what an
    /// ICMP error quotes. What is behind it is room for the verifier.
    const MAX: usize = 256;
}

/// A packet's headers, copied, wherever the kernel keeps them: so nothing of the packet is moved. Pulling them together would break
/// what the kernel's own segmentation relies on, and an XDP program can do that only since Linux 6.18.
pub(crate) struct Headers<'a, C> {
    copy: &'static HeaderBytes,
    source: &'a C,
}

impl<'a, C: Source> Headers<'a, C> {
    /// Copies them.
    #[inline(always)]
    pub(crate) fn take(source: &'a C) -> Option<Self> {
        let copy = HEADERS.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element; programs on these hooks run with softirqs off and do not nest.
        let copy = unsafe { &mut *copy };
        let len = source.len().min(HeaderBytes::MAX);
        // The helper takes no length of 0, and the verifier must see that it is none.
        let asked = (len.wrapping_sub(1) & (HeaderBytes::MAX - 1)) + 1;
        // SAFETY: there is room for as many.
        let is_there = len > 0 && unsafe { source.load(0, copy.bytes.as_mut_ptr(), asked as u32) };
        copy.len = if is_there { len as u64 } else { 0 };
        Some(Self { copy, source })
    }

    /// Those that were copied before.
    #[inline(always)]
    pub(crate) fn again(source: &'a C) -> Option<Self> {
        let copy = HEADERS.get_ptr(0)?;
        // SAFETY: as above.
        Some(Self { copy: unsafe { &*copy }, source })
    }

    /// How long the packet is, beyond its headers too.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.source.len()
    }

    /// How many bytes of it are here.
    #[inline(always)]
    fn held(&self) -> usize {
        self.copy.len as usize
    }
}

impl<C: Source> PacketBytes for Headers<'_, C> {
    type Head<const N: usize> = [u8; N];

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<[u8; N]> {
        self.read(0)
    }

    /// Copies them to where `tcpfsm_options` reads them.
    #[inline(always)]
    fn options(&self, start: usize, len: usize) -> TcpOptions {
        let mut present = TcpOptions::MALFORMED;
        // The helper takes no length of 0: verifiers before Linux 6.8 learn nothing from a comparison with it.
        let asked = self.blur(len.wrapping_sub(1), OptionBytes::MAX - 1) + 1;
        if len > 0
            && let Some(work) = Work::desk()
        {
            // SAFETY: the desk has room for more than the mask lets through.
            if unsafe { self.source.load(start as u32, work.options.0.as_mut_ptr(), asked as u32) } {
                work.options_len = asked as u64;
                present = TcpOptions::UNREAD;
            }
        }
        TcpOptions { present, ..TcpOptions::default() }
    }

    /// Adds a number that the verifier does not know, the length, and takes it away again: it does not know the sum either.
    #[inline(always)]
    fn blur(&self, offset: usize, mask: usize) -> usize {
        let (mut blurred, salt) = (offset, self.held());
        // SAFETY: two registers, and the first is what it was.
        unsafe {
            asm!("{0} += {1}", "{0} -= {1}", inout(reg) blurred, in(reg) salt, options(pure, nomem, nostack));
        }
        blurred & mask
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset + N > self.held() {
            return None;
        }
        // LLVM knows that this changes nothing, and would leave it out; the verifier does not.
        let mut at = offset;
        // SAFETY: one register.
        unsafe {
            asm!("{0} &= {1}", inout(reg) at, const HeaderBytes::MAX - 1, options(pure, nomem, nostack));
        }
        let start = (&raw const self.copy.bytes).addr() + at;
        // SAFETY: `offset..offset + N` is the packet's, and there is room for more than the mask lets through.
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
    const { assert!(N <= 40, "an IPv6 header is the longest that is read at once") };
    let mut bytes = [0; N];
    macro_rules! words {
        ($($offset:literal)*) => {$(
            if let Some(word) = bytes.get_mut($offset..).and_then(<[u8]>::first_chunk_mut::<4>) {
                let value: u64;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!(
                        "{0} = *(u32 *)({1} + {2})", out(reg) value, in(reg) at, const $offset,
                        options(pure, readonly, nostack),
                    );
                }
                *word = (value as u32).to_ne_bytes();
            }
        )*};
    }
    words!(0 4 8 12 16 20 24 28 32 36);
    let from = at + N / 4 * 4;
    let (_, rest) = bytes.as_chunks_mut::<4>();
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

/// TCP options on the desk.
#[repr(C, align(8))]
pub(crate) struct OptionBytes([u8; Self::MAX + 16]);

impl OptionBytes {
    /// More than a header can hold (40). The walk looks at no more than 18 bytes from where it stands, and it stands
    /// below this less one; what is behind that is room for the verifier.
    const MAX: usize = 64;
}

impl PacketBytes for OptionBytes {
    type Head<const N: usize> = [u8; N];

    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<[u8; N]> {
        self.0.first_chunk().copied()
    }

    #[inline(always)]
    fn blur(&self, offset: usize, mask: usize) -> usize {
        core::hint::black_box(offset) & mask
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}
