//! What full maps evict is counted: by state, exactly when it is calm, and never too much.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use support::{
    Kernel, Through, ethernet,
    segments::{ipv6, tcp},
};
use tcpfsm_common::{
    abi::{ByMapAndState, Counters, Health, STATE_SLOTS, SweepRequest, Verdict},
    fact::Fact,
    fsm::State,
    segment::TcpFlags as F,
};
use tcpfsm_userspace::kernel::evictions::{Evictions, NONE, connected};

/// Numbers of the maps.
const FLOWS4: usize = 0;
const EMBRYOS4: usize = 2;
const EMBRYOS6: usize = 3;

fn kernel(flows: u32, embryos: u32) -> Kernel {
    Kernel::load_with(|mut loader| {
        loader.map_max_entries("FLOWS4", flows).map_max_entries("EMBRYOS4", embryos);
        loader.map_max_entries("EMBRYOS6", embryos);
        loader
    })
}

/// Sweeps as the daemon does; nothing ends.
fn sweep(kernel: &Kernel, evictions: &mut Evictions) -> ByMapAndState {
    let came = kernel.counters().came;
    let there = kernel.sweep(SweepRequest { number: 1, ..SweepRequest::default() });
    evictions.swept(&came, &kernel.counters().went, &there)
}

/// Two sweeps while nothing moves.
fn count(kernel: &Kernel) -> ByMapAndState {
    let mut evictions = Evictions::default();
    sweep(kernel, &mut evictions);
    sweep(kernel, &mut evictions)
}

/// Flows in a map by state, as they are read from it.
fn there(kernel: &Kernel, map: &str) -> [u64; STATE_SLOTS] {
    let mut by_state = [0; STATE_SLOTS];
    for (_, record) in kernel.flows4(map) {
        by_state[Verdict(record.shared.verdict).flow_slot()] += 1;
    }
    by_state
}

/// Five times as many connections as there is room for, in four states.
#[test]
fn evicted_connections_are_counted_by_state() {
    needs_kernel!();
    let kernel = kernel(1_024, 1_024);
    let mut ended_in = [0_u64; STATE_SLOTS];
    for network in 1..=5_000 {
        kernel.connect(network);
        let state = match network % 4 {
            0 => State::Established,
            1 => {
                kernel.say(network, true, [101, 501], F::FIN | F::ACK);
                State::FinWait1
            }
            2 => {
                kernel.say(network, true, [101, 501], F::FIN | F::ACK);
                kernel.say(network, false, [501, 102], F::ACK);
                State::FinWait2
            }
            _ => {
                kernel.say(network, false, [501, 101], F::RST | F::ACK);
                State::Closed
            }
        };
        ended_in[state as usize] += 1;
    }
    let Counters { facts, .. } = kernel.counters();
    assert_eq!(facts[Fact::NoSession as usize], 0, "nobody was evicted while talking");
    assert_eq!(facts[Fact::MidstreamPickup as usize], 0, "nobody was evicted while talking");
    let evicted = count(&kernel);
    let there = there(&kernel, "FLOWS4");
    let expected = std::array::from_fn(|state| ended_in[state] - there[state]);
    assert_eq!(evicted[FLOWS4], expected);
    assert_eq!(evicted[FLOWS4].iter().sum::<u64>(), 5_000 - kernel.flows4("FLOWS4").len() as u64);
    assert_eq!(connected(&evicted), expected.iter().sum::<u64>() - expected[State::Closed as usize]);
    assert_eq!(evicted[EMBRYOS4], [0; STATE_SLOTS]);
}

/// Handshakes that are evicted were no connections.
#[test]
fn evicted_handshakes_are_counted_apart() {
    needs_kernel!();
    let mut kernel = kernel(1_024, 512);
    for network in 1..=100 {
        kernel.connect(network);
    }
    for network in 1_000..11_000 {
        kernel.say(network, true, [100, 0], F::SYN);
        if network % 2 == 0 {
            kernel.say(network, false, [500, 101], F::SYN | F::ACK);
        }
    }
    for network in 1..=3_000 {
        let segment = tcp((40_000, 443), 100, 0, F::SYN, 64_240, &[], 0);
        kernel.run(Through::Xdp, &ethernet(&ipv6(network, 1, 2, &segment)));
    }
    let evicted = count(&kernel);
    let there = there(&kernel, "EMBRYOS4");
    let of = |state: State| evicted[EMBRYOS4][state as usize];
    assert_eq!(of(State::SynSent), 5_000 - there[State::SynSent as usize]);
    assert_eq!(of(State::SynRecv), 5_000 - there[State::SynRecv as usize]);
    assert_eq!(evicted[EMBRYOS6].iter().sum::<u64>(), 3_000 - kernel.flows6("EMBRYOS6").len() as u64);
    assert_eq!((evicted[FLOWS4], connected(&evicted)), ([0; STATE_SLOTS], 0));
}

