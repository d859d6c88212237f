//! What people and machines read: one format per file.

pub mod alerts;
mod exposition;
pub mod http;
pub mod journal;
pub mod jsonl;
pub mod owner;
pub mod process;
pub mod prometheus;
mod sentence;
pub mod stdout;
pub mod text;
pub mod transitions;
