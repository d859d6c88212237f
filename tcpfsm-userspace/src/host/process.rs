//! What a process is called: `/proc/PID/{comm,exe,cmdline,stat,cgroup}`.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    time::{Duration, Instant, SystemTime},
};

use super::cgroup::Placement;

/// Facts older than this are read again: a process changes its name (exec), and pids are used again.
const MAX_AGE: Duration = Duration::from_secs(10);
const MAX_PROCESSES: usize = 4096;
/// A command line can be megabytes; people look at its beginning.
const MAX_CMDLINE: usize = 256;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id, in the PID namespace of the observer.
    pub pid: u32,
    /// The name of the main thread, at most 15 bytes.
    pub comm: String,
    /// The executable; `None` without the right to read it, and for kernel threads.
    pub exe: Option<String>,
    /// The arguments joined by spaces, cut to 256 characters. May hold secrets: show it only on demand.
    pub cmdline: Option<String>,
    /// When it started.
    pub started: Option<SystemTime>,
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
        let cmdline = read(pid, "cmdline", 4 * MAX_CMDLINE).ok();
        let stat = read(pid, "stat", 1024).ok();
        let cgroup = read(pid, "cgroup", 16 * 1024).unwrap_or_default();
        Some(Self {
            pid,
            comm: printable(comm.trim_ascii_end()),
            exe: exe.map(|path| printable(path.as_os_str().as_encoded_bytes())),
            cmdline: cmdline.as_deref().map(shorten).filter(|line| !line.is_empty()),
            started: stat.as_deref().and_then(start_time),
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

fn shorten(cmdline: &[u8]) -> String {
    let spaced: Vec<u8> = cmdline.iter().map(|&byte| if byte == 0 { b' ' } else { byte }).collect();
    let line = printable(spaced.trim_ascii());
    match line.char_indices().nth(MAX_CMDLINE) {
        None => line,
        Some((cut, _)) => format!("{}…", line.get(..cut).unwrap_or_default()),
    }
}

/// Field 22 of `/proc/PID/stat`, ticks after boot. Field 2, the name, may hold spaces and parentheses.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    str::from_utf8(stat.get(after_name..)?).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn start_time(stat: &[u8]) -> Option<SystemTime> {
    let ticks = start_ticks(stat)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let after_boot = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since_boot = Duration::new(now.tv_sec.try_into().ok()?, now.tv_nsec.try_into().ok()?);
    SystemTime::now().checked_sub(since_boot.saturating_sub(after_boot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_known_by_its_name_and_age() {
        let me = Process::read(std::process::id()).unwrap();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(me.exe.as_deref(), exe.to_str());
        assert!(me.cmdline.is_some() && !me.comm.is_empty());
        let age = me.started.unwrap().elapsed().unwrap();
        assert!(age < Duration::from_secs(600), "{age:?}");
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
        assert_eq!(start_ticks(b"1 (a) b) (c) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0"), Some(4242));
        assert_eq!(start_ticks(b"1 (cut"), None);
    }

    #[test]
    fn a_long_command_line_is_cut_between_characters() {
        assert_eq!(shorten(b"nginx\0-g\0daemon off;\0"), "nginx -g daemon off;");
        let long = "ä".repeat(MAX_CMDLINE + 5);
        assert_eq!(shorten(long.as_bytes()).chars().count(), MAX_CMDLINE + 1);
    }
}
