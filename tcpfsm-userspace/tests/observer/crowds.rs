//! Many flows at once, in maps that are too small for them.

use tcpfsm_common::{
    abi::{CloseReason, Verdict},
    fact::Fact,
    flow::{End, FlowKey},
    fsm::State,
    segment::TcpFlags as F,
};

use crate::support::{
    self, Kernel, Through, ethernet,
    segments::{ipv4, parse, tcp},
};

/// Entries of a small map: least recently used lists are kept in batches of 128 for each CPU.
const SMALL: u32 = 1024;

fn small_maps() -> Kernel {
    Kernel::load_with(|mut loader| {
        loader.map_max_entries("FLOWS4", SMALL).map_max_entries("EMBRYOS4", SMALL);
        loader
    })
}

/// Sends a segment of network `network`'s one connection; gives its flow's key.
fn send(
    kernel: &mut Kernel,
    network: u32,
    from_client: bool,
    numbers: [u32; 2],
    flags: u16,
    len: usize,
) -> FlowKey {
    let (ports, from, to) = if from_client { ((40_000, 443), 1, 2) } else { ((443, 40_000), 2, 1) };
    let packet = ipv4(network, from, to, 1, &tcp(ports, numbers[0], numbers[1], flags, 64_240, &[], len));
    kernel.run(if from_client { Through::TcEgress } else { Through::Xdp }, &ethernet(&packet));
    parse(&packet).0
}

fn open(kernel: &mut Kernel, network: u32) -> FlowKey {
    send(kernel, network, true, [100, 0], F::SYN, 0);
    send(kernel, network, false, [500, 101], F::SYN | F::ACK, 0);
    send(kernel, network, true, [101, 501], F::ACK, 0);
    // The server proves its state.
    send(kernel, network, false, [501, 101], F::ACK | F::PSH, 10)
}

fn both_established(kernel: &Kernel, key: &FlowKey) -> bool {
    let record = kernel.record(key);
    record.is_some_and(|(record, _)| {
        let verdict = Verdict(record.shared.verdict);
        [End::Low, End::High].into_iter().all(|end| verdict.state(end) == State::Established)
    })
}

/// P12: ten times as many SYNs as there is room for, and whoever is connected stays.
#[test]
fn a_syn_flood_evicts_no_established_flow() {
    crate::needs_kernel!();
    let mut kernel = small_maps();
    let established: Vec<_> = (0..100).map(|network| open(&mut kernel, network)).collect();
    for network in 0..10 * SMALL {
        send(&mut kernel, 1000 + network, false, [network, 0], F::SYN, 0);
    }
    for key in &established {
        assert!(both_established(&kernel, key), "P12: {key:?} is gone");
    }
    let embryos = kernel.flows4("EMBRYOS4").len();
    assert!(embryos <= SMALL as usize, "P12: {embryos} in a map of {SMALL}");
}

/// P13: half-open handshakes stay in SYN-RECEIVED, all of them, until their time is up.
#[test]
fn half_open_handshakes_stay_half_open() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    for network in 0..300 {
        send(&mut kernel, network, false, [100, 0], F::SYN, 0);
        send(&mut kernel, network, true, [500, 101], F::SYN | F::ACK, 0);
    }
    assert!(kernel.flows4("FLOWS4").is_empty(), "P13: a half-open handshake is no established flow");
    let embryos = kernel.flows4("EMBRYOS4");
    let servers = embryos.iter().filter(|(_, record)| {
        let verdict = Verdict(record.shared.verdict);
        verdict.state(verdict.originator().other()) == State::SynRecv
    });
    assert_eq!((embryos.len(), servers.count()), (300, 300), "P13");
}

/// P14, P16, P17, P18: scans and backscatter leave nothing that is shown, and nothing among the established.
#[test]
fn scans_leave_no_flow() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let mut network = 0;
    let scans: &[(&str, bool, u16, Option<u16>)] = &[
        ("P14: SYN, closed port", true, F::SYN, Some(F::RST | F::ACK)),
        ("P16: FIN", true, F::FIN, Some(F::RST | F::ACK)),
        ("P16: NULL", true, 0, None),
        ("P16: XMAS", true, F::FIN | F::PSH | F::URG, None),
        ("P16: Maimon", true, F::FIN | F::ACK, Some(F::RST)),
        ("P17: ACK", true, F::ACK, Some(F::RST)),
        ("P18: SYN-ACK backscatter", false, F::SYN | F::ACK, Some(F::RST)),
    ];
    for &(what, from_client, flags, answer) in scans {
        for _ in 0..50 {
            network += 1;
            let key = send(&mut kernel, network, from_client, [100, 501], flags, 0);
            if let Some(answer) = answer {
                send(&mut kernel, network, !from_client, [501, 101], answer, 0);
            }
            if let Some((record, embryonic)) = kernel.record(&key) {
                let verdict = Verdict(record.shared.verdict);
                assert!(verdict.is_closed() && embryonic, "{what}: {verdict:?}");
                let refused = verdict.close_reason() == CloseReason::Refused;
                assert_eq!(refused, flags == F::SYN, "{what}");
            }
        }
    }
    assert!(kernel.flows4("FLOWS4").is_empty());
    // A SYN opens, and its refusal closes: nothing else was ever a connection.
    let transitions = kernel.events().into_iter().filter(|event| {
        let (before, after) = (event.event.verdict_before(), event.event.verdict_after());
        [End::Low, End::High].into_iter().any(|end| after.transition(before, end).is_some())
    });
    assert_eq!(transitions.count(), 100);
}

/// P10: a flow that the map had no room for is picked up again with the next data, as a new generation.
#[test]
fn an_evicted_flow_is_picked_up_again() {
    crate::needs_kernel!();
    let mut kernel = small_maps();
    let key = open(&mut kernel, 0);
    assert!(both_established(&kernel, &key));
    let mut network = 0;
    while kernel.record(&key).is_some() {
        network += 1;
        assert!(network < 20 * SMALL, "P10: never evicted");
        open(&mut kernel, network);
    }
    send(&mut kernel, 0, true, [101, 511], F::ACK | F::PSH, 20);
    send(&mut kernel, 0, false, [511, 121], F::ACK, 0);
    assert!(both_established(&kernel, &key), "P10: not picked up again");
    let (record, _) = kernel.record(&key).unwrap();
    assert!(Verdict(record.shared.verdict).has(Verdict::PICKED_UP));
    assert_ne!(record.shared.facts & 1 << Fact::MidstreamPickup as u64, 0);
}
