//! Packets seen twice, and a socket that talks to itself: through the machine and through the kernel programs.

use std::time::{Duration, Instant};

use tcpfsm_common::{
    abi::{FlowRecord, Hook, Tap, Verdict},
    fact::{Fact, Facts},
    flow::End,
    fsm::{Config, State, advance},
    segment::{Segment, TcpFlags as F},
};

use crate::support::{
    self, Kernel, Through, ethernet,
    segments::{Family, ipv4, ipv6, parse, tcp},
};

/// A conversation: who sends (the client is 1), sequence and acknowledgment number, flags, length.
const WHOLE: [(u8, u32, u32, u16, usize); 10] = [
    (1, 100, 0, F::SYN, 0),
    (2, 500, 101, F::SYN | F::ACK, 0),
    (1, 101, 501, F::ACK, 0),
    (1, 101, 501, F::ACK | F::PSH, 100),
    (2, 501, 201, F::ACK, 0),
    (2, 501, 201, F::ACK | F::PSH, 200),
    (1, 201, 701, F::FIN | F::ACK, 0),
    (2, 701, 202, F::ACK, 0),
    (2, 701, 202, F::FIN | F::ACK, 0),
    (1, 202, 702, F::ACK, 0),
];

fn packet(
    family: Family,
    network: u32,
    number: u16,
    (from, seq, ack, flags, len): (u8, u32, u32, u16, usize),
) -> Vec<u8> {
    let to = 3 - from;
    let ports = if from == 1 { (40_000, 443) } else { (443, 40_000) };
    let segment = tcp(ports, seq, ack, flags, 64_240, &[], len);
    match family {
        Family::V4 => ipv4(network, from, to, number, &segment),
        Family::V6 => ipv6(network, from, to, &segment),
    }
}

/// All but the fact that tells of copies.
fn without_copies(record: &FlowRecord) -> FlowRecord {
    let mut record = support::comparable(record);
    record.shared.facts &= !(1 << Fact::DuplicateView as u64);
    record
}

/// P08: every packet is seen twice, as on `lo`, or on a bridge and its port. All is as if it were seen once.
#[test]
fn a_packet_that_is_seen_twice_is_one_packet() {
    for number in 0..10 {
        // Once with an identification, once at another tap.
        for (family, other) in [(Family::V4, Hook::Xdp), (Family::V6, Hook::TcEgress)] {
            let (mut twice, mut once) = (FlowRecord::default(), FlowRecord::default());
            for (id, said) in (1..).zip(WHOLE) {
                let (_, sender, segment) = parse(&packet(family, 0, id, said));
                let here = Segment { tap: Tap::new(1, Hook::Xdp).0, ..segment };
                let there = Segment { tap: Tap::new(2, other).0, ..segment };
                let now = u64::from(id) * 1_000_000_000;
                let (step, _) = advance(&mut once, sender, &here, now, Config::default());
                let (first, _) = advance(&mut twice, sender, &here, now, Config::default());
                assert_eq!(first, step, "{family:?} #{id}");
                let (second, _) =
                    advance(&mut twice, sender, &there, now + number * 100_000, Config::default());
                assert_eq!(second.verdict, step.verdict, "{family:?} #{id}");
                // An acknowledgment without an identification may be a second one; it moves nothing.
                let known = family == Family::V4 || said.4 > 0 || said.3 & (F::SYN | F::FIN) != 0;
                if known {
                    assert!(second.facts.has(Fact::DuplicateView), "{family:?} #{id}: {:?}", second.facts);
                    assert_eq!(second.facts.iter().count(), 1, "{family:?} #{id}");
                }
            }
            if family == Family::V4 {
                assert_eq!(without_copies(&twice), without_copies(&once));
            }
            let rtx = [Fact::Rtx, Fact::SynRtx, Fact::SynAckRtx, Fact::FinRtx, Fact::OutOfOrder];
            assert!(!rtx.into_iter().any(|fact| Facts(twice.shared.facts).has(fact)));
        }
    }
}

