//! Which process holds which socket: socket inode → pid, by walking `/proc/*/fd`.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CStr,
    fs::File,
    io::Read as _,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{Mode, OFlags, RawDir, openat, readlinkat_raw},
    io::Errno,
    thread::CapabilitySet,
};

/// A miss is worth a new walk at most this often,
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// and walking may take at most one part in this many of one CPU.
const DUTY: u32 = 20;
/// A walk that takes longer stops where it is.
const WALK: Duration = Duration::from_secs(2);
/// Bound on the sockets indexed (about 32 MB).
const MAX_HOLDERS: usize = 1 << 20;
/// How long a socket that no visible process holds causes no walk.
const UNHELD_FOR: Duration = Duration::from_secs(30);
const MAX_UNHELD: usize = 1 << 16;

/// Why some owners will not be found; for the caller to say, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degraded {
    /// What is missing and what would help.
    pub reason: String,
    /// Whether it keeps only a few out of sight: most sockets that are not found are too new.
    pub partly: bool,
}

/// A process that holds a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The one with the lowest pid: of a prefork server, the parent.
    pub pid: u32,
    /// Its file descriptor.
    pub fd: u32,
    /// Number of descriptors of *other* processes for the same socket.
    pub shared_with: u32,
}

/// Socket inode → holder, as of the last walk. Walks again only on a miss, and at a bounded rate.
#[derive(Debug)]
pub struct FdIndex {
    holders: HashMap<u32, Holder>,
    unheld: HashMap<u32, Instant>,
    next_walk: Instant,
    degraded: Option<Degraded>,
}

impl Default for FdIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl FdIndex {
    /// An empty index; the first question, or [`refresh`](Self::refresh), fills it.
    #[must_use]
    pub fn new() -> Self {
        Self { holders: HashMap::new(), unheld: HashMap::new(), next_walk: Instant::now(), degraded: None }
    }

    /// Who holds the socket with this inode now. `None` is "nobody that we can see", or "not seen yet: ask again
    /// in a second".
    pub fn holder(&mut self, inode: u32) -> Option<Holder> {
        if inode == 0 {
            return None;
        }
        if let Some(holder) = self.current(inode) {
            return Some(holder);
        }
        let now = Instant::now();
        let known_unheld = self.unheld.get(&inode).is_some_and(|&since| now < since + UNHELD_FOR);
        if known_unheld || now < self.next_walk {
            return None;
        }
        self.refresh();
        let holder = self.current(inode);
        if holder.is_none() {
            if self.unheld.len() >= MAX_UNHELD {
                self.unheld.clear();
            }
            self.unheld.insert(inode, now);
        }
        holder
    }

    /// Whether a walk of late has looked for this socket in vain.
    #[must_use]
    pub fn was_missed(&self, inode: u32) -> bool {
        self.unheld.contains_key(&inode)
    }

    /// What keeps some holders out of sight, as of the last walk.
    #[must_use]
    pub const fn degraded(&self) -> Option<&Degraded> {
        self.degraded.as_ref()
    }

    /// The indexed holder, if it still is one: descriptors are closed and pids used again at any time.
    fn current(&mut self, inode: u32) -> Option<Holder> {
        let holder = *self.holders.get(&inode)?;
        let path = format!("/proc/{}/fd/{}", holder.pid, holder.fd);
        if socket_inode(rustix::fs::CWD, path.as_str()) == Ok(Some(inode)) {
            return Some(holder);
        }
        self.holders.remove(&inode);
        None
    }

    /// Walks `/proc` now.
    pub fn refresh(&mut self) {
        let started = Instant::now();
        let walk = walk(started + WALK);
        let took = started.elapsed();
        self.next_walk = Instant::now() + MIN_INTERVAL.max(took * DUTY);
        self.degraded = walk.degraded();
        self.holders = walk.holders;
        self.unheld.retain(|_, since| started < *since + UNHELD_FOR);
    }
}

/// What one walk found.
#[derive(Default)]
struct Walk {
    holders: HashMap<u32, Holder>,
    processes: u32,
    refused: u32,
    /// Of the capabilities that reading the sockets of others takes.
    missing: Vec<&'static str>,
    cut_short: bool,
    no_proc: Option<Errno>,
    /// Without pid 1 in sight, `/proc` hides the processes of others (`hidepid=`).
    hidden: bool,
    /// In a PID namespace of its own, the processes outside have no pid at all.
    confined: bool,
}

