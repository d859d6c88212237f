//! What runs that were killed left behind: namespaces and directories named after a process that is gone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::netns;
use crate::command::is_root;
use crate::progress::note;

const PREFIX: &str = "tcpfsm-";
/// Where a demo keeps its control socket.
const RUN: &str = "/run";

/// `cargo xtask clean-demo`.
pub fn main() -> Result<()> {
    if !is_root() {
        bail!(
            "removing network namespaces needs root\n  remedy: sudo ip netns delete NAME, for each in `ip netns list`"
        );
    }
    match remove() {
        0 => note("nothing was left behind"),
        count => note(&format!("removed {count} leftovers of earlier runs")),
    }
    Ok(())
}

/// Removes what belongs to no living process; says how many things.
pub fn remove() -> usize {
    let namespaces = stale_names(netns::DIRECTORY).into_iter().filter(|name| netns::remove(name)).count();
    let directories = stale_names(RUN)
        .into_iter()
        .filter(|name| fs::remove_dir_all(Path::new(RUN).join(name)).is_ok())
        .count();
    namespaces + directories
}

/// A directory for the control sockets of this process; root's alone, taken away when dropped, by the next run's
/// [`remove`] at the latest.
#[derive(Debug)]
pub struct RunDirectory(PathBuf);

impl RunDirectory {
    /// Makes it. `kind` as for a [`Lab`](super::Lab).
    pub fn create(kind: &str) -> Result<Self> {
        let path = Path::new(RUN).join(format!("{PREFIX}{kind}-{}-run", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        // The next run removes it otherwise.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stale_names(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| owner(name).is_some_and(|pid| !is_alive(pid)))
        .collect()
}

/// A zombie is as dead as one that is gone: its parent may never fetch it.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state follows the name in parentheses, which itself may contain any character.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, Some("Z" | "X"))
}

/// The process in `tcpfsm-KIND-PID-SIDE` or `tcpfsm-KIND-PID.NUMBER-SIDE`.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (Some(_kind), Some(process), Some("a" | "b" | "w" | "run"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    process.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_have_an_owner() {
        assert_eq!(owner("tcpfsm-demo-4711-a"), Some(4711));
        assert_eq!(owner("tcpfsm-test-4711.3-b"), Some(4711));
        assert_eq!(owner("tcpfsm-demo-4711-run"), Some(4711));
        assert_eq!(owner("tcpfsm-truth-4711-w"), Some(4711));
        for foreign in ["tcpfsm", "tcpfsm-demo-a", "tcpfsm-4711", "demo-4711-a", "tcpfsm-demo-4711-a-x"] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
