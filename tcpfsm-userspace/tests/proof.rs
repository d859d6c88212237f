//! The proof: real programs do to real sockets what goes wrong in production, and the daemon must say what it is,
//! whose it is, how many there are, and say so in time. Whatever else it says must be expected too.
//!
//! Each case prints a line for the table in docs/anomalies.md.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "proof/programs.rs"]
mod programs;
#[path = "proof/stage.rs"]
mod stage;

#[path = "proof/aborts.rs"]
mod aborts;
#[path = "proof/closing.rs"]
mod closing;
#[path = "proof/healthy.rs"]
mod healthy;
#[path = "proof/leak.rs"]
mod leak;
#[path = "proof/loss.rs"]
mod loss;
#[path = "proof/queue.rs"]
mod queue;
#[path = "proof/requests.rs"]
mod requests;
#[path = "proof/resets.rs"]
mod resets;
#[path = "proof/scans.rs"]
mod scans;
#[path = "proof/slow.rs"]
mod slow;
#[path = "proof/strays.rs"]
mod strays;
#[path = "proof/syn_flood.rs"]
mod syn_flood;
#[path = "proof/vanished.rs"]
mod vanished;

use tcpfsm_userspace::BPF_OBJECT;

/// Why a case cannot be played here, if so.
fn unavailable(files: &[&str]) -> Option<String> {
    if BPF_OBJECT.is_empty() {
        return Some("built without kernel programs: cargo xtask build".to_owned());
    }
    if let Err(error) = xtask::lab::Lab::requirements() {
        return Some(format!("{error:#}").replace('\n', ";"));
    }
    let missing = files.iter().find(|file| !std::path::Path::new(file).exists())?;
    Some(format!("{missing} is not installed: cargo xtask setup, as root on Debian"))
}

/// Returns from a case that cannot be played here, saying why. The programs it needs are named by their files.
macro_rules! needs {
    ($($file:expr),*) => {
        if let Some(reason) = crate::unavailable(&[$($file),*]) {
            println!("skipped: {reason}");
            return;
        }
    };
}
use needs;
