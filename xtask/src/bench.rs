//! `cargo xtask bench` and `verifier-stats`: builds, then runs the bench of `tcpfsm-userspace`, which does the measuring.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::build::{FLOOR_VARIABLE, OBJECT_VARIABLE, Profile, build, host};
use crate::command::is_root;
use crate::progress::run_shown;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;

/// Options of the bench itself, passed on as they are.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only build what a run needs
    #[arg(long)]
    build_only: bool,
    /// What the bench is told: --rounds N, --only GROUP, --quick, --json, --check, --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench: Vec<String>,
}

/// The subcommand; the bench's verdict is ours.
pub fn main(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { build_only, bench } = arguments;
    let needs_root = !build_only && !bench.iter().any(|argument| argument == "--help" || argument == "-h");
    run(workspace, bench, *build_only, needs_root)
}

/// `cargo xtask verifier-stats`.
pub fn verifier_stats(workspace: &Workspace, json: bool) -> Result<ExitCode> {
    let mut arguments = vec!["--verifier-stats".to_owned()];
    if json {
        arguments.push("--json".to_owned());
    }
    run(workspace, &arguments, false, true)
}

fn run(workspace: &Workspace, arguments: &[String], build_only: bool, needs_root: bool) -> Result<ExitCode> {
    if needs_root && !is_root() {
        bail!("loading programs needs root; nothing was measured\n  remedy: run the same command as root");
    }
    let toolchain = setup::ensure(workspace, Needs::Tests)?;
    // The daemon too: the wire groups run it.
    build(workspace, &toolchain, Profile::Release)?;
    run_shown("Building the bench", bench(workspace).arg("--no-run"))?;
    if build_only {
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = bench(workspace);
    command
        .arg("--quiet")
        .arg("--")
        .args(arguments)
        .env(FLOOR_VARIABLE, workspace.floor_object())
        .env("TCPFSM_DAEMON", workspace.daemon(false))
        .stdin(Stdio::null());
    let status = command.status().context("start the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bench(workspace: &Workspace) -> Command {
    let mut command = host(workspace, "bench");
    command.args(["--package", "tcpfsm-userspace", "--bench", "cost"]);
    command.env(OBJECT_VARIABLE, workspace.bpf_object());
    command
}
