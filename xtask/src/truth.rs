//! `cargo xtask truth`: real traffic between two namespaces, a tracker at each end, and the kernel's own word on every
//! socket.
//!
//! - [`ground`]: the namespaces, with a [`wire`] between them that loses and delays
//! - [`traffic`], [`programs`]: who plays which connections, and what programs do with them
//! - [`tracepoint`], [`perf`]: the truth, every `sock:inet_sock_set_state`; [`lives`]: one end's part of it
//! - [`tracker`]: the daemon, and what it said
//! - [`align`], [`score`]: both beside each other; [`rest`]: the same for listings of all sockets
//! - [`report`]: what a person and a program read

use std::collections::HashSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::build::{Profile, build};
use crate::command::is_root;
use crate::lab::stale::RunDirectory;
use crate::lab::{Family, IFACE_A, IFACE_B};
use crate::progress::{heading, note, seconds};
use crate::setup::{self, Needs};
use crate::stop;
use crate::workspace::Workspace;

mod align;
mod ground;
mod lives;
mod perf;
mod programs;
mod report;
mod rest;
mod score;
mod tracepoint;
mod tracker;
mod traffic;
mod wire;

pub use self::report::Report;
pub use self::traffic::menu;

use self::ground::Ground;
use self::lives::Lives;
use self::rest::Listing;
use self::score::Side;
use self::tracepoint::Recorder;
use self::tracker::Tracker;
use self::traffic::{Plan, Played, SERVER_PORTS, Traffic};
use self::wire::{Quality, Wire};

/// `cargo xtask truth`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Connections to play [default: 100000; with --loss or --reorder 20000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=2_000_000))]
    pub connections: Option<u64>,
    /// 2,000 connections
    #[arg(long, conflicts_with = "connections")]
    pub quick: bool,
    /// Percentage of the frames that is lost on the way
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = parse_percent)]
    pub loss: u32,
    /// Percentage of the frames that comes late, so that others overtake them
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = parse_percent)]
    pub reorder: u32,
    /// Where a tracker runs
    #[arg(long, value_enum, default_value_t = Watch::Both)]
    pub watch: Watch,
    /// Play only the kinds of traffic whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub traffic: String,
    /// Show so many ways to differ, with an example of each
    #[arg(long, value_name = "N", default_value_t = 3, num_args = 0..=1, default_missing_value = "1000")]
    pub differences: usize,
    /// Print one JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// Which ends a tracker watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Watch {
    /// The clients' namespace
    Clients,
    /// The servers' namespace
    Servers,
    /// A tracker in each
    Both,
}

/// What a run is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Connections to play.
    pub connections: u64,
    /// Frames that are lost, and that come late, of a million.
    pub loss: u32,
    /// See `loss`.
    pub reorder: u32,
    /// Where a tracker runs.
    pub watch: Watch,
    /// Kinds of traffic in the order of playing, see [`menu`].
    pub menu: Vec<usize>,
}

impl Settings {
    /// Whether the wire loses or delays anything.
    pub fn bad_wire(&self) -> bool {
        self.loss > 0 || self.reorder > 0
    }
}

