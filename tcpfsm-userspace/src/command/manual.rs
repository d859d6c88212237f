//! `tcpfsm completions` and `tcpfsm man`: both drawn from the command line's definition.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::print;
use crate::{
    cli::Cli,
    error::{Error, Result},
};

pub(super) fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tcpfsm", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// One page with every subcommand: what `man` shows of a program.
pub(super) fn man() -> Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let render = || Error::io("render the manual page");
    clap_mangen::Man::new(command.clone()).render(&mut page).map_err(render())?;
    subcommands(&command, "", &mut page).map_err(render())?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(ExitCode::SUCCESS)
}

/// A section for each subcommand, and for each of theirs.
fn subcommands(of: &clap::Command, before: &str, page: &mut Vec<u8>) -> io::Result<()> {
    for subcommand in of.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let name = format!("{before}{}", subcommand.get_name().to_uppercase());
        let man = clap_mangen::Man::new(subcommand.clone());
        writeln!(page, ".SH {name}")?;
        man.render_synopsis_section(page)?;
        man.render_options_section(page)?;
        subcommands(subcommand, &format!("{name} "), page)?;
    }
    Ok(())
}
