//! The RFC 9293 machine of both ends, as an observer in the middle can know it.
//!
//! ```text
//!   segment ─► step.rs        the entrances; the short path of settled flows
//!           ─► orderly.rs     in order, from the handshake's last ACK to the last FIN's: the way of most others
//!           ─► handshake.rs, exchange.rs, reset.rs, pickup.rs, itself.rs
//!                             which events is that, at which end?
//!           ─► window.rs      is it acceptable to the end it was sent to?
//!           ─► evidence.rs    what has its sender now sent for certain?
//!           ─► transition.rs  the diagram
//! ```
//!
//! We are the man in the middle: segments go by, but may be lost before they arrive, and what an application
//! does without sending anything cannot be seen at all. So every state is either *confirmed* (that end sent
//! something that proves it) or *assumed* (something was sent to it), and assumptions are rolled back when
//! the wire disproves them.

mod calm;
mod condition;
mod desk;
mod evidence;
mod exchange;
mod handshake;
mod itself;
mod orderly;
mod pickup;
mod reset;
mod state;
mod step;
mod timeout;
mod track;
mod transition;
mod window;

pub use calm::Calm;
pub use condition::conditions;
pub use desk::{Desk, PlainDesk};
pub use orderly::{observe_first_syn, observe_orderly};
pub use state::{State, UnknownState};
pub use step::{
    Change, Config, Step, advance, is_duplicate_view, observe, observe_ack, observe_acknowledgment,
    observe_icmp, observe_invalid, observe_itself, observe_reset, observe_settled, observe_syn,
    observe_syn_ack, settle,
};
pub use timeout::{DEFAULT_STUCK_SECONDS, DEFAULT_TIMEOUT_SECONDS, Expiry, expire};
pub use transition::{Event, after, next};
