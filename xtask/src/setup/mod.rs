//! `cargo xtask setup`: finds or installs what the build and the demo need.
//!
//! A step says what it will do before it does it, and a second run does nothing again.

mod compiler;
mod linker;
mod packages;
mod services;

use std::path::PathBuf;

use anyhow::Result;

pub use self::compiler::Compiler;
use crate::progress::note;
use crate::workspace::Workspace;

/// What turns `tcpfsm-ebpf` into an object.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// The compiler with a `core` for `bpfel-unknown-none`.
    pub compiler: Compiler,
    /// A `bpf-linker` whose LLVM reads what that compiler writes.
    pub linker: PathBuf,
}

/// What else than the build a subcommand needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The compiler and the linker.
    Build,
    /// And the programs that make and inspect network namespaces.
    Network,
    /// And, where they can be had, the programs that tests play against the daemon.
    Tests,
}

/// The subcommand: everything, with a word on what was found.
pub fn main(workspace: &Workspace) -> Result<()> {
    let toolchain = ensure(workspace, Needs::Tests)?;
    note(&format!("eBPF compiler: {}", toolchain.compiler));
    note(&format!("bpf-linker:    {}", workspace.short(&toolchain.linker)));
    note("everything is in place");
    Ok(())
}

/// What boots an older kernel: found, or else installed.
pub fn ensure_emulator(workspace: &Workspace) -> Result<()> {
    packages::ensure_emulator(workspace)
}

/// Finds, or else installs, what is needed. Silent and quick when nothing is missing.
pub fn ensure(workspace: &Workspace, needs: Needs) -> Result<Toolchain> {
    let compiler = match Compiler::find()? {
        Some(compiler) => compiler,
        None => compiler::install(workspace)?,
    };
    let linker = match linker::find(workspace, compiler.llvm()) {
        Some(linker) => linker,
        None => linker::install(workspace, compiler.llvm())?,
    };
    if needs != Needs::Build {
        packages::ensure_network_tools(workspace)?;
    }
    if needs == Needs::Tests {
        packages::offer_test_programs(workspace);
    }
    Ok(Toolchain { compiler, linker })
}
