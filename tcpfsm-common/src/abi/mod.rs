//! What crosses the kernel boundary, and nothing else does: map keys and values, ring-buffer events,
//! per-CPU counters, configuration.
//!
//! Every type is `repr(C)` without padding (zerocopy refuses to derive `IntoBytes` otherwise), has no enum,
//! bool or `Option` in it, and a size that is asserted. Bump [`ABI_VERSION`] when any of them changes: events of
//! another version are refused.

mod close_reason;
mod config;
mod correction;
mod counter;
mod event;
mod filter;
mod lane;
mod record;
mod service;
mod sweep;
mod verdict;

pub use close_reason::CloseReason;
pub use config::KernelConfig;
pub use correction::Correction;
pub use counter::{
    ByMapAndState, Counters, DWELL_BUCKETS, FLOW_MAPS, Health, Hook, LATENCY_BUCKETS, Outcome,
    bucket_limit_ns, bucket_of,
};
pub use event::{ClosedEvent, EventKey, EventKind, FlowEvent, SAMPLE, StuckEvent};
pub use filter::{EmbryoFilter, FILTER_SLOTS};
pub use lane::{LANE_PLACES, LanePlace, LaneRead};
pub use record::{Evidence, FlowRecord, Shared, Tap};
pub use service::{HandshakeStep, ServiceKey, ServiceRecord, half_open};
pub use sweep::{Conditions, SweepReport, SweepRequest};
pub(crate) use verdict::Move;
pub use verdict::Verdict;

/// The version of everything in this module.
pub const ABI_VERSION: u8 = 12;

/// Length of tables by state: a power of two, so that four bits of a verdict are an index that the verifier
/// can see to be in bounds.
pub const STATE_SLOTS: usize = 16;
