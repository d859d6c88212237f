//! `cargo xtask kernels`: the tests of the kernel programs, and of the daemon with real sockets, on older kernels than this
//! machine's.
//!
//! Each kernel is Debian's, unpacked and not installed. It boots in an emulated machine, without KVM, from an initramfs with the
//! compiled tests, what they read, and little else.
//!
//! - [`debian`]: which kernel that is, and where it is unpacked
//! - [`initramfs`]: what the machine finds when it boots
//! - [`machine`]: the machine, and what it says

mod debian;
mod initramfs;
mod machine;

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use self::debian::Kernel;
use crate::build::{self, Profile};
use crate::progress::{heading, note, seconds};
use crate::setup::{self, Needs};
use crate::test::tally::Tally;
use crate::workspace::Workspace;

/// The series that Debian 12 has: 6.1 is before TCX and before the verifier learned much, 6.12 has both.
const SERIES: [&str; 2] = ["6.1", "6.12"];

/// The test programs that run there: what goes through the kernel programs, and the daemon with real sockets. Not those that play
/// other people's programs, nor those that a slow machine would be late for.
const PROGRAMS: [&str; 9] = [
    "load",
    "kernel_conformance",
    "lanes",
    "evictions",
    "two_cpus",
    "host",
    "host_namespace",
    "daemon",
    "netns",
];

/// Options.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Series of kernels, as Debian's packages name them, with a flavour if it is not `cloud`: 6.12-rt [default: 6.1 6.12]
    series: Vec<String>,
}

/// The subcommand.
pub fn main(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let toolchain = setup::ensure(workspace, Needs::Network)?;
    setup::ensure_emulator(workspace)?;
    build::build(workspace, &toolchain, Profile::Checked)?;
    let default = SERIES.map(String::from);
    let series = if arguments.series.is_empty() { &default[..] } else { &arguments.series };
    let kernels: Vec<Kernel> =
        series.iter().map(|series| debian::kernel(workspace, series)).collect::<Result<_>>()?;
    let tally = run(workspace, &kernels)?;
    for reason in &tally.skipped {
        note(&format!("skipped: {reason}"));
    }
    eprintln!("{} passed, {} failed", tally.passed, tally.failures.len());
    if !tally.failures.is_empty() {
        bail!("failed: {}", tally.failures.join(", "));
    }
    Ok(())
}

/// The tests on all kernels there are, after a build. What cannot be had is skipped.
pub(crate) fn test(workspace: &Workspace) -> Result<Tally> {
    let reason =
        |what: &str, error: &anyhow::Error| format!("{what}: {}", format!("{error:#}").replace('\n', ";"));
    let mut skipped = Vec::new();
    let mut kernels = Vec::new();
    match setup::ensure_emulator(workspace) {
        Ok(()) => {
            for series in SERIES {
                match debian::kernel(workspace, series) {
                    Ok(kernel) => kernels.push(kernel),
                    Err(error) => skipped.push(reason(&format!("Linux {series}"), &error)),
                }
            }
        }
        Err(error) => skipped.push(reason("older kernels", &error)),
    }
    let mut tally = run(workspace, &kernels)?;
    tally.skipped.append(&mut skipped);
    Ok(tally)
}

/// Runs the tests on all kernels at once, each in a machine of its own; names of tests have the kernel's before them.
fn run(workspace: &Workspace, kernels: &[Kernel]) -> Result<Tally> {
    let mut sum = Tally::default();
    if kernels.is_empty() {
        return Ok(sum);
    }
    let programs = programs(workspace)?;
    let tallies = thread::scope(|scope| {
        let machines: Vec<_> =
            kernels.iter().map(|kernel| scope.spawn(|| on(workspace, kernel, &programs))).collect();
        machines
            .into_iter()
            .map(|machine| machine.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    for (kernel, tally) in kernels.iter().zip(tallies) {
        let place = format!("Linux {}", kernel.version);
        match tally {
            Ok(tally) => sum.add(tally.of(&place)),
            Err(error) => sum.failures.push(format!("{place}: {error:#}")),
        }
    }
    Ok(sum)
}

/// Runs the tests on one kernel.
fn on(workspace: &Workspace, kernel: &Kernel, programs: &[PathBuf]) -> Result<Tally> {
    heading(&format!("Running the tests on Linux {}, emulated", kernel.version));
    let initramfs = initramfs::build(workspace, kernel, programs)?;
    let started = Instant::now();
    let mut tally = Tally::default();
    let log = workspace.logs().join(format!("kernel-{}.log", kernel.version));
    let came_to_its_end = machine::boot(&kernel.image, &initramfs, &log, |line| {
        if tally.read(line) {
            eprintln!("{}: {line}", kernel.version);
        }
    })?;
    if !came_to_its_end || tally.finished as usize != programs.len() {
        bail!(
            "{} of {} programs came to their end; what the machine said is in {}",
            tally.finished,
            programs.len(),
            log.display()
        );
    }
    note(&format!(
        "Linux {}: {} passed, {} failed, in {}",
        kernel.version,
        tally.passed,
        tally.failed,
        seconds(started.elapsed())
    ));
    Ok(tally)
}

/// The compiled test programs.
fn programs(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    heading("Building the tests");
    let mut command = build::host(workspace, "test");
    command.args(["--package", "tcpfsm-userspace", "--profile", Profile::Checked.name(), "--no-run"]);
    for program in PROGRAMS {
        command.args(["--test", program]);
    }
    let output = command.arg("--message-format=json").output().context("cannot start cargo test")?;
    if !output.status.success() {
        bail!("the tests do not build: cargo test --no-run shows why");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built: Vec<(String, PathBuf)> = messages
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect();
    let path = |program: &&str| {
        let found = built.iter().find(|(name, _)| name == program);
        found.map(|(_, path)| path.clone()).with_context(|| format!("cargo built no test program {program}"))
    };
    PROGRAMS.iter().map(path).collect()
}
