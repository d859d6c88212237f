//! Under a flood events of what moves no connection are a sample: nothing is lost in the ring, what is not told is counted,
//! and whoever completes a handshake is told of.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;

use support::{
    Event, Kernel, Through, ethernet, frame,
    segments::{ipv4, parse},
};
use tcpfsm_common::{
    abi::{Counters, EventKind, Health, KernelConfig, SAMPLE, STATE_SLOTS, SweepRequest},
    fact::Fact,
    flow::FlowKey,
    fsm::State,
    segment::TcpFlags as F,
};
use zerocopy::IntoBytes as _;

/// Told one by one in a slot of time.
const QUOTA: u64 = 256;
static CONFIG: KernelConfig = KernelConfig { event_quota: QUOTA as u32, ..KernelConfig::NONE };

/// What a flood's events would overrun many times.
const RING: u32 = 256 << 10;

fn kernel() -> Kernel {
    Kernel::load_with(|mut loader| {
        loader.override_global("CONFIG", CONFIG.as_bytes(), true).map_max_entries("EVENTS", RING);
        loader
    })
}

/// A whole connection.
fn live(kernel: &Kernel, network: u32) {
    kernel.connect(network);
    kernel.say(network, true, [101, 501], F::FIN | F::ACK);
    kernel.say(network, false, [501, 102], F::FIN | F::ACK);
    kernel.say(network, true, [102, 502], F::ACK);
}

/// What of the events was sent, lost and not told.
fn fate(kernel: &Kernel) -> [u64; 3] {
    let Counters { health, .. } = kernel.counters();
    [Health::EventsSent, Health::EventsLost, Health::EventsSampled].map(|which| health[which as usize])
}

/// Ten thousand handshakes that hang, drained now and then, with a hundred connections among them.
#[test]
fn a_flood_is_told_in_part_and_who_connects_in_full() {
    needs_kernel!();
    const FLOOD: u32 = 10_000;
    let mut kernel = kernel();
    let mut events: Vec<Event> = Vec::new();
    for network in 1..=FLOOD {
        kernel.say(network, true, [100, 0], F::SYN);
        kernel.say(network, false, [500, 101], F::SYN | F::ACK);
        if network % 100 == 0 {
            live(&kernel, FLOOD + network);
        }
        // The ring holds two thousand; without sampling four thousand would come in between.
        if network % 2_000 == 0 {
            events.extend(kernel.events());
        }
    }
    let [sent, lost, sampled] = fate(&kernel);
    println!("{sent} told, {sampled} not told, of {FLOOD} handshakes that hang and 100 connections");
    assert_eq!((sent, lost), (events.len() as u64, 0));
    // SYN and SYN-ACK of each that hangs; of a connection four more. The fourth closes it.
    assert_eq!(sent + sampled, u64::from(2 * FLOOD + 100 * 6));
    assert!(sampled > 3 * sent, "{sampled} were not told, {sent} were");

    let stood_for: u64 = events.iter().map(|told| told.event.weight()).sum();
    assert!(stood_for.abs_diff(sent + sampled) < (sent + sampled) / 20, "they stand for {stood_for}");
    assert!(events.iter().all(|told| [1, SAMPLE].contains(&told.event.weight)));

    let mut by_flow: HashMap<FlowKey, Vec<Event>> = HashMap::new();
    for told in events {
        by_flow.entry(told.event.key()).or_default().push(told);
    }
    for network in (FLOOD + 100..=2 * FLOOD).step_by(100) {
        let (key, ..) = parse(&frame(network, true, [0, 0], F::SYN)[14..]);
        let told = by_flow.get(&key).unwrap();
        let later = told.iter().skip_while(|told| !told.event.fact_set().has(Fact::Established));
        let later: Vec<_> = later.map(|told| (told.event.weight(), told.closed.is_some())).collect();
        assert_eq!(later, [(1, false), (1, false), (1, false), (1, true)], "network {network}: {told:?}");
    }
    let opened = kernel.counters().facts[Fact::Open as usize];
    assert_eq!(opened, u64::from(FLOOD + 100), "counters are exact");
}

/// However many connections come and go: each gives back what its handshake took.
#[test]
fn handshakes_that_complete_are_all_told() {
    needs_kernel!();
    let mut kernel = kernel();
    let mut told = 0;
    for network in 1..=5_000 {
        live(&kernel, network);
        if network % 100 == 0 {
            told += kernel.events().len() as u64;
        }
    }
    assert_eq!(fate(&kernel), [told, 0, 0]);
    assert_eq!(told, 5_000 * 6);
}

