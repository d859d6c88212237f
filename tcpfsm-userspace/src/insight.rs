//! What the daemon knows when asked: for scrapes, `list` and `stats`.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use tcpfsm_common::abi::Counters;

use crate::{
    clock::monotonic_ns,
    config::{Config, MapSizes, Vantage},
    control::{filter::Filter, flows, protocol::Notice, server::Answers, stats::Stats},
    error::Result,
    export::{
        http,
        process::ProcessStats,
        prometheus::{self, Scrape},
    },
    kernel::{counters::CounterMap, interfaces::InterfaceNames, records::FlowMaps},
    owner::{self, WhyUnowned},
    pipeline::{Losses, Owners, SharedGauges},
    report::{Flow, Side},
};

/// How long one `list` may spend on finding owners.
const LIST_OWNERS: Duration = Duration::from_secs(2);

/// Answers from the kernel's maps and the pipeline's gauges.
pub struct Insight {
    counters: Arc<CounterMap>,
    maps: Arc<FlowMaps>,
    shared: SharedGauges,
    services: u32,
    vantage: Vantage,
    started: Instant,
}

impl Insight {
    /// Takes the maps it answers from.
    #[must_use]
    pub fn new(
        counters: Arc<CounterMap>,
        maps: Arc<FlowMaps>,
        shared: SharedGauges,
        config: &Config,
    ) -> Self {
        let &Config { vantage, maps: MapSizes { services, .. }, .. } = config;
        Self { counters, maps, shared, services, vantage, started: Instant::now() }
    }

    /// The kernel's counters now.
    ///
    /// # Errors
    /// The system call failed.
    pub fn counters(&self) -> Result<Counters> {
        self.counters.read()
    }

    /// What was lost in userspace, by where.
    #[must_use]
    pub fn losses(&self) -> [(&'static str, u64); 5] {
        let Losses { queue, stdout, watchers, malformed, detectors } = &self.shared.losses;
        [
            ("queue", queue),
            ("stdout", stdout),
            ("watchers", watchers),
            ("malformed", malformed),
            ("detectors", detectors),
        ]
        .map(|(place, counter)| (place, Losses::get(counter)))
    }

    fn scrape(&self) -> Result<Scrape> {
        Ok(Scrape {
            counters: self.counters()?,
            gauges: self.shared.fresh_gauges(),
            capacities: self.maps.capacities().map(|(_, capacity)| capacity),
            services: self.services,
            lost: self.losses(),
            process: ProcessStats::read(),
        })
    }
}

impl http::Metrics for Insight {
    fn render(&self) -> Result<String> {
        self.scrape().map(|scrape| prometheus::render(&scrape))
    }
}

impl Answers for Insight {
    fn flows(&self, filter: &Filter, write: &mut dyn FnMut(&str) -> bool) -> Result<u64> {
        let now = monotonic_ns();
        let mut names = InterfaceNames::default();
        let mut owners = Owners::new(owner::lookup(self.vantage), LIST_OWNERS);
        let mut count = 0;
        let mut hidden = false;
        let mut listening = true;
        self.maps.for_each(|key, record| {
            if !listening {
                return;
            }
            let mut name = |index| match index {
                0 => Cow::Borrowed(""),
                index => names.name(index).to_string().into(),
            };
            let mut line = flows::line(&key, record, now, |address| owners.is_local(address), &mut name);
            if !filter.wants_flow(&line) {
                return;
            }
            let flow = Flow { orig: line.orig, resp: line.resp, iface: Cow::Borrowed(""), local: line.local };
            let found = owners.owner(&flow, Side::Resp, [line.orig_state, line.resp_state]);
            (line.proc, line.unowned, line.kernel_state) = (found.proc, found.unowned, found.kernel_state);
            if !filter.wants_owner(line.proc.as_ref()) {
                return;
            }
            hidden |= line.unowned.as_ref().is_some_and(|unowned| unowned.why == WhyUnowned::Hidden);
            if let Ok(json) = serde_json::to_string(&line) {
                count += 1;
                listening = write(&json);
            }
        })?;
        if let Some(reason) = owners.degraded().filter(|_| hidden && listening)
            && let Ok(json) = serde_json::to_string(&Notice::Note(reason))
        {
            write(&json);
        }
        Ok(count)
    }

    fn stats(&self) -> Result<Stats> {
        let uptime = self.started.elapsed().as_secs_f64();
        Ok(Stats::from_scrape(&self.scrape()?, std::process::id(), uptime))
    }
}
