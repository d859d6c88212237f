//! The loop: nap, drain, detect; sweep now and then. It never waits for a reader or for the host.

use std::{
    collections::HashSet,
    future::Future,
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tcpfsm_common::abi::{ServiceKey, SweepRequest};
use tokio::{
    io::unix::AsyncFd,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    gauges::{Attached, Losses, SharedGauges},
    nap::Nap,
    publish::Publisher,
    translate::{addresses, side_of},
};
use crate::{
    clock::monotonic_ns,
    config::{Config, Rule},
    detect::{self, AnomalyKind, Detector, Dwelling, Repeats, Seen, SweepEnd, ViewMismatch},
    error::Result,
    kernel::{
        attach::Attachment,
        events::{self, Events},
        sweep::{Sweep, Sweeper},
    },
    report::Phase,
    source::live::{self, Observation},
    views::{Mismatch, Round, Rounds, StuckFlows},
};

/// Records per drain step.
const BATCH: usize = 4_096;

/// Drain steps before anything else gets a turn.
const MAX_STEPS: usize = 64;

/// The sweep repeats itself about a stuck flow after this long.
const REPEAT: Duration = Duration::from_secs(60);

/// And about a flow in a lasting condition: its end makes no event, so the silence about it must tell.
const CONDITION_REPEAT: Duration = Duration::from_secs(15);

/// Retransmissions of one end below which their share says nothing.
const LEAST_RTX: u32 = 32;

/// Between two looks whether the interfaces are still there.
const INTERFACE_CHECK: Duration = Duration::from_secs(1);

/// At the end, how long a sweep under way may take, and taking what events are left.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Somebody asked for it.
    Requested,
    /// Every interface went away.
    InterfacesGone(Vec<String>),
}

/// The loop and what it owns.
pub struct Engine {
    events: Events,
    attachments: Vec<Attachment>,
    gone: Vec<String>,
    detectors: Vec<Box<dyn Detector>>,
    mismatches: ViewMismatch,
    stuck: StuckFlows,
    publisher: Publisher,
    shared: SharedGauges,
    request: SweepRequest,
    sweep_interval: Duration,
    interfaces_checked: Instant,
    sweep_failed: bool,
}

/// What works in the background after a sweep's tick: the sweep itself, then the comparison with the sockets.
pub struct Background {
    /// Runs sweeps.
    pub sweeper: Sweeper,
    /// Compares flows with the host's own sockets, where they are this host's.
    pub rounds: Option<Rounds>,
}

/// A sweep that came back, with what made it.
struct Swept {
    background: Background,
    found: Result<Sweep>,
    took: Duration,
    full_queues: Vec<ServiceKey>,
    compared: Result<Option<Round>>,
}

