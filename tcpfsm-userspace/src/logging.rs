//! Log lines on stderr; aya's and the kernel programs' come the same way.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use serde::Deserialize;
use tracing_subscriber::{EnvFilter, fmt};

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing but failures.
    Error,
    /// What needs attention.
    Warn,
    /// What was attached where, and why.
    #[default]
    Info,
    /// Programs, sweeps, and what the kernel programs log.
    Debug,
    /// Everything, with every step of the verifier.
    Trace,
}

impl LogLevel {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The kernel programs' level, in aya-log's codes: off unless debugging.
    #[must_use]
    pub const fn kernel(self) -> u8 {
        match self {
            Self::Error | Self::Warn | Self::Info => 0,
            Self::Debug => 4,
            Self::Trace => 5,
        }
    }
}

/// Starts logging; a second call changes nothing.
pub fn start(level: LogLevel) {
    // Other crates' information is noise to our users: theirs starts at warn.
    let others = if matches!(level, LogLevel::Trace) { "debug" } else { "error" };
    let filter = EnvFilter::new(format!("{others},tcpfsm_userspace={0},tcpfsm={0}", level.name()));
    let _ = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        // They would go where the line could not be written.
        .log_internal_errors(false)
        .try_init();
}
