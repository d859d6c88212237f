//! What comes out of a detector.

use std::net::{IpAddr, SocketAddr};

use tcpfsm_common::{
    flow::{End, FlowKey},
    fsm::State,
};

use super::AnomalyKind;
use crate::report::{Phase, Severity, Side};

/// One end of a flow, and since when it is in its state, or in the condition that is reported.
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
    /// How many there are: flows, segments or targets, see [`AnomalyKind::counts`].
    pub count: u64,
    /// How many were at most.
    pub peak: u64,
    /// When it began.
    pub first_seen: u64,
    /// When this was found.
    pub time: u64,
    /// The flow longest concerned; where no flow stands out, an example.
    pub oldest: Dwelling,
    /// Who does it, where it is about one address.
    pub source: Option<IpAddr>,
    /// How it is done, or how it was noticed, where there are several ways.
    pub technique: Option<&'static str>,
    /// The share that is judged, in thousandths.
    pub permille: Option<u16>,
}

/// `part` of `whole` in thousandths, at most 1,000.
#[must_use]
pub fn permille(part: u64, whole: u64) -> u16 {
    if whole == 0 {
        return 0;
    }
    u16::try_from((u128::from(part) * 1_000 / u128::from(whole)).min(1_000)).unwrap_or(1_000)
}