impl Engine {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        config: &Config,
        events: Events,
        attachments: Vec<Attachment>,
        publisher: Publisher,
        shared: SharedGauges,
    ) -> Self {
        let repeats = Repeats {
            stuck: sweeps_in(REPEAT, config.sweep_interval),
            conditions: sweeps_in(CONDITION_REPEAT, config.sweep_interval),
        };
        let engine = Self {
            events,
            attachments,
            gone: Vec::new(),
            detectors: detect::all(config, repeats, local_ports()),
            mismatches: ViewMismatch::new(&config.detect),
            stuck: StuckFlows::default(),
            publisher,
            shared,
            request: request(config, repeats),
            sweep_interval: config.sweep_interval,
            interfaces_checked: Instant::now(),
            sweep_failed: false,
        };
        engine.show_attachments();
        engine
    }

    /// Runs until `stop` is ready or nothing is left to watch. On return everything is detached.
    pub async fn run(mut self, background: Background, stop: impl Future<Output = ()>) -> Ending {
        let mut nap = Nap::new();
        let mut waking = Box::pin(sleep(nap.length()));
        let filling = self.events.filling();
        if let Err(cause) = &filling {
            debug!("the ring wakes nobody: {cause}");
        }
        let mut sweep_timer = interval(self.sweep_interval);
        sweep_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resting = Some(background);
        let mut sweeping: Option<JoinHandle<Swept>> = None;
        let shared = Arc::clone(&self.shared);
        tokio::pin!(stop);
        let ending = loop {
            tokio::select! {
                () = &mut stop => break Ending::Requested,
                () = &mut waking => {
                    nap = nap.after(self.drain().await, self.publisher.is_wanted());
                    waking.as_mut().reset(tokio::time::Instant::now() + nap.length());
                }
                () = filled(&filling) => {
                    nap = nap.after(self.drain().await, self.publisher.is_wanted());
                }
                _ = sweep_timer.tick(), if resting.is_some() => {
                    if let Some(background) = resting.take() {
                        sweeping = Some(self.start_sweep(background));
                    }
                }
                () = shared.sweep_wanted(), if resting.is_some() => {
                    if let Some(background) = resting.take() {
                        sweeping = Some(self.start_sweep(background));
                    }
                }
                swept = finished(&mut sweeping), if sweeping.is_some() => {
                    sweeping = None;
                    if let Some(swept) = swept {
                        resting = Some(self.take_in(swept).await);
                    }
                    if let Some(names) = self.check_interfaces() {
                        break Ending::InterfacesGone(names);
                    }
                }
            }
        };
        self.attachments.clear();
        // A sweep that is under way still finds something; then nobody adds events any more.
        if let Ok(Some(swept)) = timeout(PATIENCE, finished(&mut sweeping)).await {
            self.take_in(swept).await;
        }
        let deadline = Instant::now() + PATIENCE;
        tokio::time::sleep(events::SETTLES).await;
        while self.drain().await > 0 && Instant::now() < deadline {}
        ending
    }

    /// Takes what events there are; says how many.
    async fn drain(&mut self) -> usize {
        let mut drained = 0;
        for _ in 0..MAX_STEPS {
            let wanted = self.publisher.is_wanted();
            let mut batch = Vec::new();
            let Self { events: source, detectors, mismatches, stuck, request, shared, .. } = self;
            let mut page = shared.history.page();
            let count = source.drain(BATCH, |record| match live::parse(record) {
                Ok(observation) => {
                    feed(detectors, mismatches, &observation, request.number);
                    stuck.note(&observation);
                    page.note(&observation);
                    if wanted {
                        batch.push(observation);
                    }
                }
                Err(live::Malformed) => Losses::add(&shared.losses.malformed, 1),
            });
            drop(page);
            self.publisher.events(batch);
            drained += count;
            if count < BATCH {
                break;
            }
            tokio::task::yield_now().await;
        }
        drained
    }

    fn start_sweep(&mut self, mut background: Background) -> JoinHandle<Swept> {
        self.request.now = monotonic_ns();
        // 0 would say "never reported".
        self.request.number = self.request.number.wrapping_add(1).max(1);
        let request = self.request;
        let stuck = self.stuck.take();
        tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            let Background { sweeper, rounds } = &mut background;
            let found = sweeper.sweep(&request);
            let took = start.elapsed();
            let full_queues = match (rounds.as_mut(), &found) {
                (Some(rounds), Ok(sweep)) => rounds.full_queues(&sweep.services),
                (None, _) | (_, Err(_)) => Vec::new(),
            };
            let compared = rounds.as_mut().map_or(Ok(None), |rounds| {
                rounds.look_first(stuck);
                rounds.compare(sweeper, &request)
            });
            Swept { background, found, took, full_queues, compared }
        })
    }

    /// Takes in what a sweep brought; gives what made it.
    async fn take_in(&mut self, swept: Swept) -> Background {
        let Swept { background, found, took, full_queues, compared } = swept;
        // What the sweep found is among the events; the detectors want it before they count.
        tokio::time::sleep(events::SETTLES).await;
        self.drain().await;
        self.compared(compared);
        self.swept(found, took, &full_queues);
        background
    }

    /// Takes in what the comparison with the sockets found.
    fn compared(&mut self, compared: Result<Option<Round>>) {
        match compared {
            Ok(None) => {}
            Ok(Some(Round { mismatches, counts })) => {
                self.shared.update(|gauges| {
                    gauges.views.add(&counts);
                    gauges.differing = differing(&mismatches);
                });
                self.mismatches.compared(mismatches.iter().map(dwelling_of));
            }
            Err(error) => debug!("comparing with sockets: {error}"),
        }
    }

    fn swept(&mut self, found: Result<Sweep>, took: Duration, full_queues: &[ServiceKey]) {
        let Sweep { maps, services, counters, evicted } = match found {
            Ok(sweep) => sweep,
            Err(error) => {
                if !std::mem::replace(&mut self.sweep_failed, true) {
                    warn!("{error}: flows do not expire until it works again");
                }
                return;
            }
        };
        self.sweep_failed = false;
        let SweepRequest { now, number, .. } = self.request;
        let mut findings = Vec::new();
        let end = SweepEnd { now, number, counters: &counters, services: &services, full_queues };
        for detector in &mut self.detectors {
            findings.extend(detector.swept(&end));
        }
        findings.extend(self.mismatches.swept(&end));
        let overflow = self.detectors.iter().map(|detector| detector.overflow()).sum::<u64>();
        self.shared.losses.detectors.store(overflow + self.mismatches.overflow(), Ordering::Relaxed);
        let Self { detectors, mismatches, shared, .. } = self;
        shared.update(|gauges| {
            gauges.maps = maps;
            gauges.evicted = evicted;
            gauges.services = services.len() as u64;
            gauges.sweeps += 1;
            gauges.swept = Some(Instant::now());
            gauges.sweep_duration = took;
            gauges.active = detectors.iter().flat_map(|detector| detector.going_on()).collect();
            gauges.active.extend(mismatches.going_on());
            gauges.anomalies_active.fill(0);
            for finding in &gauges.active {
                gauges.anomalies_active[finding.kind as usize] += 1;
            }
            for finding in findings.iter().filter(|finding| finding.phase == Phase::Start) {
                gauges.anomalies_total[finding.kind as usize] += 1;
            }
        });
        debug!(
            "sweep {number}: {} flows, {} removed, {took:?}",
            maps.iter().map(|map| map.flows).sum::<u64>(),
            maps.iter().map(|map| map.removed).sum::<u64>(),
        );
        self.publisher.anomalies(findings);
    }

    /// Forgets interfaces that went away; names them all once none is left.
    fn check_interfaces(&mut self) -> Option<Vec<String>> {
        if self.interfaces_checked.elapsed() < INTERFACE_CHECK {
            return None;
        }
        self.interfaces_checked = Instant::now();
        let before = self.attachments.len();
        let gone = &mut self.gone;
        self.attachments.retain(|attachment| {
            let name = &attachment.interface.name;
            let exists = attachment.interface.exists();
            if !exists && !gone.contains(name) {
                warn!("{name} is gone: it is watched no more");
                gone.push(name.clone());
            }
            exists
        });
        if self.attachments.len() != before {
            self.show_attachments();
        }
        self.attachments.is_empty().then(|| std::mem::take(&mut self.gone))
    }

    fn show_attachments(&self) {
        let attached = self
            .attachments
            .iter()
            .map(|Attachment { interface, hook, way, .. }| Attached {
                interface: interface.name.clone(),
                hook: *hook,
                mode: way.mode(),
            })
            .collect();
        self.shared.update(|gauges| gauges.attached = attached);
    }
}

