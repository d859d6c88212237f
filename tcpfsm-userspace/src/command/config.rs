//! `tcpfsm config`: check a file, or print the default one.

use std::process::ExitCode;

use super::print;
use crate::{
    cli::ConfigCommand,
    config::{default_file, load},
    error::Result,
};

pub(super) fn config(command: ConfigCommand) -> Result<ExitCode> {
    match command {
        ConfigCommand::Check { file } => {
            load(&file)?;
            print(&format!("{}: ok\n", file.display()))?;
        }
        ConfigCommand::Default => print(&default_file())?,
    }
    Ok(ExitCode::SUCCESS)
}
