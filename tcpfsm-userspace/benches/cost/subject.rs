//! The tracker's programs under test.

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, RingBuf},
};
use tcpfsm_common::{
    abi::{Counters, FlowRecord, Health, KernelConfig, SweepReport, SweepRequest, Verdict},
    flow::{Endpoints4, Endpoints6, FlowKey4, FlowKey6},
};
use tcpfsm_userspace::{
    kernel::{counters, loader::roomy, pod::Raw},
    logging::LogLevel,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    floor::{FloorObject, Flows, Jig, Loaded},
    frames::{DATA, Layout, Options, Shape},
    plan::{CLIENT_PORTS, CLIENTS, SERVER, SERVER_PORT},
    sys,
};

/// Entries of the maps, and how many events of handshakes are told one by one (0: all).
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub flows4: u32,
    pub flows6: u32,
    pub embryos4: u32,
    pub embryos6: u32,
    pub ring: u32,
    pub event_quota: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            flows4: 16_384,
            flows6: 16_384,
            embryos4: 16_384,
            embryos6: 16_384,
            ring: 16 << 20,
            event_quota: 0,
        }
    }
}

/// The programs, loaded.
pub struct Subject {
    ebpf: Ebpf,
}

/// Room for so many flows: an LRU map that is nearly full evicts before it is.
pub fn room(flows: u32) -> u32 {
    flows + flows / 20 + 512
}

impl Subject {
    pub fn load(object: &[u8], sizes: &Sizes) -> Result<Self> {
        let config = Raw(KernelConfig { event_quota: sizes.event_quota, ..KernelConfig::default() });
        // As the daemon loads it, with its rule for the maps; the object's own default is to log everything.
        let log_level = LogLevel::default().kernel();
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CONFIG", &config, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("FLOWS4", sizes.flows4)
            .map_max_entries("FLOWS6", sizes.flows6)
            .map_max_entries("EMBRYOS4", roomy(sizes.embryos4))
            .map_max_entries("EMBRYOS6", roomy(sizes.embryos6))
            .map_max_entries("EVENTS", sizes.ring);
        Ok(Self { ebpf: loader.load(object).context("load the tracker's object")? })
    }

    pub fn program(&mut self, name: &str) -> Result<Loaded> {
        Loaded::from(&mut self.ebpf, name)
    }

    /// All CPUs' counters, added up.
    pub fn counters(&self) -> Result<Counters> {
        let map = self.ebpf.map("COUNTERS").context("no map COUNTERS")?;
        Ok(counters::sum(&PerCpuArray::<&MapData, _>::try_from(map)?)?)
    }

    /// Empties the ring; says how many records were in it.
    pub fn drain(&mut self) -> Result<u64> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("EVENTS").context("no map EVENTS")?)?;
        let mut count = 0;
        while ring.next().is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// Takes the ring for a consumer of its own.
    pub fn take_ring(&mut self) -> Result<RingBuf<MapData>> {
        Ok(RingBuf::try_from(self.ebpf.take_map("EVENTS").context("no map EVENTS")?)?)
    }

    /// The object itself, to attach its programs.
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The record of one of the jig's flows.
    pub fn record(&self, layout: Layout, flow: u32) -> Result<FlowRecord> {
        if layout == Layout::Ipv6 {
            self.lookup("FLOWS6", key6(flow))
        } else {
            self.lookup("FLOWS4", key4(flow))
        }
        .with_context(|| format!("flow {flow} is not in the flow map"))
    }

    fn lookup<K: FromBytes + IntoBytes + Immutable + Copy + 'static>(
        &self,
        map: &str,
        key: K,
    ) -> Result<FlowRecord> {
        let map: HashMap<&MapData, Raw<K>, Raw<FlowRecord>> =
            HashMap::try_from(self.ebpf.map(map).context("no flow map")?)?;
        Ok(map.get(&Raw(key), 0)?.0)
    }

    /// What lies on the desks of all CPUs: a segment on the short path leaves them alone.
    pub fn desk(&self) -> Result<Vec<u8>> {
        crate::verifier::first_value(self.ebpf.map("DESK").context("no map DESK")?)
    }

    /// Memory that a map takes, by the kernel's own account.
    pub fn map_bytes(&self, name: &str) -> Result<u64> {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        crate::verifier::map_bytes(map)
    }

    /// Writes a sweep's request and clears its report.
    pub fn prepare_sweep(&mut self, request: SweepRequest) -> Result<()> {
        let map = self.ebpf.map_mut("SWEEP_REQUEST").context("no map SWEEP_REQUEST")?;
        let mut map: Array<&mut MapData, Raw<SweepRequest>> = Array::try_from(map)?;
        map.set(0, Raw(request), 0)?;
        let map = self.ebpf.map_mut("SWEEP_REPORT").context("no map SWEEP_REPORT")?;
        let mut map: Array<&mut MapData, Raw<SweepReport>> = Array::try_from(map)?;
        for at in 0..4 {
            map.set(at, Raw(SweepReport::default()), 0)?;
        }
        Ok(())
    }

    /// What the last sweep found, over all maps.
    pub fn sweep_report(&self) -> Result<SweepReport> {
        let map = self.ebpf.map("SWEEP_REPORT").context("no map SWEEP_REPORT")?;
        let map: Array<&MapData, Raw<SweepReport>> = Array::try_from(map)?;
        let mut sum = SweepReport::default();
        for at in 0..4 {
            sum.add(&map.get(&at, 0)?.0);
        }
        Ok(sum)
    }

    /// Puts so many flows into the maps, each by its handshake and first data, through the programs.
    pub fn establish(&mut self, floor: &FloorObject, layout: Layout, count: u32) -> Result<()> {
        let before = self.counters()?;
        // Not XDP: each test run of an XDP program waits for RCU.
        let target = self.program("tcpfsm_ingress")?;
        let (opening, settling) =
            (Shape { layout, options: Options::Syn }, Shape { layout, options: Options::Timestamps });
        let mut parts = Vec::new();
        for (shape, script) in [(opening, opening.opening()), (settling, settling.settling())] {
            let mut jig = floor.jig(&target, layout)?;
            jig.play(Flows::Fresh { first: 0 }, &script)?;
            parts.push((jig, shape, script.len() as u64));
        }
        let mut left = u64::from(count);
        while left > 0 {
            let now = left.min(CHUNK);
            for (jig, shape, packets) in &parts {
                jig.run(*shape, DATA, packets * now)?;
            }
            self.drain()?;
            left -= now;
        }
        let after = self.counters()?;
        let promoted = after.health[Health::Promoted as usize] - before.health[Health::Promoted as usize];
        if promoted != u64::from(count) {
            bail!("{promoted} of {count} flows were promoted to the flow map");
        }
        for flow in [0, count / 2, count - 1] {
            let record = self.record(layout, flow)?;
            if !Verdict(record.shared.verdict).is_settled() {
                bail!("flow {flow} is not settled in ESTABLISHED: {:?}", Verdict(record.shared.verdict));
            }
        }
        Ok(())
    }
}

