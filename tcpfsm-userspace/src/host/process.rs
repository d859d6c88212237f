//! What a process is called: `/proc/PID/{comm,exe,cgroup}`.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    time::{Duration, Instant},
};

use super::cgroup::Placement;

/// Facts older than this are read again: a process changes its name (exec), and pids are used again.
const MAX_AGE: Duration = Duration::from_secs(10);
const MAX_PROCESSES: usize = 4096;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id, in the PID namespace of the observer.
    pub pid: u32,
    /// The name of the main thread, at most 15 bytes.
    pub comm: String,
    /// The executable; `None` without the right to read it, and for kernel threads.
    pub exe: Option<String>,
    /// Where its cgroup places it.
    pub placement: Placement,
}

/// Processes asked about lately.
#[derive(Debug, Default)]
pub struct Processes {
    known: HashMap<u32, (Instant, Process)>,
}

impl Processes {
    /// This process, read at most ten seconds ago; `None` when there is none (any more).
    pub fn find(&mut self, pid: u32) -> Option<&Process> {
        let now = Instant::now();
        let fresh = |at: Instant| now.saturating_duration_since(at) < MAX_AGE;
        if !self.known.get(&pid).is_some_and(|(at, _)| fresh(*at)) {
            let Some(process) = Process::read(pid) else {
                self.known.remove(&pid);
                return None;
            };
            if self.known.len() >= MAX_PROCESSES {
                self.known.retain(|_, (at, _)| fresh(*at));
            }
            if self.known.len() >= MAX_PROCESSES {
                self.known.clear();
            }
            self.known.insert(pid, (now, process));
        }
        self.known.get(&pid).map(|(_, process)| process)
    }
}

impl Process {
    /// Reads `/proc/PID` now.
    #[must_use]
    pub fn read(pid: u32) -> Option<Self> {
        let comm = read(pid, "comm", 64).ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok();
        let cgroup = read(pid, "cgroup", 16 * 1024).unwrap_or_default();
        Some(Self {
            pid,
            comm: printable(comm.trim_ascii_end()),
            exe: exe.map(|path| printable(path.as_os_str().as_encoded_bytes())),
            placement: Placement::parse(&String::from_utf8_lossy(&cgroup)),
        })
    }
}

fn read(pid: u32, file: &str, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}"))?.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A process names itself as it likes, and whoever may make cgroups names them so: control characters must not reach a terminal or a log.
pub(super) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known_by_its_name() {
        let me = Process::read(std::process::id()).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(me.exe.as_deref(), exe.to_str());
        assert!(!me.comm.is_empty());
        assert_eq!(Process::read(u32::MAX), None);
    }

    #[test]
    fn facts_are_kept_for_a_while() {
        let mut processes = Processes::default();
        let first = processes.find(std::process::id()).cloned();
        assert!(first.is_some());
        assert_eq!(processes.find(std::process::id()).cloned(), first);
        assert_eq!(processes.find(u32::MAX), None);
        assert_eq!(processes.known.len(), 1);
    }

    #[test]
    fn a_hostile_name_is_made_harmless() {
        assert_eq!(printable(b"\x1b[2Jevil\xff"), "?[2Jevil\u{fffd}");
    }
}
