//! Floods and scans from random sources, while others go on talking: nobody who is connected is lost or taken for
//! something else, and whatever is counted is counted exactly.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    env,
    time::{Duration, Instant},
};

use support::{
    Kernel, Through, ethernet,
    segments::{ipv4, parse, tcp},
};
use tcpfsm_common::{
    abi::{Counters, Health, SweepRequest, Verdict},
    flow::End,
    fsm::State,
    segment::TcpFlags as F,
};

/// Set to flood for a minute while 100,000 flows are connected.
const FULL: &str = "TCPFSM_TEST_FULL";

/// How large a test is.
struct Size {
    connected: u32,
    embryos: u32,
    /// The SYN flood goes on for this long, and at least until there were ten times as many SYNs as there is room for.
    least: Duration,
}

impl Size {
    fn wanted() -> Self {
        if env::var_os(FULL).is_some() {
            Self { connected: 100_000, embryos: 65_536, least: Duration::from_secs(60) }
        } else {
            Self { connected: 3_000, embryos: 4_096, least: Duration::ZERO }
        }
    }
}

/// A `KernelConfig` with the daemon's quota of handshakes' events.
static CONFIG: [u32; 3] = [0, 0, 4_096];

/// The first network of the attackers'.
const ATTACKERS: u32 = 1 << 20;
const DATA: u32 = 100;

/// Xorshift: the same flood each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}

/// The watched host, its connections, and what was sent to it and by it.
struct Host {
    kernel: Kernel,
    size: Size,
    /// Data segments that each client has sent.
    sent: Vec<u32>,
    turn: usize,
    packets: u64,
    /// Events taken out of the ring.
    events: u64,
    random: Random,
}

fn frame(network: u32, from_client: bool, [seq, ack]: [u32; 2], flags: u16, len: usize) -> Vec<u8> {
    let (ports, from, to) = if from_client { ((40_000, 443), 1, 2) } else { ((443, 40_000), 2, 1) };
    ethernet(&ipv4(network, from, to, 1, &tcp(ports, seq, ack, flags, 64_240, &[], len)))
}

impl Host {
    /// A host to which `size.connected` clients are connected.
    fn new(size: Size) -> Self {
        let (flows, embryos) = (size.connected + size.connected / 10 + 1024, size.embryos);
        let kernel = Kernel::load_with(|mut loader| {
            loader.override_global("CONFIG", &CONFIG[..], true);
            loader.map_max_entries("FLOWS4", flows).map_max_entries("EMBRYOS4", embryos);
            loader
        });
        let sent = vec![0; size.connected as usize];
        let mut host = Self {
            kernel,
            size,
            sent,
            turn: 0,
            packets: 0,
            events: 0,
            random: Random(0x9e37_79b9_7f4a_7c15),
        };
        for client in 0..host.size.connected {
            host.hear(client, [100, 0], F::SYN, 0);
            host.say(client, [500, 101], F::SYN | F::ACK, 0);
            host.hear(client, [101, 501], F::ACK, 0);
            host.say(client, [501, 101], F::ACK | F::PSH, 10);
            host.hear(client, [101, 511], F::ACK, 0);
        }
        assert_eq!(host.health(Health::Promoted), u64::from(host.size.connected));
        host
    }

    /// From `network` to the host.
    fn hear(&mut self, network: u32, numbers: [u32; 2], flags: u16, len: usize) {
        self.pass(Through::Xdp, &frame(network, true, numbers, flags, len));
    }

    /// From the host to `network`.
    fn say(&mut self, network: u32, numbers: [u32; 2], flags: u16, len: usize) {
        self.pass(Through::TcEgress, &frame(network, false, numbers, flags, len));
    }

    fn pass(&mut self, through: Through, frame: &[u8]) {
        self.kernel.run(through, frame);
        self.packets += 1;
        if self.packets.is_multiple_of(16_384) {
            self.events += self.kernel.events().len() as u64;
        }
    }

    /// The next client that is connected sends its next data, which is acknowledged.
    fn talk(&mut self) {
        let client = self.turn;
        self.turn = (client + 1) % self.sent.len();
        let seq = 101 + self.sent[client] * DATA;
        self.sent[client] += 1;
        self.hear(client as u32, [seq, 511], F::ACK | F::PSH, DATA as usize);
        self.say(client as u32, [511, seq + DATA], F::ACK, 0);
    }

    fn health(&self, which: Health) -> u64 {
        self.kernel.counters().health[which as usize]
    }

