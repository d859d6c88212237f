//! Metrics in Prometheus' text format (version 0.0.4).
//!
//! Every series of a family is always there, at 0 if nothing happened, so that `rate()` sees the first event.
//! No address, port or pid is ever a label; whatever the traffic, there are at most 400 series.

use tcpfsm_common::{
    abi::{CloseReason, Counters, Health, Hook, Outcome},
    fact::Fact,
    fsm::State,
};

use super::{
    exposition::Page,
    process::ProcessStats,
    transitions::{self, Unusual},
};
use crate::{
    detect::AnomalyKind,
    kernel::names::FLOW_MAPS,
    pipeline::{Attached, Gauges},
    report::Side,
    views::ViewCounts,
};

/// Buckets of the dwell times that get no series of their own (4 ms, 64 ms, 1 s, 262 s): below a few seconds the order
/// of magnitude is enough, and nine states share the 400 series with the kinds of anomaly.
const DWELL_UNSHOWN: [usize; 4] = [1, 3, 5, 9];

/// The same for handshakes (262 s, 1048 s): both ends have given up by then.
const HANDSHAKE_UNSHOWN: [usize; 2] = [9, 10];

/// States in which flows are evicted from a flow map; the rest of each map share a series.
const EVICTED_FLOWS: &[State] = &[
    State::Closed,
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::CloseWait,
    State::LastAck,
    State::TimeWait,
];

/// The same for an embryonic map. A stray that was only remembered is `closed`.
const EVICTED_EMBRYOS: &[State] = &[State::Closed, State::SynSent, State::SynRecv];

