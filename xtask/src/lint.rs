//! `cargo xtask fmt` and `cargo xtask lint`: rustfmt, clippy for the host and for the BPF target, dependency policy.

use std::process::Command;

use anyhow::{Result, bail};

use crate::build::{Profile, host, kernel};
use crate::command::{host_cargo, which};
use crate::progress::{note, run_shown};
use crate::setup::Toolchain;
use crate::workspace::Workspace;

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It found nothing.
    Passed,
    /// It could not be made here, for this reason.
    Skipped(String),
}

/// `cargo xtask fmt`: rewrites the sources.
pub fn fmt(workspace: &Workspace) -> Result<()> {
    run_shown("Formatting", rustfmt(workspace).arg("--all"))
}

/// `cargo xtask lint`: everything that reads the sources without running them.
pub fn main(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    for (name, outcome) in [
        ("rustfmt", check_format(workspace)?),
        ("clippy, host", check_host(workspace)?),
        ("clippy, kernel programs", check_kernel(workspace, toolchain)?),
        ("dependency policy", check_dependencies(workspace)?),
    ] {
        if let Outcome::Skipped(reason) = outcome {
            note(&format!("{name}: skipped: {reason}"));
        }
    }
    Ok(())
}

/// Fails when rustfmt would change something.
pub fn check_format(workspace: &Workspace) -> Result<Outcome> {
    if !has_component(workspace, "fmt") {
        return Ok(Outcome::Skipped("rustfmt is not installed (rustup component add rustfmt)".to_owned()));
    }
    let result = run_shown("Checking the format", rustfmt(workspace).args(["--all", "--check"]));
    if let Err(error) = result {
        bail!("{error:#}\n  remedy: cargo xtask fmt");
    }
    Ok(Outcome::Passed)
}

/// Clippy on everything that runs on the host.
pub fn check_host(workspace: &Workspace) -> Result<Outcome> {
    if !has_component(workspace, "clippy") {
        return Ok(Outcome::Skipped("clippy is not installed (rustup component add clippy)".to_owned()));
    }
    // What people run may not panic; a test fails by panicking.
    let tests = ["-Aclippy::unwrap_used", "-Aclippy::expect_used"];
    clippy(workspace, "Clippy on the host crates", &["--lib", "--bins"], &[])?;
    clippy(workspace, "Clippy on their tests", &["--all-targets"], &tests)?;
    Ok(Outcome::Passed)
}

fn clippy(workspace: &Workspace, what: &str, targets: &[&str], lints: &[&str]) -> Result<()> {
    let mut command = host(workspace, "clippy");
    command
        .args(["--workspace", "--exclude", "tcpfsm-ebpf", "--profile", Profile::Checked.name()])
        .args(targets);
    command.args(["--", "-Dwarnings"]).args(lints);
    run_shown(what, &mut command)
}

/// Clippy on the kernel programs, by the compiler that builds them.
pub fn check_kernel(workspace: &Workspace, toolchain: &Toolchain) -> Result<Outcome> {
    let driver = match toolchain.compiler.clippy() {
        Ok(driver) => driver,
        Err(remedy) => {
            return Ok(Outcome::Skipped(format!(
                "the compiler of the kernel programs has no clippy ({remedy})"
            )));
        }
    };
    // clippy-driver stands in for rustc, as `cargo clippy` does it; asking cargo itself would need a `cargo-clippy`
    // on the path of the very toolchain that we shield from the path.
    let mut command = kernel(workspace, toolchain, "check");
    command
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__")
        .env("CLIPPY_CONF_DIR", workspace.root());
    run_shown("Clippy on the kernel programs", &mut command)?;
    Ok(Outcome::Passed)
}

/// Licences, sources and bans of `deny.toml`; advisories would need their database.
pub fn check_dependencies(workspace: &Workspace) -> Result<Outcome> {
    if which("cargo-deny").is_none() {
        return Ok(Outcome::Skipped("cargo-deny is not installed (cargo install cargo-deny)".to_owned()));
    }
    let mut command = host_cargo();
    // Not offline: of crates for other systems, which no build here has fetched, it wants the manifests.
    command.current_dir(workspace.root()).args(["deny", "--locked", "check", "licenses", "sources", "bans"]);
    run_shown("Checking the dependencies against deny.toml", &mut command)?;
    Ok(Outcome::Passed)
}

fn rustfmt(workspace: &Workspace) -> Command {
    let mut command = host_cargo();
    command.current_dir(workspace.root()).arg("fmt");
    command
}

fn has_component(workspace: &Workspace, name: &str) -> bool {
    let mut command = host_cargo();
    command.current_dir(workspace.root()).args([name, "--version"]);
    command.output().is_ok_and(|output| output.status.success())
}
