//! `cargo xtask build`: the eBPF object, then the daemon that embeds it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::host_cargo;
use crate::progress::{note, run_shown};
use crate::setup::{self, Needs, Toolchain};
use crate::workspace::Workspace;

/// Tells tcpfsm-userspace's build script which object to embed.
pub const OBJECT_VARIABLE: &str = "TCPFSM_BPF_OBJECT";
/// Tells the bench where the floor programs are.
pub const FLOOR_VARIABLE: &str = "TCPFSM_FLOOR_OBJECT";

const TARGET: &str = "bpfel-unknown-none";

/// How the host crates are compiled: profiles of `Cargo.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quickly.
    Dev,
    /// For users.
    Release,
    /// For tests, and for clippy, which shares build scripts and procedural macros with them.
    Checked,
}

impl Profile {
    /// Its name for `cargo --profile`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Checked => "checked",
        }
    }
}

/// The subcommand.
pub fn main(workspace: &Workspace, debug: bool) -> Result<()> {
    let toolchain = setup::ensure(workspace, Needs::Build)?;
    build(workspace, &toolchain, if debug { Profile::Dev } else { Profile::Release })?;
    note(&format!("built {}", workspace.short(&workspace.daemon(debug))));
    Ok(())
}

/// Both halves, with a toolchain that is known to be there.
pub fn build(workspace: &Workspace, toolchain: &Toolchain, profile: Profile) -> Result<()> {
    build_object(workspace, toolchain)?;
    let mut command = host(workspace, "build");
    command.args(["--package", "tcpfsm-userspace", "--profile", profile.name()]);
    run_shown("Building the daemon", &mut command)
}

/// The kernel programs alone.
pub fn build_object(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let mut command = kernel(workspace, toolchain, "build");
    run_shown(&format!("Building the kernel programs with {}", toolchain.compiler), &mut command)?;
    let built = workspace.bpf_target().join(TARGET).join("release");
    publish(&built.join("tcpfsm-ebpf"), &workspace.bpf_object())?;
    publish(&built.join("floor"), &workspace.floor_object())
}

/// A cargo command on the kernel crate.
pub fn kernel(workspace: &Workspace, toolchain: &Toolchain, verb: &str) -> Command {
    let mut command = toolchain.compiler.cargo();
    command
        .current_dir(workspace.root())
        .arg(verb)
        .args(["--package", "tcpfsm-ebpf", "--release", "--locked", "--target", TARGET])
        .arg("--target-dir")
        .arg(workspace.bpf_target())
        .args(toolchain.compiler.cargo_args())
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain.linker));
    command
}

/// A cargo command on the host crates; the daemon it builds embeds the current object.
pub fn host(workspace: &Workspace, verb: &str) -> Command {
    let mut command = host_cargo();
    command
        .current_dir(workspace.root())
        .args([verb, "--locked"])
        .arg("--target-dir")
        .arg(workspace.target())
        .env(OBJECT_VARIABLE, workspace.bpf_object());
    command
}

/// Encoded, because the linker's path may contain spaces.
fn rustflags(linker: &Path) -> OsString {
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    // Debug information is what `--btf` makes BTF of. aya-ebpf selects register layouts by the host's architecture.
    for flag in
        // LLVM expands memset and memcpy inline only without "in order": else each is a call to a byte loop.
        [
            "-Ctarget-cpu=v3",
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
            "-Clink-arg=--disable-expand-memcpy-in-order",
            &format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
            "--check-cfg=cfg(bpf_target_arch,values(any()))",
        ]
    {
        flags.push("\x1f");
        flags.push(flag);
    }
    flags
}

/// Copies the object only when it changed: its time stamp is what cargo decides by whether to rebuild the daemon.
fn publish(built: &Path, object: &Path) -> Result<()> {
    let new = fs::read(built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let partial = object.with_extension("o.partial");
    fs::write(&partial, &new).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, object).with_context(|| format!("rename to {}", object.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_keeps_its_time_stamp() {
        let dir = env::temp_dir().join(format!("tcpfsm-xtask-build-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (built, object) = (dir.join("built"), dir.join("x.bpf.o"));
        fs::write(&built, b"one").unwrap();
        publish(&built, &object).unwrap();
        let before = fs::metadata(&object).unwrap().modified().unwrap();
        publish(&built, &object).unwrap();
        assert_eq!(fs::metadata(&object).unwrap().modified().unwrap(), before);
        fs::write(&built, b"two").unwrap();
        publish(&built, &object).unwrap();
        assert_eq!(fs::read(&object).unwrap(), b"two");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_flags_ask_for_btf() {
        let flags = rustflags(Path::new("/a b/bpf-linker")).into_string().unwrap();
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert_eq!(flags[0], "-Clinker=/a b/bpf-linker");
        assert!(flags.contains(&"-Clink-arg=--btf"));
    }
}
