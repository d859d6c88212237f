//! What the kernel programs count per service, what they tell of strays, and what the sweep finds amiss.

use std::sync::atomic::{AtomicU16, Ordering};

use tcpfsm_common::{
    abi::{Conditions, EventKind, ServiceRecord, SweepRequest},
    flow::End,
    fsm::State,
    segment::TcpFlags as F,
};

use crate::support::{
    self, Kernel, Through, ethernet,
    segments::{ipv4, tcp},
};

const SERVER: u16 = 443;

/// A segment between a client's port and the server.
fn send(kernel: &mut Kernel, port: u16, from_client: bool, numbers: [u32; 2], flags: u16, len: usize) {
    let (ports, from, to) = if from_client { ((port, SERVER), 1, 2) } else { ((SERVER, port), 2, 1) };
    // Equal numbers would make it the same packet again.
    static ID: AtomicU16 = AtomicU16::new(1);
    let id = ID.fetch_add(1, Ordering::Relaxed);
    let packet = ipv4(1, from, to, id, &tcp(ports, numbers[0], numbers[1], flags, 64_240, &[], len));
    kernel.run(if from_client { Through::Xdp } else { Through::TcEgress }, &ethernet(&packet));
}

fn handshake(kernel: &mut Kernel, port: u16) {
    send(kernel, port, true, [100, 0], F::SYN, 0);
    send(kernel, port, false, [500, 101], F::SYN | F::ACK, 0);
    send(kernel, port, true, [101, 501], F::ACK, 0);
}

fn only_service(kernel: &Kernel) -> ServiceRecord {
    let services = kernel.services();
    assert_eq!(services.len(), 1, "{services:?}");
    assert_eq!((services[0].0.port, services[0].0.family), (SERVER, 4));
    services[0].1
}

#[test]
fn handshakes_are_counted_where_somebody_answers() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    for port in 1_000..1_050 {
        send(&mut kernel, port, true, [100, 0], F::SYN, 0);
    }
    assert_eq!(kernel.services(), [], "nobody answered");
    for port in 2_000..2_010 {
        handshake(&mut kernel, port);
    }
    // Refused, aborted, and not completed.
    send(&mut kernel, 3_000, true, [100, 0], F::SYN, 0);
    send(&mut kernel, 3_000, false, [0, 101], F::RST | F::ACK, 0);
    send(&mut kernel, 3_001, true, [100, 0], F::SYN, 0);
    send(&mut kernel, 3_001, false, [500, 101], F::SYN | F::ACK, 0);
    send(&mut kernel, 3_001, true, [101, 0], F::RST, 0);
    send(&mut kernel, 3_002, true, [100, 0], F::SYN, 0);
    send(&mut kernel, 3_002, true, [100, 0], F::SYN, 0);
    send(&mut kernel, 3_002, false, [500, 101], F::SYN | F::ACK, 0);
    send(&mut kernel, 3_002, false, [500, 101], F::SYN | F::ACK, 0);
    let ServiceRecord { opened, answered, established, refused, aborted, syn_rtx, synack_rtx, .. } =
        only_service(&kernel);
    assert_eq!((opened, answered, established), (13, 12, 10));
    assert_eq!((refused, aborted, syn_rtx, synack_rtx), (1, 1, 1, 1));

    kernel.sweep(SweepRequest { now: 1, number: 7, ..SweepRequest::default() });
    assert_eq!(only_service(&kernel).half_open_at(7), (51, 1), "those before the first answer hang too");
    kernel.sweep(SweepRequest { now: 2, number: 8, ..SweepRequest::default() });
    assert_eq!(only_service(&kernel).half_open_at(8), (51, 1), "each sweep counts anew");
}

#[test]
fn a_server_that_does_not_accept_is_counted() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    handshake(&mut kernel, 1_000);
    for _ in 0..3 {
        send(&mut kernel, 1_000, false, [500, 101], F::SYN | F::ACK, 0);
        send(&mut kernel, 1_000, true, [101, 501], F::ACK, 0);
    }
    let ServiceRecord { established, unaccepted, synack_rtx, .. } = only_service(&kernel);
    assert_eq!((established, unaccepted, synack_rtx), (4, 3, 3), "three times it was taken back");
}

#[test]
fn strays_are_told_until_they_are_too_many() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    for port in 1..=100 {
        send(&mut kernel, port, true, [100, 500], F::FIN | F::PSH | F::URG, 0);
        send(&mut kernel, port, true, [100, 500], F::ACK, 0);
    }
    let strays: Vec<_> =
        kernel.events().into_iter().filter(|e| e.event.kind == EventKind::Stray as u8).collect();
    assert_eq!(strays.len(), 200);
    assert!(strays.iter().all(|stray| stray.event.weight() == 1));

    const MANY: u64 = 200_000;
    let packet = ipv4(1, 1, 2, 1, &tcp((9, SERVER), 1, 1, F::FIN, 64_240, &[], 0));
    kernel.repeat(Through::Xdp, &ethernet(&packet), MANY as u32);
    let strays: Vec<_> =
        kernel.events().into_iter().filter(|e| e.event.kind == EventKind::Stray as u8).collect();
    assert!(strays.len() < 20_000, "{} of {MANY} were told", strays.len());
    let stood_for: u64 = strays.iter().map(|stray| stray.event.weight()).sum();
    assert!(stood_for.abs_diff(MANY) < MANY / 50, "they stand for {stood_for} of {MANY}");
}

#[test]
fn the_sweep_tells_what_is_amiss_and_repeats_it_in_time() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    handshake(&mut kernel, 1_000);
    send(&mut kernel, 1_000, false, [501, 101], F::ACK, 0);
    kernel.events();
    let now = kernel.flows4("FLOWS4")[0].1.last_seen();
    let request = SweepRequest {
        now: now + 2_000_000_000,
        idle: 1_000_000_000,
        report_every: 100,
        conditions_every: 3,
        ..SweepRequest::default()
    };
    let mut told = Vec::new();
    for number in 1..=7 {
        kernel.sweep(SweepRequest { number, ..request });
        if !kernel.stuck().is_empty() {
            told.push(number);
        }
    }
    assert_eq!(told, [1, 4, 7]);

    // FIN from the client: now one end is stuck as well, and nothing is idle.
    send(&mut kernel, 1_000, true, [101, 501], F::FIN | F::ACK, 0);
    send(&mut kernel, 1_000, false, [501, 102], F::ACK, 0);
    kernel.events();
    let mut stuck = [0; 16];
    stuck[State::CloseWait as usize] = 1;
    kernel.sweep(SweepRequest { number: 8, stuck, now: u64::MAX / 2, ..request });
    let [stuck] = kernel.stuck()[..] else { panic!("one") };
    let conditions = Conditions(stuck.conditions);
    let server = stuck.event.verdict_after().originator().other();
    assert!(conditions.has(Conditions::STUCK, server));
    assert_eq!(conditions.told_again_after(&request), 100, "nothing more");
    assert_eq!(stuck.packets.iter().sum::<u64>(), 6);
    assert_eq!((stuck.unacked, stuck.rtx), ([0; 2], [0; 2]));
    assert!(!conditions.has(Conditions::STUCK, if server == End::Low { End::High } else { End::Low }));
}
