//! How long nobody observed: what a daemon leaves, in a file beside its socket, for the one that comes after it.
//!
//! As long as the process lives its programs are attached, whatever keeps its loop or its sweep. So a thread of its own
//! marks the file once a second, and when the daemon ends. Times are those of this boot, without those in which the
//! machine slept: what a reboot takes nobody could have observed.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use tracing::warn;

use crate::{
    clock::monotonic_ns,
    error::{Error, Result},
};

/// Between two marks: so much too long the gap after a killed daemon may be.
const EVERY: Duration = Duration::from_secs(1);

/// The time in which nobody observed, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// Between the last daemon and this one.
    pub before: Duration,
    /// Between daemons since the machine was booted.
    pub total: Duration,
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    boot: String,
    /// `CLOCK_MONOTONIC`, nanoseconds.
    last: u64,
    /// Gaps so far, nanoseconds.
    total: u64,
}

impl Gap {
    /// Asked once the programs are attached: the gap that ends now. None where no daemon with this socket was there
    /// since the machine was booted.
    #[must_use]
    pub fn until_now(socket: &Path) -> Self {
        let mark = fs::read_to_string(beside(socket)).ok().and_then(|text| Mark::parse(&text));
        mark.filter(|mark| mark.boot == boot()).map_or_else(Self::default, |mark| {
            let before = Duration::from_nanos(monotonic_ns().saturating_sub(mark.last));
            Self { before, total: Duration::from_nanos(mark.total) + before }
        })
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let (boot, last, total) = (words.next()?, words.next()?, words.next()?);
        Some(Self { boot: boot.to_owned(), last: last.parse().ok()?, total: total.parse().ok()? })
    }

    /// Always as long, so that it is written over the last one in one piece.
    fn text(&self) -> String {
        let Self { boot, last, total } = self;
        format!("{boot} {last:020} {total:020}\n")
    }
}

/// Says that this daemon observes, until it is dropped.
#[derive(Debug)]
pub struct Alive {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Alive {
    /// Begins to mark the file of the daemon with this socket.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(socket: &Path, gap: Gap) -> Result<Self> {
        let (path, boot) = (beside(socket), boot());
        let total = u64::try_from(gap.total.as_nanos()).unwrap_or(u64::MAX);
        let mark = move || mark(&path, &Mark { boot: boot.clone(), last: monotonic_ns(), total });
        let (stop, stopped) = channel();
        let work = move || {
            if let Err(error) = mark() {
                warn!("the next daemon will not know how long nobody observed: {error}");
            }
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // It was said.
                let _ = mark();
            }
            let _ = mark();
        };
        let thread = std::thread::Builder::new().name("alive".into()).spawn(work);
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(Error::io("start the marking thread"))?) })
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn mark(path: &Path, mark: &Mark) -> Result<()> {
    let mut options = File::options();
    // Where others may write into the directory, a link of theirs is not followed.
    options.create(true).truncate(false).write(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path);
    file.and_then(|file| file.write_all_at(mark.text().as_bytes(), 0))
        .map_err(Error::io(format!("mark {}", path.display())))
}

fn beside(socket: &Path) -> PathBuf {
    socket.with_added_extension("alive")
}

/// The name of this boot; the same for all where the kernel does not tell.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "-".into(), |id| id.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(socket: &Path, ago: Duration, mark: Mark) {
        let last = monotonic_ns() - u64::try_from(ago.as_nanos()).unwrap();
        super::mark(&beside(socket), &Mark { last, ..mark }).unwrap();
    }

    #[test]
    fn gaps_add_up_until_the_next_boot() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("tcpfsm.sock");
        assert_eq!(Gap::until_now(&socket), Gap::default(), "nobody before");
        let (ago, earlier) = (Duration::from_secs(9), Duration::from_secs(61));
        let mark = |boot: &str| Mark { boot: boot.into(), last: 0, total: 61_000_000_000 };
        left(&socket, ago, mark(&boot()));
        let gap = Gap::until_now(&socket);
        assert!(gap.before >= ago && gap.before < 2 * ago, "{gap:?}");
        assert_eq!(gap.total, earlier + gap.before);
        left(&socket, ago, mark("another"));
        assert_eq!(Gap::until_now(&socket), Gap::default(), "before this boot");
        fs::write(beside(&socket), "what is this").unwrap();
        assert_eq!(Gap::until_now(&socket), Gap::default());
    }

    #[test]
    fn whoever_observes_leaves_a_mark() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("tcpfsm.sock");
        let before = monotonic_ns();
        let gap = Gap { before: Duration::ZERO, total: Duration::from_secs(3) };
        drop(Alive::start(&socket, gap).unwrap());
        let mark = Mark::parse(&fs::read_to_string(beside(&socket)).unwrap()).unwrap();
        assert_eq!((mark.boot, mark.total), (boot(), 3_000_000_000));
        assert!((before..=monotonic_ns()).contains(&mark.last));
    }
}