/// Ready when the ring fills, each time once.
async fn filled(filling: &io::Result<AsyncFd<OwnedFd>>) {
    match filling {
        Ok(ring) => match ring.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        },
        Err(_) => std::future::pending().await,
    }
}

/// The sweep's result. What panics there would end all sweeps unnoticed: it ends the engine.
async fn finished(sweeping: &mut Option<JoinHandle<Swept>>) -> Option<Swept> {
    match sweeping.as_mut()?.await {
        Ok(swept) => Some(swept),
        Err(error) => error.try_into_panic().map_or(None, |panic| std::panic::resume_unwind(panic)),
    }
}

/// Connections about which the two views differ; about one between two of this host's sockets they may at both ends.
fn differing(mismatches: &[Mismatch]) -> u64 {
    mismatches.iter().map(|mismatch| mismatch.key).collect::<HashSet<_>>().len() as u64
}

fn sweeps_in(time: Duration, sweep_interval: Duration) -> u32 {
    let sweeps = time.as_millis() / sweep_interval.as_millis().max(1);
    u32::try_from(sweeps).unwrap_or(u32::MAX).max(1)
}

/// A difference between the two views, as detectors know it.
fn dwelling_of(mismatch: &Mismatch) -> Dwelling {
    let &Mismatch { key, end, verdict, kernel: _, since, ifindex } = mismatch;
    let [_, service] = addresses(&key, verdict);
    Dwelling {
        key,
        end,
        side: side_of(verdict, end),
        state: verdict.state(end),
        confirmed: verdict.is_confirmed(end),
        since,
        service,
        ifindex,
    }
}