/// As parts of a million.
fn parse_percent(text: &str) -> Result<u32, String> {
    let percent: f64 =
        text.trim_end_matches('%').parse().map_err(|_| format!("{text:?} is no percentage"))?;
    if !(0.0..=50.0).contains(&percent) {
        return Err(format!("{percent} % is not between 0 and 50: no connection would survive"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 500,000")]
    Ok((percent * 10_000.0).round() as u32)
}

/// The subcommand. Fails when a goal is missed.
pub fn main(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let &Arguments { connections, quick, loss, reorder, watch, ref traffic, differences, json } = arguments;
    let menu = menu(traffic);
    if menu.is_empty() {
        bail!("no kind of traffic is called {traffic:?}; there are:\n  {}", traffic::names().join("\n  "));
    }
    if !is_root() {
        bail!(
            "namespaces, tracepoints and kernel programs need root\n  remedy: run the same command as root"
        );
    }
    let toolchain = setup::ensure(workspace, Needs::Network)?;
    build(workspace, &toolchain, Profile::Release)?;
    let full = if loss > 0 || reorder > 0 { 20_000 } else { 100_000 };
    let connections = if quick { 2_000 } else { connections.unwrap_or(full) };
    let report = run(&workspace.daemon(false), Settings { connections, loss, reorder, watch, menu })?;
    if json {
        println!("{}", report.to_json());
    } else {
        print!("{}", report.to_text(differences));
    }
    Ok(if report.missed_goals().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Between two listings of all sockets: each TIME-WAIT is in at least two.
const LISTINGS: Duration = Duration::from_secs(20);
/// How long ends may take to come to rest once nobody plays any more.
const REST: Duration = Duration::from_secs(60);

/// Plays, records and scores.
pub fn run(program: &Path, settings: Settings) -> Result<Report> {
    let Settings { connections, loss, reorder, watch, .. } = settings;
    stop::catch_signals()?;
    raise_file_limit()?;
    let ground = Ground::new(settings.bad_wire())?;
    let directory = RunDirectory::create("truth")?;
    let wire = match &ground.wire {
        Some(namespace) => Some(Wire::start(namespace, Quality { loss, reorder })?),
        None => None,
    };
    let tracker = |namespace, iface, hosts: std::ops::RangeInclusive<u8>| {
        let hosts =
            hosts.flat_map(|host| [Family::V4, Family::V6].map(|family| ground::address(family, host)));
        Tracker::start(
            program,
            (namespace, iface),
            directory.path(),
            hosts.collect::<HashSet<_>>(),
            connections,
        )
    };
    heading("Starting the trackers");
    let mut trackers = Vec::new();
    if watch != Watch::Servers {
        trackers.push((true, tracker(&ground.clients, IFACE_B, 2..=1 + ground::CLIENTS)?));
    }
    if watch != Watch::Clients {
        trackers.push((false, tracker(&ground.servers, IFACE_A, 1..=1)?));
    }
    let recorder = Recorder::start(SERVER_PORTS)?;
    let wall = wall_offset();

    heading(&format!("Playing {connections} connections"));
    let mut listings = [Vec::new(), Vec::new()];
    let played = play(&ground, &settings, &mut listings)?;
    if stop::requested() {
        bail!("ended before everything was played");
    }
    heading("Waiting until nothing moves any more");
    let unrest = wait_for_rest(&ground, &mut listings)?;
    let wire = wire.map(Wire::stop).transpose()?;
    let recording = recorder.stop()?;
    heading("Reading what the trackers said");
    let accounts = std::thread::scope(|scope| {
        let readers: Vec<_> = trackers
            .into_iter()
            .map(|(clients, tracker)| (clients, scope.spawn(move || tracker.stop())))
            .collect();
        readers
            .into_iter()
            .map(|(clients, reader)| {
                let account = reader.join().unwrap_or_else(|_| bail!("a reader's thread panicked"));
                account.map(|account| (clients, account))
            })
            .collect::<Result<Vec<_>>>()
    })?;

    heading("Comparing");
    let lives = Lives::of(&recording);
    let sides = accounts.iter().map(|(clients, account)| {
        let name = if *clients { "clients" } else { "servers" };
        let listings = &listings[usize::from(!clients)];
        let last = listings.last().map(|listing| (listing, wall));
        let side = Side { name, clients: *clients, lives: &lives, account, played: &played, last };
        let agreement = rest::compare(listings, &side, wall);
        report::SideReport::new(&side, agreement)
    });
    let sides = sides.collect();
    Ok(Report {
        settings,
        sides,
        changes: recording.changes.len(),
        lost: recording.lost,
        lives,
        played,
        wire,
        unrest,
        wall,
    })
}

/// Plays all connections; lists the sockets of clients and servers now and then.
fn play(ground: &Ground, settings: &Settings, listings: &mut [Vec<Listing>; 2]) -> Result<Played> {
    // A stalled connection waits for a retransmission, which costs no CPU: many pairs fill the time.
    let (pairs, patience) =
        if settings.bad_wire() { (96, Duration::from_secs(3)) } else { (8, Duration::from_secs(20)) };
    let connections = settings.connections;
    let traffic = Traffic::start(ground, Plan { connections, pairs, patience, menu: settings.menu.clone() })?;
    let (mut told, mut listed) = (Instant::now(), Instant::now());
    while !traffic.is_over() {
        std::thread::sleep(Duration::from_millis(50));
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            let (done, elapsed) = (traffic.done(), traffic.elapsed());
            note(&format!(
                "{done} of {connections} after {}, {} a second",
                seconds(elapsed),
                rate(done, elapsed)
            ));
        }
        if listed.elapsed() >= LISTINGS {
            list(ground, listings)?;
            listed = Instant::now();
        }
    }
    let (done, elapsed) = (traffic.done(), traffic.elapsed());
    let played = traffic.finish()?;
    note(&format!("{done} played in {}, {} a second", seconds(elapsed), rate(done, elapsed)));
    Ok(played)
}

fn rate(done: u64, elapsed: Duration) -> u64 {
    done * 1_000 / u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn list(ground: &Ground, listings: &mut [Vec<Listing>; 2]) -> Result<()> {
    for (namespace, listings) in [&ground.clients, &ground.servers].into_iter().zip(listings) {
        listings.push(Listing::take(namespace)?);
    }
    Ok(())
}

/// Waits for the last acknowledgments, and lists once more. Says what was still going on when patience ended.
fn wait_for_rest(ground: &Ground, listings: &mut [Vec<Listing>; 2]) -> Result<Vec<String>> {
    let deadline = Instant::now() + REST;
    loop {
        stop::sleep(Duration::from_millis(500));
        let looks = [Listing::take(&ground.clients)?, Listing::take(&ground.servers)?];
        let late = Instant::now() > deadline || stop::requested();
        if !late && !looks.iter().all(Listing::is_at_rest) {
            continue;
        }
        let moving = looks.iter().filter(|listing| !listing.is_at_rest());
        let unrest = moving.map(|listing| format!("{:?}", listing.by_state())).collect();
        // The daemon drains its ring every 80 ms at the latest.
        stop::sleep(Duration::from_millis(500));
        list(ground, listings)?;
        return Ok(unrest);
    }
}

/// Each pair holds a few sockets.
fn raise_file_limit() -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("raise the limit of open files")
}

/// What to add to CLOCK_MONOTONIC to get the time of day, in nanoseconds.
fn wall_offset() -> i64 {
    let [monotonic, wall] = [ClockId::Monotonic, ClockId::Realtime].map(|clock| {
        let time = clock_gettime(clock);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    });
    wall - monotonic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read() {
        assert_eq!(parse_percent("2"), Ok(20_000));
        assert_eq!(parse_percent("0.5%"), Ok(5_000));
        for wrong in ["two", "-1", "51", "nan"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
    }
}