    /// Everybody who is connected is in ESTABLISHED, both ends, and sent what he sent; nobody else is there.
    fn assert_connected(&self, after: &str) {
        let flows = self.kernel.flows4("FLOWS4");
        assert_eq!(flows.len(), self.sent.len(), "flows in the map after {after}");
        for (client, sent) in self.sent.iter().enumerate() {
            let (key, end, _) = parse(&frame(client as u32, true, [0, 0], F::ACK, 0)[14..]);
            let Some((record, false)) = self.kernel.record(&key) else {
                panic!("client {client} is not in the map after {after}");
            };
            let verdict = Verdict(record.shared.verdict);
            assert!(verdict.is_settled(), "client {client} after {after}: {verdict:?}");
            let (own, server) = (record.sent_by(end), record.sent_by(end.other()));
            assert_eq!(own.nxt.0, 101 + sent * DATA, "client {client} after {after}");
            assert_eq!(own.bytes, u64::from(sent * DATA), "client {client} after {after}");
            assert_eq!(server.packets, 2 + u64::from(*sent), "client {client} after {after}");
        }
    }

    /// Every packet is counted, and every event is in the ring, lost or sampled: `news` of them.
    fn assert_exact(&mut self, before: &Counters, packets: u64, news: u64, what: &str) {
        self.events += self.kernel.events().len() as u64;
        let after = self.kernel.counters();
        let seen = |counters: &Counters| counters.packets.as_flattened().iter().sum::<u64>();
        assert_eq!(seen(&after) - seen(before), packets, "packets of {what}");
        assert_eq!(after.health[Health::EventsSent as usize], self.events, "{what}: events in the ring");
        let told = |counters: &Counters| {
            [Health::EventsSent, Health::EventsLost, Health::EventsSampled]
                .iter()
                .map(|which| counters.health[*which as usize])
                .sum::<u64>()
        };
        assert_eq!(told(&after) - told(before), news, "{what}: events sent, lost or sampled");
    }
}

/// How often the flood is interrupted by somebody who is connected.
const BETWEEN: u32 = 16;

/// Ten times the room in SYNs, each answered: none of the connected is lost, and all half-open ones are counted.
#[test]
fn a_syn_flood() {
    needs_kernel!();
    let mut host = Host::new(Size::wanted());
    let before = host.kernel.counters();
    let began = host.packets;
    let memory = resident();
    let wanted = 10 * host.size.embryos;
    let (started, mut syns) = (Instant::now(), 0_u32);
    let mut costs = Vec::new();
    let mut mark = (thread_cpu(), 0);
    while syns < wanted || started.elapsed() < host.size.least {
        let network = ATTACKERS + syns;
        let seq = host.random.next();
        host.hear(network, [seq, 0], F::SYN, 0);
        host.say(network, [seq ^ 77, seq.wrapping_add(1)], F::SYN | F::ACK, 0);
        syns += 1;
        if syns.is_multiple_of(BETWEEN) {
            host.talk();
        }
        // The first tenth fills the map.
        if syns.is_multiple_of(host.size.embryos) {
            let now = thread_cpu();
            costs.push((now - mark.0) / f64::from(syns - mark.1));
            mark = (now, syns);
        }
        // 24 bits of addresses.
        assert!(network < (1 << 24) - 1, "the flood ran out of addresses");
    }
    let packets = host.packets - began;
    host.assert_connected("a SYN flood");
    host.assert_exact(&before, packets, 2 * u64::from(syns), "a SYN flood");
    assert_eq!(host.health(Health::Inserted) - before.health[Health::Inserted as usize], u64::from(syns));
    assert_eq!(host.health(Health::Promoted), before.health[Health::Promoted as usize]);
    assert_eq!(host.health(Health::EventsLost), 0, "a sample always finds room");
    let sampled = host.health(Health::EventsSampled);
    assert!(sampled > u64::from(syns), "{sampled} events were not told");

    // Who is missing was evicted, and none of the connected is.
    let missing = host.kernel.missing();
    let there = host.kernel.flows4("EMBRYOS4").len() as u64;
    assert_eq!(missing[2].iter().sum::<u64>(), u64::from(syns) - there);
    assert_eq!(missing.iter().flatten().sum::<u64>(), missing[2].iter().sum::<u64>());

    // What the sweep counts is what is there.
    let half_open = host.kernel.flows4("EMBRYOS4");
    let waiting = half_open.iter().filter(|(_, record)| {
        let verdict = Verdict(record.shared.verdict);
        verdict.state(verdict.originator().other()) == State::SynRecv
    });
    let waiting = waiting.count() as u64;
    let request = SweepRequest { number: 1, report_every: 1, ..SweepRequest::default() };
    let report = host.kernel.sweep(request)[2];
    assert_eq!(report.states[1][State::SynRecv as usize], waiting);
    assert_eq!((report.flows, waiting), (half_open.len() as u64, half_open.len() as u64));
    let room = host.size.embryos as usize;
    assert!(
        half_open.len() <= room && half_open.len() >= room * 7 / 8,
        "{} half-open in {room}",
        half_open.len()
    );

    let grown = resident().saturating_sub(memory);
    println!(
        "{syns} SYNs, {packets} packets; a SYN with its answer cost {:.0} ns at first, {:.0} ns at last; {grown} KiB grown; {} events told, {sampled} not",
        costs[1],
        costs.last().unwrap(),
        host.events
    );
    assert!(*costs.last().unwrap() < 2.0 * costs[1], "the flood gets dearer: {costs:?}");
    assert!(grown < 32 << 10, "{grown} KiB more than before the flood");
}

