//! What the machine tells in each of the recorded scenarios, beside the states: the events that the conformance table
//! recommends, by the names that they have here; and that every fact is asserted by some test.
//!
//! What a scenario is about is often lost on the way, so the tap matters: `behind` the loss sees what was delivered,
//! `before` it sees what was sent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashMap, fs, path::PathBuf};

use serde::Deserialize;
use tcpfsm_common::{
    abi::FlowRecord,
    fact::{Fact, Facts},
    flow::FlowKey,
    fsm::{Config, advance},
    packet::{Packet, parse_packet4},
};

/// Scenario, tap, and what is told there at least; of a scenario with nothing after the tap, only the course of a
/// connection may be told. What comes after `|` says where the table's name or expectation is another, and why.
const TOLD: &str = "
O01 behind
O02 before syn_rtx
O03 before syn_rtx synack_rtx
O04 behind
O05 before synack_rtx state_rollback
O06 behind simultaneous_open
O07 behind connect_refused
O08 before rst_ignored
O09 before rst_ignored
O10 before synack_bad_ack
O11 behind syn_in_established reset port_reuse | the client was not seen to lose its state, so at first it is a SYN in a synchronised state; `half_open_peer` is the anomaly `peer_gone`
O12 behind syn_diff_isn out_of_window | `syn_out_of_window` is `out_of_window`, and `syn_in_established` once the client is assumed connected
O13 behind handshake_aborted
O13b behind rst_inexact | more exact than `rst_ignored`: it is inside the window
O13c behind rst_out_of_window
O14 before bad_ack_in_handshake
O15 behind half_closed
O17 behind handshake_aborted
O18 behind | the ICMP error is no TCP packet of the trace: replay_conformance.rs
O19 behind | as O18
O19b behind | as O18
O20 behind | nothing is sent: the anomaly `syn_sent_stuck`, then `connect_timeout`
O20b behind rtx | `handshake_unconfirmed` is the anomaly `accept_queue_overflow`
O21 behind
O22 behind
O23 behind syn_data tfo_accepted
O24 behind syn_data tfo_ignored
O27 before syn_rtx | `connect_timeout` is an anomaly: time tells it
O28 before synack_rtx | `half_open` is an anomaly: time tells it
O29 behind
O32 behind bad_flags no_session | which flags, the event says itself
O33 behind bad_flags no_session | the same
O35 before syn_data
D01 before rtx
D02 before rtx spurious_rtx
D03 behind ooo dup_ack
D04 behind keepalive
D05 before keepalive reset | `keepalive_unanswered` and `half_open_peer` are the anomaly `peer_gone`
D06 behind zero_window zero_window_probe
D07 behind syn_in_established
D07b behind syn_in_established
D07c behind syn_in_established
D08 behind synack_rtx
D08b behind synack_odd
D09 behind reset rst_after_close | one segment after the reset may have been on its way: `rst_injection_suspected` takes two
D09b behind reset
D10 behind rst_inexact
D10b behind rst_inexact reset
D11 behind rst_out_of_window
D12 behind rst_out_of_window
D13 behind reset
D14 behind reset rst_with_data
D14b behind reset
D15 behind ack_unseen
D16 behind ack_too_old
D17 behind out_of_window
D17b behind bad_flags
D18 behind paws
D19 behind
D20 behind reset
D21 behind reset
D22 before rtx | `peer_silent` and `half_open_peer` are the anomaly `peer_gone`
D23 behind reset
D24 behind
D25 behind reset rst_after_close | two resets that cross: which was forged cannot be told, so neither is suspected
C01 behind
C02 behind
C03 behind
C04 behind
C05 before fin_rtx
C06 before fin_rtx state_rollback
C07 before fin_rtx state_rollback
C08 behind ooo
C09 behind
C10 behind
C11 behind half_closed
C12 behind reset
C12b behind reset
C13 behind reset | `stuck_close_wait` is the anomaly `close_wait_stuck`
C14 behind simultaneous_close
C14b before simultaneous_close fin_rtx
C14c behind simultaneous_close
C15 behind reset
C15b behind reset
C15c behind reset
C16 behind reset
C16b behind reset
C16c behind reset
C16d behind rst_inexact
C16e behind rst_inexact reset
C17 behind tw_assassination
C17a behind rst_ignored
C17b rfc1337 rst_ignored
C17c behind data_after_fin tw_assassination | `data_after_close` is `data_after_fin`
C18 behind tw_reuse handshake_aborted
C18b behind tw_reuse
C19 behind tw_syn_old tw_assassination | the reset ends a TIME-WAIT: more exact than `reset`
C19b behind tw_syn_old tw_assassination port_reuse
C20 behind tw_syn_old tw_reuse
C21 before fin_rtx data_after_fin tw_syn_old
C22 behind tw_reuse
C23 behind syn_in_established
C23b behind syn_in_established
C23c before syn_on_live_flow | behind the loss, where the FIN was not seen, it is `syn_in_established`
C24 behind data_after_fin fin_seq_changed
C25 behind keepalive
C26 behind half_closed | `stuck_close_wait` is the anomaly `close_wait_stuck`
C27 before fin_rtx | `stuck_fin_wait1` is the anomaly `fin_wait1_stuck`
C28 before fin_rtx | `stuck_last_ack` is the anomaly `last_ack_stuck`
C29 behind reset rst_after_close
C30 behind reset
C31 behind reset
C32 before fin_rtx
C33 behind reset
C34 behind zero_window zero_window_probe
C35 behind ack_unseen
C36 behind reset
";

