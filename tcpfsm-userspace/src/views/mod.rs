//! Two views of one connection: the wire's, which the kernel programs keep, and the kernel's own sockets'.
//!
//! ```text
//!   start   sockets ─► seed.rs ─► flow maps          flows begun earlier, in the state their socket is in
//!                      coverage.rs: those whose segments pass a watched interface
//!   later   flow maps ─► rounds.rs ─► sockets        a batch after each sweep, never longer than its budget
//!                        compare.rs: what differs, and for how long
//!                        held.rs: what the clock is not to end
//!                        queues.rs: listeners whose accept queue is full
//! ```
//!
//! The wire is the measure and the sockets a second opinion. Where they differ for a while, that is shown and
//! counted; where the wire cannot know better, the flow follows the socket: flows whose socket went without a
//! segment are closed, flows that were seeded get their socket's state, and no timeout ends a state that the socket is in.

mod compare;
mod coverage;
mod held;
mod queues;
mod rounds;
mod seed;

pub use coverage::{Coverage, Passage, Watched};
pub use held::StuckFlows;
pub use rounds::{Mismatch, Round, Rounds, ViewCounts};
pub use seed::{Seed, flow_key, seeds};

use tcpfsm_common::abi::ByMapAndState;
use tracing::{info, warn};

use crate::{
    clock::monotonic_ns,
    error::Result,
    host::Host,
    kernel::{
        evictions::NONE,
        records::{FlowMaps, Inserted},
    },
};

/// Puts the flows of existing sockets into the maps; to be called once packets are seen, so that nothing falls
/// between. A flow that the wire has shown meanwhile is left alone. Gives what was put where.
///
/// # Errors
/// A system call on the maps failed. Sockets that the kernel does not list are no error: they are picked up
/// from the wire.
pub fn warm_start(
    host: &mut Host,
    maps: &FlowMaps,
    scope: u32,
    coverage: &Coverage,
) -> Result<ByMapAndState> {
    let sockets = match host.sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            warn!("existing connections are known only once they send: sock_diag: {error}");
            return Ok(NONE);
        }
    };
    let found = seeds(&sockets, scope, monotonic_ns(), |socket| coverage.passage(socket));
    let mut seeded = NONE;
    for Seed { key, record } in &found {
        match maps.insert_new(key, record, &mut seeded)? {
            Inserted::New | Inserted::Known => {}
            Inserted::Full => break,
        }
    }
    let count: u64 = seeded.as_flattened().iter().sum();
    if count > 0 {
        info!("{count} connections begun earlier, as their sockets have them");
    }
    Ok(seeded)
}