impl Walk {
    fn degraded(&self) -> Option<Degraded> {
        let Self { holders: _, processes, refused, missing, cut_short, no_proc, hidden, confined } = self;
        let reason = if let Some(error) = no_proc {
            format!("/proc cannot be read ({error}): no flow has an owner")
        } else if *processes == 0 {
            "/proc is not mounted: no flow has an owner".to_owned()
        } else if *refused > 0 {
            let remedy = match missing.as_slice() {
                // User namespaces and security modules refuse even so.
                [] => ", whatever our capabilities".to_owned(),
                missing => format!(" without {}", missing.join(" and ")),
            };
            format!(
                "the sockets of {refused} of {processes} processes cannot be read: \
                 their flows have no owner{remedy}"
            )
        } else if *hidden {
            "/proc hides the processes of others (hidepid): their flows have no owner without CAP_SYS_PTRACE"
                .to_owned()
        } else if *confined {
            "this is a PID namespace of its own: the flows of processes outside have no owner \
             (containers: --pid=host, Kubernetes: hostPID)"
                .to_owned()
        } else if *cut_short {
            format!(
                "/proc has more open files than can be walked in {} s: some flows have no owner",
                WALK.as_secs()
            )
        } else {
            return None;
        };
        let partly = (no_proc.is_none() && *refused > 0 && missing.is_empty()) || *cut_short;
        Some(Degraded { reason, partly })
    }

    fn refuse(&mut self, pid: u32) {
        // Kernel threads refuse too, but have no descriptors to hide; nor have they arguments.
        let mut first = [0];
        let read = File::open(format!("/proc/{pid}/cmdline")).and_then(|mut file| file.read(&mut first));
        self.refused += u32::from(read.is_ok_and(|length| length > 0));
    }

    fn add(&mut self, inode: u32, pid: u32, fd: u32) {
        if self.holders.len() >= MAX_HOLDERS {
            self.cut_short = true;
            return;
        }
        match self.holders.entry(inode) {
            Entry::Vacant(entry) => {
                entry.insert(Holder { pid, fd, shared_with: 0 });
            }
            Entry::Occupied(mut entry) => {
                let holder = entry.get_mut();
                if holder.pid == pid {
                    return;
                }
                let shared_with = holder.shared_with.saturating_add(1);
                // /proc lists pids in ascending order, but nothing promises that.
                let (pid, fd) = if pid < holder.pid { (pid, fd) } else { (holder.pid, holder.fd) };
                *holder = Holder { pid, fd, shared_with };
            }
        }
    }
}

fn walk(deadline: Instant) -> Walk {
    let mut walk = Walk::default();
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let proc = match open_dir(rustix::fs::CWD, c"/proc") {
        Ok(proc) => proc,
        Err(error) => {
            walk.no_proc = Some(error);
            return walk;
        }
    };
    let mut pids = RawDir::new(proc.as_fd(), &mut buffer);
    walk.hidden = true;
    walk.confined = !sees_every_pid();
    walk.missing = missing_capabilities();
    while let Some(Ok(entry)) = pids.next() {
        let Some(pid) = number(entry.file_name()) else { continue };
        if Instant::now() > deadline || walk.cut_short {
            walk.cut_short = true;
            break;
        }
        walk.processes += 1;
        walk.hidden &= pid != 1;
        match open_dir(proc.as_fd(), format!("{pid}/fd")) {
            Ok(fds) => walk_process(&mut walk, pid, &fds, deadline),
            Err(Errno::ACCESS | Errno::PERM) => walk.refuse(pid),
            // It ended while we looked.
            Err(_) => {}
        }
    }
    walk
}

