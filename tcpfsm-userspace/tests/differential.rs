//! Kernel = userspace: random segment sequences, some frames of which are damaged on the way, go through the loaded
//! kernel programs and through the userspace machine; flow records, events and counters must be identical after
//! every sequence, and records after every segment.
//!
//! `TCPFSM_DIFFERENTIAL_SEGMENTS` sets how many segments (default 200,000); a failure shrinks to a sequence from which
//! no segment can be left out.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{cell::Cell, cell::RefCell, collections::BTreeMap, collections::HashMap, env};

use proptest::{
    prelude::*,
    test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner},
};
use support::{
    Event, Kernel, Through, ethernet,
    segments::{Family, Move, Talk},
};
use tcpfsm_common::{
    abi::{ClosedEvent, Counters, EventKind, FlowRecord, Outcome, Verdict},
    fact::{Fact, Facts},
    flow::{End, FlowKey},
    fsm::{Config, advance},
    packet::{Packet, Parsed, Skip, parse_ether, parse_network},
    segment::{Segment, TcpFlags},
};
use tcpfsm_userspace::kernel::evictions::NONE;

/// The longest sequence. They have half of that on average, and any length, so that they shrink by leaving out.
const LONGEST: usize = 128;

/// What happens to a frame on its way.
#[derive(Clone, Copy, Debug)]
enum Damage {
    None,
    /// One bit is another, anywhere.
    Bit(u16),
    /// It ends here.
    Cut(u16),
    /// The IP header names another length: less than there is, more as a super-packet does, or none.
    Length(u16),
}

impl Damage {
    fn strategy() -> impl Strategy<Value = Self> {
        prop_oneof![
            20 => Just(Self::None),
            3 => any::<u16>().prop_map(Self::Bit),
            1 => (14..80_u16).prop_map(Self::Cut),
            1 => prop_oneof![Just(0), 0..120_u16, any::<u16>()].prop_map(Self::Length),
        ]
    }

    fn apply(self, frame: &mut Vec<u8>) {
        match self {
            Self::None => {}
            Self::Bit(bit) => {
                let byte = usize::from(bit) / 8 % frame.len();
                let addresses = if frame[12..14] == [0x86, 0xdd] { 22..54 } else { 26..34 };
                // The kernel remembers the flows of earlier sequences; and whether a segment with the IPv4
                // identification of the one before is a copy depends on the clock.
                if !addresses.contains(&byte) && !(18..20).contains(&byte) {
                    frame[byte] ^= 1 << (bit % 8);
                }
            }
            Self::Cut(length) => {
                let header = if frame[12..14] == [0x86, 0xdd] { 54 } else { 34 };
                let end = header + usize::from(frame[header + 12] >> 4) * 4;
                let mut length = usize::from(length);
                // Of options that are not all there the kernel reads none, userspace those before the cut, which a
                // snap length leaves; no receiver takes such a packet.
                if (header + 20..end).contains(&length) {
                    length = end;
                }
                frame.truncate(length);
            }
            Self::Length(length) => {
                let at = if frame[12..14] == [0x86, 0xdd] { 18 } else { 16 };
                frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
            }
        }
    }
}

