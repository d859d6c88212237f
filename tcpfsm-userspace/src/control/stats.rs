//! The answer to `stats`: counts, losses, what is attached.

use serde::{Deserialize, Serialize};
use tcpfsm_common::{
    abi::{CloseReason, Health, Hook, Outcome},
    fact::Fact,
    fsm::State,
};

use crate::{
    detect::AnomalyKind, export::prometheus::Scrape, kernel::names::FLOW_MAPS, report::Side,
    views::ViewCounts,
};

/// Everything that `stats` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// The schema.
    pub v: u32,
    /// The daemon's process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// What is attached where.
    pub attached: Vec<AttachedLine>,
    /// Flows in the maps.
    pub flows: u64,
    /// Connection ends by state.
    pub states: Vec<StateLine>,
    /// Transitions that happened.
    pub transitions: Vec<TransitionLine>,
    /// Connection requests seen.
    pub opened: u64,
    /// Connections picked up in mid-stream.
    pub picked_up: u64,
    /// Connections that ended, by how.
    pub closed: Vec<Count>,
    /// Packets by hook and by what became of them, where any were.
    pub packets: Vec<PacketLine>,
    /// Anomalies by kind.
    pub anomalies: Vec<AnomalyLine>,
    /// Comparisons with the host's own sockets.
    #[serde(default)]
    pub views: ViewsLine,
    /// The flow maps, and that of services.
    pub maps: Vec<MapLine>,
    /// Events told to the daemon.
    pub events: u64,
    /// Events of what moved no connection, not told: others stand for them.
    #[serde(default)]
    pub events_sampled: u64,
    /// State changes worked out again because another CPU was first.
    #[serde(default)]
    pub verdict_retries: u64,
    /// How long nobody observed between the last daemon and this one, as far as is known.
    #[serde(default)]
    pub gap_seconds: f64,
    /// Everything that was lost, by where.
    pub lost: Vec<Count>,
}

/// One program on one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct AttachedLine {
    pub interface: String,
    pub hook: String,
    pub mode: String,
}

/// Ends in one state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct StateLine {
    pub state: String,
    pub orig: u64,
    pub resp: u64,
    pub assumed: u64,
    pub stuck: u64,
}

/// One arrow of the diagram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct TransitionLine {
    pub from: String,
    pub to: String,
    pub side: String,
    pub count: u64,
}

/// A name and a number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "a name and a number")]
pub struct Count {
    pub name: String,
    pub count: u64,
}

/// Packets of one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct PacketLine {
    pub hook: String,
    pub verdict: String,
    pub count: u64,
}

/// Anomalies of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct AnomalyLine {
    pub kind: String,
    pub active: u64,
    pub total: u64,
}

/// Comparisons of the wire's view with the host's own sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct ViewsLine {
    pub seeded: u64,
    pub agreed: u64,
    pub differed: u64,
    pub gone: u64,
    pub followed: u64,
    /// Connections that differ now.
    pub differing: u64,
}

/// One map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the metrics")]
pub struct MapLine {
    pub map: String,
    pub entries: u64,
    pub capacity: u64,
    /// Flows evicted so far, by the state they were in, where any were.
    #[serde(default)]
    pub evicted: Vec<Count>,
}

impl Stats {
    /// From what a scrape of the metrics shows.
    #[must_use]
    pub fn from_scrape(scrape: &Scrape, pid: u32, uptime_seconds: f64) -> Self {
        let Scrape { counters, gauges, capacities, services, lost, process: _, unusual: _ } = scrape;
        let total = gauges.total();
        let [orig, resp] = total.states;
        let health = |health: Health| counters.health[health as usize];
        let fact = |fact: Fact| counters.facts[fact as usize];
        let count = |name: &str, count: u64| Count { name: name.to_owned(), count };
        Self {
            v: crate::report::SCHEMA_VERSION,
            pid,
            uptime_seconds,
            attached: gauges
                .attached
                .iter()
                .map(|attached| AttachedLine {
                    interface: attached.interface.clone(),
                    hook: attached.hook.name().to_owned(),
                    mode: attached.mode.to_owned(),
                })
                .collect(),
            flows: total.flows,
            states: State::ALL
                .into_iter()
                .map(|state| {
                    let at = state as usize;
                    StateLine {
                        state: state.name().to_owned(),
                        orig: orig[at],
                        resp: resp[at],
                        assumed: total.assumed[at],
                        stuck: total.stuck[at],
                    }
                })
                .collect(),
            transitions: Side::ALL
                .into_iter()
                .zip(&counters.transitions)
                .flat_map(|(side, by_state)| {
                    State::ALL.into_iter().zip(by_state).flat_map(move |(from, by_next)| {
                        State::ALL.into_iter().zip(by_next).filter(|(_, count)| **count > 0).map(
                            move |(to, &count)| TransitionLine {
                                from: from.name().to_owned(),
                                to: to.name().to_owned(),
                                side: side.name().to_owned(),
                                count,
                            },
                        )
                    })
                })
                .collect(),
            opened: fact(Fact::Open),
            picked_up: fact(Fact::MidstreamPickup),
            closed: CloseReason::ALL
                .into_iter()
                .zip(counters.closed)
                .filter(|(reason, _)| *reason != CloseReason::Open)
                .map(|(reason, closed)| count(reason.name(), closed))
                .collect(),
            packets: Hook::ALL
                .into_iter()
                .zip(&counters.packets)
                .flat_map(|(hook, by_verdict)| {
                    Outcome::names().zip(by_verdict).filter(|(_, count)| **count > 0).map(
                        move |(verdict, &count)| PacketLine {
                            hook: hook.name().to_owned(),
                            verdict: verdict.to_owned(),
                            count,
                        },
                    )
                })
                .collect(),
            anomalies: AnomalyKind::ALL
                .into_iter()
                .zip(gauges.anomalies_active.into_iter().zip(gauges.anomalies_total))
                .map(|(kind, (active, total))| AnomalyLine { kind: kind.name().to_owned(), active, total })
                .collect(),
            views: {
                let ViewCounts { seeded, agreed, differed, gone, followed } = gauges.views;
                ViewsLine { seeded, agreed, differed, gone, followed, differing: gauges.differing }
            },
            maps: FLOW_MAPS
                .into_iter()
                .zip(gauges.maps.iter().zip(&gauges.evicted))
                .zip(capacities)
                .map(|((map, (report, evicted)), &capacity)| MapLine {
                    map: map.to_lowercase(),
                    entries: report.flows,
                    capacity: capacity.into(),
                    evicted: State::ALL
                        .into_iter()
                        .zip(evicted)
                        .filter(|(_, evicted)| **evicted > 0)
                        .map(|(state, evicted)| count(state.name(), *evicted))
                        .collect(),
                })
                .chain([MapLine {
                    map: "services".to_owned(),
                    entries: gauges.services,
                    capacity: (*services).into(),
                    evicted: Vec::new(),
                }])
                .collect(),
            events: health(Health::EventsSent),
            events_sampled: health(Health::EventsSampled),
            verdict_retries: health(Health::VerdictRetries),
            gap_seconds: gauges.gap.before.as_secs_f64(),
            lost: [
                count("ring", health(Health::EventsLost)),
                count("verdicts", health(Health::VerdictLost)),
                count("map_insert", health(Health::InsertFailed)),
            ]
            .into_iter()
            .chain(lost.iter().map(|&(place, lost)| count(place, lost)))
            .collect(),
        }
    }
}
