//! The control socket: JSON lines over a Unix socket, both ends.
//!
//! ```text
//!   {"v":1,"request":"watch","filter":{…}}   ─►  live events, one per line, until somebody hangs up
//!   {"v":1,"request":"list","filter":{…}}    ─►  one flow per line, then {"end":…}
//!   {"v":1,"request":"stats"}                ─►  one line
//!   {"v":1,"request":"anomalies"}            ─►  one event per anomaly that goes on, then {"end":…}
//!   {"v":1,"request":"explain","flow":[…]}   ─►  one line: the story of a flow
//!                                                {"error":"…"} where the answer is no
//! ```
//!
//! Filters are applied by the server, so that a watcher of one port costs what one port's events cost.

pub mod client;
pub mod filter;
pub mod flows;
pub mod office;
pub mod protocol;
pub mod server;
pub mod stats;
