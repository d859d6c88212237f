//! What only an observer meets: `P01` to `P40` of the conformance table, part B. No socket tells the truth here; what
//! is expected is by reasoning.
//!
//! - [`scripts`]: segments on a flow, through the userspace machine and through the kernel programs, in both families
//! - [`frames`]: packets whose headers are the matter, through the parser and through every hook
//! - [`icmp`]: ICMP errors that quote a segment of a flow
//! - [`crowds`]: many flows at once, in the kernel's maps
//! - [`ends`]: what the sweep ends
//! - [`services`]: what is counted per service, told of strays, and found by the sweep
//! - [`copies`]: packets seen twice, and a socket that talks to itself
//!
//! Not here, since the design is another:
//!
//! - P11: an LRU map is never full, it evicts; `tests/evictions.rs` counts whom
//! - P39: no map outlives the daemon; what it finds when it starts again is in `tests/views.rs`
//! - P40: times are 64-bit nanoseconds of the monotonic clock; tests are in `fsm/timeout.rs`

mod support;

#[path = "observer/copies.rs"]
mod copies;
#[path = "observer/crowds.rs"]
mod crowds;
#[path = "observer/ends.rs"]
mod ends;
#[path = "observer/frames.rs"]
mod frames;
#[path = "observer/icmp.rs"]
mod icmp;
#[path = "observer/line.rs"]
mod line;
#[path = "observer/scripts.rs"]
mod scripts;
#[path = "observer/services.rs"]
mod services;

#[test]
fn every_row_of_the_table_is_named() {
    let here = [
        include_str!("observer.rs"),
        include_str!("observer/copies.rs"),
        include_str!("observer/crowds.rs"),
        include_str!("observer/frames.rs"),
        include_str!("observer/icmp.rs"),
        include_str!("observer/scripts.rs"),
    ]
    .concat();
    let missing: Vec<_> =
        (1..=40).map(|row| format!("P{row:02}")).filter(|row| !here.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
