//! What is wrong on the wire: detectors, one per file.
//!
//! Detectors are pure: events, what the sweep found, counters and the time go in, findings come out.
//!
//! ```text
//!   input.rs    what goes in        finding.rs  what comes out        kind.rs  every kind
//!   dwell.rs    ends too long in a state or a condition ─┐
//!   rates.rs    too many events of a kind in a window  ──┤   (bases.rs: a share of what?)
//!     handshake.rs resets.rs illegal.rs floods.rs        ├─► ongoing.rs  begins, goes on, ends; rate-limited
//!   services.rs SYN floods, full accept queues: by what the kernel counted per service
//!   scan.rs peer_gone.rs leak.rs time_wait.rs rtx.rs ────┤   (disowned.rs: peers that are gone, by their resets)
//!   view_mismatch.rs  by comparisons with the host's sockets ┘
//! ```
//!
//! Memory is bounded everywhere; what found no room is counted ([`Detector::overflow`]).

mod bases;
mod disowned;
mod dwell;
mod finding;
mod floods;
mod handshake;
mod illegal;
mod input;
mod kind;
mod leak;
mod members;
mod ongoing;
mod peer_gone;
mod rates;
mod resets;
mod rtx;
mod scan;
mod services;
#[cfg(test)]
mod tests;
mod time_wait;
mod view_mismatch;
mod window;

pub use finding::{Dwelling, Finding};
pub use input::{Seen, SweepEnd};
pub use kind::{AnomalyKind, UnknownKind};
pub use ongoing::severity;
pub use view_mismatch::ViewMismatch;

use crate::config::Config;

/// A map that is asked with each event: the standard library's hash, which withstands whoever knows all but its seed, takes
/// a tenth of the engine's time.
type QuickMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;

/// A detector of one kind of anomaly, or of several that come from the same evidence.
pub trait Detector: Send {
    /// What it detects.
    fn kinds(&self) -> &'static [AnomalyKind];

    /// Something happened.
    fn seen(&mut self, seen: &Seen<'_>);

    /// A sweep is complete, and all it found was told.
    fn swept(&mut self, sweep: &SweepEnd<'_>) -> Vec<Finding>;

    /// The anomalies that go on, as they were at the last sweep: also those of which nothing was told then.
    fn going_on(&self) -> Vec<Finding>;

    /// How many flows, groups or sources found no room so far.
    fn overflow(&self) -> u64;
}

/// How often the sweep repeats itself about a flow, in sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeats {
    /// About ends that are stuck.
    pub stuck: u32,
    /// About conditions whose end makes no event.
    pub conditions: u32,
}

/// All detectors but [`ViewMismatch`], which is told of comparisons too. `local_ports`: how many ephemeral ports this host has.
#[must_use]
pub fn all(config: &Config, repeats: Repeats, local_ports: u64) -> Vec<Box<dyn Detector>> {
    let rules = &config.detect;
    let mut detectors: Vec<Box<dyn Detector>> = vec![
        Box::new(peer_gone::PeerGone::new(rules)),
        Box::new(rates::Rates::new(rules, &[handshake::SPECS, resets::SPECS, illegal::SPECS, floods::SPECS])),
        Box::new(scan::PortScan::new(rules)),
        Box::new(services::Services::new(rules)),
        Box::new(leak::CloseWaitLeak::new(rules)),
        Box::new(time_wait::TimeWaitPressure::new(rules, local_ports)),
        Box::new(rtx::RetransmissionStorm::new(rules)),
        Box::new(dwell::Dwells::new(rules, repeats)),
    ];
    detectors.retain(|detector| detector.kinds().iter().any(|&kind| rules[kind].enabled));
    detectors
}