/// Everything that a scrape shows.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// The kernel's counters.
    pub counters: Counters,
    /// Which of their unusual transitions have a series.
    pub unusual: Unusual,
    /// The last sweep's findings and the detectors' state.
    pub gauges: Gauges,
    /// Capacity of each flow map.
    pub capacities: [u32; 4],
    /// Capacity of the map of services.
    pub services: u32,
    /// What was lost in userspace, by place.
    pub lost: [(&'static str, u64); 6],
    /// This process.
    pub process: ProcessStats,
}

/// Renders a scrape.
#[must_use]
pub fn render(scrape: &Scrape) -> String {
    let mut page = Page::default();
    connections(&mut page, scrape);
    transitions::render(&mut page, &scrape.counters, &scrape.unusual);
    durations(&mut page, &scrape.counters);
    ends(&mut page, &scrape.counters);
    anomalies(&mut page, &scrape.gauges);
    sockets(&mut page, &scrape.gauges);
    of_itself(&mut page, scrape);
    process(&mut page, &scrape.process);
    page.into_text()
}

fn connections(page: &mut Page, scrape: &Scrape) {
    let total = scrape.gauges.total();
    page.family("tcpfsm_connections", "gauge", "Connection ends by state, at the last sweep.");
    for (side, counts) in Side::ALL.into_iter().zip(&total.states) {
        for (state, count) in State::ALL.into_iter().zip(counts) {
            page.sample("tcpfsm_connections", &[("state", state.name()), ("side", side.name())], count);
        }
    }
    page.family(
        "tcpfsm_half_open_connections",
        "gauge",
        "Handshakes under way whose responder has answered, at the last sweep.",
    );
    let syn_recv = State::SynRecv as usize;
    let half_open: u64 = total
        .states
        .iter()
        .map(|states| states[syn_recv])
        .sum::<u64>()
        .saturating_sub(total.assumed[syn_recv]);
    page.sample("tcpfsm_half_open_connections", &[], half_open);
    page.family(
        "tcpfsm_stuck_connections",
        "gauge",
        "Connection ends longer in their state than its threshold, at the last sweep.",
    );
    for (state, count) in State::ALL.into_iter().zip(total.stuck) {
        page.sample("tcpfsm_stuck_connections", &[("state", state.name())], count);
    }
    page.family(
        "tcpfsm_assumed_states",
        "gauge",
        "Of tcpfsm_connections, ends that have not proved their state themselves, at the last sweep.",
    );
    for (state, count) in State::ALL.into_iter().zip(total.assumed) {
        // Nobody proves that there is no connection.
        if !state.is_closed() {
            page.sample("tcpfsm_assumed_states", &[("state", state.name())], count);
        }
    }
}

fn durations(page: &mut Page, counters: &Counters) {
    page.family("tcpfsm_state_dwell_seconds", "histogram", "Time spent in a state when it was left.");
    for state in State::ALL {
        // What comes before the first segment has no beginning on the wire.
        if state.is_closed() {
            continue;
        }
        let at = state as usize;
        page.histogram(
            "tcpfsm_state_dwell_seconds",
            &[("state", state.name())],
            &counters.dwell[at],
            counters.dwell_sum_ns(at),
            |bucket| !DWELL_UNSHOWN.contains(&bucket),
        );
    }
    page.family(
        "tcpfsm_handshake_duration_seconds",
        "histogram",
        "From the SYN to the segment that completed the handshake.",
    );
    page.histogram(
        "tcpfsm_handshake_duration_seconds",
        &[],
        &counters.handshake,
        counters.handshake_sum_ns(),
        |bucket| !HANDSHAKE_UNSHOWN.contains(&bucket),
    );
}

fn ends(page: &mut Page, counters: &Counters) {
    let fact = |fact: Fact| counters.facts[fact as usize];
    page.counter("tcpfsm_connections_opened_total", "Connection requests seen.", fact(Fact::Open));
    page.counter(
        "tcpfsm_connections_picked_up_total",
        "Connections that began before tcpfsm did, or whose beginning was not seen.",
        fact(Fact::MidstreamPickup),
    );
    page.family("tcpfsm_connections_closed_total", "counter", "Connections that ended, by how.");
    for reason in CloseReason::ALL {
        if reason != CloseReason::Open {
            let count = counters.closed[reason as usize];
            page.sample("tcpfsm_connections_closed_total", &[("reason", reason.name())], count);
        }
    }
    page.family("tcpfsm_handshake_failures_total", "counter", "Connection requests that failed, by how.");
    for (reason, count) in [
        ("refused", fact(Fact::ConnectRefused)),
        ("unreachable", fact(Fact::ConnectUnreachable)),
        ("aborted", fact(Fact::HandshakeAborted)),
    ] {
        page.sample("tcpfsm_handshake_failures_total", &[("reason", reason)], count);
    }
}

fn anomalies(page: &mut Page, gauges: &Gauges) {
    page.family("tcpfsm_anomalies_active", "gauge", "Anomalies that go on.");
    for (kind, count) in AnomalyKind::ALL.into_iter().zip(gauges.anomalies_active) {
        page.sample("tcpfsm_anomalies_active", &[("kind", kind.name())], count);
    }
    page.family("tcpfsm_anomalies_total", "counter", "Anomalies that began.");
    for (kind, count) in AnomalyKind::ALL.into_iter().zip(gauges.anomalies_total) {
        page.sample("tcpfsm_anomalies_total", &[("kind", kind.name())], count);
    }
}

fn sockets(page: &mut Page, gauges: &Gauges) {
    let ViewCounts { seeded, agreed, differed, gone, followed } = gauges.views;
    let help = "Connections known from the host's own sockets when tcpfsm started.";
    page.counter("tcpfsm_connections_seeded_total", help, seeded);
    let help = "Comparisons of the wire's view with the host's own sockets, by what came of them.";
    page.family("tcpfsm_socket_comparisons_total", "counter", help);
    for (result, count) in [("agree", agreed), ("differ", differed), ("gone", gone), ("followed", followed)] {
        page.sample("tcpfsm_socket_comparisons_total", &[("result", result)], count);
    }
    let help = "Connections whose state on the wire is lastingly not their socket's, at the last comparison.";
    page.gauge("tcpfsm_socket_mismatches", help, gauges.differing);
}

fn of_itself(page: &mut Page, scrape: &Scrape) {
    let Scrape { counters, gauges, capacities, lost, .. } = scrape;
    let health = |health: Health| counters.health[health as usize];
    page.family("tcpfsm_packets_total", "counter", "Packets by hook and by what became of them.");
    for (hook, counts) in Hook::ALL.into_iter().zip(&counters.packets) {
        for (verdict, count) in Outcome::names().zip(counts) {
            page.sample("tcpfsm_packets_total", &[("hook", hook.name()), ("verdict", verdict)], count);
        }
    }
    page.counter("tcpfsm_events_total", "Events told to the daemon.", health(Health::EventsSent));
    page.counter(
        "tcpfsm_ring_dropped_total",
        "Events lost because the ring was full. Counters and states are exact all the same.",
        health(Health::EventsLost),
    );
    page.counter(
        "tcpfsm_events_sampled_total",
        "Events of what moved no connection, not told because there were too many: others stand for them. Counters are exact all the same.",
        health(Health::EventsSampled),
    );
    page.family("tcpfsm_lost_total", "counter", "Events, reports and flows lost in userspace, by where.");
    for (place, count) in lost {
        page.sample("tcpfsm_lost_total", &[("where", place)], count);
    }
    page.counter(
        "tcpfsm_verdicts_lost_total",
        "State changes given up because other CPUs kept changing the same flow.",
        health(Health::VerdictLost),
    );
    page.counter(
        "tcpfsm_verdict_retries_total",
        "State changes worked out again because another CPU changed the same flow first.",
        health(Health::VerdictRetries),
    );
    page.counter(
        "tcpfsm_observation_gap_seconds_total",
        "Time between daemons since the machine was booted, in which nobody observed.",
        gauges.gap.total.as_secs_f64(),
    );
    page.family("tcpfsm_map_entries", "gauge", "Flows, or services, in each map, at the last sweep.");
    for (map, report) in FLOW_MAPS.into_iter().zip(&gauges.maps) {
        page.sample("tcpfsm_map_entries", &[("map", &map.to_lowercase())], report.flows);
    }
    page.sample("tcpfsm_map_entries", &[("map", "services")], gauges.services);
    page.family("tcpfsm_map_capacity", "gauge", "Flows, or services, that each map has room for.");
    for (map, capacity) in FLOW_MAPS.into_iter().zip(capacities) {
        page.sample("tcpfsm_map_capacity", &[("map", &map.to_lowercase())], capacity);
    }
    page.sample("tcpfsm_map_capacity", &[("map", "services")], scrape.services);
    evictions(page, gauges);
    page.counter("tcpfsm_map_insert_failed_total", "Flows that no map took.", health(Health::InsertFailed));
    page.counter("tcpfsm_expired_total", "Flows that the sweep removed.", health(Health::Expired));
    page.counter("tcpfsm_sweeps_total", "Sweeps over the flow maps.", gauges.sweeps);
    page.gauge(
        "tcpfsm_sweep_duration_seconds",
        "How long the last sweep took.",
        gauges.sweep_duration.as_secs_f64(),
    );
    page.family("tcpfsm_attach_info", "gauge", "What is attached where.");
    for Attached { interface, hook, mode } in &gauges.attached {
        page.sample(
            "tcpfsm_attach_info",
            &[("interface", interface), ("hook", hook.name()), ("mode", mode)],
            1,
        );
    }
    page.family("tcpfsm_build_info", "gauge", "The version that runs.");
    page.sample("tcpfsm_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
}

fn evictions(page: &mut Page, gauges: &Gauges) {
    const NAME: &str = "tcpfsm_map_evictions_total";
    page.family(NAME, "counter", "Flows that a full map evicted, by the state they were in.");
    let kinds = [EVICTED_FLOWS, EVICTED_FLOWS, EVICTED_EMBRYOS, EVICTED_EMBRYOS];
    for ((map, by_state), states) in FLOW_MAPS.into_iter().zip(&gauges.evicted).zip(kinds) {
        let map = map.to_lowercase();
        let mut other: u64 = by_state.iter().sum();
        for &state in states {
            let count = by_state[state as usize];
            other -= count;
            page.sample(NAME, &[("map", &map), ("state", state.name())], count);
        }
        page.sample(NAME, &[("map", &map), ("state", "other")], other);
    }
}

fn process(page: &mut Page, process: &ProcessStats) {
    let ProcessStats {
        cpu_seconds,
        resident_bytes,
        virtual_bytes,
        open_fds,
        max_fds,
        threads,
        start_seconds,
    } = process;
    page.counter("process_cpu_seconds_total", "User and system CPU time spent.", cpu_seconds);
    page.gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes);
    page.gauge("process_virtual_memory_bytes", "Virtual memory.", virtual_bytes);
    page.gauge("process_open_fds", "Open file descriptors.", open_fds);
    page.gauge("process_max_fds", "File descriptors that may be open.", max_fds);
    page.gauge("process_threads", "Threads.", threads);
    page.gauge("process_start_time_seconds", "Start, in seconds since 1970.", start_seconds);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tcpfsm_common::abi::DWELL_BUCKETS;

    use super::*;

    fn idle() -> Scrape {
        Scrape {
            counters: Counters::ZERO,
            gauges: Gauges {
                attached: ["eth0", "eth1"]
                    .into_iter()
                    .flat_map(|interface| {
                        [(Hook::Xdp, "native"), (Hook::TcEgress, "tcx")].map(|(hook, mode)| Attached {
                            interface: interface.to_owned(),
                            hook,
                            mode,
                        })
                    })
                    .collect(),
                ..Gauges::default()
            },
            unusual: Unusual::default(),
            capacities: [262_144, 131_072, 65_536, 32_768],
            services: 8_192,
            lost: [
                ("queue", 0),
                ("stdout", 0),
                ("watchers", 0),
                ("journal", 0),
                ("malformed", 0),
                ("detectors", 0),
            ],
            process: ProcessStats::default(),
        }
    }

    fn busy() -> Scrape {
        let mut scrape = idle();
        let Counters { packets, health, facts, transitions, closed, dwell, handshake, .. } =
            &mut scrape.counters;
        packets.as_flattened_mut().fill(3);
        health.fill(3);
        facts.fill(3);
        transitions.as_flattened_mut().as_flattened_mut().fill(3);
        closed.fill(3);
        dwell.as_flattened_mut().fill(3);
        handshake.fill(3);
        scrape.gauges.evicted.as_flattened_mut().fill(3);
        scrape.unusual.note(&scrape.counters);
        scrape
    }

    fn series(page: &str) -> Vec<&str> {
        page.lines().filter(|line| !line.starts_with('#')).collect()
    }

    /// After a wanted change: `TCPFSM_UPDATE_GOLDEN=1 cargo test -p tcpfsm-userspace golden`.
    #[test]
    fn an_idle_host_shows_the_golden_page() {
        const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.prom");
        let page = render(&idle());
        if std::env::var_os("TCPFSM_UPDATE_GOLDEN").is_some() {
            std::fs::write(PATH, &page).unwrap();
        }
        let golden = std::fs::read_to_string(PATH).unwrap();
        let difference = page.lines().zip(golden.lines()).find(|(now, golden)| now != golden);
        assert!(page == golden, "tests/golden/metrics.prom differs, first in (now, golden) {difference:?}");
    }

    #[test]
    fn series_are_at_most_400_and_distinct() {
        for scrape in [idle(), busy()] {
            let page = render(&scrape);
            let series = series(&page);
            assert!(series.len() <= 400, "{} series", series.len());
            let names: HashSet<_> =
                series.iter().filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name).collect();
            assert_eq!(names.len(), series.len(), "a series is there twice");
        }
    }

    #[test]
    fn nothing_counted_is_lost_in_the_shared_series() {
        let page = render(&busy());
        let sum = |family: &str| -> u64 {
            let lines = series(&page).into_iter().filter(|line| line.starts_with(family));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
        };
        assert_eq!(sum("tcpfsm_transitions_total{"), 2 * 11 * 11 * 3);
        assert_eq!(sum("tcpfsm_map_evictions_total{"), 4 * 16 * 3);
    }

    #[test]
    fn every_family_is_explained_before_its_samples() {
        let page = render(&busy());
        let mut families = HashSet::new();
        let mut current = String::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(families.insert(name.to_owned()), "{name} is there twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
                name.clone_into(&mut current);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let base = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
                assert!(name == current || base == Some(&current), "{name} stands under {current}");
            }
        }
    }

    #[test]
    fn histograms_are_cumulative() {
        let mut scrape = idle();
        scrape.counters.handshake[0] = 2;
        scrape.counters.handshake[11] = 1;
        scrape.counters.handshake_sum = Counters::sum_units(5_000_000_001_500);
        scrape.counters.dwell[State::TimeWait as usize] = [1; DWELL_BUCKETS];
        // More nanoseconds than 64 bits hold.
        scrape.counters.dwell_sum[State::TimeWait as usize] = Counters::sum_units(u64::MAX / 2) << 10;
        let page = render(&scrape);
        for line in [
            "tcpfsm_state_dwell_seconds_bucket{state=\"time_wait\",le=\"0.001\"} 1",
            "tcpfsm_state_dwell_seconds_bucket{state=\"time_wait\",le=\"0.016\"} 3",
            "tcpfsm_state_dwell_seconds_bucket{state=\"time_wait\",le=\"+Inf\"} 12",
            "tcpfsm_state_dwell_seconds_sum{state=\"time_wait\"} 9444732965739.290427392",
            "tcpfsm_handshake_duration_seconds_bucket{le=\"0.001\"} 2",
            "tcpfsm_handshake_duration_seconds_bucket{le=\"65.536\"} 2",
            "tcpfsm_handshake_duration_seconds_bucket{le=\"+Inf\"} 3",
            "tcpfsm_handshake_duration_seconds_sum 5000.000001024",
            "tcpfsm_handshake_duration_seconds_count 3",
        ] {
            assert!(page.contains(&format!("{line}\n")), "{line}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut scrape = idle();
        scrape.gauges.attached[0].interface = "a\"b\\c".into();
        assert!(render(&scrape).contains(r#"interface="a\"b\\c""#));
    }
}