fn walk_process(walk: &mut Walk, pid: u32, fds: &OwnedFd, deadline: Instant) {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(fds.as_fd(), &mut buffer);
    let mut seen = 0_u32;
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        let Some(fd) = number(name) else { continue };
        match socket_inode(fds.as_fd(), name) {
            Ok(Some(inode)) => walk.add(inode, pid, fd),
            // Root without CAP_SYS_PTRACE may list the descriptors of a process with more capabilities than
            // its own, but not see what they are.
            Err(Errno::ACCESS | Errno::PERM) => {
                walk.refuse(pid);
                return;
            }
            // Another kind of file, or closed while we looked.
            Ok(None) | Err(_) => {}
        }
        seen = seen.wrapping_add(1);
        if seen.is_multiple_of(1024) && Instant::now() > deadline {
            walk.cut_short = true;
            return;
        }
    }
}

fn open_dir(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn number(name: &CStr) -> Option<u32> {
    name.to_str().ok()?.parse().ok()
}

/// The inode in a link such as `socket:[12345]`; `None` for every other kind of file.
fn socket_inode(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<Option<u32>, Errno> {
    // The longest link that matters is "socket:[4294967295]".
    let mut buffer = [MaybeUninit::uninit(); 32];
    let (link, _) = readlinkat_raw(at, path, &mut buffer[..])?;
    Ok(inode_in(link, b"socket:["))
}

fn inode_in(link: &[u8], prefix: &[u8]) -> Option<u32> {
    str::from_utf8(link.strip_prefix(prefix)?.strip_suffix(b"]")?).ok()?.parse().ok()
}

fn missing_capabilities() -> Vec<&'static str> {
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let enough = [
        ("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE),
        ("CAP_DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE),
    ];
    enough.into_iter().filter(|(_, any)| !held.intersects(*any)).map(|(name, _)| name).collect()
}

/// Whether this is the first PID namespace; where that cannot be told, it is taken to be.
pub(crate) fn sees_every_pid() -> bool {
    // PROC_PID_INIT_INO, include/linux/proc_ns.h.
    const FIRST: u32 = 0xefff_fffc;
    let mut buffer = [MaybeUninit::uninit(); 32];
    match readlinkat_raw(rustix::fs::CWD, c"/proc/self/ns/pid", &mut buffer[..]) {
        Ok((link, _)) => inode_in(link, b"pid:[").is_none_or(|inode| inode == FIRST),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use super::*;

    fn inode_of(listener: &TcpListener) -> u32 {
        let path = format!("/proc/self/fd/{}", listener.as_raw_fd());
        socket_inode(rustix::fs::CWD, path).unwrap().unwrap()
    }

    #[test]
    fn our_own_socket_is_ours_until_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = inode_of(&listener);
        let mut index = FdIndex::new();
        let holder = index.holder(inode).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(i64::from(holder.fd), i64::from(listener.as_raw_fd()));
        drop(listener);
        assert_eq!(index.holder(inode), None, "a stale entry is not an answer");
    }

    #[test]
    fn walks_are_rate_limited_and_inode_zero_is_nobody() {
        let mut index = FdIndex::new();
        assert_eq!(index.holder(0), None);
        index.refresh();
        let next = index.next_walk;
        assert!(next >= Instant::now() + MIN_INTERVAL / 2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(index.holder(inode_of(&listener)), None, "not seen yet");
        assert_eq!(index.next_walk, next, "and no walk for it");
    }

    #[test]
    fn the_reason_names_the_capabilities() {
        let reason = |walk: &Walk| walk.degraded().map(|degraded| degraded.reason).unwrap_or_default();
        let mut walk = Walk { processes: 9, ..Walk::default() };
        assert_eq!(reason(&walk), "", "nothing is missing");
        walk.refused = 4;
        walk.missing = vec!["CAP_SYS_PTRACE"];
        let text = "the sockets of 4 of 9 processes cannot be read: their flows have no owner";
        assert_eq!(reason(&walk), format!("{text} without CAP_SYS_PTRACE"));
        walk.missing.clear();
        assert_eq!(reason(&walk), format!("{text}, whatever our capabilities"));
        assert!(reason(&Walk::default()).contains("not mounted"));
    }

    #[test]
    fn the_parent_is_the_holder_and_the_children_are_counted() {
        let mut walk = Walk::default();
        for (pid, fd) in [(20, 5), (10, 6), (30, 5), (10, 9)] {
            walk.add(7, pid, fd);
        }
        assert_eq!(walk.holders[&7], Holder { pid: 10, fd: 6, shared_with: 2 });
    }
}
