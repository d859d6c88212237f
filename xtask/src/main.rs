//! `cargo xtask`: see `cargo xtask help`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use xtask::setup::{self, Needs};
use xtask::workspace::Workspace;
use xtask::{
    bench, build, captures, conformance, demo, docs, kernels, lab, lint, run, stop, test, tidy, truth,
};

/// Every repeated command of tcpfsm.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install what the build and the demo need (the other commands do this by themselves)
    Setup,
    /// Build the kernel programs and the daemon: target/release/tcpfsm
    Build {
        /// Build the daemon without optimisation: target/debug/tcpfsm
        #[arg(long)]
        debug: bool,
    },
    /// Build, then run the tracker: on --iface if given after `--`, else on a demo network
    Run(run::Arguments),
    /// Build, then run every check and test
    Test {
        /// Run only tests whose name contains one of these
        filters: Vec<String>,
        /// Leave out what takes long
        #[arg(long)]
        quick: bool,
    },
    /// Build, then run the tests of the kernel programs on older kernels, in emulated machines (Debian)
    Kernels(kernels::Arguments),
    /// Measure what the tracker costs (as root; `bench -- --help` lists groups and options)
    Bench(bench::Arguments),
    /// Load the programs and say what they cost the verifier; fails when one is over its budget (as root)
    VerifierStats {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Replay public captures and score the result against their ground truth (needs a release build)
    Captures(captures::Arguments),
    /// Play real traffic and score the tracker against the kernel's own sockets (as root)
    Truth(truth::Arguments),
    /// rustfmt, clippy and dependency policy
    Lint,
    /// Format the sources
    Fmt,
    /// Check the house rules that no compiler knows
    Tidy,
    /// Rewrite the parts of the documentation that are drawn from the code
    Docs {
        /// Only say which pages are stale, and fail if any is
        #[arg(long)]
        check: bool,
    },
    /// Score the machine against traces of real TCP stacks
    Conformance {
        /// The folder with the trace files [default: ../shared/conformance]
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Remove demo networks that a killed run left behind
    CleanDemo,
    /// The demo's server that never closes its connections
    #[command(hide = true)]
    DemoLeakyServer,
}

fn main() -> ExitCode {
    stop::let_readers_leave();
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Setup => setup::main(&Workspace::find()?)?,
        Task::Build { debug } => build::main(&Workspace::find()?, debug)?,
        Task::Run(arguments) => return run::main(&Workspace::find()?, &arguments),
        Task::Test { filters, quick } => test::main(&Workspace::find()?, &filters, quick)?,
        Task::Kernels(arguments) => kernels::main(&Workspace::find()?, &arguments)?,
        Task::Bench(arguments) => return bench::main(&Workspace::find()?, &arguments),
        Task::VerifierStats { json } => return bench::verifier_stats(&Workspace::find()?, json),
        Task::Captures(arguments) => return captures::main(&Workspace::find()?, &arguments),
        Task::Truth(arguments) => return truth::main(&Workspace::find()?, &arguments),
        Task::Lint => {
            let workspace = Workspace::find()?;
            let toolchain = setup::ensure(&workspace, Needs::Build)?;
            // The daemon's sources embed the object: clippy wants it there too.
            build::build_object(&workspace, &toolchain)?;
            lint::main(&workspace, &toolchain)?;
        }
        Task::Fmt => lint::fmt(&Workspace::find()?)?,
        Task::Tidy => tidy::main(&Workspace::find()?)?,
        Task::Docs { check } => docs::main(&Workspace::find()?, check)?,
        Task::Conformance { dir } => conformance::main(&Workspace::find()?, dir.as_deref())?,
        Task::CleanDemo => lab::stale::main()?,
        Task::DemoLeakyServer => demo::leaky::main()?,
    }
    Ok(ExitCode::SUCCESS)
}
