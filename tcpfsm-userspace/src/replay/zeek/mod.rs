//! The summary of a connection as Zeek gives it: where it begins and ends, `conn_state`, `history`.
//!
//! ```text
//!   packet ─► timers.rs      connections whose time ran out
//!          ─► connection.rs  is it a new connection? who is its originator?
//!          ─► endpoint.rs    what each end was seen to do: seven coarse states, sequence numbers
//!          ─► stream.rs      which bytes of the stream are there: content gaps
//!          ─► history.rs     the letters
//!          ─► lifetime.rs    is the connection over?
//!          ─► summary.rs     conn_state
//! ```
//!
//! It is kept apart from the RFC machine, which it neither feeds nor reads: Zeek judges by flags and order of
//! arrival with hardly a look at sequence numbers, cuts connections by timers of a few seconds, and guesses
//! originators by port. People compare with Zeek's logs, so here its behaviour is what is right, in its
//! default configuration (`init-bare.zeek`, `base/protocols`) with checksums ignored (`-C`).

mod connection;
mod endpoint;
mod history;
mod lifetime;
mod ports;
mod stream;
mod summary;
mod timers;

pub(super) use connection::{Alarm, Connection, Packet};
pub(super) use timers::Timers;
