//! What the tracker costs, measured: `cargo xtask bench` runs this. See `docs/performance.md`.
//!
//! - [`plan`], [`frames`], [`floor`]: packets, and the jig that makes another one each time
//! - [`subject`]: the tracker's programs, and the check that packets took the path that is measured
//! - [`rig`], [`stats`], [`sys`]: rounds, medians, clocks
//! - [`emulate`], [`host`]: instructions counted, where clocks say too little
//! - [`groups`]: what is measured
//! - [`budgets`], [`verifier`]: what is promised

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench that fails, fails")]

mod budgets;
mod emulate;
mod floor;
mod frames;
mod groups;
mod host;
#[path = "../../../tcpfsm-ebpf/src/bin/floor/plan.rs"]
mod plan;
mod rig;
mod stats;
mod subject;
mod sys;
mod verifier;

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::json;

use crate::{
    floor::FloorObject,
    groups::{daemon, established, events, fresh, pair, path, scale, sweep, wire},
    rig::{Effort, Table},
};

/// Measures the tracker.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", after_help = groups())]
struct Arguments {
    /// Rounds of each group
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Only these groups (comma-separated)
    #[arg(long, value_delimiter = ',', value_name = "GROUP")]
    only: Vec<String>,
    /// A few short rounds on small maps: to see that it runs, not to measure
    #[arg(long)]
    quick: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Fail when a committed budget is exceeded
    #[arg(long)]
    check: bool,
    /// Load the programs, print what they cost the verifier, and fail when one is over its budget
    #[arg(long, hide = true)]
    verifier_stats: bool,
    /// The tracker's object
    #[arg(long, env = "TCPFSM_BPF_OBJECT", value_name = "FILE")]
    object: PathBuf,
    /// The floor's object
    #[arg(long, env = "TCPFSM_FLOOR_OBJECT", value_name = "FILE")]
    floor: PathBuf,
    /// The daemon, for the groups that run it
    #[arg(long, env = "TCPFSM_DAEMON", value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// Given by cargo to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// What every group gets.
struct Bench {
    object: Vec<u8>,
    floor: FloorObject,
    daemon: Option<PathBuf>,
    quick: bool,
    rounds: usize,
}

impl Bench {
    fn rounds(&self) -> usize {
        if self.quick { 3 } else { self.rounds }
    }

    fn effort(&self, slice: f64) -> Effort {
        Effort { rounds: self.rounds(), slice: if self.quick { 5e6 } else { slice } }
    }

    /// How long something goes on that is not counted in packets.
    fn seconds(&self, wanted: f64) -> f64 {
        if self.quick { wanted / 5.0 } else { wanted }
    }
}

/// A group: its name, what it measures, whether it runs when no group is named, how.
struct Group {
    name: &'static str,
    what: &'static str,
    /// Of those that run unless others are asked for: they fit two minutes each.
    usual: bool,
    run: fn(&Bench) -> Result<Vec<Table>>,
}

macro_rules! group {
    ($name:literal, $what:literal, $usual:literal, $run:expr) => {
        Group { name: $name, what: $what, usual: $usual, run: |bench| ($run)(bench).map(|table| vec![table]) }
    };
}

/// Every group, in the order of the run.
const GROUPS: &[Group] = &[
    Group { name: "path", what: "instructions executed, counted", usual: true, run: path::path },
    group!("hot", "established, one flow, XDP", true, established::hot),
    group!("tc", "established, one flow, TC beside XDP", true, established::tc),
    group!("cold-128k", "established, 131,072 flows in random order", true, |bench: &Bench| {
        established::cold(bench, "cold-128k", if bench.quick { 10 } else { 17 }, false)
    }),
    group!("cold-1m", "established, 1,048,576 flows in random order", true, |bench: &Bench| {
        established::cold(bench, "cold-1m", if bench.quick { 12 } else { 20 }, true)
    }),
    group!("new", "SYNs into a full map, whole connections", true, fresh::new),
    group!("pair", "two CPUs", true, pair::pair),
    Group {
        name: "sweep",
        what: "the walk over a million flows, and how long packets wait for it",
        usual: true,
        run: sweep::walk,
    },
    group!("event", "what an event costs", true, events::cost),
    Group { name: "events", what: "events from core to core", usual: true, run: events::through },
    Group { name: "daemon", what: "idle CPU, time to output", usual: true, run: daemon::daemon },
    Group {
        name: "connections",
        what: "short connections between two namespaces, with different watchers",
        usual: true,
        run: wire::connections,
    },
    group!("bulk", "one stream between two namespaces, with different watchers", true, wire::bulk),
    group!("packets", "packets through a veth pair", true, wire::packets),
    group!("scale", "ten million flows: takes 6 GB", false, scale::scale),
];

/// Every group, for people.
fn groups() -> String {
    let lines = GROUPS.iter().map(|group| {
        let unusual = if group.usual { "" } else { " (only when named)" };
        format!("\n  {:<12} {}{unusual}", group.name, group.what)
    });
    format!("Groups:{}", lines.collect::<String>())
}

fn main() -> ExitCode {
    xtask::stop::let_readers_leave();
    if let Err(error) = xtask::stop::catch_signals() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let Arguments { rounds, only, quick, json, check, verifier_stats, object, floor, daemon, bench: _ } =
        arguments;
    if !rustix::process::geteuid().is_root() {
        bail!("loading programs needs root");
    }
    let object = fs::read(object).with_context(|| format!("read {}", object.display()))?;
    if *verifier_stats {
        return verifier::main(&object, *json);
    }
    let wanted = |group: &&Group| {
        if only.is_empty() { group.usual } else { only.iter().any(|name| name == group.name) }
    };
    if let Some(name) = only.iter().find(|name| !GROUPS.iter().any(|group| group.name == **name)) {
        bail!("no group {name}\n{}", groups());
    }
    if *check && (*quick || *rounds < 15) {
        bail!("--check needs at least 15 rounds, and not --quick");
    }
    let daemon = daemon.clone();
    let bench = Bench { object, floor: FloorObject::read(floor)?, daemon, quick: *quick, rounds: *rounds };
    let mut tables = Vec::new();
    for group in GROUPS.iter().filter(wanted) {
        sys::pin(sys::cpus() - 1);
        for table in (group.run)(&bench).with_context(|| format!("group {}", group.name))? {
            if !json {
                print!("{table}");
            }
            tables.push(table);
        }
    }
    let measured = budgets::compare(&tables)?;
    if *json {
        let record = json!({ "kernel": kernel(), "cpu": cpu(), "quick": quick, "groups": tables, "budgets": measured });
        println!("{}", serde_json::to_string_pretty(&record)?);
    } else if *check {
        budgets::print(&measured);
    }
    Ok(!check || measured.iter().all(|budget| budget.kept))
}

fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = model.map_or(env::consts::ARCH, |(_, name)| name.trim());
    format!("{} × {name}", sys::cpus())
}
