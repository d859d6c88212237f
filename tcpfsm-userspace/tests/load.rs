//! The programs load, with headroom.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use support::Kernel;

/// A tenth of what kernels since 5.2 allow (a million): room for those that prune less well.
const VERIFIER_BUDGET: u32 = 100_000;

#[test]
fn programs_load_within_the_verifier_budget() {
    needs_kernel!();
    let kernel = Kernel::load();
    for (name, instructions) in kernel.verified() {
        println!("{name}: {instructions} instructions verified");
        assert!(instructions <= VERIFIER_BUDGET, "{name} takes {instructions}");
    }
}
