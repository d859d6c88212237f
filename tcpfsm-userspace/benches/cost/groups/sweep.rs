//! The walk over a million flows inside the kernel, beside a bare one.

use anyhow::{Result, bail};
use tcpfsm_common::{abi::SweepRequest, fsm::State};

use crate::{
    Bench,
    floor::Flows,
    frames::{DATA, Layout, Options, Shape},
    rig::{Clock, Table},
    subject::{Sizes, Subject, room, sweep},
    sys,
};

const SHAPE: Shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };

/// A sweep that finds nothing to do: what it costs to look.
fn request(number: u32) -> SweepRequest {
    let forever = u64::MAX / 4;
    let mut stuck = [forever; 16];
    // As the daemon asks by default.
    stuck[State::Established as usize] = 0;
    SweepRequest {
        now: sys::now() as u64,
        timeout: [forever; 16],
        stuck,
        idle: forever,
        unanswered: forever,
        rtx: u32::MAX,
        rtx_share: 5,
        number,
        report_every: 1000,
        conditions_every: 1000,
        ..SweepRequest::default()
    }
}

/// A million settled flows: ours, and the floor's walk over as many of 128 bytes.
pub fn walk(bench: &Bench) -> Result<Table> {
    let bits = if bench.quick { 14 } else { 20 };
    let mut subject = Subject::load(&bench.object, &Sizes { flows4: room(1 << bits), ..Sizes::default() })?;
    subject.establish(&bench.floor, Layout::Ipv4, 1 << bits)?;
    let ours = subject.program("tcpfsm_sweep")?;
    let mut floor = bench.floor.load(room(1 << bits), 1)?;
    let insert = floor.program("floor_insert_tc")?;
    let mut jig = bench.floor.jig(&insert, Layout::Ipv4)?;
    jig.play(Flows::InOrder { bits }, &SHAPE.data())?;
    jig.run(SHAPE, DATA, 1 << bits)?;
    let bare = floor.program("floor_walk")?;
    let clock = Clock::start();
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..bench.rounds() {
        let walked = floor.seen()?[1];
        times[0].push(sweep(&bare)? / 1e6);
        if floor.seen()?[1] - walked != 1 << bits {
            bail!("the bare walk saw {} of {} flows", floor.seen()?[1] - walked, 1_u64 << bits);
        }
        subject.prepare_sweep(request(u32::try_from(round)? + 1))?;
        times[1].push(sweep(&ours)? / 1e6);
        let report = subject.sweep_report()?;
        let established = report.states.iter().map(|side| side[4]).collect::<Vec<_>>();
        if report.flows != 1 << bits || report.expired != 0 || established != [1 << bits; 2] {
            bail!("the sweep saw {} of {} flows: {report:?}", report.flows, 1_u64 << bits);
        }
    }
    let [bare, ours] = times;
    Ok(Table::of("sweep", "ms", clock, vec![("bare walk", bare), ("sweep", ours)]))
}