/// What every sweep looks for; its time and number are filled in when it starts.
fn request(config: &Config, repeats: Repeats) -> SweepRequest {
    let of = |kind: AnomalyKind| Some(&config.detect[kind]).filter(|rule| rule.enabled);
    let storm = of(AnomalyKind::RetransmissionStorm);
    SweepRequest {
        timeout: config.timeouts.nanoseconds(),
        stuck: config.stuck.nanoseconds(),
        idle: of(AnomalyKind::IdleEstablished).map_or(0, Rule::after_ns),
        unanswered: of(AnomalyKind::PeerGone).map_or(0, Rule::after_ns),
        rtx: LEAST_RTX,
        rtx_share: storm.and_then(|rule| rule.percent).map_or(0, |percent| 100 / u32::from(percent.max(1))),
        report_every: repeats.stuck,
        conditions_every: repeats.conditions,
        ..SweepRequest::default()
    }
}

/// How many ephemeral ports this host has (`ip_local_port_range`).
fn local_ports() -> u64 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    parse_ports(&range).unwrap_or(28_232)
}

fn parse_ports(range: &str) -> Option<u64> {
    let mut numbers = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (last >= first).then(|| last - first + 1)
}

/// Tells the detectors.
fn feed(
    detectors: &mut [Box<dyn Detector>],
    mismatches: &mut ViewMismatch,
    observation: &Observation,
    sweep: u32,
) {
    let seen = Seen { observation, sweep };
    mismatches.seen(&seen);
    for detector in detectors.iter_mut() {
        detector.seen(&seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rules;

    #[test]
    fn stuck_flows_are_repeated_once_a_minute() {
        assert_eq!(sweeps_in(REPEAT, Duration::from_secs(5)), 12);
        assert_eq!(sweeps_in(REPEAT, Duration::from_millis(100)), 600);
        assert_eq!(sweeps_in(REPEAT, Duration::from_secs(600)), 1);
    }

    #[test]
    fn the_sweep_looks_for_what_the_rules_say() {
        let repeats = Repeats { stuck: 12, conditions: 3 };
        let wanted = request(&Config::default(), repeats);
        assert_eq!((wanted.unanswered, wanted.idle), (30_000_000_000, 8_100_000_000_000));
        assert_eq!((wanted.rtx_share, wanted.report_every, wanted.conditions_every), (5, 12, 3));
        let off = |rules: Rules, kind| rules.with(kind, |rule| rule.enabled = false);
        let detect = AnomalyKind::ALL.into_iter().fold(Rules::default(), off);
        let wanted = request(&Config { detect, ..Config::default() }, repeats);
        assert_eq!((wanted.unanswered, wanted.idle, wanted.rtx_share), (0, 0, 0));
    }

    #[test]
    fn a_connection_that_differs_at_both_ends_counts_once() {
        use tcpfsm_common::{abi::Verdict, flow::End, fsm::State};
        let of = |port, end| Mismatch {
            key: super::super::synthetic::Conversation::from_port(port).key,
            end,
            verdict: Verdict::default(),
            kernel: State::Established,
            since: 0,
            ifindex: 1,
        };
        assert_eq!(differing(&[of(1, End::Low), of(1, End::High), of(2, End::Low)]), 2);
    }

    #[test]
    fn local_ports_are_counted() {
        assert_eq!(parse_ports("32768\t60999\n"), Some(28_232));
        assert_eq!(parse_ports(""), None);
        assert_eq!(parse_ports("2 1"), None);
    }
}
