//! Laws of the sweep.

use std::cell::Cell;

use proptest::{
    prelude::*,
    test_runner::{Config as RunnerConfig, TestRunner},
};
use tcpfsm_common::{
    abi::{FlowRecord, SweepRequest, Verdict},
    flow::End,
    fsm::{Calm, Expiry, State, conditions, expire},
};

use super::machine::{any_record, verdict};

/// Near the limits of [`request`], on both sides of each.
fn settled() -> impl Strategy<Value = FlowRecord> {
    (
        any_record(),
        [0..100_u64, 0..100],
        [0..20_u32, 0..20],
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.9),
    )
        .prop_map(|(mut record, seen, rtx, is_settled, is_plain)| {
            if is_settled {
                let established = |verdict: Verdict, end| verdict.with_state(end, State::Established, true);
                let word = established(established(Verdict::default(), End::Low), End::High);
                record.shared.verdict = word.0 & !(0xff << 10);
            }
            if is_plain {
                record.shared.facts = 0;
            }
            record.shared.rtx = rtx;
            for (sent, seen) in record.sent.iter_mut().zip(seen) {
                sent.stamp = seen << 16;
            }
            record
        })
}

fn request() -> impl Strategy<Value = SweepRequest> {
    let limit = || prop_oneof![Just(0_u64), (0..100_u64).prop_map(|ticks| ticks << 16)];
    (0..200_u64, limit(), [limit(), limit()], prop_oneof![4 => Just(0), 1 => limit()], 0..20_u32, 0..5_u32)
        .prop_map(|(now, timeout, [idle, unanswered], stuck, rtx, rtx_share)| SweepRequest {
            now: now << 16,
            timeout: [timeout; 16],
            stuck: [stuck; 16],
            idle,
            unanswered,
            rtx,
            rtx_share,
            number: 1,
            ..SweepRequest::default()
        })
}

/// Of a flow that the sweep only counts there is nothing to say. The test fails if there is none such.
#[test]
fn what_is_calm_needs_no_look() {
    let calm = Cell::new(0_u32);
    let mut runner =
        TestRunner::new(RunnerConfig { cases: 50_000, failure_persistence: None, ..RunnerConfig::default() });
    runner
        .run(&(settled(), request()), |(record, request)| {
            let verdict = verdict(&record);
            if Calm::of(&request).is_calm(&record, verdict) {
                calm.set(calm.get() + 1);
                prop_assert_eq!(expire(&record, &request), Expiry { verdict, remove: false });
                prop_assert!(conditions(&record, verdict, &request).is_empty());
                for end in [End::Low, End::High] {
                    prop_assert!(verdict.state(end) == State::Established && verdict.is_confirmed(end));
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(calm.get() > 1_000, "{} of 50,000 were calm", calm.get());
}
