//! The subcommands, one per file.

mod alerts;
pub mod check;
mod config;
mod detach;
mod explain;
mod list;
mod manual;
mod replay;
mod run;
mod stats;
pub mod watch;

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use crate::{
    cli::{Cli, Command},
    control::{
        client::{Answer, Conversation},
        filter::Filter,
        protocol::{Notice, Request, What},
    },
    error::{Error, Result},
    report::Report,
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
        Command::Explain(args) => explain::explain(args),
        Command::Check(args) => check::check(args),
        Command::Replay(args) => replay::replay(&args),
        Command::Detach(args) => detach::detach(args),
        Command::Alerts => alerts::alerts(),
        Command::Config(command) => config::config(command),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man => manual::man(),
    }
}

/// The anomalies that go on, as the daemon has them, and how many more there are of kinds that are not known here.
fn anomalies(socket: &Path, filter: Filter) -> Result<(Vec<Report>, usize)> {
    let mut conversation = Conversation::start(socket, &Request::new(What::Anomalies, filter))?;
    let (mut found, mut unknown) = (Vec::new(), 0);
    loop {
        match conversation.next_answer()? {
            Some(Answer::Item(line)) => match Answer::parse(line) {
                Ok(report) => found.push(report),
                Err(_) => unknown += 1,
            },
            Some(Answer::Notice(Notice::End(_))) => return Ok((found, unknown)),
            Some(Answer::Notice(Notice::Error(_) | Notice::Lost(_) | Notice::Note(_))) => {}
            None => return Err(conversation.hung_up()),
        }
    }
}

/// Writes to stdout, where a reader that has gone is an error that [`crate::error::Error::is_broken_pipe`] knows.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::io("write to stdout"))
}
