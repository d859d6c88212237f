//! What only an observer meets: `P01` to `P40` of the conformance table, part B. No socket tells the truth here; what
//! is expected is by reasoning.
//!
//! - [`scripts`]: segments on a flow, through the userspace machine and through the kernel programs, in both families
//! - [`frames`]: packets whose headers are the matter, through the parser and through every hook
//! - [`icmp`]: ICMP errors that quote a segment of a flow
//! - [`crowds`]: many flows at once, in the kernel's maps
//! - [`services`]: what is counted per service, told of strays, and found by the sweep
//! - [`copies`]: packets seen twice, and a socket that talks to itself
//!
//! Not here: P11 (an LRU map is never full: it evicts), P39 (maps are not kept over a restart), P40 (`timeout.rs` has tests of its own with any clock).

mod support;

#[path = "observer/copies.rs"]
mod copies;
#[path = "observer/crowds.rs"]
mod crowds;
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
