//! What the pipeline knows of itself and of the last sweep: read by metrics and `stats`.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tcpfsm_common::abi::{Hook, SweepReport};

use crate::{detect::AnomalyKind, kernel::sweep::SweepReports};

/// Gauges that change with every sweep.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    /// What the last sweep found, by map.
    pub maps: SweepReports,
    /// Sweeps so far.
    pub sweeps: u64,
    /// How long the last one took.
    pub sweep_duration: Duration,
    /// Anomalies that go on, in the order of [`AnomalyKind::ALL`].
    pub anomalies_active: [u64; AnomalyKind::ALL.len()],
    /// Anomalies that began so far.
    pub anomalies_total: [u64; AnomalyKind::ALL.len()],
    /// What is attached where.
    pub attached: Vec<Attached>,
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
    /// Ring records that could not be read.
    pub malformed: AtomicU64,
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

    /// Changes the gauges.
    pub fn update(&self, change: impl FnOnce(&mut Gauges)) {
        change(&mut self.gauges.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
