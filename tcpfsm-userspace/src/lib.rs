//! The tcpfsm daemon and command line, as a library that tests use too.
//!
//! ```text
//! command/   one subcommand of `tcpfsm` per file        cli.rs, config/, error.rs serve them
//! kernel/    aya, and nothing else knows aya: load, attach, events, records, sweep
//! source/    ring-buffer bytes to typed events
//! views/     the wire's view beside the host's own sockets: warm start, comparison
//! pipeline/  source → detectors → reports
//! host/      what the host itself knows of a flow: its socket, its owner      owner.rs asks it
//! detect/    one detector per file: events and time in, anomalies out
//! report/    what leaves the pipeline: schema version 1
//! export/    reports and counters to text, JSON lines, Prometheus, HTTP
//! replay/    capture files through the same machine; Zeek's summary beside it
//! explain/   what anomalies and single connections mean, and what to do
//! control/   the Unix socket, both ends              insight.rs answers from maps and gauges
//! alive.rs   how long nobody observed
//! ```

// `eprintln!` panics where nobody reads any more: see `error::complain`.
#![deny(clippy::print_stderr)]

pub mod alive;
pub mod cli;
pub mod clock;
pub mod command;
pub mod community_id;
pub mod config;
pub mod control;
pub mod detect;
pub mod error;
pub mod explain;
pub mod export;
pub mod host;
pub mod insight;
pub mod kernel;
pub mod logging;
mod netlink;
pub mod owner;
pub mod pipeline;
pub mod replay;
pub mod report;
pub mod source;
pub mod views;

/// The kernel programs' object, empty when this was built without `cargo xtask build`.
pub static BPF_OBJECT: &[u8] = {
    #[repr(C, align(32))]
    struct Aligned<B: ?Sized>(B);
    static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tcpfsm.bpf.o")));
    &OBJECT.0
};
