//! Ctrl-C and its relatives as a flag, so that everything made is also taken away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

static STOP: AtomicBool = AtomicBool::new(false);

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

extern "C" fn on_signal(_signal: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on a reader of stdout who leaves (`| head`) ends this process without a word: `print` panics then, which is
/// what takes away everything made.
pub fn let_readers_leave() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let is_unread = |text: &str| text.contains("stdout") && text.contains("Broken pipe");
        if !panic.payload_as_str().is_some_and(is_unread) {
            usual(panic);
        }
    }));
}

/// From now on SIGINT, SIGTERM and SIGHUP ask for an orderly end instead of killing this process.
pub fn catch_signals() -> Result<()> {
    for signal in SIGNALS {
        // SAFETY: `action` is a fully initialised sigaction (zero is a valid empty mask and no flags), and the
        // handler only stores to an atomic, which is async-signal-safe.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut())
        };
        if result != 0 {
            bail!("sigaction({signal}): {}", std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether an end was asked for.
pub fn requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Asks for an end, as a signal would.
pub fn request() {
    STOP.store(true, Ordering::Relaxed);
}

/// Sleeps, but not past a request to end. True if there was one.
pub fn sleep(duration: Duration) -> bool {
    let end = Instant::now() + duration;
    loop {
        if requested() {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        thread::sleep(left.min(Duration::from_millis(20)));
    }
}
