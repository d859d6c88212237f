//! The compiler for the kernel programs: rustup's nightly where it can build `core` itself, else Debian's
//! `rustc-web`, which comes with `core` prebuilt for the BPF target.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::command::{foreign, rustup_home};
use crate::progress::note;
use crate::workspace::Workspace;

/// Set to `nightly` or `debian` to insist on one of the two.
pub(super) const CHOICE_VARIABLE: &str = "TCPFSM_EBPF_TOOLCHAIN";

const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_CLIPPY: &str = "/usr/bin/clippy-driver";

/// Older compilers refuse the workspace (`rust-version`).
const OLDEST: (u32, u32) = (1, 95);

/// A compiler with a `core` for `bpfel-unknown-none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// rustup's nightly with `rust-src`: builds `core` itself (`-Z build-std=core`).
    Nightly {
        /// Where the toolchain lives.
        sysroot: PathBuf,
        /// Its release, as in `1.97.0-nightly`.
        release: String,
        /// Major version of its LLVM.
        llvm: u32,
    },
    /// Debian's packages: `core` is prebuilt, unstable features are let in by `RUSTC_BOOTSTRAP`.
    Debian {
        /// Its release, as in `1.96.0`.
        release: String,
        /// Major version of its LLVM.
        llvm: u32,
    },
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly { release, llvm, .. } => {
                write!(f, "rustup nightly {release} (LLVM {llvm}), build-std")
            }
            Self::Debian { release, llvm } => write!(f, "Debian rustc-web {release} (LLVM {llvm})"),
        }
    }
}

impl Compiler {
    /// The one that is there, if any. Nightly first: it is what the aya project builds with.
    pub fn find() -> Result<Option<Self>> {
        let choice = std::env::var(CHOICE_VARIABLE).ok();
        match choice.as_deref() {
            None => Ok(find_nightly().or_else(find_debian)),
            Some("nightly") => {
                let found = find_nightly();
                if found.is_none() {
                    bail!(
                        "{CHOICE_VARIABLE}=nightly, but there is no nightly with rust-src\n  remedy: {NIGHTLY_COMMAND}"
                    );
                }
                Ok(found)
            }
            Some("debian") => Ok(find_debian()),
            Some(other) => bail!("{CHOICE_VARIABLE}={other}: neither `nightly` nor `debian`"),
        }
    }

    /// Major version of the LLVM that writes the bitcode; the linker's must not be older.
    pub fn llvm(&self) -> u32 {
        match self {
            Self::Nightly { llvm, .. } | Self::Debian { llvm, .. } => *llvm,
        }
    }

    /// This compiler's cargo, shielded from the cargo that runs xtask.
    pub fn cargo(&self) -> Command {
        match self {
            Self::Nightly { sysroot, .. } => {
                let mut cargo = foreign(sysroot.join("bin/cargo"));
                cargo.env("RUSTC", sysroot.join("bin/rustc"));
                cargo
            }
            Self::Debian { .. } => {
                let mut cargo = foreign(DEBIAN_CARGO);
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        }
    }

    /// What cargo needs to be told besides the target.
    pub fn cargo_args(&self) -> &'static [&'static str] {
        match self {
            Self::Nightly { .. } => &["-Zbuild-std=core"],
            Self::Debian { .. } => &[],
        }
    }

    /// The clippy that goes with this compiler, or how to get it.
    pub fn clippy(&self) -> Result<PathBuf, &'static str> {
        let (driver, remedy) = match self {
            Self::Nightly { sysroot, .. } => {
                (sysroot.join("bin/clippy-driver"), "rustup component add clippy --toolchain nightly")
            }
            Self::Debian { .. } => (PathBuf::from(DEBIAN_CLIPPY), "apt-get install rust-web-clippy"),
        };
        if driver.is_file() { Ok(driver) } else { Err(remedy) }
    }
}

const NIGHTLY_COMMAND: &str =
    "rustup toolchain install nightly --profile minimal --component rust-src,clippy";

/// Installs Debian's compiler, or says how to get one.
pub(super) fn install(workspace: &Workspace) -> Result<Compiler> {
    if !packages::has_apt() {
        bail!(
            "no compiler for the kernel programs, and this is not a Debian system\n  \
             remedy: {NIGHTLY_COMMAND}\n  \
             and the development files of LLVM 22 or newer from your distribution \
             (llvm-config --version; set LLVM_PREFIX to its prefix)"
        );
    }
    note(
        "no compiler for the kernel programs: neither rustup's nightly with rust-src nor Debian's rustc-web",
    );
    packages::install(workspace, "Installing Debian's compiler for the BPF target", &packages::compiler())?;
    match find_debian() {
        Some(compiler) => Ok(compiler),
        None => bail!(
            "the packages are installed, but {DEBIAN_RUSTC} is missing, too old (need {}.{}) or has no core for BPF\n  \
             remedy: apt-get update, upgrade rustc-web, or {NIGHTLY_COMMAND}",
            OLDEST.0,
            OLDEST.1
        ),
    }
}

fn find_debian() -> Option<Compiler> {
    let has_core = Path::new(DEBIAN_CORE)
        .read_dir()
        .ok()?
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    if !has_core || !Path::new(DEBIAN_CARGO).is_file() {
        return None;
    }
    let (release, llvm) = describe(Path::new(DEBIAN_RUSTC)).ok()?;
    Some(Compiler::Debian { release, llvm })
}

fn find_nightly() -> Option<Compiler> {
    let mut candidates: Vec<PathBuf> = rustup_home()?
        .join("toolchains")
        .read_dir()
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly-")))
        .filter(|path| path.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
        .collect();
    // `nightly-<host>` sorts after every `nightly-<date>-<host>`: prefer it.
    candidates.sort();
    candidates.into_iter().rev().find_map(|sysroot| {
        let (release, llvm) = describe(&sysroot.join("bin/rustc")).ok()?;
        Some(Compiler::Nightly { sysroot, release, llvm })
    })
}

/// Release and LLVM major version of a rustc that is new enough.
fn describe(rustc: &Path) -> Result<(String, u32)> {
    let output = foreign(rustc).arg("-vV").output().with_context(|| format!("run {}", rustc.display()))?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
        .filter(|(release, _)| is_new_enough(release))
        .with_context(|| format!("{} is too old", rustc.display()))
}

fn parse_version(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:")?.to_owned();
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

fn is_new_enough(release: &str) -> bool {
    let mut parts = release.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rustc_verbose_version() {
        let text =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_version(text), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(parse_version("nonsense"), None);
    }

    #[test]
    fn knows_old_compilers() {
        assert!(is_new_enough("1.96.0"));
        assert!(is_new_enough("1.97.0-nightly"));
        assert!(!is_new_enough("1.85.0"));
        assert!(!is_new_enough("x"));
    }
}
