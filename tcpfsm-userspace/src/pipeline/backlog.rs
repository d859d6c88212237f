//! What waits on the way out, and how long the daemon waits for it at its end.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use super::gauges::{Losses, Shared};

/// What nobody takes for so long nobody will take.
const STANDSTILL: Duration = Duration::from_millis(300);

/// How long the end may take in all, however much still goes out.
const ENOUGH: Duration = Duration::from_secs(5);

/// What waits, with what is being worked on.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Events and findings that are to become reports.
    pub events: AtomicUsize,
    /// Bytes for stdout.
    pub bytes: AtomicUsize,
    /// The lines that these are.
    pub lines: AtomicU64,
}

/// Waits for the publisher and for stdout, whose queues are closed, as long as they get on; counts what is left as lost.
pub fn finish(publisher: JoinHandle<()>, stdout: Option<JoinHandle<()>>, shared: &Shared) {
    let Shared { backlog, losses, .. } = shared;
    let deadline = Instant::now() + ENOUGH;
    wait(publisher, || backlog.events.load(Ordering::Relaxed), deadline);
    Losses::add(&losses.queue, backlog.events.load(Ordering::Relaxed) as u64);
    if let Some(stdout) = stdout {
        wait(stdout, || backlog.bytes.load(Ordering::Relaxed), deadline);
        Losses::add(&losses.stdout, backlog.lines.load(Ordering::Relaxed));
    }
}

/// Waits for the end of a thread while what is left for it changes.
fn wait(thread: JoinHandle<()>, left: impl Fn() -> usize, deadline: Instant) {
    let (mut last, mut moved) = (left(), Instant::now());
    while !thread.is_finished() {
        let now = Instant::now();
        let left = left();
        if left != last {
            (last, moved) = (left, now);
        }
        if now.duration_since(moved) >= STANDSTILL || now >= deadline {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    // One that panicked has nothing more to say.
    let _ = thread.join();
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, sync::mpsc, thread::spawn};

    use super::*;

    #[test]
    fn who_gets_on_is_waited_for() {
        let shared = Arc::new(Shared::default());
        shared.backlog.bytes.store(20, Ordering::Relaxed);
        let stdout = spawn({
            let shared = Arc::clone(&shared);
            move || {
                while shared.backlog.bytes.fetch_sub(1, Ordering::Relaxed) > 1 {
                    sleep(STANDSTILL / 10);
                }
            }
        });
        finish(spawn(|| {}), Some(stdout), &shared);
        assert_eq!(shared.backlog.bytes.load(Ordering::Relaxed), 0, "longer than a standstill in all");
        assert_eq!(Losses::get(&shared.losses.stdout), 0);
    }

    #[test]
    fn what_nobody_takes_is_counted_and_not_waited_for() {
        let shared = Shared::default();
        shared.backlog.events.store(5, Ordering::Relaxed);
        shared.backlog.bytes.store(4_096, Ordering::Relaxed);
        shared.backlog.lines.store(7, Ordering::Relaxed);
        let (nobody, forever) = mpsc::channel::<()>();
        let (also_nobody, also_forever) = mpsc::channel::<()>();
        let stuck = |forever: mpsc::Receiver<()>| {
            spawn(move || {
                let _ = forever.recv();
            })
        };
        finish(stuck(forever), Some(stuck(also_forever)), &shared);
        assert_eq!((Losses::get(&shared.losses.queue), Losses::get(&shared.losses.stdout)), (5, 7));
        drop((nobody, also_nobody));
    }
}
