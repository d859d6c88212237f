//! Ten million flows in the maps.

use anyhow::{Result, bail};

use crate::{
    Bench,
    floor::{Flows, Jig, Loaded},
    frames::{DATA, Layout, Options, Shape},
    rig::{EMPTY, Probe, Table, measure},
    subject::{Expect, Sizes, Subject, room},
};

const SHAPE: Shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };

/// Data of random flows out of eight million, with ten million in the map; and what a flow takes.
pub fn scale(bench: &Bench) -> Result<Table> {
    let (count, bits) = if bench.quick { (40_000, 15) } else { (10_000_000, 23) };
    let mut floor = bench.floor.load(room(count), 1)?;
    let filler = floor.program("floor_insert_tc")?;
    let mut jig = bench.floor.jig(&filler, Layout::Ipv4)?;
    jig.play(Flows::Fresh { first: 0 }, &SHAPE.data())?;
    jig.run(SHAPE, DATA, u64::from(count))?;
    let mut subject = Subject::load(&bench.object, &Sizes { flows4: room(count), ..Sizes::default() })?;
    subject.establish(&bench.floor, Layout::Ipv4, count)?;
    let (empty, lookup) = (floor.program("floor_empty")?, floor.program("floor_lookup")?);
    let ours = subject.program("tcpfsm_xdp")?;
    let jig = |program: &Loaded| -> Result<Jig> {
        let mut jig = bench.floor.jig(program, Layout::Ipv4)?;
        jig.play(Flows::Mixed { bits }, &SHAPE.data())?;
        Ok(jig)
    };
    let (bare, l, data) = (jig(&empty)?, jig(&lookup)?, jig(&ours)?);
    let frame = || SHAPE.frame(DATA);
    let mut probes = vec![
        Probe::new(EMPTY, &empty, frame()),
        Probe::new("jig", bare.program(), frame()),
        Probe::new("L", l.program(), frame()).base("jig"),
        Probe::new("data", data.program(), frame()).base("jig"),
    ];
    let (expect, missed) = (Expect::begin(&subject, None)?, floor.seen()?[0]);
    let table = measure("scale", bench.effort(100e6), &mut probes)?;
    expect.nothing_but(&subject, probes[3].ran, "data")?;
    if floor.seen()?[0] != missed {
        bail!("scale: {} lookups of the floor missed", floor.seen()?[0] - missed);
    }
    let bytes = subject.map_bytes("FLOWS4")?;
    let each = bytes as f64 / f64::from(count);
    Ok(table.note(format!(
        "{count} flows; the map takes {:.0} MB: {each:.0} bytes a flow at this filling, {:.0} at the full map",
        bytes as f64 / 1e6,
        bytes as f64 / f64::from(room(count))
    )))
}