/// A generator of packets may give all the same identification: a reset that is the first of its kind is no copy of
/// the segment before it, nor is a SYN with another number. The second of two equal resets is one.
#[test]
fn a_reset_is_no_copy_of_the_segment_before_it() {
    let said = [
        (1, 100, 0, F::SYN, 0),
        (2, 500, 101, F::SYN | F::ACK, 0),
        (1, 101, 501, F::ACK, 0),
        (2, 501, 101, F::ACK | F::PSH, 20),
        (1, 101, 521, F::ACK, 0),
        (1, 101, 521, F::RST | F::ACK, 0),
        (1, 101, 521, F::RST | F::ACK, 0),
        (1, 50, 0, F::SYN, 0),
    ];
    let mut record = FlowRecord::default();
    let told = said.map(|said| {
        let (_, sender, segment) = parse(&packet(Family::V4, 0, 1, said));
        advance(&mut record, sender, &segment, 1_000_000_000, Config::default()).0.facts
    });
    assert!(told[5].has(Fact::Reset) && told[5].has(Fact::Closed), "{:?}", told[5]);
    assert!(told[6].has(Fact::DuplicateView), "{:?}", told[6]);
    assert!(told[7].has(Fact::Open) && told[7].has(Fact::PortReuse), "{:?}", told[7]);
}

/// The same in the kernel, where the copy comes through another hook.
#[test]
fn the_kernel_programs_know_a_copy() {
    crate::needs_kernel!();
    // A copy is one for 5 ms. On a busy machine the second of two calls may come later.
    let in_time = (0..50).any(|_| copies_were_in_time());
    if !in_time {
        println!("skipped: the machine is too busy to send a packet twice within 2 ms");
    }
}

/// Whether all copies came soon enough to be known; then they were.
fn copies_were_in_time() -> bool {
    let mut kernel = Kernel::load();
    let mut slowest = Duration::ZERO;
    for (network, family) in [(1, Family::V4), (2, Family::V6)] {
        let mut once = FlowRecord::default();
        let mut flow = None;
        for (id, said) in (1..).zip(WHOLE) {
            let bytes = packet(family, network, id, said);
            let (key, sender, segment) = parse(&bytes);
            let _ = advance(&mut once, sender, &segment, u64::from(id) << 30, Config::default());
            let hook = if said.0 == 1 { Through::TcEgress } else { Through::Xdp };
            let began = Instant::now();
            kernel.run(hook, &ethernet(&bytes));
            let copy = if said.0 == 1 { Through::TcIngress } else { Through::TcEgress };
            kernel.run(copy, &ethernet(&bytes));
            slowest = slowest.max(began.elapsed());
            flow = Some(key);
        }
        if slowest > Duration::from_millis(2) {
            return false;
        }
        let (record, _) = kernel.record(&flow.unwrap()).unwrap();
        assert_eq!(record.shared.verdict, once.shared.verdict, "{family:?}");
        assert!(Facts(record.shared.facts).has(Fact::DuplicateView));
        if family == Family::V4 {
            assert_eq!(without_copies(&record), without_copies(&once));
        }
    }
    let copies = kernel.counters().facts[Fact::DuplicateView as usize];
    assert!((16..=20).contains(&copies), "{copies} of 20 packets known to be copies");
    assert_eq!(kernel.counters().facts[Fact::Rtx as usize], 0);
    true
}

/// P34: a socket that connected to itself is both ends, and both are where it is.
#[test]
fn a_socket_connected_to_itself_is_both_ends() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let said = [
        (100, 0, F::SYN, 0, State::SynSent),
        (100, 101, F::SYN | F::ACK, 0, State::Established),
        (101, 101, F::ACK, 0, State::Established),
        (101, 101, F::ACK | F::PSH, 50, State::Established),
        (151, 151, F::ACK, 0, State::Established),
        (151, 151, F::FIN | F::ACK, 0, State::Closing),
        (152, 152, F::ACK, 0, State::TimeWait),
    ];
    let mut record = FlowRecord::default();
    for (id, (seq, ack, flags, len, state)) in (1..).zip(said) {
        let bytes = ipv4(3, 1, 1, id, &tcp((40_000, 40_000), seq, ack, flags, 64_240, &[], len));
        let (key, sender, segment) = parse(&bytes);
        assert!(segment.to_itself);
        let (step, _) = advance(&mut record, sender, &segment, 0, Config::default());
        assert!(step.facts.has(Fact::SelfConnect));
        for end in [End::Low, End::High] {
            let verdict = Verdict(record.shared.verdict);
            assert_eq!((verdict.state(end), verdict.is_confirmed(end)), (state, true), "#{id} {end:?}");
        }
        kernel.run(Through::TcEgress, &ethernet(&bytes));
        let (in_kernel, _) = kernel.record(&key).unwrap();
        assert_eq!(support::comparable(&in_kernel), support::comparable(&record), "#{id}");
    }
}
