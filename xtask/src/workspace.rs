//! Where things are: the checkout and its build directory.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The checkout that this xtask belongs to, and its build directory.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the checkout: from cargo's environment, else (under sudo, without cargo) upwards from the
    /// program itself and from the current directory.
    pub fn find() -> Result<Self> {
        let starts = [
            env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from),
            env::current_exe().ok(),
            env::current_dir().ok(),
        ];
        let root = starts
            .iter()
            .flatten()
            .flat_map(|start| start.ancestors())
            .find(|dir| dir.join("tcpfsm-ebpf/Cargo.toml").is_file() && dir.join("Cargo.lock").is_file())
            .context("no tcpfsm checkout here: run `cargo xtask` inside one")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir()?.join(dir),
            None => root.join("target"),
        };
        Ok(Self { root, target })
    }

    /// The top of the checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The build directory of the host crates.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The build directory of the eBPF crate: its own, because its flags and often its compiler differ.
    pub fn bpf_target(&self) -> PathBuf {
        self.target.join("bpf")
    }

    /// The finished eBPF object, which the daemon embeds.
    pub fn bpf_object(&self) -> PathBuf {
        self.bpf_target().join("tcpfsm.bpf.o")
    }

    /// The finished object of the floor programs, which only the bench loads.
    pub fn floor_object(&self) -> PathBuf {
        self.bpf_target().join("floor.bpf.o")
    }

    /// Tools built for this checkout alone.
    pub fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// Logs of the long commands.
    pub fn logs(&self) -> PathBuf {
        self.target.join("xtask-logs")
    }

    /// The tracker itself.
    pub fn daemon(&self, debug: bool) -> PathBuf {
        self.target.join(if debug { "debug" } else { "release" }).join("tcpfsm")
    }

    /// `path` as a person in the checkout would write it.
    pub fn short<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}
