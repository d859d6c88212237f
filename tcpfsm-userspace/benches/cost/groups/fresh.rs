//! Flows that are new: SYNs into a full map, whole connections.

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::abi::Health;
use tcpfsm_userspace::config::Config;

use crate::{
    Bench,
    floor::{Flows, Jig, Loaded},
    frames::{DATA, Layout, Options, Shape},
    plan::Step,
    rig::{EMPTY, Probe, Table, measure},
    subject::{Sizes, Subject},
};

const PLAIN: Shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };

/// Plays a script on so many flows never seen before, then readies a jig to go on with others. The two programs share
/// their maps; the first is for TC: each test run of an XDP program waits for RCU.
fn filled(
    bench: &Bench,
    [filler, measured]: [&Loaded; 2],
    script: &[Step],
    units: u32,
    mut between: impl FnMut() -> Result<()>,
) -> Result<Jig> {
    let mut jig = bench.floor.jig(filler, Layout::Ipv4)?;
    jig.play(Flows::Fresh { first: 0 }, script)?;
    let mut left = units;
    while left > 0 {
        let now = left.min(1 << 14);
        jig.run(PLAIN, DATA, u64::from(now) * script.len() as u64)?;
        between()?;
        left -= now;
    }
    let mut jig = bench.floor.jig(measured, Layout::Ipv4)?;
    jig.play(Flows::Fresh { first: units }, script)?;
    Ok(jig)
}

/// SYNs from addresses never seen, into maps of a million that are full; whole connections.
pub fn new(bench: &Bench) -> Result<Table> {
    let entries: u32 = if bench.quick { 1 << 16 } else { 1 << 20 };
    let full = entries + entries / 10;
    let (syn, connection) = (PLAIN.syn(), PLAIN.connection());
    let length = connection.len();
    let mut floor = bench.floor.load(entries, 1)?;
    let (empty, insert) = (floor.program("floor_empty")?, floor.program("floor_insert")?);
    let filler = floor.program("floor_insert_tc")?;
    let mut jig = bench.floor.jig(&empty, Layout::Ipv4)?;
    jig.play(Flows::Fresh { first: 0 }, &syn)?;
    let mut jig_connection = bench.floor.jig(&empty, Layout::Ipv4)?;
    jig_connection.play(Flows::Fresh { first: 0 }, &connection)?;
    let floor_syn = filled(bench, [&filler, &insert], &syn, full, || Ok(()))?;
    let mut floor_connections = bench.floor.load(entries, 1)?;
    let insert_connections = floor_connections.program("floor_insert")?;
    let filler = floor_connections.program("floor_insert_tc")?;
    let floor_connection = filled(bench, [&filler, &insert_connections], &connection, full, || Ok(()))?;

    // As the daemon loads it: of a flood's events a part is told.
    let event_quota = Config::default().event_quota;
    let flood =
        Tracker::new(bench, Sizes { embryos4: entries, event_quota, ..Sizes::default() }, &syn, full)?;
    let life = Tracker::new(bench, Sizes { flows4: entries, ..Sizes::default() }, &connection, full)?;
    let frame = || PLAIN.frame(DATA);
    // No more at once than the ring holds: drained between the slices, off the clock.
    let mut probes = vec![
        Probe::new(EMPTY, &empty, frame()),
        Probe::new("jig", jig.program(), frame()),
        Probe::new("jig, connection", jig_connection.program(), frame()),
        Probe::new("insert, map full", floor_syn.program(), frame()).base("jig").packets(100_000),
        Probe::new("one insert, then lookups", floor_connection.program(), frame())
            .base("jig, connection")
            .packets(13 * 10_000)
            .per(length),
        Probe::new("SYN, map full", flood.jig.program(), frame())
            .base("jig")
            .to("insert, map full")
            .packets(100_000)
            .between(flood.drain()),
        Probe::new("connection of 13 packets", life.jig.program(), frame())
            .base("jig, connection")
            .to("one insert, then lookups")
            .packets(13 * 10_000)
            .per(length)
            .between(life.drain()),
    ];
    let (flood_before, life_before) = (flood.counters()?, life.counters()?);
    let table = measure("new", bench.effort(40e6), &mut probes)?;
    let (syns, packets) = (probes[5].ran, probes[6].ran);
    drop(probes);
    let (flood_after, life_after) = (flood.counters()?, life.counters()?);
    let inserted =
        flood_after.health[Health::Inserted as usize] - flood_before.health[Health::Inserted as usize];
    if inserted != syns {
        bail!("{syns} SYNs, {inserted} flows put into the map");
    }
    let connections = packets / length as u64;
    for (what, counted) in [
        (
            "promoted",
            life_after.health[Health::Promoted as usize] - life_before.health[Health::Promoted as usize],
        ),
        ("closed", life_after.closed.iter().sum::<u64>() - life_before.closed.iter().sum::<u64>()),
    ] {
        if counted != connections {
            bail!("{connections} connections, {counted} {what}");
        }
    }
    Ok(table)
}

/// The tracker behind a jig, with its ring drained between slices.
struct Tracker {
    subject: Rc<RefCell<Subject>>,
    jig: Jig,
}

impl Tracker {
    fn new(bench: &Bench, sizes: Sizes, script: &[Step], full: u32) -> Result<Self> {
        let mut subject = Subject::load(&bench.object, &Sizes { ring: 64 << 20, ..sizes })?;
        let (filler, program) = (subject.program("tcpfsm_ingress")?, subject.program("tcpfsm_xdp")?);
        let subject = Rc::new(RefCell::new(subject));
        let drained = Rc::clone(&subject);
        let jig = filled(bench, [&filler, &program], script, full, || drained.borrow_mut().drain().map(drop))
            .context("fill the tracker's map")?;
        Ok(Self { subject, jig })
    }

    fn drain(&self) -> impl FnMut() -> Result<()> + 'static {
        let subject = Rc::clone(&self.subject);
        move || subject.borrow_mut().drain().map(drop)
    }

    fn counters(&self) -> Result<tcpfsm_common::abi::Counters> {
        self.subject.borrow().counters()
    }
}
