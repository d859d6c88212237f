//! Loads and stores at any address, as the machine does them; Rust would split them into bytes.

use core::arch::asm;

macro_rules! load {
    ($load:ident, $size:literal) => {
        /// Loads from `base + AT`, as it lies there.
        ///
        /// # Safety
        /// The verifier must know that the address is readable.
        #[inline(always)]
        pub(crate) unsafe fn $load<const AT: usize>(base: usize) -> u64 {
            let value: u64;
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!("{value} = *(", $size, " *)({base} + {at})"),
                    value = out(reg) value, base = in(reg) base, at = const AT,
                    options(pure, readonly, nostack),
                );
            }
            value
        }
    };
}

load!(load8, "u8");
load!(load16, "u16");
load!(load32, "u32");

/// Stores at `base + AT`.
///
/// # Safety
/// The verifier must know that the address is writable.
#[inline(always)]
pub(crate) unsafe fn store32<const AT: usize>(base: usize, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "*(u32 *)({base} + {at}) = {value}",
            value = in(reg) value, base = in(reg) base, at = const AT,
            options(nostack),
        );
    }
}
