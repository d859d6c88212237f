//! A packet's events go into its CPU's lane, and into the ring where that has no room. What one CPU put there comes out as it was.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{Event, Kernel, pin};
use tcpfsm_common::{
    abi::{EventKind, Health, KernelConfig, LANE_PLACES, LanePlace},
    segment::TcpFlags as F,
};

/// All events, and lanes for two CPUs.
static CONFIG: KernelConfig = KernelConfig { lanes: 2, ..KernelConfig::NONE };

const PLACES: u64 = LANE_PLACES as u64;

fn kernel() -> Kernel {
    Kernel::configured(&CONFIG)
}

/// An event each.
fn syns(kernel: &Kernel, networks: impl Iterator<Item = u64>) {
    networks.for_each(|network| kernel.say(network as u32, true, [100, 0], F::SYN));
}

/// The numbers of the events in a lane, in their order.
fn numbers(lane: &[LanePlace]) -> Vec<u64> {
    let mut numbers: Vec<u64> = lane.iter().map(|place| place.number).filter(|&number| number > 0).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_connection_is_told_in_its_cpus_lane() {
    needs_kernel!();
    pin(0);
    let mut kernel = kernel();
    kernel.connect(1);
    kernel.say(1, true, [101, 501], F::FIN | F::ACK);
    kernel.say(1, false, [501, 102], F::FIN | F::ACK);
    kernel.say(1, true, [102, 502], F::ACK);
    let lane = kernel.lane(0);
    let told: Vec<_> = lane.iter().map(|place| place.event.event.kind).take_while(|&kind| kind > 0).collect();
    let moved = EventKind::Verdict as u8;
    assert_eq!(told, [moved, moved, moved, moved, moved, EventKind::Closed as u8]);
    assert_eq!(lane[5].event.packets.iter().sum::<u64>(), 6, "with its totals");
    assert!(lane[..6].is_sorted_by_key(|place| place.event.event.time));
    assert_eq!(numbers(&lane), [1, 2, 3, 4, 5, 6]);
    assert_eq!(kernel.counters().health[Health::EventsSent as usize], 6);
    assert!(kernel.events().is_empty(), "nothing in the ring");
}

#[test]
fn what_finds_no_room_in_the_lane_goes_into_the_ring() {
    needs_kernel!();
    pin(0);
    let mut kernel = kernel();
    syns(&kernel, 1..=PLACES + 88);
    assert!(numbers(&kernel.lane(0)).into_iter().eq(1..=PLACES), "nobody reads: it is filled once");
    let ring = |kernel: &mut Kernel| {
        let addresses = |Event { event, .. }: Event| event.addr;
        kernel.events().into_iter().map(addresses).collect::<Vec<_>>()
    };
    let rest = ring(&mut kernel);
    assert_eq!(rest.len(), 88);
    assert!(kernel.lane(0).iter().all(|place| !rest.contains(&place.event.event.addr)), "each is told once");

    // More than half is unread still.
    kernel.say_read(&[PLACES / 2 - 1, 0]);
    syns(&kernel, 1_001..=1_001);
    assert_eq!(ring(&mut kernel).len(), 1);
    kernel.say_read(&[PLACES / 2, 0]);
    syns(&kernel, 1_002..=1_002 + PLACES);
    assert!(numbers(&kernel.lane(0)).into_iter().eq(PLACES / 2 + 1..=PLACES * 3 / 2), "half of it anew");
    assert_eq!(ring(&mut kernel).len() as u64, 1 + PLACES / 2, "what is not read is not written over");
    let sent = kernel.counters().health[Health::EventsSent as usize];
    assert_eq!(sent, PLACES + 88 + 1 + PLACES + 1, "and all are counted");
}

#[test]
fn each_cpu_has_its_own() {
    needs_kernel!();
    if rustix::thread::sched_getaffinity(None).unwrap().count() < 2 {
        println!("skipped: this machine has one CPU");
        return;
    }
    let mut kernel = kernel();
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let kernel = &kernel;
            scope.spawn(move || {
                pin(cpu as usize);
                syns(kernel, (1..=100).map(|network| network + 1_000 * cpu));
            });
        }
    });
    for cpu in 0..2 {
        assert!(numbers(&kernel.lane(cpu)).into_iter().eq(1..=100));
    }
    assert!(kernel.events().is_empty());
}
