//! What is measured: one group a file. Rows of a group are measured in turn.

pub mod daemon;
pub mod established;
pub mod events;
pub mod fresh;
pub mod pair;
pub mod path;
pub mod scale;
pub mod sweep;
pub mod wire;
