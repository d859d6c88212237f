//! Both directions of one connection from two CPUs at once: what comes out is what comes out one after the other.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::HashMap,
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use support::{
    Event, Kernel, Through, ethernet,
    segments::{ipv4, parse, tcp},
};
use tcpfsm_common::{
    abi::{CloseReason, Counters, FlowRecord, Health, KernelConfig, Verdict},
    flow::{End, FlowKey},
    fsm::State,
    segment::TcpFlags as F,
};
use tcpfsm_userspace::kernel::evictions::NONE;

/// Set to run ten million segments instead of half a million.
const FULL: &str = "TCPFSM_TEST_FULL";

/// How often each segment of a connection is sent. The copies are retransmissions: to the machine, each is news or not
/// by what the other CPU did meanwhile.
const COPIES: u32 = 50;

const CLIENT_ISS: u32 = 0xffff_fff0;
const SERVER_ISS: u32 = 7_000;
const DATA: u32 = 100;

/// One segment: flags, sequence and acknowledgment number relative to the ends' initial ones, payload.
type Said = (u16, u32, u32, u32);

/// What both ends say at once, in one phase of a connection.
struct Phase {
    client: &'static [Said],
    server: &'static [Said],
}

/// A connection that both ends close at once. No segment acknowledges anything that was not sent in an earlier phase.
const LIFE: &[Phase] = &[
    Phase { client: &[(F::SYN, 0, 0, 0)], server: &[] },
    Phase { client: &[], server: &[(F::SYN | F::ACK, 0, 1, 0)] },
    // Here the flow is promoted, while the other end is talking.
    Phase {
        client: &[(F::ACK, 1, 1, 0), (F::ACK | F::PSH, 1, 1, DATA)],
        server: &[(F::ACK | F::PSH, 1, 1, DATA), (F::ACK | F::PSH, 1 + DATA, 1, DATA)],
    },
    Phase {
        client: &[(F::ACK, 1 + DATA, 1 + 2 * DATA, 0), (F::ACK | F::PSH, 1 + DATA, 1 + 2 * DATA, DATA)],
        server: &[(F::ACK, 1 + 2 * DATA, 1 + DATA, 0), (F::ACK | F::PSH, 1 + 2 * DATA, 1 + DATA, DATA)],
    },
    Phase {
        client: &[(F::FIN | F::ACK, 1 + 2 * DATA, 1 + 2 * DATA, 0)],
        server: &[(F::FIN | F::ACK, 1 + 3 * DATA, 1 + DATA, 0)],
    },
    Phase {
        client: &[(F::ACK, 2 + 2 * DATA, 2 + 3 * DATA, 0)],
        server: &[(F::ACK, 2 + 3 * DATA, 2 + 2 * DATA, 0)],
    },
];

/// The frames of one end's part of a connection, by phase.
struct Part {
    through: Through,
    phases: Vec<Vec<Vec<u8>>>,
}

impl Part {
    fn new(network: u32, from_client: bool) -> Self {
        let phases = LIFE
            .iter()
            .map(|phase| {
                let said = if from_client { phase.client } else { phase.server };
                said.iter().map(|segment| ethernet(&packet(network, from_client, *segment))).collect()
            })
            .collect();
        // Not XDP: repeated test runs of XDP programs wait for RCU each time, and the two would never meet.
        Self { through: if from_client { Through::TcEgress } else { Through::TcIngress }, phases }
    }

    fn say(&self, kernel: &Kernel, phase: usize) {
        for frame in &self.phases[phase] {
            kernel.repeat_shared(self.through, frame, COPIES);
        }
    }
}

fn packet(network: u32, from_client: bool, (flags, seq, ack, len): Said) -> Vec<u8> {
    let (ports, hosts, own, other) = if from_client {
        ((40_000, 443), (1, 2), CLIENT_ISS, SERVER_ISS)
    } else {
        ((443, 40_000), (2, 1), SERVER_ISS, CLIENT_ISS)
    };
    let ack = if flags & F::ACK == 0 { 0 } else { other.wrapping_add(ack) };
    let segment = tcp(ports, own.wrapping_add(seq), ack, flags, 64_240, &[], len as usize);
    // Without an identification: a copy is a retransmission, not the same packet seen twice.
    ipv4(network, hosts.0, hosts.1, 0, &segment)
}

