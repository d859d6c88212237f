//! `tcpfsm explain` and `replay --explain`: what was seen, what it means, whose it is, what it comes from, what to do.
//!
//! ```text
//!   texts.rs     one entry per kind of anomaly, a line per state and per fact: data, in texts/*.toml
//!   story.rs     everything known of one connection, from the daemon or a capture; also the JSON
//!   tell.rs      a flow record and its last events to a story
//!   diagnose.rs  a story to the kinds of anomaly that it shows
//!   places.rs    what is filled into commands
//!   render.rs    stories and entries as text
//! ```

mod diagnose;
pub mod places;
pub mod render;
pub mod story;
pub mod tell;
pub mod texts;

pub use diagnose::{concerned, diagnose};
