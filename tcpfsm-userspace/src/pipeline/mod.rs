//! From the ring to the outputs.
//!
//! ```text
//!   engine.rs   drains the ring, runs the sweeps, feeds the detectors     never waits for anybody
//!               nap.rs: how often
//!      │ bounded queue; what does not fit is counted
//!   publish.rs  events to reports, with the owner; to stdout and watchers
//!               translate.rs, cause.rs: the pure part; owners.rs: the asking part
//!               backlog.rs: what waits, and how long for it at the end
//! ```

mod anomaly;
pub mod backlog;
mod cause;
mod engine;
mod gauges;
mod history;
mod nap;
mod owners;
mod publish;
#[cfg(test)]
pub(crate) mod synthetic;
mod translate;

pub(crate) use anomaly::anomaly;
pub use backlog::Backlog;
pub use engine::{Background, Ending, Engine};
pub use gauges::{Attached, Gauges, Losses, Shared, SharedGauges};
pub use history::{History, Page};
pub use owners::Owners;
pub(crate) use publish::hostname;
pub use publish::{Publisher, Sink, start as start_publisher};
pub use translate::{Step, orientation, steps};
pub(crate) use {
    cause::{flag_letters, why},
    translate::side_of,
};
