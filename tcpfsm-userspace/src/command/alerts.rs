//! `tcpfsm alerts`: rules for Prometheus, to stdout.

use std::process::ExitCode;

use super::print;
use crate::{error::Result, export::alerts};

pub(super) fn alerts() -> Result<ExitCode> {
    print(&alerts::render())?;
    Ok(ExitCode::SUCCESS)
}
