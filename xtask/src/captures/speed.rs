//! `cargo xtask captures --speed`: how long `replay` and two other readers of captures take over the same files.
//!
//! The files are made here, always the same: connections of one shape, a hundred at a time.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::command::which;
use crate::progress::{heading, note};

const SYN: u8 = 2;
const ACK: u8 = 16;
const PUSH: u8 = 8 | ACK;
const FIN: u8 = 1 | ACK;

/// One segment of a connection: whether the client sends it, its flags, its payload.
type Move = (bool, u8, usize);

const OPEN: [Move; 3] = [(true, SYN, 0), (false, SYN | ACK, 0), (true, ACK, 0)];
const CLOSE: [Move; 3] = [(true, FIN, 0), (false, FIN, 0), (true, ACK, 0)];

/// Connections that are under way at the same time.
const AT_ONCE: u32 = 100;
/// Between two packets, microseconds.
const PACE: u32 = 10;

/// A file: what it is called, its size, and the shape of its connections.
struct Shape {
    name: &'static str,
    bytes: u64,
    moves: fn() -> Vec<Move>,
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "bulk transfers",
        bytes: 1_000_000_000,
        moves: || {
            let transfer = [(false, ACK, 1460), (false, PUSH, 1460), (true, ACK, 0)];
            [&OPEN[..], &transfer.repeat(200), &CLOSE].concat()
        },
    },
    Shape {
        name: "short connections",
        bytes: 100_000_000,
        moves: || {
            let exchange = [(true, PUSH, 200), (false, ACK, 0), (false, PUSH, 800), (true, ACK, 0)];
            [&OPEN[..], &exchange, &CLOSE].concat()
        },
    },
];

/// Prints the median of so many rounds for each reader and file.
pub(super) fn main(binary: &Path, scratch: &Path, rounds: usize) -> Result<()> {
    let tcpfsm = binary.to_str().context("the path of the program is not UTF-8")?;
    let readers: [(&str, &[&str]); 4] = [
        (tcpfsm, &["replay", "-o", "jsonl"]),
        (tcpfsm, &["replay", "--per-packet", "-o", "jsonl"]),
        ("tcptrace", &[]),
        ("tshark", &["-n", "-T", "fields", "-e", "ip.src", "-e", "tcp.flags", "-r"]),
    ];
    for Shape { name, bytes, moves } in SHAPES {
        heading(&format!("Writing {bytes} bytes of {name}"));
        let path = scratch.join("speed.pcap");
        let (packets, connections) = write(&path, bytes, &moves())?;
        println!("{name}: {packets} packets, {connections} connections");
        let mut times = vec![Vec::new(); readers.len()];
        for round in 1..=rounds {
            note(&format!("round {round} of {rounds}"));
            for ((program, arguments), times) in readers.iter().zip(&mut times) {
                if which(program).is_some() || Path::new(program).is_file() {
                    times.push(time(Command::new(program).args(*arguments).arg(&path))?);
                }
            }
        }
        for ((program, arguments), times) in readers.iter().zip(&mut times) {
            let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
            let command = format!("{program} {}", arguments.join(" "));
            times.sort_by(f64::total_cmp);
            match (times.first(), times.get(times.len() / 2), times.last()) {
                (Some(least), Some(median), Some(most)) => {
                    println!("  {median:>8.2} s  ({least:.2} to {most:.2})  {command}");
                }
                _ => println!("  skipped: {program} is not installed (apt-get install {program})"),
            }
        }
    }
    Ok(())
}

/// Seconds that a reader takes, its output discarded.
fn time(command: &mut Command) -> Result<f64> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let status = command.status().with_context(|| format!("start {program}"))?;
    let elapsed = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{program} failed ({status}) over a capture that is well formed");
    }
    Ok(elapsed)
}

/// Writes a capture of at least so many bytes. Gives how many packets and connections are in it.
fn write(path: &Path, bytes: u64, moves: &[Move]) -> Result<(u64, u32)> {
    let mut connections = 0;
    let mut fill = || -> io::Result<u64> {
        let mut capture = Capture { out: BufWriter::new(File::create(path)?), bytes: 0, packets: 0 };
        // Version 2.4, whole packets, Ethernet.
        for word in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1_u32] {
            capture.put(&word.to_le_bytes())?;
        }
        while capture.bytes < bytes {
            let mut next = vec![[1_000_u32, 5_000]; AT_ONCE as usize];
            for &one in moves {
                for (connection, next) in (connections..).zip(&mut next) {
                    capture.segment(connection, one, next)?;
                }
            }
            connections += AT_ONCE;
        }
        capture.out.flush()?;
        Ok(capture.packets)
    };
    let packets = fill().with_context(|| format!("write {}", path.display()))?;
    Ok((packets, connections))
}