#[test]
fn kernel_and_userspace_agree_on_random_sequences() {
    needs_kernel!();
    let segments: usize =
        env::var("TCPFSM_DIFFERENTIAL_SEGMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    // A little more than enough: lengths are random.
    let cases = u32::try_from(segments / (LONGEST / 2) + segments / 2000 + 8).unwrap();
    let kernel = RefCell::new(Kernel::load());
    let (flows, done, skipped) = (Cell::new(0_u32), Cell::new(0_usize), Cell::new(0_usize));

    let config = RunnerConfig {
        cases,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..RunnerConfig::default()
    };
    // The same sequences every time.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let steps = prop::collection::vec((Move::strategy(), Damage::strategy()), 0..=LONGEST);
    let strategy = (any::<bool>(), any::<bool>(), steps);
    let result = runner.run(&strategy, |(v6, by_xdp, steps)| {
        flows.set(flows.get() + 1);
        done.set(done.get() + steps.len());
        let family = if v6 { Family::V6 } else { Family::V4 };
        let dropped = compare(&mut kernel.borrow_mut(), Talk::new(family, flows.get()), by_xdp, &steps)?;
        skipped.set(skipped.get() + dropped);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert_eq!(kernel.borrow().missing(), NONE, "the books hold every flow where it is");
    println!(
        "{} segments in {} sequences, {} of them no TCP any more: records, events and counters identical",
        done.get(),
        flows.get(),
        skipped.get()
    );
    assert!(done.get() >= segments, "only {} segments", done.get());
}

/// What must have been counted and told.
#[derive(Default)]
struct Expected {
    events: Vec<Told>,
    strays: Vec<Told>,
    facts: BTreeMap<usize, u64>,
    transitions: u64,
    skips: BTreeMap<&'static str, u64>,
}

/// What an event says of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    flow: FlowKey,
    sender: End,
    verdicts: [Verdict; 2],
    facts: Facts,
    flags: u16,
    len: u32,
    /// Relative; 0 for strays, which have nothing to be relative to.
    seq: u32,
    ack: u32,
    /// Packets and bytes of both ends, where it ended the flow.
    totals: Option<[u64; 4]>,
}

impl From<&Event> for Told {
    fn from(Event { event, closed }: &Event) -> Self {
        Self {
            flow: event.key(),
            sender: event.sender_end(),
            verdicts: [event.verdict_before(), event.verdict_after()],
            facts: event.fact_set(),
            flags: event.flags,
            len: event.len,
            seq: event.seq,
            ack: event.ack,
            totals: closed.map(|ClosedEvent { packets: [a, b], bytes: [c, d], .. }| [a, b, c, d]),
        }
    }
}

/// Plays a sequence on both sides. Gives how many of its frames hold no segment.
fn compare(
    kernel: &mut Kernel,
    mut talk: Talk,
    by_xdp: bool,
    steps: &[(Move, Damage)],
) -> Result<usize, TestCaseError> {
    kernel.events();
    let before = kernel.counters();
    let mut flows: HashMap<FlowKey, FlowRecord> = HashMap::new();
    let mut expected = Expected::default();
    for (number, (next, damage)) in steps.iter().enumerate() {
        let through = match (next.from_a, by_xdp) {
            (true, _) => Through::TcEgress,
            (false, true) => Through::Xdp,
            (false, false) => Through::TcIngress,
        };
        let mut frame = ethernet(&talk.packet(next));
        damage.apply(&mut frame);
        if !support::takes(through, &frame) {
            continue;
        }
        kernel.run(through, &frame);
        let (key, sender, segment) = match parse(&frame) {
            Ok(found) => found,
            Err(skip) => {
                *expected.skips.entry(skip.name()).or_default() += 1;
                continue;
            }
        };
        let record = flows.entry(key).or_default();
        expected.advance(&key, record, sender, &segment);
        let in_kernel = kernel.record(&key).map(|(record, _)| record);
        if Verdict(record.shared.verdict).generation() == 0 {
            prop_assert!(in_kernel.is_none(), "#{number}: a record for nothing");
            *record = FlowRecord::default();
            continue;
        }
        let Some(in_kernel) = in_kernel else {
            return Err(TestCaseError::fail(format!("#{number}: no record in the kernel")));
        };
        let (in_kernel, record) = (support::comparable(&in_kernel), support::comparable(record));
        prop_assert_eq!(in_kernel, record, "#{}: {:?}", number, segment);
    }
    expected.check(kernel, &before)?;
    Ok(expected.skips.values().sum::<u64>() as usize)
}

impl Expected {
    fn advance(&mut self, flow: &FlowKey, record: &mut FlowRecord, sender: End, segment: &Segment) {
        let before = Verdict(record.shared.verdict);
        let (step, change) = advance(record, sender, segment, 0, Config::default());
        for fact in step.facts.iter() {
            *self.facts.entry(fact as usize).or_default() += 1;
        }
        let stray = Told {
            flow: *flow,
            sender,
            verdicts: [before, step.verdict],
            facts: step.facts,
            flags: segment.flags.0,
            len: segment.len,
            seq: 0,
            ack: 0,
            totals: None,
        };
        if step.is_news(before) {
            let [own, peer] = [sender, sender.other()].map(|end| record.sent[end as usize]);
            let seq = segment.seq.0.wrapping_sub(own.iss.0);
            let ack = segment.ack.0.wrapping_sub(peer.iss.0);
            let ack = if segment.flags.any(TcpFlags::ACK) { ack } else { 0 };
            let [low, high] = record.sent;
            let totals = change.over.then_some([low.packets, high.packets, low.bytes, high.bytes]);
            self.events.push(Told { seq, ack, totals, ..stray });
            for end in [End::Low, End::High] {
                self.transitions += u64::from(step.verdict.transition(before, end).is_some());
            }
        } else if step.facts.has(Fact::NoSession) || step.facts.has(Fact::BadFlags) {
            self.strays.push(stray);
        }
    }

    fn check(&self, kernel: &mut Kernel, before: &Counters) -> Result<(), TestCaseError> {
        let (strays, events): (Vec<_>, Vec<_>) = kernel
            .events()
            .into_iter()
            .partition(|Event { event, .. }| EventKind::try_from(event.kind) == Ok(EventKind::Stray));
        let told = |events: Vec<Event>| -> Vec<Told> { events.iter().map(Told::from).collect() };
        prop_assert_eq!(&told(events), &self.events, "events");
        // Of many strays a part is told: some of the expected ones, in their order.
        let mut expected = self.strays.iter();
        for stray in told(strays) {
            prop_assert!(expected.any(|expected| *expected == stray), "no such stray: {:?}", stray);
        }
        let now = kernel.counters();
        let facts = risen(now.facts.iter().zip(&before.facts)).collect::<BTreeMap<_, _>>();
        prop_assert_eq!(&facts, &self.facts, "fact counters");
        let sum = |c: &Counters| c.transitions.as_flattened().as_flattened().iter().sum::<u64>();
        prop_assert_eq!(sum(&now) - sum(before), self.transitions, "transition counters");
        let names: Vec<_> = Outcome::names().collect();
        let mut skips = BTreeMap::new();
        for (now, before) in now.packets.iter().zip(&before.packets) {
            for (at, count) in risen(now.iter().zip(before)) {
                if Skip::ALL.into_iter().any(|skip| skip.name() == names[at]) {
                    *skips.entry(names[at]).or_default() += count;
                }
            }
        }
        prop_assert_eq!(&skips, &self.skips, "packets that are no segments");
        Ok(())
    }
}

/// The counters that have risen, and by how much.
fn risen<'a>(pairs: impl Iterator<Item = (&'a u64, &'a u64)>) -> impl Iterator<Item = (usize, u64)> {
    pairs.map(|(now, before)| now - before).enumerate().filter(|&(_, by)| by > 0)
}

/// What the userspace parser makes of a frame.
fn parse(frame: &[u8]) -> Result<(FlowKey, End, Segment), Skip> {
    let (network, offset) = parse_ether(&frame)?;
    match parse_network(&frame, network, offset, frame.len())? {
        Parsed::V4(Packet::Tcp(ends, segment)) => {
            let (key, end) = ends.key(0);
            Ok((FlowKey::V4(key), end, segment))
        }
        Parsed::V6(Packet::Tcp(ends, segment)) => {
            let (key, end) = ends.key(0);
            Ok((FlowKey::V6(key), end, segment))
        }
        other => panic!("one bit makes no ICMP error of a segment: {other:?}"),
    }
}
