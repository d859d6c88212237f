//! What the daemon knows when asked: for scrapes, `list` and `stats`.

use std::{
    borrow::Cow,
    cmp::Reverse,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tcpfsm_common::{
    abi::{CloseReason, Counters, Tap},
    fsm::State,
};

use crate::{
    clock::{WallClock, monotonic_ns},
    config::{Config, MapSizes, Vantage},
    control::{filter::Filter, flows, office::Answers, protocol::Notice, stats::Stats},
    error::Result,
    explain::{concerned, diagnose, story::Story, tell},
    export::{
        http,
        process::ProcessStats,
        prometheus::{self, Scrape},
        transitions::Unusual,
    },
    kernel::{counters::CounterMap, evictions, interfaces::InterfaceNames, records::FlowMaps},
    owner::{self, WhyUnowned},
    pipeline::{Losses, Owners, SharedGauges, anomaly, hostname},
    report::{Anomaly, Body, Flow, Local, Report, SCHEMA_VERSION, Side},
    views::flow_key,
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
    scope: u32,
    started: Instant,
    /// When it was known what connections this host had at the start.
    known_from: u64,
    unusual: Mutex<Unusual>,
}

impl Insight {
    /// Takes the maps it answers from; what was there at the start is in them.
    #[must_use]
    pub fn new(
        counters: Arc<CounterMap>,
        maps: Arc<FlowMaps>,
        shared: SharedGauges,
        config: &Config,
    ) -> Self {
        let &Config { vantage, scope, maps: MapSizes { services, .. }, .. } = config;
        Self {
            counters,
            maps,
            shared,
            services,
            vantage,
            scope,
            started: Instant::now(),
            known_from: monotonic_ns(),
            unusual: Mutex::default(),
        }
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
    pub fn losses(&self) -> [(&'static str, u64); 6] {
        let Losses { queue, stdout, watchers, journal, malformed, detectors } = &self.shared.losses;
        let places = [
            ("queue", queue),
            ("stdout", stdout),
            ("watchers", watchers),
            ("journal", journal),
            ("malformed", malformed),
            ("detectors", detectors),
        ];
        places.map(|(place, counter)| (place, Losses::get(counter)))
    }

    fn scrape(&self) -> Result<Scrape> {
        let gauges = self.shared.fresh_gauges();
        let mut counters = self.counters()?;
        // No segment tells of these, and no program in the kernel: they are what is missing.
        counters.closed[CloseReason::Evicted as usize] = evictions::connected(&gauges.evicted);
        let unusual = {
            let mut unusual = self.unusual.lock().unwrap_or_else(PoisonError::into_inner);
            unusual.note(&counters);
            unusual.clone()
        };
        Ok(Scrape {
            counters,
            unusual,
            gauges,
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

fn name_of(names: &mut InterfaceNames, index: u32) -> Cow<'static, str> {
    if index == 0 { Cow::Borrowed("") } else { names.name(index).to_string().into() }
}

impl Answers for Insight {
    fn flows(&self, filter: &Filter, write: &mut dyn FnMut(&str) -> bool) -> Result<u64> {
        let now = monotonic_ns();
        let mut names = InterfaceNames::default();
        // Who asks for a process's flows wants all of them.
        let budget = if filter.pid.is_some() { Duration::MAX } else { LIST_OWNERS };
        let mut owners = Owners::once(owner::lookup(self.vantage), budget);
        let mut count = 0;
        let mut hidden = false;
        let mut listening = true;
        self.maps.for_each(|key, record| {
            if !listening {
                return;
            }
            let name = |index| name_of(&mut names, index);
            let local = |address| owners.is_local(address);
            let mut line = flows::line(&key, record, now, self.known_from, local, name);
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
        let unasked = match owners.unasked() {
            0 => None,
            unasked => {
                Some(format!("{unasked} flows have no process here: to find it would have taken too long"))
            }
        };
        for note in [owners.degraded().filter(|_| hidden), unasked].into_iter().flatten() {
            if listening && let Ok(json) = serde_json::to_string(&Notice::Note(note)) {
                listening = write(&json);
            }
        }
        Ok(count)
    }

    fn anomalies(&self, filter: &Filter) -> Vec<Report> {
        let mut names = InterfaceNames::default();
        let mut owners = Owners::once(owner::lookup(self.vantage), LIST_OWNERS);
        let (clock, host) = (WallClock::now(), hostname());
        let mut reports: Vec<Report> = (self.shared.gauges().active.iter().zip(1..))
            .map(|(finding, seq)| {
                let body = anomaly(finding, &mut owners, name_of(&mut names, finding.oldest.ifindex), clock);
                Report {
                    v: SCHEMA_VERSION,
                    seq,
                    ts: clock.at(finding.time),
                    host: host.clone(),
                    body: Body::Anomaly(body),
                }
            })
            .filter(|report| filter.wants_event(&report.body))
            .collect();
        reports.sort_by_key(|report| match &report.body {
            Body::Anomaly(Anomaly { severity, count, first_seen, anomaly, service, .. }) => {
                Some((Reverse(*severity), Reverse(*count), *first_seen, *anomaly, *service))
            }
            // None here.
            Body::Transition(_) | Body::ConnClosed(_) => None,
        });
        reports
    }

    fn story(&self, ends: [SocketAddr; 2]) -> Result<Option<Story>> {
        let [one, other] = ends;
        let Some((key, _)) = flow_key(one, other, self.scope) else { return Ok(None) };
        let events = self.shared.history.of(&key);
        let (now, clock) = (monotonic_ns(), WallClock::now());
        let found = match self.maps.find(&key)? {
            Some(record) => {
                let mut story = tell::flow(&key, &record, &events, now, clock);
                let taps = record.shared.tap.map(|tap| Tap(tap).ifindex());
                let index = taps.into_iter().find(|&index| index != 0).unwrap_or(0);
                story.iface = name_of(&mut InterfaceNames::default(), index);
                Some(story)
            }
            None => tell::past(&events, now, clock),
        };
        let Some(mut story) = found else { return Ok(None) };
        let mut owners = Owners::once(owner::lookup(self.vantage), LIST_OWNERS);
        let (orig, resp) = (story.orig, story.resp);
        story.local = Local::of(owners.is_local(orig.ip()), owners.is_local(resp.ip()));
        let flow = Flow { orig, resp, iface: Cow::Borrowed(""), local: story.local };
        let found = owners.owner(&flow, Side::Resp, [story.orig_end.state, story.resp_end.state]);
        (story.proc, story.unowned, story.kernel_state) = (found.proc, found.unowned, found.kernel_state);
        story.anomalies = diagnose(&story);
        // Thresholds are set by whoever runs the daemon: what it has raised counts too.
        for finding in self.shared.gauges().active {
            let end = story.end(finding.oldest.side);
            let concerned = finding.oldest.service == resp
                && finding.oldest.state == end.state
                && end.state != State::Established;
            if concerned && !story.anomalies.contains(&finding.kind) {
                story.anomalies.push(finding.kind);
            }
        }
        let side = story.anomalies.first().and_then(|&kind| concerned(&story, kind));
        if story.local == Some(Local::Both) && side == Some(Side::Orig) {
            // Of this host's two programs it is the other one's.
            let found = owners.owner(&flow, Side::Orig, [story.orig_end.state, story.resp_end.state]);
            (story.proc, story.unowned) = (found.proc, found.unowned);
        }
        Ok(Some(story))
    }

    fn stats(&self) -> Result<Stats> {
        let uptime = self.started.elapsed().as_secs_f64();
        Ok(Stats::from_scrape(&self.scrape()?, std::process::id(), uptime))
    }
}
