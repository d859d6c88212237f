//! `cargo xtask conformance`: the machine against traces of two real TCP stacks.
//!
//! A trace file is a list of traces, a trace a list of steps, a step a packet with both sockets' states after it
//! (or what an application or a timer did, which no observer sees). The score counts endpoint states after each
//! delivered packet; `closed` and `listen` both mean "no state for this flow" and compare equal.

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tcpfsm_common::{
    abi::{FlowRecord, Verdict},
    flow::{End, FlowKey},
    fsm::{Config, State, advance},
    packet::{Packet, Parsed, parse_network, parse_raw_ip},
};

use crate::workspace::Workspace;

/// Where the traces of the project lie, from its root.
const DEFAULT_DIR: &str = "../shared/conformance";

/// What one file scored.
#[derive(Debug, Default)]
pub struct Score {
    /// Endpoint states compared.
    pub compared: usize,
    /// Of these, as the traces expect of an observer.
    pub as_expected: usize,
    /// Of these, as the kernel's own socket.
    pub as_kernel: usize,
    /// How many of the expectations are as the kernel's own socket.
    pub expected_as_kernel: usize,
    /// Traces.
    pub traces: usize,
    /// Traces after whose last packet both ends are as the kernel's own sockets.
    pub finals_as_kernel: usize,
    /// Every state that is not as expected.
    pub differences: Vec<String>,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compared, as_expected, as_kernel, expected_as_kernel, traces, finals_as_kernel, .. } =
            self;
        write!(
            f,
            "{compared} endpoint states: {as_expected} as expected, {as_kernel} as the kernel's sockets (the \
             expectations themselves: {expected_as_kernel}); final pairs as the kernel's: {finals_as_kernel} of {traces}"
        )
    }
}

/// Scores every trace file of a folder, and prints the scores and the differences.
///
/// # Errors
/// No folder, no trace file in it, or a file that is none.
pub fn main(workspace: &Workspace, dir: Option<&Path>) -> Result<()> {
    let dir = dir.map_or_else(|| workspace.root().join(DEFAULT_DIR), PathBuf::from);
    let mut files: Vec<_> = fs::read_dir(&dir)
        .with_context(|| format!("cannot read traces from {}; name their folder with --dir", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("{} holds no trace file (*.json)", dir.display());
    }
    for file in files {
        let score = score(&file)?;
        println!("{}: {score}", file.file_name().unwrap_or_default().to_string_lossy());
        for difference in &score.differences {
            println!("  {difference}");
        }
    }
    Ok(())
}

/// Scores one trace file.
///
/// # Errors
/// It cannot be read, or is no trace file.
pub fn score(file: &Path) -> Result<Score> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let traces: Vec<Value> =
        serde_json::from_slice(&text).with_context(|| format!("{} is no list of traces", file.display()))?;
    let mut score = Score::default();
    for trace in &traces {
        let name = trace["name"].as_str().unwrap_or("?");
        play(trace, name, &mut score).with_context(|| format!("{}: trace {name}", file.display()))?;
    }
    Ok(score)
}

fn play(trace: &Value, name: &str, score: &mut Score) -> Result<()> {
    let mut flows: HashMap<FlowKey, FlowRecord> = HashMap::new();
    let mut last = None;
    for (step, number) in trace["steps"].as_array().context("it has no steps")?.iter().zip(1..) {
        let Some(packet) = step["packet"].as_str() else { continue };
        if step["delivered"] == Value::Bool(false) {
            continue;
        }
        let bytes = unhex(packet).with_context(|| format!("step {number}: the packet is no hex"))?;
        let now = 1_000_000_000_000 + step["sent_us"].as_u64().unwrap_or(0) * 1000;
        let Some((verdict, sender)) = observe(&bytes, now, &mut flows) else { continue };
        let client = if step["from"] == "client" { sender } else { sender.other() };
        let ours = [client, client.other()].map(|end| class(verdict.state(end)));
        let kernel = pair(step, "kernel")?;
        let expected = pair(step, "expect").unwrap_or(kernel);
        for (side, end) in ["client", "server"].into_iter().enumerate() {
            score.compared += 1;
            score.as_kernel += usize::from(ours[side] == kernel[side]);
            score.expected_as_kernel += usize::from(expected[side] == kernel[side]);
            if ours[side] == expected[side] {
                score.as_expected += 1;
            } else {
                score.differences.push(format!(
                    "{name} #{number}: after {} {} the {end} is {}, expected {}, kernel {}",
                    step["from"].as_str().unwrap_or("?"),
                    step["flags"].as_str().unwrap_or("?"),
                    ours[side].name(),
                    expected[side].name(),
                    kernel[side].name(),
                ));
            }
        }
        last = Some(ours == kernel);
    }
    score.traces += 1;
    score.finals_as_kernel += usize::from(last == Some(true));
    Ok(())
}

/// Advances the packet's flow; gives its verdict and the packet's sender.
fn observe(bytes: &[u8], now: u64, flows: &mut HashMap<FlowKey, FlowRecord>) -> Option<(Verdict, End)> {
    let network = parse_raw_ip(&bytes, 0).ok()?;
    let (key, sender, segment) = match parse_network(&bytes, network, 0, bytes.len()).ok()? {
        Parsed::V4(Packet::Tcp(ends, segment)) => {
            let (key, sender) = ends.key(0);
            (FlowKey::V4(key), sender, segment)
        }
        Parsed::V6(Packet::Tcp(ends, segment)) => {
            let (key, sender) = ends.key(0);
            (FlowKey::V6(key), sender, segment)
        }
        Parsed::V4(Packet::Icmp(..)) | Parsed::V6(Packet::Icmp(..)) => return None,
    };
    let record = flows.entry(key).or_default();
    advance(record, sender, &segment, now, Config::default());
    Some((Verdict(record.shared.verdict), sender))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// `closed` and `listen` are one: no state for this flow.
fn class(state: State) -> State {
    if state.is_closed() { State::Closed } else { state }
}

fn pair(step: &Value, what: &str) -> Result<[State; 2]> {
    let state = |end: &str| {
        let name = step[format!("{what}_{end}")].as_str().with_context(|| format!("no {what}_{end}"))?;
        name.parse().map(class).map_err(|_| anyhow::anyhow!("{name:?} is no state"))
    };
    Ok([state("client")?, state("server")?])
}
