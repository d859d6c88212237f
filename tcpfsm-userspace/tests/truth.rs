//! `cargo xtask truth` at a small size: what the trackers say of real sockets is what their kernel did with them.

use std::path::Path;

use xtask::lab::Lab;
use xtask::truth::{self, Settings, Watch, menu};

fn play(connections: u64, loss: u32, reorder: u32) {
    if tcpfsm_userspace::BPF_OBJECT.is_empty() {
        println!("skipped: built without kernel programs: cargo xtask build");
        return;
    }
    if let Err(reason) = Lab::requirements() {
        println!("skipped: {reason}");
        return;
    }
    let settings = Settings { connections, loss, reorder, watch: Watch::Both, menu: menu("") };
    let report = match truth::run(Path::new(env!("CARGO_BIN_EXE_tcpfsm")), settings) {
        Ok(report) => report,
        Err(error) => panic!("{error:#}"),
    };
    let text = report.to_text(20);
    println!("{text}");
    let goals = report.missed_goals();
    assert!(goals.is_empty(), "{}\n{text}", goals.join("\n"));
    let [transitions, right, ..] = report.totals();
    assert!(
        transitions > 8 * connections && right > 8 * connections,
        "hardly anything was compared:\n{text}"
    );
}

/// One after the other: both want the machine for themselves.
#[test]
fn real_sockets_are_told_right_without_and_with_losses() {
    play(if is_quick() { 1_000 } else { 10_000 }, 0, 0);
    play(if is_quick() { 1_000 } else { 5_000 }, 20_000, 10_000);
}

fn is_quick() -> bool {
    std::env::var_os(xtask::test::QUICK_VARIABLE).is_some()
}
