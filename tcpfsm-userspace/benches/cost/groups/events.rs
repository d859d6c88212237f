//! Events: what one costs, and how many get through from one core to another.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, RingBuf};
use tcpfsm_common::abi::Health;
use tcpfsm_userspace::source::live;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{
    Bench,
    floor::{Flows, Jig},
    frames::{DATA, Layout, Options, Shape},
    rig::{Clock, EMPTY, Probe, Table, go_on, measure},
    stats::median,
    subject::{Sizes, Subject},
    sys,
};

const SHAPE: Shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };
/// The daemon's while nothing comes.
const NAP: Duration = Duration::from_millis(80);
/// How long producer and consumer run at once.
const TOGETHER: f64 = 1.5e9;

/// Takes out what is there, as the daemon does; says how many.
fn take(ring: &mut RingBuf<MapData>) -> Result<u64> {
    let mut count = 0;
    while let Some(record) = ring.next() {
        if live::parse(&record).is_err() {
            bail!("a record that is none of ours");
        }
        count += 1;
    }
    Ok(count)
}

/// What one event costs the packet that sends it, and the core that takes it out.
pub fn cost(bench: &Bench) -> Result<Table> {
    let mut floor = bench.floor.load(1, 1)?;
    let (empty, parse, event) =
        (floor.program("floor_empty")?, floor.program("floor_parse")?, floor.program("floor_event")?);
    let ring = floor.object().take_map("FLOOR_EVENTS").context("no map FLOOR_EVENTS")?;
    let mut ring = RingBuf::try_from(ring)?;
    let mut drains = Vec::new();
    let mut probes = vec![
        Probe::new(EMPTY, &empty, SHAPE.frame(DATA)),
        Probe::new("parse", &parse, SHAPE.frame(DATA)).to(EMPTY),
        Probe::new("parse, event", &event, SHAPE.frame(DATA)).to("parse").packets(120_000).between(|| {
            let began = sys::thread_cpu();
            let count = take(&mut ring)?;
            drains.push((sys::thread_cpu() - began) / count as f64);
            Ok(())
        }),
    ];
    let table = measure("event", bench.effort(20e6), &mut probes)?;
    drop(probes);
    let each = median(&drains);
    Ok(table
        .note(format!("taking an event out and parsing it: {each:.1} ns, {:.1} M/s on one core", 1e3 / each)))
}

/// What came of producing on one core and consuming on another.
#[derive(Clone, Copy)]
struct Flow {
    offered: f64,
    taken: f64,
    lost: f64,
    producer: f64,
    consumer: f64,
}

/// Takes out what comes until it is to stop: naps, unless the ring fills, as the daemon does.
async fn consume(ring: RingBuf<MapData>, stop: &AtomicBool) -> Result<(RingBuf<MapData>, u64)> {
    // SAFETY: the map owns its descriptor and keeps it.
    let (mut ring, mut taken) = (unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?, 0);
    while !stop.load(Ordering::Relaxed) {
        taken += take(ring.get_mut())?;
        if let Ok(filled) = timeout(NAP, ring.readable()).await {
            filled?.clear_ready();
        }
    }
    let mut ring = ring.into_inner();
    taken += take(&mut ring)?;
    Ok((ring, taken))
}

/// Produces on the last CPU, with `make` a slice at a time; consumes on CPU 0.
fn together(
    ring: RingBuf<MapData>,
    mut make: impl FnMut() -> Result<()>,
) -> Result<(RingBuf<MapData>, u64, [f64; 3])> {
    let (ready, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let consumer = scope.spawn(|| -> Result<(RingBuf<MapData>, u64, f64)> {
            sys::pin(0);
            ready.store(true, Ordering::Relaxed);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (ring, taken) = runtime.block_on(consume(ring, &stop))?;
            Ok((ring, taken, sys::thread_cpu()))
        });
        while !ready.load(Ordering::Relaxed) {
            // It begins on this CPU, where nobody comes before us.
            thread::yield_now();
        }
        let (began, cpu) = (sys::now(), sys::thread_cpu());
        let mut made = Ok(());
        while made.is_ok() && sys::now() - began < TOGETHER {
            made = make();
        }
        let (wall, producer) = (sys::now() - began, sys::thread_cpu() - cpu);
        stop.store(true, Ordering::Relaxed);
        let (ring, taken, consumer) = consumer.join().expect("the consumer panicked")?;
        made?;
        Ok((ring, taken, [wall, producer, consumer]))
    })
}

