//! The machine against traces of two real Linux TCP stacks (`../shared/conformance`).
//!
//! `scripted.json` must be exact, packet by packet. On `walks.json` the machine must be at least as near to
//! the kernel's own sockets as the traces' `expect_` values, and final pairs must agree in 78 of 80.

use std::{collections::HashMap, fs, path::PathBuf};

use serde::Deserialize;
use tcpfsm_common::{
    abi::{FlowRecord, Verdict},
    flow::FlowKey4,
    fsm::{Config, PlainDesk, State, advance, observe_icmp},
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
    flags: Option<String>,
    delivered: Option<bool>,
    client_port: Option<u16>,
    sent_us: Option<u64>,
    kernel_client: String,
    kernel_server: String,
    expect_client: Option<String>,
    expect_server: Option<String>,
}

fn load(name: &str) -> Option<Vec<Trace>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance").join(name);
    match fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
        Err(error) => {
            println!("skipped: {}: {error}", path.display());
            None
        }
    }
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

#[derive(Default)]
struct Score {
    compared: usize,
    as_expected: usize,
    as_kernel: usize,
    expect_as_kernel: usize,
    finals: usize,
    finals_as_kernel: usize,
    differences: Vec<String>,
}

fn run(traces: &[Trace]) -> Score {
    let mut score = Score::default();
    for trace in traces {
        let mut flows: HashMap<FlowKey4, FlowRecord> = HashMap::new();
        let mut last = None;
        for (number, step) in trace.steps.iter().enumerate() {
            let Some(packet) = &step.packet else { continue };
            if step.delivered == Some(false) {
                continue;
            }
            let bytes = unhex(packet);
            let now = 1_000_000_000_000 + step.sent_us.unwrap_or(0) * 1000;
            let (key, from) = match parse_packet4(&bytes.as_slice(), 0, bytes.len()).unwrap() {
                Packet::Tcp(ends, segment) => {
                    let (key, sender) = ends.key(0);
                    let record = flows.entry(key).or_default();
                    advance(record, sender, &segment, now, Config::default());
                    (key, sender)
                }
                Packet::Icmp(ends, error) => {
                    let (key, quoted) = ends.key(0);
                    let record = flows.entry(key).or_default();
                    let verdict = Verdict(record.shared.verdict);
                    record.shared.verdict =
                        observe_icmp(&PlainDesk::default(), verdict, quoted, record.sent_by(quoted), &error)
                            .verdict
                            .0;
                    (key, quoted)
                }
            };
            let client = if step.from.as_deref() == Some("client") { from } else { from.other() };
            let port = step.client_port.unwrap();
            assert_eq!(key.port[client as usize], port, "{} #{}", trace.name, number + 1);
            let verdict = Verdict(flows[&key].shared.verdict);
            let ours = [class(verdict.state(client)), class(verdict.state(client.other()))];
            let kernel = [class_of(&step.kernel_client), class_of(&step.kernel_server)];
            let expect = match (&step.expect_client, &step.expect_server) {
                (Some(c), Some(s)) => [class_of(c), class_of(s)],
                _ => kernel,
            };
            for side in 0..2 {
                score.compared += 1;
                score.as_kernel += usize::from(ours[side] == kernel[side]);
                score.expect_as_kernel += usize::from(expect[side] == kernel[side]);
                if ours[side] == expect[side] {
                    score.as_expected += 1;
                } else {
                    score.differences.push(format!(
                        "{} #{}: after {} {}: {} is {}, expected {}, kernel {}",
                        trace.name,
                        number + 1,
                        step.from.as_deref().unwrap_or("?"),
                        step.flags.as_deref().unwrap_or("?"),
                        ["client", "server"][side],
                        ours[side],
                        expect[side],
                        kernel[side],
                    ));
                }
            }
            last = Some((ours, kernel));
        }
        if let Some((ours, kernel)) = last {
            score.finals += 1;
            score.finals_as_kernel += usize::from(ours == kernel);
        }
    }
    score
}

fn report(what: &str, score: &Score) {
    println!(
        "{what}: {} endpoint states, {} as expected, {} as the kernel (expect_ itself: {}); final pairs {} of {}",
        score.compared,
        score.as_expected,
        score.as_kernel,
        score.expect_as_kernel,
        score.finals_as_kernel,
        score.finals,
    );
    for difference in &score.differences {
        println!("  {difference}");
    }
}

#[test]
fn scripted_scenarios_are_exact() {
    let Some(traces) = load("scripted.json") else { return };
    let score = run(&traces);
    report("scripted", &score);
    assert_eq!(score.as_expected, score.compared);
}

#[test]
fn walks_are_as_near_to_the_kernel_as_expected() {
    let Some(traces) = load("walks.json") else { return };
    let score = run(&traces);
    report("walks", &score);
    assert!(score.as_kernel >= score.expect_as_kernel);
    assert!(score.finals_as_kernel >= 78);
}
