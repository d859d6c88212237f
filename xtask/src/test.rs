//! `cargo xtask test`: everything that must hold before a change is merged, in order, ended by the first failure.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::build::{Profile, build, host};
use crate::kernels;
use crate::lint::{self, Outcome};
use crate::progress::{heading, note, seconds};
use crate::setup::{self, Needs};
use crate::tidy;
use crate::workspace::Workspace;

pub(crate) mod tally;

use tally::Tally;

/// Set for the tests when `--quick` was given: those that take many seconds then print `skipped:` and pass.
pub const QUICK_VARIABLE: &str = "TCPFSM_TEST_QUICK";

/// Tests that hold real programs to times on the clock: on a machine that is busy with something else one may be late.
/// Such a case is played once more, alone, and the summary says so. Nothing else gets a second try.
const AGAINST_THE_CLOCK: [&str; 2] = ["proof", "truth"];
/// More failures than these are no matter of a moment.
const MOST_AGAIN: usize = 3;

/// The subcommand.
pub fn main(workspace: &Workspace, filters: &[String], quick: bool) -> Result<()> {
    let started = Instant::now();
    let toolchain = setup::ensure(workspace, Needs::Tests)?;
    let mut skipped = Vec::new();
    let mut step = |name: &str, outcome: Result<Outcome>| -> Result<()> {
        if let Outcome::Skipped(reason) = outcome.with_context(|| format!("step `{name}` failed"))? {
            skipped.push(format!("{name}: {reason}"));
        }
        Ok(())
    };
    let because_filtered = || Ok(Outcome::Skipped("a test filter was given".to_owned()));
    let because_quick = || Ok(Outcome::Skipped("--quick".to_owned()));
    let filtered = !filters.is_empty();

    step(
        "house rules",
        if filtered { because_filtered() } else { tidy::main(workspace).map(|()| Outcome::Passed) },
    )?;
    step("format", if filtered { because_filtered() } else { lint::check_format(workspace) })?;
    step("build", build(workspace, &toolchain, Profile::Checked).map(|()| Outcome::Passed))?;
    step(
        "clippy, host crates",
        match (filtered, quick) {
            (true, _) => because_filtered(),
            (false, true) => because_quick(),
            (false, false) => lint::check_host(workspace),
        },
    )?;
    step(
        "clippy, kernel programs",
        match (filtered, quick) {
            (true, _) => because_filtered(),
            (false, true) => because_quick(),
            (false, false) => lint::check_kernel(workspace, &toolchain),
        },
    )?;
    step(
        "dependency policy",
        if filtered { because_filtered() } else { lint::check_dependencies(workspace) },
    )?;

    let (mut tally, succeeded) = run_tests(workspace, filters, quick)?;
    let late = if (1..=MOST_AGAIN).contains(&tally.failures.len()) {
        play_again(workspace, &tally.failures, quick)?
    } else {
        Vec::new()
    };
    let succeeded = succeeded || tally.is_nothing_but(&late);
    tally.failures.retain(|name| !late.contains(name));
    step(
        "older kernels",
        match (filtered, quick) {
            (true, _) => because_filtered(),
            (false, true) => because_quick(),
            (false, false) => kernels::test(workspace).map(|on_others| {
                tally.add(on_others);
                Outcome::Passed
            }),
        },
    )?;
    heading(&format!("Summary, after {}", seconds(started.elapsed())));
    for reason in skipped.iter().chain(&tally.skipped) {
        note(&format!("skipped: {reason}"));
    }
    if tally.ignored > 0 {
        note(&format!("ignored by their authors: {}", tally.ignored));
    }
    for name in &late {
        note(&format!("passed only when played again, alone: {name}"));
    }
    for name in &tally.failures {
        note(&format!("failed: {name}"));
    }
    eprintln!("{} passed, {} failed", tally.passed as usize + late.len(), tally.failures.len());
    if !succeeded || !tally.failures.is_empty() {
        bail!("step `tests` failed");
    }
    if filtered && tally.passed == 0 {
        bail!("no test matches {}", filters.join(" "));
    }
    Ok(())
}

/// Plays those of the tests that are held to the clock once more, one after the other; gives those that passed.
fn play_again(workspace: &Workspace, failures: &[String], quick: bool) -> Result<Vec<String>> {
    heading("Once more, alone");
    let mut command = cargo_test(workspace, quick);
    command.args(["--package", "tcpfsm-userspace"]);
    for program in AGAINST_THE_CLOCK {
        command.args(["--test", program]);
    }
    command.args(["--", "--test-threads=1", "--exact"]).args(failures);
    let output = command.stdin(Stdio::null()).output().context("cannot start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    eprint!("{text}");
    let passed = |name: &&String| text.lines().any(|line| line == format!("test {name} ... ok"));
    Ok(failures.iter().filter(passed).cloned().collect())
}

/// All failures at once, not one per run.
fn cargo_test(workspace: &Workspace, quick: bool) -> Command {
    let mut command = host(workspace, "test");
    command.args(["--profile", Profile::Checked.name(), "--no-fail-fast"]);
    if quick {
        command.env(QUICK_VARIABLE, "1");
    }
    command
}

/// Runs the tests of all host crates; the kernel programs are tested from there, through the object.
fn run_tests(workspace: &Workspace, filters: &[String], quick: bool) -> Result<(Tally, bool)> {
    heading("Running the tests");
    let mut command = cargo_test(workspace, quick);
    command.args(["--workspace", "--exclude", "tcpfsm-ebpf", "--"]);
    // Captured output is where tests say why they skipped something.
    command.arg("--show-output").args(filters);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no stdout")?;
    let mut tally = Tally::default();
    let mut stderr = std::io::stderr();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read the tests' output")?;
        let line = String::from_utf8_lossy(&line);
        if tally.read(&line) {
            // Going on without a reader is better than leaving tests half run.
            let _ = writeln!(stderr, "{line}");
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    Ok((tally, status.success()))
}
