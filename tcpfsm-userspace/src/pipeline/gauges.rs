//! What the pipeline knows of itself and of the last sweep: read by metrics and `stats`.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tcpfsm_common::abi::{ByMapAndState, Hook, SweepReport};

use tokio::sync::Notify;

use super::{backlog::Backlog, history::History};
use crate::{
    alive::Gap,
    detect::{AnomalyKind, Finding},
    kernel::sweep::SweepReports,
    views::ViewCounts,
};

/// A sweep younger than this is good enough for whoever asks.
const FRESH: Duration = Duration::from_secs(1);

/// And one younger than so many times what it took: whoever asks often does not keep a CPU sweeping.
const FRESH_SWEEPS: u32 = 20;

/// How long whoever asks waits for a sweep.
const PATIENCE: Duration = Duration::from_millis(500);

/// Gauges that change with every sweep.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// What the last sweep found, by map.
    pub maps: SweepReports,
    /// Flows evicted from each map so far, by the state they were in.
    pub evicted: ByMapAndState,
    /// How long nobody observed, before this daemon and between earlier ones.
    pub gap: Gap,
    /// Services whose handshakes are counted.
    pub services: u64,
    /// Sweeps so far.
    pub sweeps: u64,
    /// When the last one ended.
    pub swept: Option<Instant>,
    /// How long it took.
    pub sweep_duration: Duration,
    /// Anomalies that go on, in the order of [`AnomalyKind::ALL`].
    pub anomalies_active: [u64; AnomalyKind::ALL.len()],
    /// Anomalies that began so far.
    pub anomalies_total: [u64; AnomalyKind::ALL.len()],
    /// The anomalies that go on, as of the last sweep.
    pub active: Vec<Finding>,
    /// What is attached where.
    pub attached: Vec<Attached>,
    /// Comparisons with the host's own sockets.
    pub views: ViewCounts,
    /// Connections about which wire and socket differ, at the last comparison.
    pub differing: u64,
}

/// One program on one interface, by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface.
    pub interface: String,
    /// Where packets are seen.
    pub hook: Hook,
    /// In which way: native, generic, tcx or clsact.
    pub mode: &'static str,
}

impl Gauges {
    /// Whether the last sweep is young enough.
    fn are_fresh(&self, now: Instant) -> bool {
        let fresh = FRESH.max(self.sweep_duration * FRESH_SWEEPS);
        self.swept.is_some_and(|swept| now.duration_since(swept) < fresh)
    }

    /// All maps together.
    #[must_use]
    pub fn total(&self) -> SweepReport {
        let mut sum = SweepReport::default();
        self.maps.iter().for_each(|map| sum.add(map));
        sum
    }
}

/// What was lost on the way out, beside what the kernel counts.
#[derive(Debug, Default)]
pub struct Losses {
    /// Events that the publisher had no room for.
    pub queue: AtomicU64,
    /// Lines that stdout was too slow for.
    pub stdout: AtomicU64,
    /// Reports that watchers were too slow for.
    pub watchers: AtomicU64,
    /// Entries that the journal did not take.
    pub journal: AtomicU64,
    /// Ring records that could not be read.
    pub malformed: AtomicU64,
    /// Flows, services and sources that the detectors had no room for.
    pub detectors: AtomicU64,
}

impl Losses {
    /// Adds to one of the counters.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// Reads one of the counters.
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// Gauges and losses, shared between the pipeline and those who show them.
#[derive(Debug, Default)]
pub struct Shared {
    gauges: Mutex<Gauges>,
    changed: Condvar,
    sweep_wanted: Notify,
    /// The last events, for explanations.
    pub history: History,
    /// What waits on the way out.
    pub backlog: Backlog,
    /// What was lost.
    pub losses: Losses,
    /// Reports made so far.
    pub reports: AtomicU64,
}

/// A handle on them.
pub type SharedGauges = Arc<Shared>;

impl Shared {
    /// A copy of the gauges.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A copy of the gauges from a sweep of a moment ago: asks for one, and waits for it, but not for long.
    #[must_use]
    pub fn fresh_gauges(&self) -> Gauges {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        if gauges.are_fresh(Instant::now()) {
            return gauges.clone();
        }
        self.sweep_wanted.notify_one();
        let sweeps = gauges.sweeps;
        let (gauges, _) = self
            .changed
            .wait_timeout_while(gauges, PATIENCE, |gauges| gauges.sweeps == sweeps)
            .unwrap_or_else(PoisonError::into_inner);
        gauges.clone()
    }

    /// Ready when somebody wants a sweep out of turn.
    pub async fn sweep_wanted(&self) {
        self.sweep_wanted.notified().await;
    }

    /// Changes the gauges.
    pub fn update(&self, change: impl FnOnce(&mut Gauges)) {
        change(&mut self.gauges.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sweep_is_good_for_longer() {
        let swept = Instant::now();
        let fresh_after = |took: u64, seconds: u64| {
            let gauges = Gauges {
                swept: Some(swept),
                sweep_duration: Duration::from_millis(took),
                ..Gauges::default()
            };
            gauges.are_fresh(swept + Duration::from_secs(seconds))
        };
        assert!(!Gauges::default().are_fresh(swept));
        assert_eq!([0, 1].map(|seconds| fresh_after(3, seconds)), [true, false]);
        // Ten million flows.
        assert_eq!([1, 19, 20].map(|seconds| fresh_after(1_000, seconds)), [true, true, false]);
    }
}
