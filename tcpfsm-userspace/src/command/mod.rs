//! The subcommands, one per file.

mod config;
mod detach;
mod list;
mod manual;
mod replay;
mod run;
mod stats;
pub mod watch;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::{
    cli::{Cli, Command},
    error::{Error, Result},
};

/// Runs a subcommand.
///
/// # Errors
/// Whatever the user must know.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Watch(args) => watch::watch(args),
        Command::List(args) => list::list(args),
        Command::Stats(args) => stats::stats(args),
        Command::Replay(args) => replay::replay(&args),
        Command::Detach(args) => detach::detach(args),
        Command::Config(command) => config::config(command),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man => manual::man(),
    }
}

/// Writes to stdout, where a reader that has gone is an error that [`crate::error::Error::is_broken_pipe`] knows.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::io("write to stdout"))
}
