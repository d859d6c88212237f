//! What is wrong on the wire: one detector per file.
//!
//! Detectors are pure: events, sweeps and the time go in, findings come out. Each keeps only the flows that
//! concern it, at most [`dwellers::MAX_MEMBERS`] of them.

mod close_wait;
pub mod dwellers;
mod half_open;
mod kind;
mod view_mismatch;

use std::net::SocketAddr;

use tcpfsm_common::{
    flow::{End, FlowKey},
    fsm::State,
};

pub use close_wait::CloseWait;
pub use half_open::HalfOpen;
pub use kind::{AnomalyKind, UnknownKind};
pub use view_mismatch::ViewMismatch;

use crate::report::{Phase, Severity, Side};

/// An end that has been in its state for longer than the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dwelling {
    /// The flow.
    pub key: FlowKey,
    /// Which end of it.
    pub end: End,
    /// That end's role.
    pub side: Side,
    /// The state it is in.
    pub state: State,
    /// Whether it proved it.
    pub confirmed: bool,
    /// Since when.
    pub since: u64,
    /// The responder's address: what flows of one service have in common.
    pub service: SocketAddr,
    /// The interface on which it was seen.
    pub ifindex: u32,
}

/// What a detector found: an anomaly that begins, goes on, or is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: AnomalyKind,
    /// Whether it begins, goes on, or is over.
    pub phase: Phase,
    /// How much it matters.
    pub severity: Severity,
    /// How many flows are concerned.
    pub count: u64,
    /// How many were at most.
    pub peak: u64,
    /// When it began.
    pub first_seen: u64,
    /// When this was found.
    pub time: u64,
    /// The flow longest concerned.
    pub oldest: Dwelling,
}

impl Finding {
    /// Whether both are of one anomaly, at different times.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let of =
            |finding: &Self| (finding.kind, finding.first_seen, finding.oldest.service, finding.oldest.side);
        of(self) == of(other)
    }
}

/// A detector of one kind of anomaly, or of several that come from the same evidence.
pub trait Detector: Send {
    /// What it detects.
    fn kinds(&self) -> &'static [AnomalyKind];

    /// The sweep found an end beyond its threshold.
    fn dwelling(&mut self, dwelling: &Dwelling, sweep: u32);

    /// An end left its state.
    fn left(&mut self, key: &FlowKey, end: End);

    /// A sweep is complete, and all it found was told.
    fn swept(&mut self, now: u64, sweep: u32) -> Vec<Finding>;

    /// How many anomalies of a kind are going on; 0 for the kinds of others.
    fn active(&self, kind: AnomalyKind) -> usize;
}

/// All detectors. `report_every`: the sweep repeats itself about a flow after so many sweeps.
#[must_use]
pub fn all(report_every: u32) -> Vec<Box<dyn Detector>> {
    vec![Box::new(HalfOpen::new(report_every)), Box::new(CloseWait::new(report_every))]
}
