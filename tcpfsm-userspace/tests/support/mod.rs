//! The kernel programs under BPF_PROG_TEST_RUN: no interface, no socket, one packet at a time.

#![allow(dead_code, reason = "each test binary uses a part of this")]

pub mod segments;

use std::os::fd::AsFd as _;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf},
    programs::{RawTracePoint, RawTracePointRunOptions, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use tcpfsm_common::{
    abi::{
        ByMapAndState, ClosedEvent, Counters, EmbryoFilter, EventKind, FlowEvent, FlowRecord, KernelConfig,
        LANE_PLACES, LanePlace, LaneRead, ServiceKey, ServiceRecord, StuckEvent, SweepReport, SweepRequest,
    },
    flow::{FlowKey, FlowKey4, FlowKey6},
    segment::TcpFlags,
};
use tcpfsm_userspace::{
    BPF_OBJECT,
    kernel::{counters, pod::Raw, sweep::SweepReports},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use self::segments::{ipv4, tcp};

/// Why the kernel cannot be used here, if so: tests print it and count as skipped.
pub fn unavailable() -> Option<&'static str> {
    if BPF_OBJECT.is_empty() {
        Some("built without kernel programs: cargo xtask build")
    } else if !rustix::process::geteuid().is_root() {
        Some("needs root")
    } else {
        None
    }
}

/// Returns from a test that cannot run here, saying why.
#[macro_export]
macro_rules! needs_kernel {
    () => {
        if let Some(reason) = support::unavailable() {
            println!("skipped: {reason}");
            return;
        }
    };
}

/// Through which program a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    Xdp,
    TcIngress,
    TcEgress,
}

/// The programs, loaded.
pub struct Kernel {
    ebpf: Ebpf,
}

impl Kernel {
    pub fn load() -> Self {
        Self::load_with(|loader| loader)
    }