/// Facts that none of these scenarios tells: which test asserts them, as a piece of its source.
const ELSEWHERE: &[(Fact, &str, &str)] = &[
    (Fact::MidstreamPickup, SCRIPTS, "C PA s5001 a9001 +100 ES/~ES midstream_pickup"),
    (Fact::DataBeforeHandshake, SCRIPTS, "ack_unseen data_before_handshake"),
    (Fact::OneSided, SCRIPTS, "ES/~ES one_sided"),
    (Fact::FinUnseen, SCRIPTS, "fin_unseen"),
    (Fact::CaptureGap, SCRIPTS, "ES/ES capture_gap"),
    (Fact::RstInjectionSuspected, SCRIPTS, "CL/ES rst_injection_suspected"),
    (Fact::BadOption, FRAMES, "Fact::BadOption"),
    (Fact::ConnectUnreachable, ICMP, "Fact::ConnectUnreachable"),
    (Fact::IcmpSoftError, ICMP, "Fact::IcmpSoftError"),
    (Fact::DuplicateView, COPIES, "Fact::DuplicateView"),
    (Fact::SelfConnect, COPIES, "Fact::SelfConnect"),
];
const SCRIPTS: &str = include_str!("observer/scripts.rs");
const FRAMES: &str = include_str!("observer/frames.rs");
const ICMP: &str = include_str!("observer/icmp.rs");
const COPIES: &str = include_str!("observer/copies.rs");

/// The course of a connection that nothing befalls.
const COURSE: [Fact; 4] = [Fact::Open, Fact::Established, Fact::HalfClosed, Fact::Closed];

#[derive(Deserialize)]
struct Trace {
    name: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    packet: Option<String>,
    delivered: Option<bool>,
    sent_us: Option<u64>,
}

#[test]
fn every_scenario_tells_what_the_table_recommends() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/scripted.json");
    let Ok(bytes) = fs::read(&file) else {
        println!("skipped: {} is not there", file.display());
        return;
    };
    let traces: Vec<Trace> = serde_json::from_slice(&bytes).unwrap();
    let (mut failures, mut played) = (Vec::new(), 0);
    for (id, tap, wanted, because) in rows() {
        let named = |trace: &&Trace| trace.name.split(' ').next() == Some(id);
        let of_id: Vec<_> = traces.iter().filter(named).collect();
        assert!(!of_id.is_empty(), "{id} is no scenario");
        for trace in of_id {
            played += 1;
            let told = tell(trace, tap);
            let surplus = COURSE.into_iter().fold(told, |rest, fact| rest.without(only(fact)));
            if !wanted.without(told).is_empty() {
                failures.push(format!("{id} {tap}: wanted {}, told {}", names(wanted), names(told)));
            } else if wanted.is_empty() && because.is_none() && !surplus.is_empty() {
                failures.push(format!("{id} {tap}: nothing befell it, told {}", names(surplus)));
            }
        }
    }
    assert!(failures.is_empty(), "{} scenarios tell otherwise:\n  {}", failures.len(), failures.join("\n  "));
    assert_eq!(played, traces.len(), "every scenario has a row");
}

#[test]
fn every_fact_is_asserted_by_a_test() {
    let mut asserted = COURSE.into_iter().fold(Facts::default(), with);
    for (_, _, wanted, _) in rows() {
        asserted = wanted.iter().fold(asserted, with);
    }
    for &(fact, source, words) in ELSEWHERE {
        assert!(source.contains(words), "{} is asserted nowhere: `{words}`", fact.name());
        asserted = with(asserted, fact);
    }
    let missing: Vec<_> = Fact::ALL.into_iter().filter(|&fact| !asserted.has(fact)).map(Fact::name).collect();
    assert!(missing.is_empty(), "no test asserts {missing:?}");
}

/// Scenario, tap, facts, and the reason where the table says it otherwise.
fn rows() -> impl Iterator<Item = (&'static str, &'static str, Facts, Option<&'static str>)> {
    TOLD.lines().filter(|line| !line.is_empty()).map(|line| {
        let (row, because) = line.split_once(" |").map_or((line, None), |(row, why)| (row, Some(why)));
        let mut words = row.split(' ');
        let (id, tap) = (words.next().unwrap(), words.next().unwrap());
        let named = |name| Fact::ALL.into_iter().find(|fact| fact.name() == name);
        let fact = |name| named(name).unwrap_or_else(|| panic!("{id}: {name} is no fact"));
        (id, tap, words.map(fact).fold(Facts::default(), with), because)
    })
}

/// Everything that the machine tells of a trace.
fn tell(trace: &Trace, tap: &str) -> Facts {
    let config = Config { rfc1337: tap == "rfc1337", ..Config::default() };
    let mut flows: HashMap<FlowKey, FlowRecord> = HashMap::new();
    let mut told = Facts::default();
    for step in &trace.steps {
        let Some(packet) = &step.packet else { continue };
        if tap != "before" && step.delivered == Some(false) {
            continue;
        }
        let bytes = unhex(packet);
        let Ok(Packet::Tcp(ends, segment)) = parse_packet4(&bytes.as_slice(), 0, || bytes.len()) else {
            panic!("{}: a packet is not TCP", trace.name);
        };
        let (key, sender) = ends.key(0);
        let now = 1_000_000_000_000 + step.sent_us.unwrap() * 1000;
        let record = flows.entry(FlowKey::V4(key)).or_default();
        told.0 |= advance(record, sender, &segment, now, config).0.facts.0;
    }
    told
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn only(fact: Fact) -> Facts {
    with(Facts::default(), fact)
}

fn with(mut facts: Facts, fact: Fact) -> Facts {
    facts.add(fact);
    facts
}

fn names(facts: Facts) -> String {
    facts.iter().map(Fact::name).collect::<Vec<_>>().join(" ")
}
