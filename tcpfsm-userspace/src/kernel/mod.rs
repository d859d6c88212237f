//! Everything that knows aya or the bpf system call.
//!
//! ```text
//!   probe ─► loader ─► attach ─► events    lanes and ring buffer
//!   may we?  maps,     XDP/TCX/  records   the flows themselves, in batches
//!            programs  clsact    counters  per-CPU sums
//!                                sweep     the walk inside the kernel
//!                                evictions what the books miss
//!                                filter    what cannot be an embryo
//!   detach   takes away what a killed daemon left:
//!   filters  of ours on clsact, and whose they are
//! ```
//!
//! `unsafe` stays in `pod.rs` (one trait implementation) and `sys.rs` (system calls that no crate wraps).
//! Links are held by file descriptors of this process: when it dies, however, the kernel detaches them. Only
//! clsact filters, on kernels without TCX, outlive it.

pub mod attach;
mod batch;
pub mod counters;
pub mod detach;
pub mod events;
pub mod evictions;
mod filter;
pub mod filters;
pub mod interfaces;
mod lanes;
pub mod loader;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod records;
pub mod services;
pub mod sweep;
mod sys;

/// Names of programs and maps in the object.
pub mod names {
    /// XDP on ingress.
    pub const XDP: &str = "tcpfsm_xdp";
    /// TCX or clsact on ingress.
    pub const INGRESS: &str = "tcpfsm_ingress";
    /// TCX or clsact on egress.
    pub const EGRESS: &str = "tcpfsm_egress";
    /// The walk over all flows.
    pub const SWEEP: &str = "tcpfsm_sweep";
    /// A change of verdict that the host's own sockets ask for.
    pub const CORRECT: &str = "tcpfsm_correct";
    /// Every program.
    pub const PROGRAMS: [&str; 5] = [XDP, INGRESS, EGRESS, SWEEP, CORRECT];
    /// The flow maps, in the order of the sweep's reports.
    pub const FLOW_MAPS: [&str; 4] = ["FLOWS4", "FLOWS6", "EMBRYOS4", "EMBRYOS6"];
    /// The event ring.
    pub const EVENTS: &str = "EVENTS";
    /// The CPUs' lanes for events.
    pub const LANES: &str = "LANES";
    /// How far they were read.
    pub const LANES_READ: &str = "LANES_READ";
    /// Which flows cannot be in an embryonic map.
    pub const EMBRYO_FILTER: &str = "EMBRYO_FILTER";
    /// Per-CPU counters.
    pub const COUNTERS: &str = "COUNTERS";
    /// What the sweep is to do.
    pub const SWEEP_REQUEST: &str = "SWEEP_REQUEST";
    /// What it found.
    pub const SWEEP_REPORT: &str = "SWEEP_REPORT";
    /// What the correction is to do, and whether it was done.
    pub const CORRECTION: &str = "CORRECTION";
    /// Handshakes by service.
    pub const SERVICES: &str = "SERVICES";
    /// Read-only configuration.
    pub const CONFIG: &str = "CONFIG";
}

/// An error and its causes in one line: aya keeps the system's answer in the source.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A failure of something that was loaded.
fn bpf_error(what: impl Into<String>) -> impl FnOnce(&dyn std::error::Error) -> crate::error::Error {
    let what = what.into();
    move |error| crate::error::Error::Bpf { what, cause: chain(error) }
}
