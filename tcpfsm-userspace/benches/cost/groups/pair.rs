//! Two CPUs: on two flows, and on the two directions of one.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Result, bail};
use tcpfsm_common::abi::Health;

use crate::{
    Bench,
    floor::Jig,
    frames::{DATA, Layout, Options, Shape},
    plan::Step,
    rig::{Row, Table},
    stats::{least, median, spread},
    subject::{Sizes, Subject},
    sys,
};

const SHAPE: Shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };

/// One CPU's part.
struct Side {
    jig: Jig,
    cpu: usize,
}

/// Runs all sides at once; gives the first one's nanoseconds a packet.
fn together(sides: &[&Side], packets: u64) -> Result<f64> {
    let ready = AtomicU32::new(0);
    let wanted = u32::try_from(sides.len())?;
    let times: Vec<Result<f64>> = thread::scope(|scope| {
        let ready = &ready;
        let threads: Vec<_> = sides
            .iter()
            .map(|side| {
                scope.spawn(move || {
                    sys::pin(side.cpu);
                    side.jig.run(SHAPE, DATA, 20_000)?;
                    ready.fetch_add(1, Ordering::SeqCst);
                    while ready.load(Ordering::SeqCst) < wanted {
                        std::hint::spin_loop();
                    }
                    let began = sys::thread_cpu();
                    side.jig.run(SHAPE, DATA, packets)?;
                    Ok((sys::thread_cpu() - began) / packets as f64)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a side panicked")).collect()
    });
    times.into_iter().next().expect("there is a first side")
}

/// Data from the server of a settled flow, in order each turn.
fn data_back() -> Vec<Step> {
    let step = SHAPE.settling()[1];
    vec![Step { seq: step.seq + DATA, seq_turn: DATA, ..step }]
}

/// Data in both directions, one flow or two, one CPU or two.
pub fn pair(bench: &Bench) -> Result<Table> {
    if sys::cpus() < 2 {
        bail!("this machine has one CPU");
    }
    let mut subject = Subject::load(&bench.object, &Sizes::default())?;
    // Flow 0 is carried by both CPUs, 1 and 2 by one each, 3 by one alone.
    subject.establish(&bench.floor, Layout::Ipv4, 2)?;
    let program = subject.program("tcpfsm_xdp")?;
    let egress = subject.program("tcpfsm_egress")?;
    let side = |flow: u32, cpu: usize, back: bool| -> Result<Side> {
        let mut jig = bench.floor.jig(if back { &egress } else { &program }, Layout::Ipv4)?;
        let script = if back { data_back() } else { SHAPE.data() };
        jig.play_one(flow, &script)?;
        Ok(Side { jig, cpu })
    };
    let sides =
        [side(3, 1, false)?, side(1, 1, false)?, side(2, 0, true)?, side(0, 1, false)?, side(0, 0, true)?];
    let cases: [(&str, Vec<&Side>); 3] = [
        ("one CPU", vec![&sides[0]]),
        ("two flows", vec![&sides[1], &sides[2]]),
        ("same flow", vec![&sides[3], &sides[4]]),
    ];
    let packets = if bench.quick { 100_000 } else { 700_000 };
    let before = subject.counters()?;
    let (began, stolen) = (sys::now(), sys::stolen());
    let rounds = bench.rounds();
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for ((_, sides), times) in cases.iter().zip(&mut times) {
            times.push(together(sides, packets)?);
        }
    }
    let seconds = (sys::now() - began) / 1e9;
    let after = subject.counters()?;
    let tracked =
        |counters: &tcpfsm_common::abi::Counters| counters.packets.iter().map(|row| row[0]).sum::<u64>();
    let expected = rounds as u64 * 5 * (packets + 20_000);
    let told: u64 = after.facts.iter().sum::<u64>() - before.facts.iter().sum::<u64>();
    let lost = after.health[Health::VerdictLost as usize];
    if tracked(&after) - tracked(&before) != expected || told != 0 || lost != 0 {
        bail!(
            "pair: {expected} packets, {} tracked, {told} facts, {lost} verdicts lost",
            tracked(&after) - tracked(&before)
        );
    }
    let rows = cases
        .iter()
        .zip(&times)
        .map(|((name, _), rounds)| {
            let ratios: Vec<f64> = rounds.iter().zip(&times[0]).map(|(ns, one)| ns / one).collect();
            Row {
                name: (*name).to_owned(),
                ns: median(rounds),
                mad: spread(rounds),
                best: least(rounds),
                own: median(rounds),
                to: "one CPU".to_owned(),
                ratio: median(&ratios),
                ratio_mad: spread(&ratios),
                rounds: rounds.clone(),
            }
        })
        .collect();
    Ok(Table {
        name: "pair".to_owned(),
        unit: "ns".to_owned(),
        rounds,
        seconds,
        stolen: (sys::stolen() - stolen) / seconds / sys::cpus() as f64 * 100.0,
        rows,
    })
}