struct Capture {
    out: BufWriter<File>,
    bytes: u64,
    packets: u64,
}

impl Capture {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Adds a segment. `next` are the next sequence numbers of client and server.
    fn segment(
        &mut self,
        connection: u32,
        (client, flags, payload): Move,
        next: &mut [u32; 2],
    ) -> io::Result<()> {
        let [own, other] = if client { [0, 1] } else { [1, 0] };
        let seq = next[own];
        let ack = if flags & ACK == 0 { 0 } else { next[other] };
        let length = u32::try_from(payload).unwrap_or(u32::MAX);
        next[own] += length + u32::from(flags & SYN != 0) + u32::from(flags & FIN & !ACK != 0);

        // 198.18.0.0/15 is for measurements (RFC 2544).
        let mut hosts = [[198, 18, 0, 0], [198, 19, 0, 1]];
        hosts[0][2..]
            .copy_from_slice(&u16::try_from(connection / 50_000 + 1).unwrap_or(u16::MAX).to_be_bytes());
        let ports = [u16::try_from(10_000 + connection % 50_000).unwrap_or(u16::MAX), 80];

        let number = u32::try_from(self.packets).unwrap_or(u32::MAX);
        let time = u64::from(PACE) * self.packets;
        let [seconds, microseconds] =
            [time / 1_000_000, time % 1_000_000].map(|part| u32::try_from(part).unwrap_or(u32::MAX));
        self.packets += 1;
        for word in [seconds, microseconds, 54 + length, 54 + length] {
            self.put(&word.to_le_bytes())?;
        }
        self.put(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0])?;
        let [high, low] = u16::try_from(40 + length).unwrap_or(u16::MAX).to_be_bytes();
        let [.., id_high, id_low] = number.to_be_bytes();
        self.put(&[0x45, 0, high, low, id_high, id_low, 0x40, 0, 64, 6, 0, 0])?;
        self.put(&hosts[own])?;
        self.put(&hosts[other])?;
        self.put(&ports[own].to_be_bytes())?;
        self.put(&ports[other].to_be_bytes())?;
        self.put(&seq.to_be_bytes())?;
        self.put(&ack.to_be_bytes())?;
        self.put(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0])?;
        self.put(&[0; 1460][..payload])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use tcpfsm_common::abi::{CloseReason, FlowRecord, Verdict};
    use tcpfsm_common::fsm::{Config, advance};
    use tcpfsm_common::packet::{Packet, Parsed, parse_ether, parse_network};

    use super::*;

    #[test]
    fn what_is_written_are_whole_connections() {
        for Shape { name, moves, .. } in SHAPES {
            let path = std::env::temp_dir().join(format!("tcpfsm-speed-{}.pcap", std::process::id()));
            let written = write(&path, 1, &moves());
            let capture = fs::read(&path);
            // Nothing is left behind, whatever follows.
            let _ = fs::remove_file(&path);
            let (Ok((packets, connections)), Ok(capture)) = (written, capture) else {
                panic!("{name}: not written")
            };
            let mut flows: HashMap<_, FlowRecord> = HashMap::new();
            let (mut rest, mut read) = (&capture[24..], 0);
            while let Some((header, after)) = rest.split_first_chunk::<16>() {
                let [.., a, b, c, d] = *header;
                let (frame, next) = after.split_at(u32::from_le_bytes([a, b, c, d]) as usize);
                let parsed = parse_ether(&frame)
                    .and_then(|(network, offset)| parse_network(&frame, network, offset, frame.len()));
                let Ok(Parsed::V4(Packet::Tcp(ends, segment))) = parsed else {
                    panic!("{name}: packet {read} is not TCP")
                };
                let (key, sender) = ends.key(0);
                let _ = advance(flows.entry(key).or_default(), sender, &segment, 0, Config::default());
                (rest, read) = (next, read + 1);
            }
            assert_eq!((read, flows.len()), (packets, connections as usize), "{name}");
            let reason = |record: &FlowRecord| Verdict(record.shared.verdict).close_reason();
            assert!(flows.values().all(|record| reason(record) == CloseReason::Finish), "{name}");
        }
    }
}
