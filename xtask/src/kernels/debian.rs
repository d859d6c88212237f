//! Debian's kernels: the newest of a series, unpacked below the build directory and installed nowhere.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::output;
use crate::progress::heading;
use crate::workspace::Workspace;

/// A kernel that is unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    /// `6.1.0-57-cloud-amd64`.
    pub(super) version: String,
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

/// The kernel for virtual machines: small, and with all that is needed as modules.
const FLAVOUR: &str = "cloud";

/// Finds the newest kernel of a series (`6.12`, `6.12-rt`) in the package lists, and unpacks it if that was not done before.
pub(super) fn kernel(workspace: &Workspace, series: &str) -> Result<Kernel> {
    let (series, flavour) = series.split_once('-').unwrap_or((series, FLAVOUR));
    let names = output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{series}.")]))?;
    let names = String::from_utf8_lossy(&names);
    let Some(version) = newest(names.lines(), flavour) else {
        bail!(
            "the package lists have no kernel linux-image-{series}.*-{flavour}-amd64\n  remedy: apt-get update, or another \
             series: apt-cache pkgnames linux-image-"
        );
    };
    let directory = workspace.target().join("kernels").join(version);
    let kernel = Kernel {
        version: version.to_owned(),
        image: directory.join(format!("boot/vmlinuz-{version}")),
        modules: directory.join(format!("lib/modules/{version}/kernel")),
    };
    if !kernel.image.exists() {
        let package = format!("linux-image-{version}");
        heading(&format!("Fetching {package} (about 30 MB, installed nowhere)"));
        // Unpacked beside its place first: half of a kernel is none.
        let half = workspace.target().join("kernels").join(format!("{version}.half"));
        let _ = fs::remove_dir_all(&half);
        fs::create_dir_all(&half).with_context(|| format!("create {}", half.display()))?;
        output(Command::new("apt-get").args(["download", "-q", &package]).current_dir(&half))?;
        let fetched = fs::read_dir(&half)?.flatten().next().context("apt-get downloaded nothing")?.path();
        output(Command::new("dpkg-deb").arg("--extract").args([&fetched, &half]))?;
        fs::remove_file(&fetched)?;
        let _ = fs::remove_dir_all(&directory);
        fs::rename(&half, &directory).with_context(|| format!("rename to {}", directory.display()))?;
    }
    Ok(kernel)
}

/// The newest version of a flavour among names of packages.
fn newest<'a>(names: impl Iterator<Item = &'a str>, flavour: &str) -> Option<&'a str> {
    let end = format!("-{flavour}-amd64");
    let version = |name: &'a str| name.strip_prefix("linux-image-").filter(|version| version.ends_with(&end));
    names.filter_map(version).max_by_key(|version| numbers(version))
}

/// `6.12.117+deb12` as 6, 12, 117, 12: versions by number, not by letter.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_one_with_the_highest_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-dbg",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-99-amd64",
            "linux-image-6.1.0-48-cloud-amd64",
        ];
        assert_eq!(newest(names.into_iter(), "cloud"), Some("6.1.0-57-cloud-amd64"));
        assert_eq!(newest(names.into_iter(), "rt"), None);
    }
}
