//! Floods and scans from random sources, while others go on talking: nobody who is connected is lost or taken for
//! something else, and whatever is counted is counted exactly.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{
    env,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use support::{
    Kernel, Through, ethernet,
    segments::{ipv4, parse, tcp},
};
use tcpfsm_common::{
    abi::{Counters, Health, KernelConfig, STATE_SLOTS, SweepRequest, Verdict},
    flow::End,
    fsm::State,
    segment::TcpFlags as F,
};
use zerocopy::IntoBytes as _;

/// Set to flood for a minute while 100,000 flows are connected.
const FULL: &str = "TCPFSM_TEST_FULL";

/// How large a test is.
struct Size {
    connected: u32,
    embryos: u32,
    /// A flood goes on for this long, and at least until it was ten times what there is room for.
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

/// The daemon's quota of events.
static CONFIG: KernelConfig = KernelConfig { event_quota: 4_096, ..KernelConfig::NONE };

/// The first network of the attackers'.
const ATTACKERS: u32 = 1 << 20;

/// Networks have 24 bits; when they are used up, whoever had one is long evicted.
const fn attacker(number: u32) -> u32 {
    ATTACKERS + number % ((1 << 24) - 1 - ATTACKERS)
}

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
    /// One test at a time: each measures memory and time.
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

fn frame(network: u32, from_client: bool, [seq, ack]: [u32; 2], flags: u16, len: usize) -> Vec<u8> {
    let (ports, from, to) = if from_client { ((40_000, 443), 1, 2) } else { ((443, 40_000), 2, 1) };
    ethernet(&ipv4(network, from, to, 1, &tcp(ports, seq, ack, flags, 64_240, &[], len)))
}

impl Host {
    /// A host to which `size.connected` clients are connected.
    fn new(size: Size) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let (flows, embryos) = (size.connected + size.connected / 10 + 1024, size.embryos);
        let kernel = Kernel::load_with(|mut loader| {
            loader.override_global("CONFIG", CONFIG.as_bytes(), true);
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
            _turn: turn,
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

    /// Events told so far, by the counters: sent, lost, sampled.
    fn fate(&self) -> [u64; 3] {
        let Counters { health, .. } = self.kernel.counters();
        [Health::EventsSent, Health::EventsLost, Health::EventsSampled].map(|which| health[which as usize])
    }

    /// Ten times the embryonic maps' room of what `attack` sends, in full size for a minute at least, while the connected
    /// go on talking. Each time it is told how often it was called, and passes one packet or two. Gives how often.
    fn endure(&mut self, what: &str, attack: impl Fn(&mut Self, u32)) -> u32 {
        let (before, before_told) = (self.kernel.counters(), self.fate());
        let (began, memory, started) = (self.packets, resident(), Instant::now());
        let mut costs = Vec::new();
        let mut mark = (thread_cpu(), self.packets);
        let mut times = 0;
        while times < 10 * self.size.embryos || started.elapsed() < self.size.least {
            attack(self, times);
            times += 1;
            if times.is_multiple_of(BETWEEN) {
                self.talk();
            }
            // The first tenth fills the map.
            if times.is_multiple_of(self.size.embryos) {
                let now = (thread_cpu(), self.packets);
                costs.push((now.0 - mark.0) / (now.1 - mark.1) as f64);
                mark = now;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let packets = self.packets - began;
        self.assert_connected(what);
        self.events += self.kernel.events().len() as u64;
        let after = self.kernel.counters();
        let seen = |counters: &Counters| counters.packets.as_flattened().iter().sum::<u64>();
        assert_eq!(seen(&after) - seen(&before), packets, "packets of {what}");
        assert_eq!(after.health[Health::EventsSent as usize], self.events, "{what}: events in the ring");
        let told: [u64; 3] = std::array::from_fn(|which| self.fate()[which] - before_told[which]);
        assert_eq!(told[1], 0, "{what}: a sample always finds room in the ring");
        let missing = self.kernel.missing();
        assert_eq!(missing[0], [0; STATE_SLOTS], "{what}: connections were evicted");

        let grown = resident().saturating_sub(memory);
        let (first, last) = (costs[1], costs.last().unwrap());
        println!(
            "{what}: {packets} packets in {seconds:.1} s; {first:.0} ns of CPU a packet at first, {last:.0} at last; \
             {grown} KiB more memory; {} events told, {} sampled, {} lost; {} evicted",
            told[0],
            told[2],
            told[1],
            missing.as_flattened().iter().sum::<u64>(),
        );
        assert!(*last < 2.0 * first, "{what} gets dearer: {costs:?}");
        assert!(grown < 32 << 10, "{what}: {grown} KiB more than before");
        times
    }

    /// Records in the embryonic map of which an end is in this state.
    fn embryos_in(&self, state: State) -> u64 {
        let embryos = self.kernel.flows4("EMBRYOS4");
        let is_in = |verdict: Verdict| [End::Low, End::High].iter().any(|end| verdict.state(*end) == state);
        embryos.iter().filter(|(_, record)| is_in(Verdict(record.shared.verdict))).count() as u64
    }

    /// Strays from everywhere: no connection begins or ends, and nobody is half-open.
    fn endure_strays(&mut self, what: &str, flags: u16, answer: Option<u16>) {
        let before = self.kernel.counters();
        self.endure(what, |host, number| {
            let (seq, ack) = (host.random.next(), host.random.next());
            host.hear(attacker(number), [seq, ack], flags, 0);
            if let Some(answer) = answer {
                host.say(attacker(number), [ack, seq.wrapping_add(1)], answer, 0);
            }
        });
        let after = self.kernel.counters();
        assert_eq!(after.closed, before.closed, "{what}: nothing was closed");
        assert_eq!(after.transitions, before.transitions, "{what}: nothing was moved");
        // The sweep would count them as connections.
        assert_eq!(self.embryos_in(State::SynRecv), 0, "{what}");
    }
}

/// How often a flood is interrupted by somebody who is connected.
const BETWEEN: u32 = 16;

/// SYNs, each answered: all half-open ones are counted.
#[test]
fn a_syn_flood() {
    needs_kernel!();
    let mut host = Host::new(Size::wanted());
    let (before, before_told) = (host.kernel.counters(), host.fate());
    let syns = host.endure("SYN flood", |host, number| {
        let seq = host.random.next();
        host.hear(attacker(number), [seq, 0], F::SYN, 0);
        host.say(attacker(number), [seq ^ 77, seq.wrapping_add(1)], F::SYN | F::ACK, 0);
    });
    let syns = u64::from(syns);
    let inserted = |health: &Counters| health.health[Health::Inserted as usize];
    assert_eq!(host.health(Health::Inserted) - inserted(&before), syns);
    assert_eq!(host.health(Health::Promoted), before.health[Health::Promoted as usize]);
    let told: [u64; 3] = std::array::from_fn(|which| host.fate()[which] - before_told[which]);
    assert_eq!(told.iter().sum::<u64>(), 2 * syns, "two events each, told or sampled");

    // Who is missing was evicted.
    let half_open = host.kernel.flows4("EMBRYOS4").len() as u64;
    let missing = host.kernel.missing();
    assert_eq!(missing.as_flattened().iter().sum::<u64>(), syns - half_open);

    // What the sweep counts is what is there.
    let waiting = host.embryos_in(State::SynRecv);
    let request = SweepRequest { number: 1, report_every: 1, ..SweepRequest::default() };
    let report = host.kernel.sweep(request)[2];
    assert_eq!(report.states[1][State::SynRecv as usize], waiting);
    assert_eq!((report.flows, waiting), (half_open, half_open));
    let room = u64::from(host.size.embryos);
    assert!((room * 7 / 8..=room).contains(&half_open), "{half_open} half-open in {room}");
    println!("{syns} SYNs, {half_open} half-open in {room}, all counted");
}

/// Resets, blind ones at the connected and stray ones: nobody is disconnected.
#[test]
fn a_reset_flood() {
    needs_kernel!();
    let mut host = Host::new(Size::wanted());
    let before = host.kernel.counters();
    host.endure("RST flood", |host, number| {
        let (seq, stray) = (host.random.next(), host.random.next().is_multiple_of(2));
        let network = if stray { attacker(number) } else { number % host.size.connected };
        // Exact and in-window ones are somebody who can see the connection: another test's.
        let seq = if seq.wrapping_sub(101) < 1 << 24 { seq | 1 << 31 } else { seq };
        host.hear(network, [seq, 0], F::RST, 0);
    });
    let after = host.kernel.counters();
    assert_eq!(after.closed, before.closed, "nothing was closed");
    assert_eq!(after.transitions, before.transitions, "nothing was moved");
}

#[test]
fn an_ack_flood() {
    needs_kernel!();
    Host::new(Size::wanted()).endure_strays("ACK flood", F::ACK, None);
}

#[test]
fn a_syn_ack_flood() {
    needs_kernel!();
    Host::new(Size::wanted()).endure_strays("SYN-ACK flood", F::SYN | F::ACK, Some(F::RST));
}

#[test]
fn a_fin_scan() {
    needs_kernel!();
    Host::new(Size::wanted()).endure_strays("FIN scan", F::FIN, Some(F::RST | F::ACK));
}

#[test]
fn a_null_scan() {
    needs_kernel!();
    Host::new(Size::wanted()).endure_strays("NULL scan", 0, None);
}

/// SYNs that are refused: each a connection that was opened and closed, and none is half-open.
#[test]
fn a_syn_scan() {
    needs_kernel!();
    let mut host = Host::new(Size::wanted());
    let before = host.kernel.counters();
    let syns = host.endure("SYN scan", |host, number| {
        let seq = host.random.next();
        host.hear(attacker(number), [seq, 0], F::SYN, 0);
        host.say(attacker(number), [0, seq.wrapping_add(1)], F::RST | F::ACK, 0);
    });
    let after = host.kernel.counters();
    let closed = |counters: &Counters| counters.closed.iter().sum::<u64>();
    assert_eq!(closed(&after) - closed(&before), u64::from(syns));
    assert_eq!(host.embryos_in(State::SynRecv), 0);
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
