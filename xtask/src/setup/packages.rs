//! Debian packages: which, and how they are installed or asked for.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::{is_root, which};
use crate::progress::{note, run_logged};
use crate::workspace::Workspace;

use super::services;

/// The LLVM that Debian's rustc-web is built with.
const DEBIAN_LLVM: u32 = 22;

const COMPILER: &str = "rustc-web";

/// Good to have, never a reason to stop: clippy for the kernel programs.
const OPTIONAL: &str = "rust-web-clippy";

/// The compiler and everything that its linker is built with.
pub(super) fn compiler() -> Vec<String> {
    let mut packages: Vec<String> = [COMPILER, "cargo-web", "libstd-rust-web-dev-bpf"].map(Into::into).into();
    packages.extend(llvm(DEBIAN_LLVM));
    packages
}

/// What bpf-linker links with.
pub(super) fn llvm(major: u32) -> Vec<String> {
    vec![format!("llvm-{major}-dev"), "zlib1g-dev".to_owned(), "libzstd-dev".to_owned()]
}

/// Whether packages are a matter of apt here.
pub(super) fn has_apt() -> bool {
    which("apt-get").is_some()
}

/// `ip` and `ss`, for the demo network and for tests that compare with the kernel's own view.
pub(super) fn ensure_network_tools(workspace: &Workspace) -> Result<()> {
    if which("ip").is_some() && which("ss").is_some() {
        return Ok(());
    }
    if !has_apt() {
        bail!(
            "`ip` and `ss` are missing\n  remedy: install iproute2 with your distribution's package manager"
        );
    }
    install(workspace, "Installing the network tools of the demo and the tests", &["iproute2".to_owned()])
}

/// Programs that tests play against the daemon, or that the bench compares with: the package, and a file that is there once it is installed.
const TEST_PROGRAMS: [(&str, &str); 10] = [
    ("nginx-light", "/usr/sbin/nginx"),
    ("wrk", "/usr/bin/wrk"),
    ("slowhttptest", "/usr/bin/slowhttptest"),
    ("hping3", "/usr/sbin/hping3"),
    ("nmap", "/usr/bin/nmap"),
    ("python3-scapy", "/usr/lib/python3/dist-packages/scapy/all.py"),
    ("nftables", "/usr/sbin/nft"),
    ("conntrack", "/usr/sbin/conntrack"),
    ("prometheus", "/usr/bin/prometheus"),
    // For its journal.
    ("systemd", "/usr/lib/systemd/systemd-journald"),
];

/// Installs what is missing of [`TEST_PROGRAMS`], where that is a matter of apt and allowed. Where it is not, the tests
/// that need them say so and are skipped: nothing here is a reason to stop.
pub(super) fn offer_test_programs(workspace: &Workspace) {
    let missing = packages_without(&TEST_PROGRAMS, |file| Path::new(file).exists());
    if missing.is_empty() {
        return;
    }
    let list = missing.join(" ");
    if !has_apt() || !is_root() {
        note(&format!("not installed, so that some tests will be skipped (needs root and apt): {list}"));
        return;
    }
    note(&format!("programs that tests play against the daemon will be installed: {list}"));
    let quiet = services::Unstarted::new();
    let installed = install(workspace, "Installing the programs of the tests", &missing);
    drop(quiet);
    for (package, service) in [("nginx-light", "nginx"), ("prometheus", "prometheus")] {
        if missing.iter().any(|missing| missing == package) {
            services::disable(service);
        }
    }
    if let Err(error) = installed {
        note(&format!("going on without them, some tests will be skipped: {error:#}"));
    }
}

/// What boots an older kernel, and makes what it boots from: the package, and its program.
const EMULATOR: [(&str, &str); 4] = [
    ("qemu-system-x86", "qemu-system-x86_64"),
    ("busybox-static", "busybox"),
    ("cpio", "cpio"),
    ("xz-utils", "xz"),
];

/// The emulator and its tools.
pub(super) fn ensure_emulator(workspace: &Workspace) -> Result<()> {
    if !cfg!(target_arch = "x86_64") || !has_apt() {
        bail!("older kernels are Debian's, for x86-64: this is another system\n  remedy: run it on one");
    }
    let missing = packages_without(&EMULATOR, |program| which(program).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    install(workspace, "Installing the emulator of older kernels", &missing)
}

/// The packages of these whose file or program is not there.
fn packages_without(packages: &[(&str, &str)], is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let missing = packages.iter().filter(|(_, what)| !is_there(what));
    missing.map(|(package, _)| (*package).to_owned()).collect()
}

/// Installs packages as root; tells anyone else the command.
pub(super) fn install(workspace: &Workspace, step: &str, packages: &[String]) -> Result<()> {
    let list = packages.join(" ");
    if !has_apt() {
        bail!("{step}: this is not a Debian system\n  remedy: install the equivalent of: {list}");
    }
    if !is_root() {
        bail!(
            "{step} needs root; nothing was changed\n  \
             remedy: sudo apt-get update && sudo apt-get install --no-install-recommends {list}\n  \
             then run the same `cargo xtask` command again (the build itself needs no root)"
        );
    }
    if !packages.iter().all(|package| has_candidate(package)) {
        // Third-party lists may fail to update while Debian's are fine: what counts is the installation below.
        let updated = run_logged(
            "Updating the package lists",
            &workspace.logs().join("apt-update.log"),
            "check the network and /etc/apt/sources.list",
            apt().arg("update"),
        );
        if let Err(error) = updated {
            note(&format!("going on with the lists there are: {error:#}"));
        }
    }
    let mut packages = packages.to_vec();
    // Asked only now: without lists nothing has a candidate.
    if packages.iter().any(|package| package == COMPILER) && has_candidate(OPTIONAL) {
        packages.push(OPTIONAL.to_owned());
    }
    let mut remedy = format!("apt-get update && apt-get install --no-install-recommends {list}");
    if packages.iter().any(|package| package == COMPILER) {
        remedy += "; if a package is unknown here, use rustup instead: rustup toolchain install nightly --profile minimal \
                   --component rust-src";
    }
    let log = workspace.logs().join("apt-install.log");
    let attempt = |step: &str| run_logged(step, &log, &remedy, &mut install_command(&packages));
    let first = attempt(step);
    if first.is_ok() {
        return Ok(());
    }
    // Lists from long ago name versions that the mirror no longer has.
    note("that failed; package lists may be out of date");
    let _ = run_logged(
        "Updating the package lists",
        &workspace.logs().join("apt-update.log"),
        &remedy,
        apt().arg("update"),
    );
    attempt(&format!("{step}, second attempt"))
}

fn install_command(packages: &[String]) -> Command {
    let mut command = apt();
    // `--no-remove`: rustc-web conflicts with other compilers' packages, and those are not ours to take away.
    command.args(["install", "--yes", "--no-remove", "--no-install-recommends"]).args(packages);
    command
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8").args([
        "-o",
        "Dpkg::Use-Pty=0",
        "-o",
        "DPkg::Lock::Timeout=120",
        "-o",
        "Acquire::Retries=3",
    ]);
    command
}

fn has_candidate(package: &str) -> bool {
    let Ok(output) = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output() else {
        return false;
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .any(|line| line.trim().strip_prefix("Candidate:").is_some_and(|version| version.trim() != "(none)"))
}
