//! Programs measured round-robin: a noisy moment hits all of them.
//!
//! Time is the thread's CPU time over the packets of a slice. What a packet costs in the jig alone is taken out: the
//! **own** time of a program is its time, less that of the empty program in the same jig, plus that of the empty
//! program without a jig. So it compares with a program that needs no jig, like the floor on one flow.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::{
    floor::{Hook, check_called},
    stats::{least, median, most, spread},
    sys,
};

/// The names by which rows refer to each other.
pub const EMPTY: &str = "empty";

/// One program on one frame.
pub struct Probe<'a> {
    pub name: String,
    pub hook: Hook,
    pub program: std::os::fd::RawFd,
    pub frame: Vec<u8>,
    /// The probe of the empty program in the same jig; its own name if there is no jig.
    pub base: String,
    /// What its own time is compared with.
    pub to: String,
    /// Packets of a slice; 0: as many as fill the time.
    pub packets: u32,
    /// Packets that count as one: those of a connection, say.
    pub per: u32,
    /// Between slices, off the clock.
    pub between: Option<Box<dyn FnMut() -> Result<()> + 'a>>,
    /// Packets run so far, warm-up included.
    pub ran: u64,
    times: Vec<f64>,
}

impl<'a> Probe<'a> {
    pub fn new(name: &str, program: &crate::floor::Loaded, frame: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            hook: program.hook,
            program: program.raw(),
            frame,
            base: EMPTY.to_owned(),
            to: "L".to_owned(),
            packets: 0,
            per: 1,
            between: None,
            ran: 0,
            times: Vec::new(),
        }
    }

    pub fn base(self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self }
    }

    pub fn to(self, to: &str) -> Self {
        Self { to: to.to_owned(), ..self }
    }

    pub fn packets(self, packets: u32) -> Self {
        Self { packets, ..self }
    }

    pub fn per(self, per: usize) -> Self {
        Self { per: u32::try_from(per).unwrap(), ..self }
    }

    pub fn between(self, between: impl FnMut() -> Result<()> + 'a) -> Self {
        Self { between: Some(Box::new(between)), ..self }
    }

    /// Nanoseconds a packet.
    fn run(&mut self, packets: u32) -> Result<f64> {
        let began = sys::thread_cpu();
        let returned = sys::test_run(self.program, &self.frame, packets)
            .with_context(|| format!("test run of {}", self.name))?;
        let took = sys::thread_cpu() - began;
        check_called(self.hook, returned).with_context(|| self.name.clone())?;
        self.ran += u64::from(packets);
        if let Some(between) = &mut self.between {
            between()?;
        }
        Ok(took / f64::from(packets))
    }
}

/// What was measured of one program.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    /// Median of the raw times, nanoseconds a packet (or what `per` packets make).
    pub ns: f64,
    pub mad: f64,
    pub best: f64,
    /// Median of the own times.
    pub own: f64,
    /// What `ratio` is to.
    pub to: String,
    /// Median of the rounds' ratios of own times.
    pub ratio: f64,
    pub ratio_mad: f64,
    /// Own times by round: for ratios between any two rows.
    #[serde(skip)]
    pub rounds: Vec<f64>,
}

/// The rows of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub name: String,
    pub unit: String,
    pub rounds: usize,
    pub seconds: f64,
    /// Percent of the machine's time that the hypervisor took.
    pub stolen: f64,
    pub rows: Vec<Row>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// When a group began.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: f64,
    stolen: f64,
}

impl Clock {
    pub fn start() -> Self {
        Self { began: sys::now(), stolen: sys::stolen() }
    }

    /// Seconds since, and the percentage of the machine's time that was stolen.
    fn stop(self) -> (f64, f64) {
        let seconds = (sys::now() - self.began) / 1e9;
        (seconds, (sys::stolen() - self.stolen) / seconds / sys::cpus() as f64 * 100.0)
    }
}