    pub fn load_with(configure: impl for<'a> FnOnce(EbpfLoader<'a>) -> EbpfLoader<'a>) -> Self {
        let mut ebpf = configure(EbpfLoader::new()).load(BPF_OBJECT).expect("the object loads");
        for name in ["tcpfsm_ingress", "tcpfsm_egress"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{name}: {error:#?}"));
        }
        let program: &mut RawTracePoint = ebpf.program_mut("tcpfsm_sweep").unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("tcpfsm_sweep: {error:#?}"));
        let program: &mut Xdp = ebpf.program_mut("tcpfsm_xdp").unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("tcpfsm_xdp: {error:#?}"));
        Self { ebpf }
    }

    /// With this configuration, and lanes for as many CPUs as it says.
    pub fn configured(config: &'static KernelConfig) -> Self {
        Self::load_with(|mut loader| {
            let lanes = config.lanes.max(1);
            loader
                .override_global("CONFIG", config.as_bytes(), true)
                .map_max_entries("LANES", lanes * LANE_PLACES)
                .map_max_entries("LANES_READ", lanes);
            loader
        })
    }

    /// Runs one Ethernet frame through a program; gives what the program returned.
    pub fn run(&mut self, through: Through, frame: &[u8]) -> u32 {
        self.repeat(through, frame, 1)
    }

    /// The same several times.
    pub fn repeat(&mut self, through: Through, frame: &[u8], times: u32) -> u32 {
        let mut options = TestRunOptions { data_in: Some(frame), repeat: times, ..TestRunOptions::default() };
        // XDP counts from 14 bytes on, the skb programs need a whole Ethernet header as well.
        options.data_out = None;
        let result = match through {
            Through::Xdp => {
                let program: &mut Xdp = self.ebpf.program_mut("tcpfsm_xdp").unwrap().try_into().unwrap();
                program.test_run(options)
            }
            Through::TcIngress | Through::TcEgress => {
                let name = if through == Through::TcIngress { "tcpfsm_ingress" } else { "tcpfsm_egress" };
                let program: &mut SchedClassifier = self.ebpf.program_mut(name).unwrap().try_into().unwrap();
                program.test_run(options)
            }
        };
        result.expect("the program runs").return_value
    }

    /// Through XDP, with so much of the frame in its first buffer.
    pub fn run_in_pieces(&mut self, frame: &[u8], first: u32) {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, first, 0, 0, 0, 0].map(u32::to_ne_bytes);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(context.as_flattened()),
            ..TestRunOptions::default()
        };
        let program: &mut Xdp = self.ebpf.program_mut("tcpfsm_xdp").unwrap().try_into().unwrap();
        program.test_run(options).expect("the program runs");
    }

    /// The same from several threads at once.
    pub fn repeat_shared(&self, through: Through, frame: &[u8], times: u32) {
        let options = TestRunOptions { data_in: Some(frame), repeat: times, ..TestRunOptions::default() };
        let name = match through {
            Through::Xdp => {
                let program: &Xdp = self.ebpf.program("tcpfsm_xdp").unwrap().try_into().unwrap();
                program.test_run(options).expect("the program runs");
                return;
            }
            Through::TcIngress => "tcpfsm_ingress",
            Through::TcEgress => "tcpfsm_egress",
        };
        let program: &SchedClassifier = self.ebpf.program(name).unwrap().try_into().unwrap();
        program.test_run(options).expect("the program runs");
    }

    /// One segment without data between the hosts of a network, see [`frame`].
    pub fn say(&self, network: u32, from_client: bool, numbers: [u32; 2], flags: u16) {
        let through = if from_client { Through::TcIngress } else { Through::TcEgress };
        self.repeat_shared(through, &frame(network, from_client, numbers, flags), 1);
    }

    /// The handshake of a network's one connection.
    pub fn connect(&self, network: u32) {
        self.say(network, true, [100, 0], TcpFlags::SYN);
        self.say(network, false, [500, 101], TcpFlags::SYN | TcpFlags::ACK);
        self.say(network, true, [101, 501], TcpFlags::ACK);
    }

    /// A flow's record, and whether it is in the embryonic map.
    pub fn record(&self, key: &FlowKey) -> Option<(FlowRecord, bool)> {
        fn look<K: FromBytes + IntoBytes + Immutable + Copy + 'static>(
            ebpf: &Ebpf,
            map: &str,
            key: K,
        ) -> Option<FlowRecord> {
            let map: HashMap<&MapData, Raw<K>, Raw<FlowRecord>> =
                HashMap::try_from(ebpf.map(map).unwrap()).unwrap();
            map.get(&Raw(key), 0).ok().map(|raw| raw.0)
        }
        match *key {
            FlowKey::V4(key) => look(&self.ebpf, "FLOWS4", key)
                .map(|r| (r, false))
                .or_else(|| look(&self.ebpf, "EMBRYOS4", key).map(|r| (r, true))),
            FlowKey::V6(key) => look(&self.ebpf, "FLOWS6", key)
                .map(|r| (r, false))
                .or_else(|| look(&self.ebpf, "EMBRYOS6", key).map(|r| (r, true))),
        }
    }

    /// Every IPv4 flow of a map.
    pub fn flows4(&self, map: &str) -> Vec<(FlowKey4, FlowRecord)> {
        let map: HashMap<&MapData, Raw<FlowKey4>, Raw<FlowRecord>> =
            HashMap::try_from(self.ebpf.map(map).unwrap()).unwrap();
        map.iter().filter_map(Result::ok).map(|(k, v)| (k.0, v.0)).collect()
    }

    /// Every IPv6 flow of a map.
    pub fn flows6(&self, map: &str) -> Vec<(FlowKey6, FlowRecord)> {
        let map: HashMap<&MapData, Raw<FlowKey6>, Raw<FlowRecord>> =
            HashMap::try_from(self.ebpf.map(map).unwrap()).unwrap();
        map.iter().filter_map(Result::ok).map(|(k, v)| (k.0, v.0)).collect()
    }

    /// Puts an IPv4 flow's record into a map.
    pub fn put(&mut self, map: &str, key: &FlowKey, record: &FlowRecord) {
        let FlowKey::V4(key) = *key else { panic!("{key:?} is IPv4") };
        let mut map: HashMap<&mut MapData, Raw<FlowKey4>, Raw<FlowRecord>> =
            HashMap::try_from(self.ebpf.map_mut(map).unwrap()).unwrap();
        map.insert(Raw(key), Raw(*record), 0).unwrap();
    }

    /// All CPUs' counters, added up.
    pub fn counters(&self) -> Counters {
        counters::sum(&PerCpuArray::<&MapData, _>::try_from(self.ebpf.map("COUNTERS").unwrap()).unwrap())
            .unwrap()
    }

    /// Takes every event out of the ring.
    pub fn events(&mut self) -> Vec<Event> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("EVENTS").unwrap()).unwrap();
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            // A stuck event begins with one of the usual size; its rest is for those who ask.
            events.push(if item.len() == size_of::<ClosedEvent>() {
                let closed = ClosedEvent::read_from_bytes(&item).unwrap();
                assert_eq!(EventKind::try_from(closed.event.kind), Ok(EventKind::Closed));
                Event { event: closed.event, closed: Some(closed) }
            } else {
                Event { event: FlowEvent::read_from_prefix(&item).unwrap().0, closed: None }
            });
        }
        events
    }

    /// Takes every event out of the ring, and gives what the sweep found amiss.
    pub fn stuck(&mut self) -> Vec<StuckEvent> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("EVENTS").unwrap()).unwrap();
        let mut found = Vec::new();
        while let Some(item) = ring.next() {
            let (event, _) = FlowEvent::read_from_prefix(&item).unwrap();
            if event.kind == EventKind::Stuck as u8 {
                found.push(StuckEvent::read_from_prefix(&item).unwrap().0);
            }
        }
        found
    }

    /// Every service and what was counted at it.
    pub fn services(&self) -> Vec<(ServiceKey, ServiceRecord)> {
        let map: HashMap<&MapData, Raw<ServiceKey>, Raw<ServiceRecord>> =
            HashMap::try_from(self.ebpf.map("SERVICES").unwrap()).unwrap();
        map.iter().filter_map(Result::ok).map(|(k, v)| (k.0, v.0)).collect()
    }

    /// Walks all flow maps in the kernel.
    pub fn sweep(&self, request: SweepRequest) -> SweepReports {
        let zero = [SweepReport::default(); 4];
        self.write("SWEEP_REQUEST", &[request]);
        self.write("SWEEP_REPORT", &zero);
        let program: &RawTracePoint = self.ebpf.program("tcpfsm_sweep").unwrap().try_into().unwrap();
        program.test_run(RawTracePointRunOptions::new()).unwrap();
        let map: Array<&MapData, Raw<SweepReport>> =
            Array::try_from(self.ebpf.map("SWEEP_REPORT").unwrap()).unwrap();
        [0, 1, 2, 3].map(|at| map.get(&at, 0).unwrap().0)
    }

    /// Writes an array map whole. Through a handle of its own: others may run programs meanwhile.
    fn write<T: FromBytes + IntoBytes + Immutable + Copy + 'static>(&self, map: &str, values: &[T]) {
        let Map::Array(data) = self.ebpf.map(map).unwrap() else { panic!("{map} is no array") };
        let data = MapData::from_fd(data.fd().as_fd().try_clone_to_owned().unwrap()).unwrap();
        let mut array: Array<MapData, Raw<T>> = Array::try_from(Map::Array(data)).unwrap();
        for (at, value) in (0..).zip(values) {
            array.set(at, Raw(*value), 0).unwrap();
        }
    }

    /// Changes the filter of embryos, as the daemon does around a sweep.
    pub fn filter(&self, change: impl FnOnce(&mut EmbryoFilter)) {
        let map: Array<&MapData, Raw<EmbryoFilter>> =
            Array::try_from(self.ebpf.map("EMBRYO_FILTER").unwrap()).unwrap();
        let mut filter = map.get(&0, 0).unwrap().0;
        change(&mut filter);
        self.write("EMBRYO_FILTER", &[filter]);
    }

    /// The places of a CPU's lane.
    pub fn lane(&self, cpu: u32) -> Vec<LanePlace> {
        let map: Array<&MapData, Raw<LanePlace>> = Array::try_from(self.ebpf.map("LANES").unwrap()).unwrap();
        let first = cpu * LANE_PLACES;
        (first..first + LANE_PLACES).map(|at| map.get(&at, 0).unwrap().0).collect()
    }

    /// Takes what came into the lanes after the events that were read of each, as the daemon does.
    pub fn take_lanes(&self, read: &mut [u64]) -> Vec<Event> {
        let mut events = Vec::new();
        for (cpu, read) in (0..).zip(&mut *read) {
            let lane = self.lane(cpu);
            while let place = lane[*read as usize % lane.len()]
                && place.number == *read + 1
            {
                let closed = (place.event.event.kind == EventKind::Closed as u8).then_some(place.event);
                events.push(Event { event: place.event.event, closed });
                *read += 1;
            }
        }
        self.say_read(read);
        events
    }

    /// Says that so many events of each lane were read, as the daemon does.
    pub fn say_read(&self, events: &[u64]) {
        let read: Vec<_> = events.iter().map(|&events| LaneRead { events, ..LaneRead::default() }).collect();
        self.write("LANES_READ", &read);
    }

    /// What is missing by the books: flows that came into a state of a map, less those that went and those that are
    /// there. Without evictions that is nothing.
    pub fn missing(&self) -> ByMapAndState {
        let Counters { came, went, .. } = self.counters();
        let there = self.sweep(SweepRequest { number: 1, ..SweepRequest::default() });
        let mut missing = came;
        for ((missing, went), there) in missing.iter_mut().zip(went).zip(there) {
            for ((missing, went), there) in missing.iter_mut().zip(went).zip(there.by_state) {
                *missing = missing.wrapping_sub(went).wrapping_sub(there);
            }
        }
        missing
    }

    /// Instructions that the verifier processed, by program.
    pub fn verified(&self) -> Vec<(String, u32)> {
        let mut verified: Vec<_> = self
            .ebpf
            .programs()
            .filter_map(|(name, program)| {
                Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?))
            })
            .collect();
        verified.sort();
        verified
    }
}

