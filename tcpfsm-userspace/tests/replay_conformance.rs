//! The conformance traces as capture files, through the binary: `tcpfsm replay --per-packet -o jsonl` must say of
//! every delivered packet what a passive observer must say of both ends, whatever the link type.
//!
//! `TCPFSM_CONFORMANCE_DIR` names the folder of the traces where it is not beside the repository.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;
use tcpfsm_common::fsm::State;

#[derive(Deserialize)]
struct Trace {
    name: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    packet: Option<String>,
    event: Option<String>,
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

/// The link types that a capture of the traces can have: name, number, header before the IP packet.
const LINKS: [(&str, u32, &[u8]); 3] = [
    ("Ethernet", 1, &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]),
    ("raw IP", 101, &[]),
    ("802.1Q", 1, &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 10, 8, 0]),
];

/// When the traces are taken to begin: any time will do.
const EPOCH_SECONDS: u64 = 1_790_000_000;

#[test]
fn every_delivered_packet_of_the_scripted_scenarios_is_exact() {
    let Some(traces) = scripted() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut differences = Vec::new();
    let mut states = 0;
    for trace in &traces {
        for (link, number, header) in LINKS {
            let packets = delivered(trace);
            let file = directory.path().join("trace.pcap");
            write_pcap(&file, number, header, packets.iter().map(|packet| (packet.us, &packet.bytes[..])));
            let lines = replay(&file);
            for (at, packet) in (1_u64..).zip(&packets) {
                states += 2;
                let seen = states_of(&lines, at, packet.client);
                if seen != packet.expected {
                    differences.push(format!(
                        "{} ({link}) {}: client and server are {seen:?}, expected {:?}",
                        trace.name, packet.what, packet.expected
                    ));
                }
            }
            for line in &lines {
                assert!(
                    (1..=packets.len() as u64).contains(&line.packet),
                    "{} ({link}): a line for packet {}, which is not in the file",
                    trace.name,
                    line.packet
                );
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {states} states differ:\n  {}",
        differences.len(),
        differences.join("\n  ")
    );
    println!("{states} endpoint states of {} scenarios exact, on {} link types", traces.len(), LINKS.len());
}

/// O18, O19, O19b: a SYN that a router or the host itself answers by an ICMP error. The traces hold the error as an
/// `event` step, without its bytes; and since the relay did not deliver the SYN, it is put in as a tap at the client
/// sees it.
#[test]
fn an_icmp_unreachable_that_quotes_the_syn_closes_both_ends() {
    let Some(traces) = scripted() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut tried = 0;
    for trace in &traces {
        let Some(code) = trace.steps.iter().find_map(|step| icmp_code(step.event.as_deref()?)) else {
            continue;
        };
        let step = trace.steps.iter().find(|step| step.packet.is_some()).unwrap();
        let syn = unhex(step.packet.as_ref().unwrap());
        let client = client_of(step, &syn);
        for (link, number, header) in LINKS {
            let file = directory.path().join("icmp.pcap");
            let error = icmp_unreachable(code, &syn);
            write_pcap(&file, number, header, [(0, &syn[..]), (500, &error[..])].into_iter());
            let lines = replay(&file);
            let at = format!("{} ({link})", trace.name);
            // Whether the SYN arrived no observer can know: the server's end is assumed.
            assert_eq!(states_of(&lines, 1, client), ["syn_sent", "syn_recv"], "{at}: after the SYN");
            let told = |line: &Line| line.events.iter().any(|event| event == "connect_unreachable");
            assert!(
                lines.iter().any(|line| line.packet == 2 && told(line)),
                "{at}: no line for the ICMP error"
            );
            assert_eq!(states_of(&lines, 2, client), ["closed", "closed"], "{at}: after the ICMP error");

            // Left out, as tools do that read TCP alone.
            let lines = replay_with(&["--no-icmp"], &file);
            assert_eq!(lines.len(), 1, "{at}: the error was to be left out");

            // Quoting another sequence number it proves nothing (RFC 5927 §4).
            let mut other = syn.clone();
            other[24] ^= 1;
            let error = icmp_unreachable(code, &other);
            write_pcap(
                &file,
                number,
                header,
                [(0, &syn[..]), (500, &error[..]), (900, &syn[..])].into_iter(),
            );
            let lines = replay(&file);
            assert_eq!(states_of(&lines, 3, client), ["syn_sent", "syn_recv"], "{at}: a forged quotation");
        }
        tried += 1;
    }
    assert_eq!(tried, 3, "O18, O19 and O19b");
}

/// A packet of a trace that a tap behind the loss sees.
struct Delivered {
    what: String,
    us: u64,
    bytes: Vec<u8>,
    client: SocketAddr,
    /// Client and server.
    expected: [&'static str; 2],
}

fn delivered(trace: &Trace) -> Vec<Delivered> {
    (1..)
        .zip(&trace.steps)
        .filter(|(_, step)| step.packet.is_some() && step.delivered != Some(false))
        .map(|(number, step)| {
            let bytes = unhex(step.packet.as_ref().unwrap());
            let expect = |expect: &Option<String>, kernel: &str| class(expect.as_deref().unwrap_or(kernel));
            Delivered {
                what: format!(
                    "step {number}, {} {}",
                    step.from.as_deref().unwrap(),
                    step.flags.as_deref().unwrap()
                ),
                us: step.sent_us.unwrap(),
                client: client_of(step, &bytes),
                expected: [
                    expect(&step.expect_client, &step.kernel_client),
                    expect(&step.expect_server, &step.kernel_server),
                ],
                bytes,
            }
        })
        .collect()
}

fn client_of(step: &Step, packet: &[u8]) -> SocketAddr {
    let at = if step.from.as_deref() == Some("client") { 12 } else { 16 };
    let address: [u8; 4] = packet[at..at + 4].try_into().unwrap();
    (address, step.client_port.unwrap()).into()
}

/// `closed` and `listen` both mean: no state for this flow.
fn class(name: &str) -> &'static str {
    let state: State = name.parse().unwrap_or_else(|_| panic!("{name} is no state"));
    if state.is_closed() { "closed" } else { state.name() }
}

/// The code in "S>C ICMP type 3 code 3 quoting the SYN".
fn icmp_code(event: &str) -> Option<u8> {
    let (_, rest) = event.split_once("ICMP type 3 code ")?;
    rest.split(' ').next()?.parse().ok()
}

/// ICMP destination unreachable from the SYN's destination to its source, with the whole packet quoted.
fn icmp_unreachable(code: u8, quoted: &[u8]) -> Vec<u8> {
    let total = u16::try_from(28 + quoted.len()).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 64, 1, 0, 0]);
    bytes.extend(&quoted[16..20]);
    bytes.extend(&quoted[12..16]);
    bytes.extend([3, code, 0, 0, 0, 0, 0, 0]);
    bytes.extend(quoted);
    bytes
}

