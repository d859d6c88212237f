//! Loads and stores at any address, as the machine does them; Rust would split them into bytes.

use core::arch::asm;

macro_rules! access {
    ($load:ident, $store:ident, $size:literal) => {
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

        /// Stores at `base + AT`.
        ///
        /// # Safety
        /// The verifier must know that the address is writable.
        #[inline(always)]
        pub(crate) unsafe fn $store<const AT: usize>(base: usize, value: u64) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!("*(", $size, " *)({base} + {at}) = {value}"),
                    value = in(reg) value, base = in(reg) base, at = const AT,
                    options(nostack),
                );
            }
        }
    };
}

access!(load8, store8, "u8");
access!(load16, store16, "u16");
access!(load32, store32, "u32");