/// A scan that is refused everywhere.
#[test]
fn refusals_are_sampled_too() {
    needs_kernel!();
    let mut kernel = kernel();
    for network in 1..=5_000 {
        kernel.say(network, true, [100, 0], F::SYN);
        kernel.say(network, false, [0, 101], F::RST | F::ACK);
    }
    let [sent, lost, sampled] = fate(&kernel);
    assert_eq!((sent + sampled, lost), (10_000, 0));
    assert!(sampled > 3 * sent, "{sampled} were not told, {sent} were");
    let events = kernel.events();
    let refused = events.iter().filter(|told| told.event.fact_set().has(Fact::ConnectRefused));
    let stood_for: u64 = refused.map(|told| told.event.weight()).sum();
    assert!(stood_for.abs_diff(5_000) < 1_000, "they stand for {stood_for}");
}

/// What a router says of handshakes, while segments of a connection come in between: they are in another map, and told in full.
#[test]
fn unreachable_hosts_are_sampled_too() {
    needs_kernel!();
    const CONNECTED: u32 = 9_999;
    let mut kernel = kernel();
    kernel.connect(CONNECTED);
    for network in 1..=5_000 {
        kernel.say(network, true, [100, 0], F::SYN);
        kernel.say(CONNECTED, true, [1 << 30, 0], F::RST);
        // Host unreachable (3, 1), with the SYN's header and ports.
        let quoted = &frame(network, true, [100, 0], F::SYN)[14..][..28];
        let error = [&[3, 1, 0, 0, 0, 0, 0, 0], quoted].concat();
        let mut packet = ipv4(network, 2, 1, 0, &error);
        packet[9] = 1;
        kernel.repeat_shared(Through::TcIngress, &ethernet(&packet), 1);
    }
    let told = |event: &Event| event.event.fact_set().has(Fact::ConnectUnreachable);
    let events: Vec<Event> = kernel.events().into_iter().filter(told).collect();
    assert!(events.len() < 1_000, "{} were told", events.len());
    let stood_for: u64 = events.iter().map(|told| told.event.weight()).sum();
    assert!(stood_for.abs_diff(5_000) < 1_000, "they stand for {stood_for}");
}

/// Resets that a connection does not accept: they move nothing, and its end is told.
#[test]
fn blind_resets_are_sampled_and_what_moves_is_told() {
    needs_kernel!();
    let mut kernel = kernel();
    kernel.say(1, true, [100, 0], F::SYN);
    kernel.say(1, false, [500, 101], F::SYN | F::ACK);
    kernel.say(1, true, [101, 501], F::ACK);
    kernel.events();
    let before = fate(&kernel);
    for number in 0..5_000 {
        kernel.say(1, true, [(1 << 30) + number, 0], F::RST);
    }
    kernel.say(1, true, [101, 501], F::FIN | F::ACK);
    let after = fate(&kernel);
    let [sent, lost, sampled] = std::array::from_fn(|which| after[which] - before[which]);
    assert_eq!((sent + sampled, lost), (5_001, 0));
    assert!(sampled > 3 * sent, "{sampled} were not told, {sent} were");
    let events = kernel.events();
    let stood_for: u64 = events.iter().map(|told| told.event.weight()).sum();
    assert!(stood_for.abs_diff(5_001) < 500, "they stand for {stood_for}");
    let last = events.last().unwrap().event;
    assert!(last.moves() && last.weight == 1, "{last:?}");
}

/// What the sweep names, and what it ends, is told one by one: of no more flows than there is room for.
#[test]
fn whom_the_sweep_names_is_told_of_to_the_end() {
    needs_kernel!();
    let mut kernel = kernel();
    for network in 1..=100 {
        kernel.say(network, true, [100, 0], F::SYN);
    }
    let mut every = [0; STATE_SLOTS];
    every[State::SynSent as usize] = 1;
    every[State::SynRecv as usize] = 1;
    let now = u64::MAX / 2;
    let request = SweepRequest { now, number: 1, report_every: 1, stuck: every, ..SweepRequest::default() };
    kernel.sweep(request);
    assert_eq!(kernel.events().iter().filter(|told| told.event.kind == EventKind::Stuck as u8).count(), 100);

    for network in 1_000..2_000 {
        kernel.say(network, true, [100, 0], F::SYN);
    }
    kernel.events();
    kernel.say(1, false, [500, 101], F::SYN | F::ACK);
    kernel.say(2, false, [0, 101], F::RST | F::ACK);
    let told: Vec<_> = kernel.events().iter().map(|told| (told.event.kind, told.event.weight)).collect();
    assert_eq!(told, [(EventKind::Verdict as u8, 1), (EventKind::Closed as u8, 1)]);

    let timeout = every;
    kernel.sweep(SweepRequest { now, number: 2, timeout, ..SweepRequest::default() });
    let ends: Vec<_> = kernel.events().into_iter().filter(|told| told.closed.is_some()).collect();
    assert_eq!(ends.len(), 99 + 1_000);
    assert!(ends.iter().all(|told| told.event.weight() == 1));
}