/// One line of the output.
#[derive(Deserialize)]
struct Line {
    packet: u64,
    orig: SocketAddr,
    resp: SocketAddr,
    orig_state: String,
    resp_state: String,
    events: Vec<String>,
}

/// What is said of client and server after a packet. A packet that belongs to no flow has no line.
fn states_of(lines: &[Line], packet: u64, client: SocketAddr) -> [&'static str; 2] {
    let of: Vec<_> = lines.iter().filter(|line| line.packet == packet).collect();
    let line = match of[..] {
        [] => return ["closed", "closed"],
        [line] => line,
        _ => panic!("{} lines for packet {packet}", of.len()),
    };
    let (orig, resp) = (class(&line.orig_state), class(&line.resp_state));
    if line.orig == client {
        [orig, resp]
    } else {
        assert_eq!(line.resp, client, "packet {packet} belongs to another connection");
        [resp, orig]
    }
}

fn replay(file: &Path) -> Vec<Line> {
    replay_with(&[], file)
}

fn replay_with(options: &[&str], file: &Path) -> Vec<Line> {
    let output = Command::new(env!("CARGO_BIN_EXE_tcpfsm"))
        .args(["replay", "--per-packet", "-o", "jsonl"])
        .args(options)
        .arg(file)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn write_pcap<'a>(path: &Path, link: u32, header: &[u8], packets: impl Iterator<Item = (u64, &'a [u8])>) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 262_144, link] {
        bytes.extend(u32::to_le_bytes(word));
    }
    for (us, packet) in packets {
        let length = (header.len() + packet.len()) as u64;
        for word in [EPOCH_SECONDS + us / 1_000_000, us % 1_000_000, length, length] {
            bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        bytes.extend(header);
        bytes.extend(packet);
    }
    fs::write(path, bytes).unwrap();
}

fn scripted() -> Option<Vec<Trace>> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance");
    let directory = env::var_os("TCPFSM_CONFORMANCE_DIR").map_or_else(beside, PathBuf::from);
    match fs::read(directory.join("scripted.json")) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
        Err(error) => {
            println!("skipped: the conformance traces are not there: {error}");
            None
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}
