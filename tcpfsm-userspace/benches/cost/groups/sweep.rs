//! The walk over a million flows inside the kernel, beside a bare one, and how long packets wait for it.

use std::{
    net::UdpSocket,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tcpfsm_common::{abi::SweepRequest, fsm::State};
use xtask::lab::Lab;

use crate::{
    Bench,
    floor::Flows,
    frames::{DATA, Layout, Options, Shape},
    rig::{Clock, Table, go_on},
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

/// The CPU that walks and takes packets in, and the one that sends them and waits.
const CPUS: [usize; 2] = [0, 1];

/// How long packets are looked at while nothing walks.
const CALM: Duration = Duration::from_millis(100);

/// A million settled flows: ours, and the floor's walk over as many of 128 bytes.
pub fn walk(bench: &Bench) -> Result<Vec<Table>> {
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
        go_on()?;
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
    let [bare, walked] = times;
    let times = Table::of("sweep", "ms", clock, vec![("bare walk", bare), ("sweep", walked)]);

    let lab = Lab::new("bench").context("the lab")?;
    let packets = Packets::start(&lab)?;
    std::thread::sleep(CALM);
    packets.slowest()?;
    let clock = Clock::start();
    let mut waits = [Vec::new(), Vec::new()];
    sys::pin(CPUS[0]);
    for round in 0..bench.rounds() {
        go_on()?;
        std::thread::sleep(CALM);
        waits[0].push(packets.slowest()?);
        subject.prepare_sweep(request(u32::try_from(bench.rounds() + round)? + 1))?;
        sweep(&ours)?;
        // One that waited for its end comes now.
        std::thread::sleep(CALM / 10);
        waits[1].push(packets.slowest()?);
    }
    sys::unpin();
    let [calm, sweeping] = waits;
    let rows = vec![("no sweep", calm), ("sweep on the packets' CPU", sweeping)];
    Ok(vec![times, Table::of("sweep-wait", "ms", clock, rows)])
}

/// A datagram at a time, from one CPU to itself through the softirq of another.
struct Packets {
    stop: Arc<AtomicBool>,
    slowest: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Packets {
    fn start(lab: &Lab) -> Result<Self> {
        let steer = format!("echo {:x} > /sys/class/net/lo/queues/rx-0/rps_cpus", 1 << CPUS[0]);
        let name = lab.a().name();
        let steered = Command::new("ip").args(["netns", "exec", name, "sh", "-c", &steer]).status()?;
        if !steered.success() {
            bail!("packets of {name} cannot be steered to one CPU");
        }
        let socket = lab.a().run(|| UdpSocket::bind("127.0.0.1:0"))??;
        socket.connect(socket.local_addr()?)?;
        let (stop, slowest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, slowest) = (Arc::clone(&stop), Arc::clone(&slowest));
            move || {
                sys::pin(CPUS[1]);
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    socket.send(&[0; 8]).expect("sent to itself");
                    socket.recv(&mut [0; 8]).expect("received from itself");
                    slowest.fetch_max(sent.elapsed().as_nanos() as u64, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { stop, slowest, thread: Some(thread) })
    }

    /// How long the slowest datagram since the last call took, in milliseconds.
    fn slowest(&self) -> Result<f64> {
        let slowest = self.slowest.swap(0, Ordering::Relaxed);
        if slowest == 0 {
            bail!("no datagram came through");
        }
        Ok(slowest as f64 / 1e6)
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
