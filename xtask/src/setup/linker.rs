//! `bpf-linker`: one on `PATH` if it is the right one, else built into this checkout's own build directory.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::command::{foreign, host_cargo, which};
use crate::progress::{note, run_logged};
use crate::workspace::Workspace;

const VERSION: &str = "0.13.0";

/// The LLVM versions that this bpf-linker has a feature for.
const SUPPORTED_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// The linker that is there, if it runs, has the right version and reads this LLVM's bitcode.
pub(super) fn find(workspace: &Workspace, llvm: u32) -> Option<PathBuf> {
    let own = workspace.tools().join("bin/bpf-linker");
    if is_right_version(&own) && was_built_for(&workspace.tools(), llvm) {
        return Some(own);
    }
    // What LLVM a foreign binary has, it does not tell. Its default is the newest, which reads older bitcode.
    which("bpf-linker").filter(|path| is_right_version(path))
}

/// Builds it with `cargo install`. Interrupted, the next attempt goes on from what was compiled.
pub(super) fn install(workspace: &Workspace, llvm: u32) -> Result<PathBuf> {
    if !SUPPORTED_LLVM.contains(&llvm) {
        bail!(
            "the eBPF compiler uses LLVM {llvm}; bpf-linker {VERSION} knows {}-{}\n  remedy: set {}=debian",
            SUPPORTED_LLVM.start(),
            SUPPORTED_LLVM.end(),
            super::compiler::CHOICE_VARIABLE
        );
    }
    note(&format!(
        "no bpf-linker {VERSION} for LLVM {llvm} yet: it will be built by cargo install (about 80 s)"
    ));
    let prefix = match llvm_prefix(llvm) {
        Some(prefix) => prefix,
        None => {
            packages::install(
                workspace,
                &format!("Installing LLVM {llvm} for bpf-linker"),
                &packages::llvm(llvm),
            )?;
            llvm_prefix(llvm).with_context(|| {
                format!(
                    "LLVM {llvm} was installed, but is not in /usr/lib/llvm-{llvm}\n  remedy: set LLVM_PREFIX"
                )
            })?
        }
    };
    let mut command = host_cargo();
    command
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(workspace.tools())
        .arg("--target-dir")
        .arg(workspace.tools().join("build"))
        // Without it the search ends at the compiler's own LLVM, which cannot be linked with.
        .env("LLVM_PREFIX", &prefix)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run_logged(
        &format!("Building bpf-linker {VERSION} into {}", workspace.short(&workspace.tools())),
        &workspace.logs().join("bpf-linker.log"),
        "the Rust package registry must be reachable and a C compiler installed; then run `cargo xtask setup` again, it resumes",
        &mut command,
    )?;
    let built = workspace.tools().join("bin/bpf-linker");
    if !is_right_version(&built) {
        bail!(
            "{} was built but does not run\n  remedy: try `{} --version`; LLVM {llvm}'s shared library may be missing",
            built.display(),
            built.display()
        );
    }
    // What was compiled on the way is of no more use. A leftover harms nothing but disk space.
    let _ = fs::remove_dir_all(workspace.tools().join("build"));
    Ok(built)
}

fn is_right_version(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    // Running it also proves that its shared libraries are still there.
    match foreign(path).arg("--version").output() {
        Ok(output) => {
            output.status.success() && String::from_utf8_lossy(&output.stdout).trim().ends_with(VERSION)
        }
        Err(_) => false,
    }
}

/// cargo records the features of what it installed. Without a record (a copied binary) the version must do.
fn was_built_for(root: &Path, llvm: u32) -> bool {
    let Ok(text) = fs::read_to_string(root.join(".crates2.json")) else {
        return true;
    };
    text.contains(&format!("\"llvm-{llvm}\""))
}

/// Where an LLVM of this major version with development files is installed.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let fits = |prefix: &PathBuf| {
        let config = prefix.join("bin/llvm-config");
        let output = foreign(&config).arg("--version").output().ok()?;
        String::from_utf8_lossy(&output.stdout).starts_with(&format!("{llvm}.")).then_some(())
    };
    [env::var_os("LLVM_PREFIX").map(PathBuf::from), Some(debian), Some(PathBuf::from("/usr"))]
        .into_iter()
        .flatten()
        .find(|prefix| fits(prefix).is_some())
}