impl Table {
    /// Rows without a jig, of times or of rates; ratios are to the first.
    pub fn of(name: &str, unit: &str, clock: Clock, times: Vec<(&str, Vec<f64>)>) -> Self {
        let rates = unit.ends_with("/s");
        let (seconds, stolen) = clock.stop();
        let first = times[0].clone();
        let rows = times
            .into_iter()
            .map(|(name, rounds)| {
                let ratios = ratios(&rounds, &first.1);
                Row {
                    name: name.to_owned(),
                    ns: median(&rounds),
                    mad: spread(&rounds),
                    best: if rates { most(&rounds) } else { least(&rounds) },
                    own: median(&rounds),
                    to: first.0.to_owned(),
                    ratio: median(&ratios),
                    ratio_mad: spread(&ratios),
                    rounds,
                }
            })
            .collect();
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            rounds: first.1.len(),
            seconds,
            stolen,
            rows,
            notes: Vec::new(),
        }
    }

    /// Adds a line to what is printed below the rows.
    pub fn note(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }

    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Median and spread of the rounds' ratios of two rows' own times.
    pub fn ratio(&self, of: &str, to: &str) -> Option<(f64, f64)> {
        let ratios = ratios(&self.row(of)?.rounds, &self.row(to)?.rounds);
        Some((median(&ratios), spread(&ratios)))
    }
}

fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of / to).collect()
}

/// Fails once a signal has asked for an end: on the way out everything made is taken away.
pub fn go_on() -> Result<()> {
    if xtask::stop::requested() {
        bail!("stopped by a signal");
    }
    Ok(())
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    /// Nanoseconds of a slice.
    pub slice: f64,
}

/// Measures the probes, which are left with the number of packets that they ran.
pub fn measure(name: &str, effort: Effort, probes: &mut [Probe<'_>]) -> Result<Table> {
    let clock = Clock::start();
    for probe in &mut *probes {
        if probe.packets > 0 {
            probe.run(probe.packets)?;
            continue;
        }
        // Warms up, then aims at the slice.
        probe.run(100_000)?;
        let each = probe.run(200_000)?;
        probe.packets = ((effort.slice / each) as u32).max(1000);
    }
    for _ in 0..effort.rounds {
        for probe in &mut *probes {
            go_on()?;
            let ns = probe.run(probe.packets)? * f64::from(probe.per);
            probe.times.push(ns);
        }
    }
    let empty =
        |at: usize| probes.iter().find(|probe| probe.name == EMPTY).map_or(0.0, |probe| probe.times[at]);
    let own = |probe: &Probe<'_>| -> Vec<f64> {
        let base = probes.iter().find(|other| other.name == probe.base);
        let per = f64::from(probe.per);
        (0..effort.rounds)
            .map(|at| {
                let jig = base.map_or(0.0, |base| base.times[at] - empty(at));
                probe.times[at] - per * jig
            })
            .collect()
    };
    let rows = probes
        .iter()
        .map(|probe| {
            let rounds = own(probe);
            let to = probes.iter().find(|other| other.name == probe.to).map(&own);
            let ratios = to.map_or_else(Vec::new, |to| ratios(&rounds, &to));
            Row {
                name: probe.name.clone(),
                ns: median(&probe.times),
                mad: spread(&probe.times),
                best: least(&probe.times),
                own: median(&rounds),
                to: probe.to.clone(),
                ratio: median(&ratios),
                ratio_mad: spread(&ratios),
                rounds,
            }
        })
        .collect();
    let (seconds, stolen) = clock.stop();
    Ok(Table {
        name: name.to_owned(),
        unit: "ns".to_owned(),
        rounds: effort.rounds,
        seconds,
        stolen,
        rows,
        notes: Vec::new(),
    })
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, rounds, seconds, stolen, rows, notes } = self;
        writeln!(f, "\n{name}: {rounds} rounds, {seconds:.0} s, {stolen:.1} % stolen")?;
        writeln!(
            f,
            "  {:<44} {:>9} {:>7} {:>8} {:>9}  {:>6} {:>5}",
            "", unit, "MAD", "best", "own", "ratio", "MAD"
        )?;
        for Row { name, ns, mad, best, own, to, ratio, ratio_mad, rounds: _ } in rows {
            write!(f, "  {name:<44} {ns:>9.1} {mad:>7.1} {best:>8.1} {own:>9.1}")?;
            if ratio.is_nan() || name == to {
                writeln!(f)?;
            } else {
                writeln!(f, "  {ratio:>6.2} {ratio_mad:>5.2}  of {to}")?;
            }
        }
        for note in notes {
            writeln!(f, "  {note}")?;
        }
        Ok(())
    }
}
