//! What `core::sync::atomic` lacks for the bpf target, and the instruction set has (Linux 5.12).

use core::arch::asm;

/// Stores `new` at `at` if it holds `old`; gives what it held.
///
/// # Safety
/// `at` must point to eight aligned bytes of map memory.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(at: *mut u64, old: u64, new: u64) -> u64 {
    let mut held = old;
    // SAFETY: the caller gives a valid pointer; the instruction touches those eight bytes and r0 alone.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inlateout("r0") held,
        );
    }
    held
}

/// Stores `word` at `at`, behind all stores before it and ahead of all after it.
///
/// # Safety
/// `at` must point to eight aligned bytes of map memory.
#[cfg(not(bpf_target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn exchange(at: *mut u64, word: u64) {
    let mut held = word;
    // SAFETY: the caller gives a valid pointer; the instruction touches those eight bytes alone.
    unsafe { asm!("{held} = xchg_64({at} + 0, {held})", at = in(reg) at, held = inlateout(reg) held) };
    let _ = held;
}

/// Adds `term` at `at`.
///
/// # Safety
/// `at` must point to eight aligned bytes of map memory.
#[inline(always)]
pub(crate) unsafe fn add(at: *mut u64, term: u64) {
    // SAFETY: the caller gives a valid pointer; the instruction touches those eight bytes alone.
    unsafe { asm!("lock *(u64 *)({at} + 0) += {term}", at = in(reg) at, term = in(reg) term) };
}

/// Sets `bits` at `at`.
///
/// # Safety
/// `at` must point to eight aligned bytes of map memory.
#[inline(always)]
pub(crate) unsafe fn or(at: *mut u64, bits: u64) {
    // SAFETY: as above.
    unsafe { asm!("lock *(u64 *)({at} + 0) |= {bits}", at = in(reg) at, bits = in(reg) bits) };
}

/// Adds `term` at `at`; gives what it held.
///
/// # Safety
/// `at` must point to eight aligned bytes of map memory.
#[inline(always)]
pub(crate) unsafe fn fetch_add(at: *mut u64, term: u64) -> u64 {
    let mut held = term;
    // SAFETY: as above.
    unsafe {
        asm!(
            "{held} = atomic_fetch_add((u64 *)({at} + 0), {held})",
            at = in(reg) at,
            held = inlateout(reg) held,
        );
    }
    held
}
