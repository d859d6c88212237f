//! What a host feels: real connections between two namespaces, and packets through a veth pair, with different watchers.

mod attach;
mod load;
mod packets;
mod watcher;

use anyhow::{Context as _, Result};
use xtask::lab::Lab;

pub use self::watcher::{Daemon, Flavour};
use self::{
    load::{Connections, Servers},
    watcher::{Least, Loss, Watcher},
};
use crate::{
    Bench,
    rig::{Clock, Table, go_on},
    stats::{median, quantile},
};

const NOTHING: &str = "nothing";

/// What watches the server's namespace while connections are made.
const WATCHERS: [(&str, Watcher); 8] = [
    (NOTHING, Watcher::Nothing),
    ("empty program, TCX both ways", Watcher::Floor(Least::EMPTY)),
    ("look-up and insert, TCX both ways", Watcher::Floor(Least::TABLE)),
    ("tcpfsm, no output", Watcher::Tcpfsm(Flavour { xdp: false, output: "none" })),
    ("tcpfsm, JSON lines", Watcher::Tcpfsm(Flavour { xdp: false, output: "jsonl" })),
    ("nf_conntrack", Watcher::Conntrack { events: false }),
    ("nf_conntrack, conntrack -E", Watcher::Conntrack { events: true }),
    ("inet_sock_set_state, read", Watcher::Tracepoint),
];

/// The same for bulk transfer; here XDP matters, which costs a veth its segmentation offload.
const BULK_WATCHERS: [(&str, Watcher); 7] = [
    (NOTHING, Watcher::Nothing),
    ("empty program, TCX both ways", Watcher::Floor(Least::EMPTY)),
    ("tcpfsm, TCX both ways", Watcher::Tcpfsm(Flavour { xdp: false, output: "jsonl" })),
    ("nf_conntrack", Watcher::Conntrack { events: false }),
    ("inet_sock_set_state, read", Watcher::Tracepoint),
    ("empty program, XDP and TCX egress", Watcher::Floor(Least::EMPTY_XDP)),
    ("tcpfsm, XDP and TCX egress", Watcher::Tcpfsm(Flavour { xdp: true, output: "jsonl" })),
];

/// The order of so many watchers in a round: there, and in the next round back. What one leaves behind, another one finds
/// each time.
fn turn(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |at| if round.is_multiple_of(2) { at } else { count - 1 - at })
}

/// Short connections: how many a second, and how long each takes.
pub fn connections(bench: &Bench) -> Result<Vec<Table>> {
    let lab = Lab::new("bench").context("the lab")?;
    load::prepare(&lab)?;
    let servers = Servers::start(&lab)?;
    let clock = Clock::start();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); WATCHERS.len()];
    let mut middle = rates.clone();
    let mut worst = rates.clone();
    let mut losses: Vec<Vec<Loss>> = vec![Vec::new(); WATCHERS.len()];
    // Short slices and many of them: how fast the machine is differs more from second to second than the watchers do.
    for round in 0..2 * bench.rounds() {
        for at in turn(round, WATCHERS.len()) {
            go_on()?;
            let (name, watcher) = &WATCHERS[at];
            let running = watcher.start(bench, &lab).with_context(|| (*name).to_owned())?;
            let earlier = servers.connect(&lab, bench.seconds(load::AHEAD))?.count;
            let Connections { count, seconds, took } = servers.connect(&lab, bench.seconds(0.6))?;
            losses[at].push(running.stop(earlier + count).with_context(|| (*name).to_owned())?);
            rates[at].push(count as f64 / seconds);
            middle[at].push(median(&took));
            worst[at].push(quantile(&took, 0.99));
        }
    }
    drop(servers);
    let names = || WATCHERS.iter().map(|(name, _)| *name);
    let mut table = Table::of("connections", "/s", clock, names().zip(rates).collect());
    for (name, losses) in names().zip(losses) {
        table = table.note(format!("{name}: {}", watcher::summary(&losses)));
    }
    Ok(vec![
        table,
        Table::of("connection-median", "µs", clock, names().zip(middle).collect()),
        Table::of("connection-p99", "µs", clock, names().zip(worst).collect()),
    ])
}

/// One stream as fast as it goes.
pub fn bulk(bench: &Bench) -> Result<Table> {
    let lab = Lab::new("bench").context("the lab")?;
    load::prepare(&lab)?;
    let clock = Clock::start();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); BULK_WATCHERS.len()];
    for round in 0..2 * bench.rounds() {
        for at in turn(round, BULK_WATCHERS.len()) {
            go_on()?;
            let (name, watcher) = &BULK_WATCHERS[at];
            let running = watcher.start(bench, &lab).with_context(|| (*name).to_owned())?;
            let rate = load::stream(&lab, bench.seconds(load::AHEAD), bench.seconds(0.5))?;
            rates[at].push(rate * 8.0 / 1e9);
            running.stop(0).with_context(|| (*name).to_owned())?;
        }
    }
    let rows = BULK_WATCHERS.iter().map(|(name, _)| *name).zip(rates).collect();
    Ok(Table::of("bulk", "Gb/s", clock, rows))
}

/// Packets of settled flows through the pair, on one CPU that sends and receives.
pub fn packets(bench: &Bench) -> Result<Table> {
    packets::measure(bench)
}