/// How many handshakes are under way at once while flows are put into the maps: few, the embryonic map is small.
const CHUNK: u64 = 1 << 12;

/// The key of one of the jig's IPv4 flows.
pub fn key4(flow: u32) -> FlowKey4 {
    let ends = Endpoints4 {
        src: (CLIENTS + (flow >> 14)).to_be_bytes(),
        dst: SERVER.to_be_bytes(),
        src_port: u16::try_from(CLIENT_PORTS + (flow & 0x3fff)).unwrap(),
        dst_port: SERVER_PORT,
    };
    ends.key(0).0
}

/// The key of one of the jig's IPv6 flows.
pub fn key6(flow: u32) -> FlowKey6 {
    let address = |host: u32| {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        address[12..].copy_from_slice(&host.to_be_bytes());
        address
    };
    let ends = Endpoints6 {
        src: address(CLIENTS + (flow >> 14)),
        dst: address(SERVER),
        src_port: u16::try_from(CLIENT_PORTS + (flow & 0x3fff)).unwrap(),
        dst_port: SERVER_PORT,
    };
    ends.key(0).0
}

/// What a jig's measured packets must have done to the counters, and nothing else.
pub struct Expect {
    before: Counters,
    desk: Vec<u8>,
    began: u64,
}

impl Expect {
    pub fn begin(subject: &Subject, jig: Option<&Jig>) -> Result<Self> {
        Ok(Self { before: subject.counters()?, desk: subject.desk()?, began: jig.map_or(Ok(0), Jig::units)? })
    }

    /// Fails unless every packet was tracked on the short path, none told anything, and no event was sent.
    pub fn nothing_but(&self, subject: &Subject, packets: u64, what: &str) -> Result<()> {
        let after = subject.counters()?;
        let tracked = |counters: &Counters| counters.packets.iter().map(|row| row[0]).sum::<u64>();
        let sum = |row: &[u64]| row.iter().sum::<u64>();
        let (seen, all) = (
            tracked(&after) - tracked(&self.before),
            sum(after.packets.as_flattened()) - sum(self.before.packets.as_flattened()),
        );
        let facts = sum(&after.facts) - sum(&self.before.facts);
        let moves = sum(after.transitions.as_flattened().as_flattened())
            - sum(self.before.transitions.as_flattened().as_flattened());
        if seen != packets || all != packets || facts != 0 || moves != 0 || after.health != self.before.health
        {
            let told: Vec<_> = after.facts.iter().zip(&self.before.facts).map(|(a, b)| a - b).collect();
            bail!(
                "{what}: did not take the path that is measured: {packets} packets sent, {all} counted, {seen} tracked, \
                 {moves} transitions, facts {told:?}, health {:?} after {:?}",
                after.health,
                self.before.health
            );
        }
        if subject.desk()? != self.desk {
            bail!("{what}: the full machine was asked, which leaves its traces on the desk");
        }
        Ok(())
    }

    pub fn began(&self) -> u64 {
        self.began
    }
}

/// Walks all flow maps; gives the thread's CPU time in nanoseconds.
pub fn sweep(program: &Loaded) -> Result<f64> {
    let began = sys::thread_cpu();
    sys::test_run(program.raw(), &[], 0).context("run the sweep")?;
    Ok(sys::thread_cpu() - began)
}

impl Subject {
    /// The object itself.
    pub fn into_inner(self) -> Ebpf {
        self.ebpf
    }
}
