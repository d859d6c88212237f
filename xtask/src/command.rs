//! Commands with a predictable environment.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

/// The cargo that runs this xtask, for the host crates.
pub fn host_cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_own_package(&mut command);
    command
}

/// A command for another compiler than the one that runs this xtask: nothing of the outer cargo and rustup
/// may leak in, or the inner cargo would use the outer compiler, its flags or its libraries.
pub fn foreign(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    forget_own_package(&mut command);
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        let leaks = matches!(
            &*name,
            "CARGO"
                | "RUSTC"
                | "RUSTDOC"
                | "RUSTFLAGS"
                | "RUSTUP_TOOLCHAIN"
                | "RUSTC_WRAPPER"
                | "RUSTC_BOOTSTRAP"
        ) || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_TARGET_")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_ENCODED_")
            || name.starts_with("RUSTC_WORKSPACE_");
        if leaks {
            command.env_remove(&key);
        }
    }
    command
}

/// `cargo run` describes the xtask package in the environment; build scripts of other packages must not see it.
/// It also puts its own library directories on the loader's path.
fn forget_own_package(command: &mut Command) {
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || name.starts_with("CARGO_BIN_")
            || name == "CARGO_CRATE_NAME"
            || name == "CARGO_PRIMARY_PACKAGE"
        {
            command.env_remove(&key);
        }
    }
    if let Some(path) = env::var_os("LD_LIBRARY_PATH") {
        let rustup = rustup_home();
        let kept: Vec<PathBuf> = env::split_paths(&path)
            .filter(|dir| {
                let cargo_added =
                    dir.ends_with("deps") || dir.components().any(|part| part.as_os_str() == "target");
                !cargo_added && !rustup.as_ref().is_some_and(|home| dir.starts_with(home))
            })
            .collect();
        match env::join_paths(&kept) {
            Ok(joined) if !joined.is_empty() => command.env("LD_LIBRARY_PATH", joined),
            _ => command.env_remove("LD_LIBRARY_PATH"),
        };
    }
}

/// Where rustup keeps its toolchains, if there is a rustup.
pub fn rustup_home() -> Option<PathBuf> {
    env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")))
        .filter(|home| home.is_dir())
}

/// Finds a program on `PATH`, or where administration tools live when `PATH` is a plain user's.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process may do what root may.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Our stderr, as the stdout of a command that must not write to ours.
pub fn stderr_as_stdout() -> Result<Stdio> {
    let fd = io::stderr().as_fd().try_clone_to_owned().context("duplicate stderr")?;
    Ok(Stdio::from(fd))
}

/// Has a command's process get a signal when the thread that started it ends, however it ends.
pub fn end_with_us(command: &mut Command, signal: Signal) {
    // SAFETY: one prctl between fork and exec; nothing is allocated or locked.
    unsafe {
        command.pre_exec(move || set_parent_process_death_signal(Some(signal)).map_err(io::Error::from))
    };
}

/// A command that must succeed; gives what it wrote to stdout.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}: {}", display(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// The command as a person would type it.
pub fn display(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