/// Puts this thread on a CPU.
pub fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

/// A segment without data between the client of a network and its server, with these sequence and acknowledgment numbers.
pub fn frame(network: u32, from_client: bool, [seq, ack]: [u32; 2], flags: u16) -> Vec<u8> {
    let (ports, from, to) = if from_client { ((40_000, 443), 1, 2) } else { ((443, 40_000), 2, 1) };
    ethernet(&ipv4(network, from, to, 0, &tcp(ports, seq, ack, flags, 64_240, &[], 0)))
}

/// An event; with totals if it ended its flow.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub event: FlowEvent,
    pub closed: Option<ClosedEvent>,
}

/// The kernel's test runs make no skb that ends in its IP header; XDP is given anything.
pub fn takes(through: Through, frame: &[u8]) -> bool {
    let header = if frame[12..14] == [0x86, 0xdd] { 40 } else { 20 };
    through == Through::Xdp || frame.len() >= 14 + header
}

/// Puts an Ethernet header before an IP packet.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    let ethertype: u16 = if packet.first().is_some_and(|b| b >> 4 == 6) { 0x86dd } else { 0x0800 };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

/// What must be equal: all but the times, which the kernel takes from its own clock, and the interface.
pub fn comparable(record: &FlowRecord) -> FlowRecord {
    let mut record = *record;
    record.shared.since = [0; 2];
    record.shared.opened = 0;
    record.shared.tap = [0; 2];
    for sent in &mut record.sent {
        *sent = sent.unknowing();
        sent.stamp &= 0xffff;
    }
    record
}
