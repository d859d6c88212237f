//! Cgroup id → path: what is left of an owner without the right to read `/proc/PID/fd`.
//!
//! The kernel remembers with each socket the cgroup (v2) that created it, and tells anyone. The id is the inode
//! of the cgroup's directory; walking the directories needs no capability either.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A new id is worth a new walk at most this often,
const MIN_INTERVAL: Duration = Duration::from_secs(5);
/// and walking may take at most one part in this many of one CPU.
const DUTY: u32 = 50;
const MAX_CGROUPS: usize = 1 << 16;

/// Cgroup id → path below the mount, as of the last walk.
#[derive(Debug)]
pub(super) struct CgroupIds {
    paths: HashMap<u64, String>,
    next_walk: Instant,
}

impl CgroupIds {
    pub(super) fn new() -> Self {
        Self { paths: HashMap::new(), next_walk: Instant::now() }
    }

    /// The path of the cgroup with this id; `None` when it is gone or not seen yet.
    pub(super) fn path(&mut self, id: u64) -> Option<&str> {
        if !self.paths.contains_key(&id) && Instant::now() >= self.next_walk {
            self.refresh();
        }
        self.paths.get(&id).map(String::as_str)
    }

    fn refresh(&mut self) {
        let started = Instant::now();
        self.paths = mount().map(|root| walk(&root)).unwrap_or_default();
        self.next_walk = Instant::now() + MIN_INTERVAL.max(started.elapsed() * DUTY);
    }
}

/// Where cgroup v2 is mounted: alone at the top, or in a directory of its own beside v1.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn walk(root: &Path) -> HashMap<u64, String> {
    let mut paths = HashMap::new();
    if let Ok(metadata) = fs::metadata(root) {
        paths.insert(metadata.ino(), "/".to_owned());
    }
    let mut directories = vec![String::new()];
    while let Some(parent) = directories.pop() {
        let Ok(entries) = fs::read_dir(root.join(parent.trim_start_matches('/'))) else { continue };
        for entry in entries.flatten() {
            if paths.len() >= MAX_CGROUPS {
                return paths;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = format!("{parent}/{}", entry.file_name().to_string_lossy());
                paths.insert(entry.ino(), path.clone());
                directories.push(path);
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_found_by_their_inode_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("system.slice/nginx.service/worker");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("cgroup.procs"), "").unwrap();
        let paths = walk(root.path());
        assert_eq!(paths.len(), 4, "{paths:?}");
        let inode = fs::metadata(&deep).unwrap().ino();
        assert_eq!(paths[&inode], "/system.slice/nginx.service/worker");
        assert_eq!(paths[&fs::metadata(root.path()).unwrap().ino()], "/");
    }

    #[test]
    fn unknown_ids_do_not_walk_again_at_once() {
        let mut ids = CgroupIds::new();
        assert_eq!(ids.path(u64::MAX), None);
        let next = ids.next_walk;
        assert_eq!(ids.path(u64::MAX), None);
        assert_eq!(ids.next_walk, next);
    }
}