/// A map with room evicts nobody, whatever ends, expires, is picked up or opens again.
#[test]
fn without_evictions_nothing_is_counted() {
    needs_kernel!();
    let kernel = kernel(4_096, 4_096);
    let later = SweepRequest { now: u64::MAX / 2, timeout: [1; STATE_SLOTS], ..SweepRequest::default() };
    let mut evictions = Evictions::default();
    for round in 0..4 {
        for network in 1..=1_000 {
            match network % 4 {
                0 => kernel.say(network, true, [100, 0], F::SYN),
                // A stray, and in every other round what picks the connection up.
                1 => {
                    kernel.say(network, true, [100, 700], F::ACK);
                    if round % 2 == 0 {
                        kernel.say(network, false, [700, 100], F::ACK);
                    }
                }
                2 => kernel.connect(network),
                _ => {
                    kernel.connect(network);
                    kernel.say(network, false, [501, 101], F::FIN | F::ACK);
                    kernel.say(network, true, [101, 502], F::FIN | F::ACK);
                    kernel.say(network, false, [502, 102], F::ACK);
                    // Into the server's TIME-WAIT: a flow in the flow map that is in SYN-SENT.
                    kernel.say(network, true, [90_000, 0], F::SYN);
                }
            }
        }
        assert_eq!(kernel.missing(), NONE, "round {round}");
        // First everything times out, then it is removed.
        kernel.sweep(SweepRequest { number: 2, ..later });
        assert_eq!(kernel.missing(), NONE, "round {round}, all timed out");
        kernel.sweep(SweepRequest { number: 3, ..later });
        assert_eq!(kernel.missing(), NONE, "round {round}, all removed");
        assert_eq!(sweep(&kernel, &mut evictions), NONE);
    }
    let Counters { facts, .. } = kernel.counters();
    assert!(facts[Fact::MidstreamPickup as usize] > 0 && facts[Fact::TwReuse as usize] > 0);
}

/// Two CPUs open connections, most of them in vain, into maps that are far too small, while sweep follows sweep. What is
/// counted then is exactly what is missing: no sweep ever counted too much, since what was counted stays.
#[test]
fn sweeps_under_fire_never_count_too_much() {
    needs_kernel!();
    const EACH: u32 = 40_000;
    let kernel = kernel(2_048, 1_024);
    let firing = AtomicBool::new(true);
    let mut evictions = Evictions::default();
    let mut sweeps = 0;
    thread::scope(|scope| {
        let attackers = [1 << 20, 2 << 20].map(|first| {
            let kernel = &kernel;
            scope.spawn(move || {
                for network in first..first + EACH {
                    kernel.say(network, true, [100, 0], F::SYN);
                    if network % 8 == 0 {
                        kernel.say(network, false, [500, 101], F::SYN | F::ACK);
                        kernel.say(network, true, [101, 501], F::ACK);
                    }
                }
            })
        });
        scope.spawn(|| {
            attackers.into_iter().for_each(|attacker| attacker.join().unwrap());
            firing.store(false, Ordering::Relaxed);
        });
        while firing.load(Ordering::Relaxed) {
            sweep(&kernel, &mut evictions);
            sweeps += 1;
        }
    });
    sweep(&kernel, &mut evictions);
    let evicted = sweep(&kernel, &mut evictions);
    let there = (kernel.flows4("FLOWS4").len() + kernel.flows4("EMBRYOS4").len()) as u64;
    let total: u64 = evicted.as_flattened().iter().sum();
    // A few are evicted in the middle of their handshake, and come again.
    let inserted = kernel.counters().health[Health::Inserted as usize];
    println!("{inserted} flows, {there} there, {total} evicted, seen by {sweeps} sweeps");
    assert!(inserted >= u64::from(2 * EACH));
    assert_eq!(total, inserted - there);
    assert_eq!(evicted, kernel.missing());
    assert!(sweeps > 10, "{sweeps} sweeps");
    assert!(connected(&evicted) > 0);
}
