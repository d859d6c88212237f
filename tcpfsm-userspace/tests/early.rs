//! While few handshakes hang they go straight into the flow map; more of them go into the embryonic one. Nobody who is told of
//! their connections can tell which way they went.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{thread, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use support::{Event, Kernel, Through, comparable, frame, pin, segments::parse};
use tcpfsm_common::{
    abi::{Health, KernelConfig, SweepRequest},
    flow::FlowKey,
    segment::TcpFlags as F,
};

/// Places for two handshakes in the flow map, and for none.
static TWO: KernelConfig = KernelConfig { early: 2, ..KernelConfig::NONE };
static NONE: KernelConfig = KernelConfig::NONE;

/// Keeps a test on one CPU, at the beginning of a slot of time rather than at its end.
fn settle_down() {
    pin(0);
    let second = || clock_gettime(ClockId::Monotonic).tv_sec as u64;
    while (second() * 1_000_000_000) >> 33 != ((second() + 3) * 1_000_000_000) >> 33 {
        thread::sleep(Duration::from_millis(100));
    }
}

fn key(network: u32) -> FlowKey {
    parse(&frame(network, true, [100, 0], F::SYN)[14..]).0
}

fn is_embryo(kernel: &Kernel, network: u32) -> bool {
    kernel.record(&key(network)).unwrap().1
}

fn syn(kernel: &Kernel, network: u32) -> bool {
    kernel.say(network, true, [100, 0], F::SYN);
    is_embryo(kernel, network)
}

#[test]
fn as_many_as_hang_go_into_the_flow_map_and_no_more() {
    needs_kernel!();
    settle_down();
    let kernel = Kernel::configured(&TWO);
    assert_eq!([1, 2, 3, 4].map(|network| syn(&kernel, network)), [false, false, true, true]);
    // What hangs no longer makes room: two that went there, and one that did not.
    for network in [1, 2, 3] {
        kernel.say(network, false, [500, 101], F::SYN | F::ACK);
        kernel.say(network, true, [101, 501], F::ACK);
        assert!(!is_embryo(&kernel, network), "it is connected");
    }
    assert_eq!([5, 6, 7].map(|network| syn(&kernel, network)), [false, false, true]);
    assert_eq!(kernel.counters().health[Health::Promoted as usize], 1);
    assert_eq!(kernel.missing(), [[0; 16]; 4], "the books are right");
}

#[test]
fn a_handshake_that_is_sent_again_stays_where_it_is() {
    needs_kernel!();
    settle_down();
    let kernel = Kernel::configured(&TWO);
    for network in [1, 2, 3, 3, 2, 1] {
        assert_eq!(syn(&kernel, network), network == 3);
    }
    assert_eq!(kernel.counters().health[Health::Inserted as usize], 3);
}

#[test]
fn a_handshake_that_found_no_place_is_found_again_by_its_mark() {
    needs_kernel!();
    settle_down();
    let kernel = Kernel::configured(&TWO);
    kernel.filter(|filter| filter.complete = 1);
    assert_eq!([1, 2, 3].map(|network| syn(&kernel, network)), [false, false, true]);
    // There is a place again, which it must not take.
    kernel.say(1, false, [500, 101], F::SYN | F::ACK);
    kernel.say(1, true, [101, 501], F::ACK);
    assert!(syn(&kernel, 3), "it was marked when it came");
    kernel.filter(|filter| filter.sets[1].fill(0));
    kernel.sweep(SweepRequest { number: 1, ..SweepRequest::default() });
    kernel.filter(|filter| filter.complete = 2);
    assert!(syn(&kernel, 3), "the sweep has marked it");
    assert_eq!(kernel.counters().health[Health::Inserted as usize], 3);
    assert_eq!(kernel.missing(), [[0; 16]; 4], "the books are right");
    // Where no mark is, nobody looks.
    kernel.filter(|filter| filter.sets[1].fill(0));
    assert!(!syn(&kernel, 3));
}

#[test]
fn both_ways_lead_to_the_same() {
    needs_kernel!();
    const FIN: u16 = F::FIN | F::ACK;
    const SYN_ACK: u16 = F::SYN | F::ACK;
    type Said = (bool, [u32; 2], u16);
    let (syn, syn_ack, ack): (Said, Said, Said) =
        ((true, [100, 0], F::SYN), (false, [500, 101], SYN_ACK), (true, [101, 501], F::ACK));
    let lives: [(&str, &[Said]); 6] = [
        (
            "an ordinary one",
            &[
                syn,
                syn_ack,
                ack,
                (true, [101, 501], FIN),
                (false, [501, 102], FIN),
                (true, [102, 502], F::ACK),
            ],
        ),
        ("all sent twice", &[syn, syn, syn_ack, syn_ack, ack, ack]),
        ("refused", &[syn, (false, [0, 101], F::RST | F::ACK)]),
        ("given up", &[syn, syn_ack, (true, [101, 0], F::RST)]),
        ("both at once", &[syn, (false, [500, 0], F::SYN), (true, [100, 501], SYN_ACK), syn_ack]),
        (
            "reset and begun again",
            &[syn, syn_ack, ack, (false, [501, 0], F::RST), (true, [9_000, 0], F::SYN)],
        ),
    ];
    settle_down();
    for (what, life) in lives {
        let [early, late] = [&TWO, &NONE].map(|config| {
            let mut kernel = Kernel::configured(config);
            for &(from_client, numbers, flags) in life {
                let through = if from_client { Through::TcIngress } else { Through::TcEgress };
                kernel.run(through, &frame(1, from_client, numbers, flags));
            }
            let told: Vec<_> = kernel
                .events()
                .into_iter()
                .map(|Event { event, closed }| {
                    let totals = closed.map(|closed| (closed.packets, closed.bytes, closed.facts));
                    (event.kind, event.before, event.after, event.facts, event.seq, event.ack, totals)
                })
                .collect();
            let (record, _) = kernel.record(&key(1)).unwrap();
            let counters = kernel.counters();
            (told, comparable(&record), counters.transitions, counters.facts, kernel.services())
        });
        assert_eq!(early, late, "{what}");
        assert!(!early.0.is_empty(), "{what}");
    }
}
