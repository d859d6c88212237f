//! The `tcpfsm` binary.

use std::process::ExitCode;

use clap::Parser as _;
use tcpfsm_userspace::{cli::Cli, command};

fn main() -> ExitCode {
    match command::dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            error.exit_code()
        }
    }
}
