//! Where a case is played: the lab, the daemon that watches it, and what it said and when.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tcpfsm_userspace::{
    detect::AnomalyKind,
    owner::Confidence,
    report::{Anomaly, Body, Phase, Report},
};
use tempfile::TempDir;
use xtask::lab::{IFACE_A, Lab};

use crate::daemon::{Daemon, ask};

const RULES: &str = include_str!("rules.toml");

/// As rules.toml says.
const SWEEP: Duration = Duration::from_millis(500);

/// From the sweep to this test: the daemon's nap, the queue, the pipe, and a busy machine.
const GRACE: Duration = Duration::from_millis(600);

/// One case, from the network to the verdict.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    name: &'static str,
    daemon: Daemon,
    heard: Arc<Mutex<Vec<Heard>>>,
    due: Vec<(AnomalyKind, Option<&'static str>)>,
    rows: Vec<String>,
    pub(crate) directory: TempDir,
}

/// An anomaly as it was reported, and when that was read.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    at: Instant,
    pub(crate) anomaly: Anomaly,
}

/// Whose it must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner {
    /// One of this process's.
    Holds(u32),
    /// It was this process's, which has closed it.
    Held(u32),
    /// This process listens there, and no socket has an owner.
    Listens(u32),
    /// The socket is another host's: that it is named would be wrong.
    Elsewhere,
    /// The socket is this host's, and nobody's any more.
    Nobody,
    /// It is about no one flow. Where a sweep had named one before that, it is the example, and this process's; else no flow is
    /// named, and nobody.
    Example(u32),
}

/// What must be reported.
pub(crate) struct Due {
    pub(crate) kind: AnomalyKind,
    /// When it began.
    pub(crate) since: Instant,
    /// How long it must last by its rule.
    pub(crate) threshold: Duration,
    /// How much longer the programs themselves may need until that is so.
    pub(crate) within: Duration,
    /// The service; a port of 0 stands for any.
    pub(crate) service: Option<SocketAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) technique: Option<&'static str>,
    pub(crate) count: RangeInclusive<u64>,
    pub(crate) owner: Owner,
}

