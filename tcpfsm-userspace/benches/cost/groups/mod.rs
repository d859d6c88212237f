//! What is measured: one group a file. Rows of a group are measured in turn.

pub mod established;
pub mod fresh;
pub mod pair;
pub mod sweep;