fn key(network: u32) -> FlowKey {
    parse(&packet(network, true, LIFE[0].client[0])).0
}

/// Puts this thread on a CPU, before whoever else is there: else the two would hardly ever run at the same time.
fn pin_first(cpu: usize) {
    support::pin(cpu);
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads `first`. Where it is not allowed, the test takes longer and finds less.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) };
}

/// Waits until both threads have come here `times` times.
fn meet(here: &AtomicU64, times: u64) {
    here.fetch_add(1, Ordering::SeqCst);
    while here.load(Ordering::SeqCst) < 2 * times {
        // A thread that is first everywhere must let the other go to its own CPU.
        thread::yield_now();
    }
}

/// A thread that fails lets the other one go on: it would wait for ever, ahead of everybody else on its CPU.
struct Release<'a>(&'a AtomicU64);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(u64::MAX / 2, Ordering::SeqCst);
        }
    }
}

/// What an end sent: next, contiguous and acknowledged sequence number, packets, bytes.
type Sent = (u32, u32, u32, u64, u64);

/// What was made of a connection, times and interface aside.
fn outcome(record: &FlowRecord) -> (State, State, CloseReason, [Sent; 2]) {
    let verdict = Verdict(record.shared.verdict);
    let sent = record.sent.map(|sent| (sent.nxt.0, sent.contig.0, sent.ack.0, sent.packets, sent.bytes));
    (verdict.state(End::Low), verdict.state(End::High), verdict.close_reason(), sent)
}

/// States and generation before and after a change, and when it was.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Move {
    time: u64,
    before: u64,
    after: u64,
}

/// Every event that tells of a change.
fn moves(events: &[Event]) -> HashMap<FlowKey, Vec<Move>> {
    let mut moves: HashMap<_, Vec<_>> = HashMap::new();
    for Event { event, .. } in events {
        let word = |verdict: u64| verdict & Verdict::STATES_AND_GENERATION;
        let (before, after) = (word(event.before), word(event.after));
        if before != after {
            moves.entry(event.key()).or_default().push(Move { time: event.time, before, after });
        }
    }
    moves
}

/// Each change told once, and none dated before the one that it rests on: by their times the events are one path.
fn assert_one_path(network: u32, moves: &[Move], end: u64) {
    let mut at = 0;
    for Move { before, after, .. } in moves {
        assert_eq!(*before, at, "flow {network}: no path: {moves:x?}");
        at = *after;
    }
    assert_eq!(at, end & Verdict::STATES_AND_GENERATION, "flow {network}: {moves:x?}");
}

fn transitions(counters: &Counters) -> u64 {
    counters.transitions.as_flattened().as_flattened().iter().sum()
}

/// Handshakes in the embryonic map and events in the ring; and as the daemon has it, straight in the flow map and in lanes.
static LATE: KernelConfig = KernelConfig::NONE;
static EARLY: KernelConfig = KernelConfig { early: 1 << 20, lanes: 2, ..KernelConfig::NONE };

/// All events there are.
fn drain(kernel: &mut Kernel, read: &mut [u64]) -> Vec<Event> {
    let mut events = kernel.take_lanes(read);
    events.extend(kernel.events());
    events
}

#[test]
fn two_cpus_end_where_one_does() {
    needs_kernel!();
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        println!("skipped: one CPU only");
        return;
    }
    for config in [&LATE, &EARLY] {
        ends_where_one_does(config);
    }
}

