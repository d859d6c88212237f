//! Kernel = userspace: random and mutated segment sequences go through the loaded kernel programs and through
//! the userspace machine; flow records, events and counters must be identical after every sequence, and
//! records after every segment.
//!
//! `TCPFSM_DIFFERENTIAL_SEGMENTS` sets how many segments (default 200,000); a failure shrinks to the shortest
//! sequence that shows it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::env;

use proptest::{
    prelude::*,
    test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner},
};
use support::{
    Event, Kernel, Through, ethernet,
    segments::{Family, Move, Talk},
};
use tcpfsm_common::{
    abi::{Counters, EventKind, FlowEvent, FlowRecord, Verdict},
    fact::Fact,
    flow::End,
    fsm::{Config, advance},
};
use tcpfsm_userspace::kernel::evictions::NONE;

const SEGMENTS_PER_CASE: usize = 60;

#[test]
fn kernel_and_userspace_agree_on_random_sequences() {
    needs_kernel!();
    let segments: usize =
        env::var("TCPFSM_DIFFERENTIAL_SEGMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    let cases = u32::try_from(segments / SEGMENTS_PER_CASE).unwrap();
    let kernel = std::cell::RefCell::new(Kernel::load());
    let flows = std::cell::Cell::new(0_u32);
    let done = std::cell::Cell::new(0_usize);

    let config = RunnerConfig {
        cases,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..RunnerConfig::default()
    };
    // The same sequences every time.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = (any::<bool>(), any::<bool>(), prop::collection::vec(Move::strategy(), SEGMENTS_PER_CASE));
    let result = runner.run(&strategy, |(v6, by_xdp, moves)| {
        flows.set(flows.get() + 1);
        done.set(done.get() + moves.len());
        let family = if v6 { Family::V6 } else { Family::V4 };
        compare(&mut kernel.borrow_mut(), Talk::new(family, flows.get()), by_xdp, &moves)
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert_eq!(kernel.borrow().missing(), NONE, "the books hold every flow where it is");
    println!("{} segments in {} flows: records, events and counters identical", done.get(), flows.get());
}

fn compare(kernel: &mut Kernel, mut talk: Talk, by_xdp: bool, moves: &[Move]) -> Result<(), TestCaseError> {
    kernel.events();
    let before_counters = kernel.counters();
    let mut record = FlowRecord::default();
    let mut expected_events = Vec::new();
    let mut expected_strays = Vec::new();
    let mut expected_facts = [0_u64; 64];
    let mut expected_transitions = 0_u64;
    for (number, next) in moves.iter().enumerate() {
        let packet = talk.packet(next);
        let (key, sender, segment) = support::segments::parse(&packet);
        let before = Verdict(record.shared.verdict);
        let (step, _) = advance(&mut record, sender, &segment, 0, Config::default());
        for fact in step.facts.iter() {
            expected_facts[fact as usize] += 1;
        }
        let event = (before.0, step.verdict.0, step.facts.0, segment.flags.0);
        if !step.is_news(before) && (step.facts.has(Fact::NoSession) || step.facts.has(Fact::BadFlags)) {
            expected_strays.push(event);
        }
        if step.is_news(before) {
            expected_events.push(event);
            for end in [End::Low, End::High] {
                expected_transitions += u64::from(step.verdict.transition(before, end).is_some());
            }
        }
        let through = match (next.from_a, by_xdp) {
            (true, _) => Through::TcEgress,
            (false, true) => Through::Xdp,
            (false, false) => Through::TcIngress,
        };
        kernel.run(through, &ethernet(&packet));
        let in_kernel = kernel.record(&key).map(|(record, _)| record);
        if Verdict(record.shared.verdict).generation() == 0 {
            prop_assert!(in_kernel.is_none(), "#{number}: a record for nothing");
            record = FlowRecord::default();
            continue;
        }
        let Some(in_kernel) = in_kernel else {
            return Err(TestCaseError::fail(format!("#{number}: no record in the kernel")));
        };
        prop_assert_eq!(
            support::comparable(&in_kernel),
            support::comparable(&record),
            "#{}: {:?}",
            number,
            segment
        );
    }
    let (strays, events): (Vec<_>, Vec<_>) = kernel
        .events()
        .into_iter()
        .map(|Event { event, .. }| event)
        .partition(|event| EventKind::try_from(event.kind) == Ok(EventKind::Stray));
    let told = |events: Vec<FlowEvent>| -> Vec<_> {
        events.iter().map(|event| (event.before, event.after, event.facts, event.flags)).collect()
    };
    prop_assert_eq!(told(events), expected_events, "events");
    // Of many strays a part is told: some of the expected ones, in their order.
    let mut expected_strays = expected_strays.into_iter();
    for stray in told(strays) {
        prop_assert!(expected_strays.any(|expected| expected == stray), "no such stray: {:?}", stray);
    }
    let counters = kernel.counters();
    let facts = difference(&counters.facts, &before_counters.facts);
    prop_assert_eq!(facts, expected_facts.to_vec(), "fact counters");
    let sum = |c: &Counters| c.transitions.as_flattened().as_flattened().iter().sum::<u64>();
    prop_assert_eq!(sum(&counters) - sum(&before_counters), expected_transitions, "transition counters");
    Ok(())
}

fn difference(now: &[u64], before: &[u64]) -> Vec<u64> {
    now.iter().zip(before).map(|(now, before)| now - before).collect()
}