/// Resets, blind ones at the connected and stray ones: nobody is disconnected.
#[test]
fn a_reset_flood() {
    needs_kernel!();
    let mut host = Host::new(Size::wanted());
    let before = host.kernel.counters();
    let began = host.packets;
    for number in 0..10 * host.size.embryos {
        let (seq, stray) = (host.random.next(), host.random.next().is_multiple_of(2));
        let network = if stray { ATTACKERS + number } else { number % host.size.connected };
        // Exact and in-window ones are somebody who can see the connection: another test's.
        let seq = if seq.wrapping_sub(101) < 1 << 24 { seq | 1 << 31 } else { seq };
        host.hear(network, [seq, 0], F::RST, 0);
        if number.is_multiple_of(BETWEEN) {
            host.talk();
        }
    }
    let packets = host.packets - began;
    host.assert_connected("a reset flood");
    let seen = |counters: &Counters| counters.packets.as_flattened().iter().sum::<u64>();
    let after = host.kernel.counters();
    assert_eq!(seen(&after) - seen(&before), packets);
    assert_eq!(after.closed, before.closed, "nothing was closed");
    assert_eq!(after.transitions, before.transitions, "nothing was moved");
}

/// Acknowledgments and SYN-ACKs that nobody asked for, and scans that are answered by resets.
#[test]
fn strays_and_scans() {
    needs_kernel!();
    let mut host = Host::new(Size::wanted());
    let kinds: [(&str, u16, Option<u16>); 5] = [
        ("an ACK flood", F::ACK, None),
        ("a SYN-ACK flood", F::SYN | F::ACK, Some(F::RST)),
        ("a FIN scan", F::FIN, Some(F::RST | F::ACK)),
        ("a NULL scan", 0, None),
        ("a SYN scan", F::SYN, Some(F::RST | F::ACK)),
    ];
    let mut network = ATTACKERS;
    for (what, flags, answer) in kinds {
        let before = host.kernel.counters();
        let began = host.packets;
        let times = 2 * host.size.embryos;
        for number in 0..times {
            network += 1;
            let (seq, ack) = (host.random.next(), host.random.next());
            host.hear(network, [seq, ack], flags, 0);
            if let Some(answer) = answer {
                let number =
                    if flags == F::SYN { [0, seq.wrapping_add(1)] } else { [ack, seq.wrapping_add(1)] };
                host.say(network, number, answer, 0);
            }
            if number.is_multiple_of(BETWEEN) {
                host.talk();
            }
        }
        host.assert_connected(what);
        let (after, packets) = (host.kernel.counters(), host.packets - began);
        let seen = |counters: &Counters| counters.packets.as_flattened().iter().sum::<u64>();
        assert_eq!(seen(&after) - seen(&before), packets, "{what}");
        assert_eq!(
            after.health[Health::Promoted as usize],
            before.health[Health::Promoted as usize],
            "{what}"
        );
        let closed = after.closed.iter().sum::<u64>() - before.closed.iter().sum::<u64>();
        assert_eq!(closed, if flags == F::SYN { u64::from(times) } else { 0 }, "{what}");
        // None of them is half-open: the sweep would count them as connections.
        let waiting = host
            .kernel
            .flows4("EMBRYOS4")
            .iter()
            .filter(|(_, record)| {
                let verdict = Verdict(record.shared.verdict);
                [End::Low, End::High].iter().any(|end| verdict.state(*end) == State::SynRecv)
            })
            .count();
        assert_eq!(waiting, 0, "{what}");
    }
}

fn thread_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}