fn ends_where_one_does(config: &'static KernelConfig) {
    let per_flow: u32 =
        LIFE.iter().map(|phase| (phase.client.len() + phase.server.len()) as u32 * COPIES).sum();
    let segments = if env::var_os(FULL).is_some() { 10_000_000 } else { 500_000 };
    let flows = segments / per_flow + 1;
    let mut kernel = Kernel::configured(config);
    let mut read = vec![0; config.lanes as usize];

    // One after the other, the client first, and the server first: where a connection must end.
    let alone = [flows, flows + 1].map(|network| {
        let (client, server) = (Part::new(network, true), Part::new(network, false));
        for phase in 0..LIFE.len() {
            let both = if network == flows { [&client, &server] } else { [&server, &client] };
            for part in both {
                part.say(&kernel, phase);
            }
        }
        outcome(&kernel.record(&key(network)).unwrap().0)
    });
    assert_eq!(alone[0], alone[1], "the order within a phase does not matter");
    assert_eq!((alone[0].0, alone[0].1), (State::TimeWait, State::TimeWait));
    drain(&mut kernel, &mut read);

    let before = kernel.counters();
    let mut told: HashMap<FlowKey, Vec<Move>> = HashMap::new();
    let mut events = 0;
    let here = AtomicU64::new(0);
    let mut met = 0;
    // In parts, so that the ring never runs over.
    let part = 500;
    for first in (0..flows).step_by(part as usize) {
        let networks = first..flows.min(first + part);
        thread::scope(|scope| {
            for (cpu, from_client) in [(0, true), (1, false)] {
                let (kernel, here, networks, mut met) = (&kernel, &here, networks.clone(), met);
                scope.spawn(move || {
                    let _release = Release(here);
                    pin_first(cpu);
                    for network in networks {
                        let part = Part::new(network, from_client);
                        for phase in 0..LIFE.len() {
                            met += 1;
                            meet(here, met);
                            part.say(kernel, phase);
                        }
                    }
                });
            }
        });
        met += u64::from(networks.end - networks.start) * LIFE.len() as u64;
        let drained = drain(&mut kernel, &mut read);
        events += drained.len() as u64;
        for (key, moves) in moves(&drained) {
            told.entry(key).or_default().extend(moves);
        }
    }

    let after = kernel.counters();
    let health = |which: Health| after.health[which as usize] - before.health[which as usize];
    println!(
        "{} segments on {flows} flows, {events} events, {} verdicts worked out again",
        u64::from(flows) * u64::from(per_flow),
        health(Health::VerdictRetries)
    );
    assert_eq!(health(Health::VerdictLost), 0);
    assert_eq!(health(Health::InsertFailed), 0);
    assert_eq!(health(Health::EventsLost), 0);
    assert_eq!(health(Health::EventsSent), events, "every event counted, every counted event there");
    let promoted = if config.early == 0 { flows } else { 0 };
    assert_eq!(health(Health::Promoted), u64::from(promoted), "each flow promoted once, or none");
    assert_eq!(read.iter().any(|&read| read > 0), config.lanes > 0, "lanes are used if there are any");
    let seen = |counters: &Counters| counters.packets.as_flattened().iter().sum::<u64>();
    assert_eq!(seen(&after) - seen(&before), u64::from(flows) * u64::from(per_flow));
    assert_eq!(after.closed.iter().sum::<u64>() - before.closed.iter().sum::<u64>(), u64::from(flows));

    let mut wrong = 0;
    let mut moved = 0;
    for network in 0..flows {
        let (record, embryonic) = kernel.record(&key(network)).unwrap();
        assert!(!embryonic, "flow {network} is in the wrong map");
        let verdict = Verdict(record.shared.verdict);
        if outcome(&record) != alone[0] {
            wrong += 1;
            if wrong < 5 {
                println!("flow {network}: {:?}\ninstead of {:?}", outcome(&record), alone[0]);
            }
        }
        let mut moves = told.remove(&key(network)).unwrap_or_default();
        moves.sort();
        assert_one_path(network, &moves, verdict.0);
        for Move { before, after, .. } in moves {
            let (before, after) = (Verdict(before), Verdict(after));
            moved +=
                [End::Low, End::High].iter().filter(|end| before.slot(**end) != after.slot(**end)).count()
                    as u64;
        }
    }
    assert_eq!(moved, transitions(&after) - transitions(&before), "each transition counted once");
    assert_eq!(kernel.missing(), NONE, "every flow is in the books once");
    assert_eq!(wrong, 0, "{wrong} of {flows} flows ended otherwise than one after the other");
}