impl Flow {
    fn new(taken: u64, lost: u64, [wall, producer, consumer]: [f64; 3]) -> Self {
        Self {
            offered: (taken + lost) as f64 / wall * 1e9,
            taken: taken as f64 / wall * 1e9,
            lost: 100.0 * lost as f64 / (taken + lost).max(1) as f64,
            producer: 100.0 * producer / wall,
            consumer: 100.0 * consumer / wall,
        }
    }

    fn note(flows: &[Self], name: &str) -> String {
        let of = |pick: fn(&Self) -> f64| median(&flows.iter().map(pick).collect::<Vec<_>>());
        format!(
            "{name}: {:.2} M/s offered, {:.2} M/s taken, {:.2} % lost; producer {:.0} % of a core, consumer {:.0} %",
            of(|flow| flow.offered) / 1e6,
            of(|flow| flow.taken) / 1e6,
            of(|flow| flow.lost),
            of(|flow| flow.producer),
            of(|flow| flow.consumer),
        )
    }
}

/// From one core to another: the floor's events as fast as they come and five million a second, the tracker's as fast as
/// they come.
pub fn through(bench: &Bench) -> Result<Vec<Table>> {
    if sys::cpus() < 2 {
        bail!("this machine has one CPU");
    }
    let clock = Clock::start();
    let rounds = if bench.quick { 1 } else { bench.rounds().min(5) };
    let mut floor = bench.floor.load(1, 1)?;
    let event = floor.program("floor_event_tc")?;
    let mut ring =
        RingBuf::try_from(floor.object().take_map("FLOOR_EVENTS").context("no map FLOOR_EVENTS")?)?;
    let frame = SHAPE.frame(DATA);
    let (mut paced, mut flat_out, mut tracked) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        go_on()?;
        for (flows, at) in [(&mut paced, 5e6), (&mut flat_out, f64::INFINITY)] {
            let before = floor.seen()?;
            let (began, mut sent) = (sys::now(), 0.0);
            let make = || {
                while (sys::now() - began) * at / 1e9 < sent {
                    std::hint::spin_loop();
                }
                sent += 2000.0;
                sys::test_run(event.raw(), &frame, 2000).map(drop).context("test run")
            };
            let (back, taken, times) = together(ring, make)?;
            ring = back;
            let after = floor.seen()?;
            if after[3] - before[3] != taken {
                bail!("{} events sent, {taken} taken", after[3] - before[3]);
            }
            flows.push(Flow::new(taken, after[4] - before[4], times));
        }
        tracked.push(flood(bench)?);
    }
    let rate = |flows: &[Flow]| flows.iter().map(|flow| flow.taken / 1e6).collect::<Vec<_>>();
    let rows = vec![
        ("floor, 5 M/s", rate(&paced)),
        ("floor, flat out", rate(&flat_out)),
        ("tracker, SYNs flat out", rate(&tracked)),
    ];
    let lost = |flows: &[Flow]| flows.iter().map(|flow| flow.lost).collect::<Vec<_>>();
    let losses = vec![
        ("floor, 5 M/s", lost(&paced)),
        ("floor, flat out", lost(&flat_out)),
        ("tracker, SYNs flat out", lost(&tracked)),
    ];
    Ok(vec![
        Table::of("events", "M/s", clock, rows)
            .note(Flow::note(&paced, "floor, 5 M/s"))
            .note(Flow::note(&flat_out, "floor, flat out"))
            .note(Flow::note(&tracked, "tracker, SYNs flat out")),
        Table::of("events-lost", "%", clock, losses),
    ])
}

/// The tracker's events of a SYN flood.
fn flood(bench: &Bench) -> Result<Flow> {
    let mut subject = Subject::load(&bench.object, &Sizes::default())?;
    let program = subject.program("tcpfsm_ingress")?;
    let mut jig: Jig = bench.floor.jig(&program, Layout::Ipv4)?;
    jig.play(Flows::Fresh { first: 0 }, &SHAPE.syn())?;
    let ring = subject.take_ring()?;
    let (_, taken, times) = together(ring, || jig.run(SHAPE, DATA, 2000))?;
    let counters = subject.counters()?;
    let health = |which: Health| counters.health[which as usize];
    if health(Health::EventsSent) != taken {
        bail!("{} events sent, {taken} taken", health(Health::EventsSent));
    }
    Ok(Flow::new(taken, health(Health::EventsLost), times))
}
