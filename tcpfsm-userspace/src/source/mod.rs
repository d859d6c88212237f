//! What brings events in.

pub mod live;
