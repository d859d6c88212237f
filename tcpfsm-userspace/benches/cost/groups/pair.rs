//! Two CPUs: on two flows, and on the two directions of one.

use std::{
    hint,
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
    rig::{Clock, Table, go_on},
    stats::{least, median},
    subject::{Sizes, Subject},
    sys,
};

const SHAPE: Shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };

/// One CPU's part.
struct Side {
    jig: Jig,
    cpu: usize,
}

/// Runs the first side's packets, and the other sides as long as that takes; gives its nanoseconds a packet.
fn together(sides: &[&Side], packets: u64) -> Result<f64> {
    let (ready, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let wanted = u32::try_from(sides.len())?;
    let begin = |side: &Side| -> Result<()> {
        sys::pin(side.cpu);
        side.jig.run(SHAPE, DATA, 1000)?;
        ready.fetch_add(1, Ordering::SeqCst);
        while ready.load(Ordering::SeqCst) < wanted {
            // A thread that is first everywhere must let the other go to its own CPU.
            thread::yield_now();
        }
        Ok(())
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let took = begin(sides[0]).and_then(|()| {
                let began = sys::thread_cpu();
                sides[0].jig.run(SHAPE, DATA, packets)?;
                Ok((sys::thread_cpu() - began) / packets as f64)
            });
            done.store(1, Ordering::SeqCst);
            took
        });
        let (begin, done) = (&begin, &done);
        let others: Vec<_> = sides[1..]
            .iter()
            .map(|side| {
                scope.spawn(move || {
                    begin(side)?;
                    while done.load(Ordering::SeqCst) == 0 {
                        side.jig.run(SHAPE, DATA, 5000)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let others: Result<Vec<()>> =
            others.into_iter().map(|thread| thread.join().expect("a side panicked")).collect();
        let took = first.join().expect("the first side panicked");
        others.and(took)
    })
}

/// How long what one CPU writes takes to reach the other: a word on a cache line of its own there, another back. Nanoseconds one
/// way.
fn one_way(turns: u32) -> f64 {
    #[repr(align(128))]
    struct Line(AtomicU32);
    let (there, back) = (Line(AtomicU32::new(0)), Line(AtomicU32::new(0)));
    let wait = |line: &Line, turn| {
        while line.0.load(Ordering::Acquire) != turn {
            hint::spin_loop();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            sys::pin(0);
            for turn in 1..=turns {
                wait(&there, turn);
                back.0.store(turn, Ordering::Release);
            }
        });
        let first = scope.spawn(|| {
            sys::pin(1);
            // The first turn waits for the other thread to be there.
            let mut began = 0.0;
            for turn in 1..=turns {
                there.0.store(turn, Ordering::Release);
                wait(&back, turn);
                if turn == 1 {
                    began = sys::now();
                }
            }
            (sys::now() - began) / f64::from(2 * (turns - 1))
        });
        first.join().expect("a side panicked")
    })
}

/// Data from the server of a settled flow, in order each turn.
fn data_back() -> Vec<Step> {
    let step = SHAPE.settling()[1];
    vec![Step { seq: step.seq + DATA, seq_turn: DATA, ..step }]
}

/// Data in both directions, one flow or two, one CPU or two. Raw times, the jig's and the test run's in them.
pub fn pair(bench: &Bench) -> Result<Table> {
    if sys::cpus() < 2 {
        bail!("this machine has one CPU");
    }
    let mut subject = Subject::load(&bench.object, &Sizes::default())?;
    // Flow 0 is carried by both CPUs, 1 and 2 by one each, 3 by one alone.
    subject.establish(&bench.floor, Layout::Ipv4, 4)?;
    // Not XDP: each test run of an XDP program waits for RCU, and the two would not run at the same time.
    let ingress = subject.program("tcpfsm_ingress")?;
    let egress = subject.program("tcpfsm_egress")?;
    let side = |flow: u32, cpu: usize, back: bool| -> Result<Side> {
        let mut jig = bench.floor.jig(if back { &egress } else { &ingress }, Layout::Ipv4)?;
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
    let clock = Clock::start();
    let (mut times, mut ways) = (vec![Vec::new(); cases.len()], Vec::new());
    for _ in 0..bench.rounds() {
        go_on()?;
        ways.push(one_way(20_000));
        for ((_, sides), times) in cases.iter().zip(&mut times) {
            times.push(together(sides, packets)?);
        }
    }
    let after = subject.counters()?;
    let tracked =
        |counters: &tcpfsm_common::abi::Counters| counters.packets.iter().map(|row| row[0]).sum::<u64>();
    let units = sides.iter().map(|side| side.jig.units()).sum::<Result<u64>>()?;
    let told: u64 = after.facts.iter().sum::<u64>() - before.facts.iter().sum::<u64>();
    let lost = after.health[Health::VerdictLost as usize];
    let seen = tracked(&after) - tracked(&before);
    if seen != units || told != 0 || lost != 0 {
        bail!("pair: {units} packets, {seen} tracked, {told} facts, {lost} verdicts lost");
    }
    // Neither CPU undid what the other wrote.
    let record = subject.record(Layout::Ipv4, 0)?;
    let client = super::established::client_end(Layout::Ipv4, 0);
    let sent = [record.sent_by(client).packets, record.sent_by(client.other()).packets];
    let expected = [3 + sides[3].jig.units()?, 2 + sides[4].jig.units()?];
    if sent != expected {
        bail!("pair: the ends of the same flow sent {expected:?} packets, the record says {sent:?}");
    }
    let names = cases.iter().map(|(name, _)| *name);
    let mut table = Table::of("pair", "ns", clock, names.zip(times).collect());
    table.notes.push(format!(
        "a word from one CPU to the other: {:.0} ns, {:.0} at best",
        median(&ways),
        least(&ways)
    ));
    Ok(table)
}
