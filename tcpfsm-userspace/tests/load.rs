//! The programs load, with headroom.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use support::Kernel;

/// A tenth of what kernels since 5.2 allow (a million): room for those that prune less well.
const VERIFIER_BUDGET: u32 = 100_000;
/// What those take: 6.1 follows twice as many instructions.
const OLDER_BUDGET: u32 = 250_000;
/// The first that is held to the first budget.
const YOUNG: (u32, u32) = (6, 12);

#[test]
fn programs_load_within_the_verifier_budget() {
    needs_kernel!();
    let kernel = Kernel::load();
    let budget = if release() < YOUNG { OLDER_BUDGET } else { VERIFIER_BUDGET };
    for (name, instructions) in kernel.verified() {
        println!("{name}: {instructions} instructions verified");
        assert!(instructions <= budget, "{name} takes {instructions}");
    }
}

fn release() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
