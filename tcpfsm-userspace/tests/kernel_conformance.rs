//! The loaded kernel programs against the conformance traces and against the userspace machine: the same
//! packets, through XDP for one direction and TC egress for the other, flow record by flow record.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use std::{collections::HashMap, fs, path::PathBuf};

use serde::Deserialize;
use support::{Kernel, Through, ethernet};
use tcpfsm_common::{
    abi::{FlowRecord, Health, KernelConfig, Verdict},
    flow::FlowKey,
    fsm::{Config, State, advance},
    packet::{Packet, parse_packet4},
};

#[derive(Deserialize)]
struct Trace {
    name: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    packet: Option<String>,
    from: Option<String>,
    delivered: Option<bool>,
    client_port: Option<u16>,
    kernel_client: String,
    kernel_server: String,
    expect_client: Option<String>,
    expect_server: Option<String>,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn class(state: State) -> &'static str {
    if state.is_closed() { "closed" } else { state.name() }
}

fn class_of(name: &str) -> &'static str {
    class(name.parse().unwrap())
}

/// Handshakes in the embryonic map, and straight in the flow map.
static LATE: KernelConfig = KernelConfig::NONE;
static EARLY: KernelConfig = KernelConfig { early: 1 << 20, ..KernelConfig::NONE };

#[test]
fn kernel_programs_are_exact_on_scripted_scenarios_and_equal_userspace_on_all() {
    needs_kernel!();
    let [late, early] = [&LATE, &EARLY].map(play_with);
    println!("{late} and {early} records promoted");
    assert!(early < late || late == 0, "handshakes do not go the long way");
}

/// Plays all traces; says how many records went from the embryonic map to the flow map.
fn play_with(config: &'static KernelConfig) -> u64 {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance");
    let mut kernel = Kernel::configured(config);
    let (mut packets, mut compared) = (0, 0);
    for (file, strict) in [("scripted.json", true), ("walks.json", false)] {
        let Ok(bytes) = fs::read(dir.join(file)) else {
            println!("skipped: {file} is not there");
            continue;
        };
        let traces: Vec<Trace> = serde_json::from_slice(&bytes).unwrap();
        for (scope, trace) in traces.iter().enumerate() {
            // All traces use the same addresses: another network for each.
            let octet = u8::try_from(scope % 250).unwrap();
            let network = if strict { 100 } else { 101 };
            let mut flows: HashMap<FlowKey, FlowRecord> = HashMap::new();
            for (number, step) in trace.steps.iter().enumerate() {
                let (Some(packet), Some(true)) = (&step.packet, step.delivered) else { continue };
                let mut bytes = unhex(packet);
                bytes[13..15].copy_from_slice(&[network, octet]);
                bytes[17..19].copy_from_slice(&[network, octet]);
                let at = format!("{} #{}", trace.name, number + 1);
                let Ok(Packet::Tcp(ends, segment)) = parse_packet4(&bytes.as_slice(), 0, || bytes.len())
                else {
                    continue;
                };
                let (key, sender) = ends.key(0);
                let key = FlowKey::V4(key);
                let record = flows.entry(key).or_default();
                advance(record, sender, &segment, 0, Config::default());

                let from_client = step.from.as_deref() == Some("client");
                let through = if from_client { Through::TcEgress } else { Through::Xdp };
                kernel.run(through, &ethernet(&bytes));
                packets += 1;
                let in_kernel = kernel.record(&key).map(|(record, _)| record);
                let began = Verdict(record.shared.verdict).generation() != 0;
                assert_eq!(in_kernel.is_some(), began, "{at}: is there a record?");
                let Some(in_kernel) = in_kernel else {
                    // What begins no flow leaves nothing behind in the kernel.
                    *record = FlowRecord::default();
                    continue;
                };
                assert_eq!(
                    support::comparable(&in_kernel),
                    support::comparable(record),
                    "{at}: kernel and userspace differ"
                );

                if strict {
                    let verdict = Verdict(in_kernel.shared.verdict);
                    let client = if from_client { sender } else { sender.other() };
                    assert_eq!(Some(ends_port(&key, client)), step.client_port, "{at}");
                    let expect =
                        |expect: &Option<String>, kernel: &str| class_of(expect.as_deref().unwrap_or(kernel));
                    assert_eq!(
                        [class(verdict.state(client)), class(verdict.state(client.other()))],
                        [
                            expect(&step.expect_client, &step.kernel_client),
                            expect(&step.expect_server, &step.kernel_server)
                        ],
                        "{at}"
                    );
                    compared += 2;
                }
            }
        }
    }
    println!("{packets} packets through the kernel programs, {compared} endpoint states exact");
    let counters = kernel.counters();
    assert_eq!(counters.packets[0].iter().chain(&counters.packets[2]).sum::<u64>(), packets);
    counters.health[Health::Promoted as usize]
}

fn ends_port(key: &FlowKey, end: tcpfsm_common::flow::End) -> u16 {
    key.socket_addr(end).port()
}