impl Stage {
    /// The network and the daemon. `rules` are lines for the end of the table `[detect]`.
    pub(crate) fn new(name: &'static str, rules: &str) -> Self {
        let lab = Lab::new("proof").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let [config, socket] = ["config.toml", "tcpfsm.sock"].map(|file| directory.path().join(file));
        fs::write(&config, [RULES, rules].concat()).unwrap();
        let mut command = lab.a().command(env!("CARGO_BIN_EXE_tcpfsm"));
        command
            .args(["run", "--iface", IFACE_A, "-o", "jsonl", "--metrics", "off", "--config"])
            .arg(&config)
            .arg("--socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut daemon = Daemon::spawn(command, socket, directory.path().to_owned());
        let stdout = daemon.take_stdout().unwrap();
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let notes = Arc::clone(&heard);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Of a flood there are many other lines, and this must not be what they wait for.
                if !line.contains(r#""kind":"anomaly""#) {
                    continue;
                }
                let report: Report = serde_json::from_str(&line).unwrap();
                if let Body::Anomaly(anomaly) = report.body {
                    notes.lock().unwrap().push(Heard { at: Instant::now(), anomaly });
                }
            }
        });
        Self { lab, name, daemon, heard, due: Vec::new(), rows: Vec::new(), directory }
    }

    /// Waits until something due is reported, and holds it against what it must be.
    pub(crate) fn expect(&mut self, due: Due) -> Anomaly {
        let Due { kind, since, threshold, within, service, source, technique, count, owner } = due;
        let latest = since + threshold + within + SWEEP + GRACE;
        let found = self.wait(latest, &|anomaly| {
            anomaly.anomaly == kind
                && anomaly.phase == Phase::Start
                && technique.is_none_or(|technique| anomaly.technique.as_deref() == Some(technique))
        });
        let Some(Heard { at, anomaly }) = found else {
            panic!(
                "{}: no {} within {threshold:?} and a sweep ({:?} gone); said: {:#?}\n{}",
                self.name,
                kind.name(),
                since.elapsed(),
                self.heard.lock().unwrap(),
                self.daemon.stderr()
            );
        };
        let after = at.saturating_duration_since(since);
        assert!(after >= threshold, "{}: after {after:?} already: {anomaly:#?}", self.name);
        let same = |asked: SocketAddr| {
            asked.ip() == anomaly.service.ip() && [0, anomaly.service.port()].contains(&asked.port())
        };
        assert!(service.is_none_or(same), "not at {service:?}: {anomaly:#?}");
        assert_eq!(anomaly.source, source, "{anomaly:#?}");
        assert!(count.contains(&anomaly.count), "not {count:?}: {anomaly:#?}");
        let whose = check_owner(&anomaly, owner);
        let rule = if threshold.is_zero() {
            "count".to_owned()
        } else {
            format!("{:.1} s", threshold.as_secs_f64())
        };
        self.rows.push(format!(
            "{} | `{}`{} | {:.2} s | {rule} | {} | {whose}",
            self.name,
            kind.name(),
            technique.map(|technique| format!(" ({technique})")).unwrap_or_default(),
            after.as_secs_f64(),
            anomaly.count,
        ));
        self.due.push((kind, technique));
        anomaly
    }

    /// Waits until it is told how it is done, which may show later than that it is done.
    pub(crate) fn shows(&self, kind: AnomalyKind, technique: &str) {
        let is_it = |anomaly: &Anomaly| anomaly.anomaly == kind && anomaly.technique.is_some();
        let shown = self.wait(Instant::now() + Duration::from_secs(10), &is_it);
        let how = shown.and_then(|heard| heard.anomaly.technique);
        assert_eq!(how.as_deref(), Some(technique), "{}: {:#?}", self.name, self.heard.lock().unwrap());
    }

    /// Waits until it is reported to be over; gives that.
    pub(crate) fn over(&self, kind: AnomalyKind) -> Anomaly {
        let over = self.wait(Instant::now() + Duration::from_secs(15), &|anomaly| {
            anomaly.anomaly == kind && anomaly.phase == Phase::End
        });
        let heard = || self.heard.lock().unwrap().clone();
        over.unwrap_or_else(|| panic!("{} does not end: {:#?}", kind.name(), heard())).anomaly
    }

    /// Gives what has not been noticed yet two sweeps of time.
    pub(crate) fn settle(&self) {
        thread::sleep(SWEEP * 2);
    }

    /// The case is over: nothing may have been reported but what was due, and `besides`.
    pub(crate) fn finish(self, besides: &[AnomalyKind]) {
        self.hear_all();
        let heard = self.heard.lock().unwrap();
        let others: Vec<&Heard> = heard
            .iter()
            .filter(|heard| self.due.iter().all(|(kind, _)| *kind != heard.anomaly.anomaly))
            .collect();
        let wrong: Vec<_> = others.iter().filter(|heard| !besides.contains(&heard.anomaly.anomaly)).collect();
        assert!(wrong.is_empty(), "{}: raised without a reason: {wrong:#?}", self.name);
        let mut names: Vec<_> = others.iter().map(|heard| heard.anomaly.anomaly.name()).collect();
        names.sort_unstable();
        names.dedup();
        let also = if names.is_empty() { "-".to_owned() } else { names.join(", ") };
        if self.rows.is_empty() {
            println!("measured: {} | none | - | - | 0 | - | {also}", self.name);
        }
        for row in &self.rows {
            println!("measured: {row} | {also}");
        }
    }

    /// Waits until as many anomalies were heard of as the daemon itself counts: no line that was lost could hide one. Of the
    /// last sweep it has counted before it tells.
    fn hear_all(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let stats = ask(&["stats", "-o", "json"], self.daemon.socket());
            let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
            let total = |kind: &serde_json::Value| kind["total"].as_u64().unwrap();
            let told: u64 = stats["anomalies"].as_array().unwrap().iter().map(total).sum();
            let is_start = |heard: &&Heard| heard.anomaly.phase == Phase::Start;
            let starts = self.heard.lock().unwrap().iter().filter(is_start).count() as u64;
            if told == starts {
                return;
            }
            assert!(Instant::now() < deadline, "{told} anomalies, {starts} heard of: {stats}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait(&self, latest: Instant, is_it: &dyn Fn(&Anomaly) -> bool) -> Option<Heard> {
        loop {
            if let Some(heard) = self.heard.lock().unwrap().iter().find(|heard| is_it(&heard.anomaly)) {
                return Some(heard.clone());
            }
            if Instant::now() > latest {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Holds the owner that was reported against the one there is; gives it for the table.
fn check_owner(anomaly: &Anomaly, owner: Owner) -> String {
    let found = anomaly.proc.as_ref().map(|owner| (owner.pid, owner.confidence));
    let expected = match owner {
        Owner::Holds(pid) => Some((pid, Confidence::Socket)),
        Owner::Held(pid) => Some((pid, Confidence::Earlier)),
        Owner::Listens(pid) => Some((pid, Confidence::Listener)),
        Owner::Elsewhere | Owner::Nobody => None,
        Owner::Example(pid) => {
            (!anomaly.flow.orig.ip().is_unspecified()).then_some((pid, Confidence::Socket))
        }
    };
    assert_eq!(found, expected, "{anomaly:#?}");
    let comm = anomaly.proc.as_ref().map(|owner| &*owner.comm).unwrap_or_default();
    match owner {
        Owner::Holds(_) => format!("{comm}, by pid"),
        Owner::Example(_) if found.is_some() => format!("{comm}, by pid"),
        Owner::Held(_) => format!("was {comm}, by pid"),
        Owner::Listens(_) => format!("{comm}, listener by pid"),
        Owner::Elsewhere => "remote".to_owned(),
        Owner::Nobody | Owner::Example(_) => "none".to_owned(),
    }
}
