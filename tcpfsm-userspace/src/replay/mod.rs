//! `tcpfsm replay`: capture files through the same parser, flow key and machine as live traffic.
//!
//! ```text
//!   file ─► input.rs ─► pcap.rs / pcapng.rs ─► capture.rs   frames
//!        ─► decode.rs (link.rs, fragments.rs) ─► tcpfsm_common::packet   segments
//!        ─► tracker.rs ─► tcpfsm_common::fsm                states of both ends
//!                      └► zeek/                             connections, conn_state, history
//!                      └► tale.rs                           what --explain tells (explain/)
//!        ─► output.rs                                       table or JSON lines
//! ```
//!
//! Nothing here trusts the file: truncated, corrupt or absurdly timed captures give what is in them and a
//! warning.

mod capture;
mod decode;
mod fragments;
mod input;
mod link;
mod output;
mod pcap;
mod pcapng;
mod tale;
mod time;
mod tracker;
mod zeek;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use clap::Args;
use tcpfsm_common::packet::Skip;

use self::{
    capture::{Capture, CaptureError},
    decode::{Decoder, Said},
    output::Lines,
    tracker::{Summary, Tracker, Want},
    zeek::Packet,
};

use crate::error::{complain, describe};

pub use self::output::Format;

/// Replay capture files through the state machine.
#[derive(Args, Clone, Debug, Default)]
pub struct ReplayArgs {
    /// Capture files, pcap or pcapng; `-` is standard input. Each is a world of its own.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How to write the result.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
    /// One line per packet that belongs to a flow, instead of one per connection.
    #[arg(long)]
    pub per_packet: bool,
    /// Explain each connection: what was seen, what it means, what it comes from, what to do.
    #[arg(long, conflicts_with = "per_packet")]
    pub explain: bool,
    /// Leave ICMP errors out, for comparison with tools that read TCP alone.
    #[arg(long)]
    pub no_icmp: bool,
    /// Say on standard error how many packets were read, how many belong to no flow, and how many were not TCP
    /// and why.
    #[arg(long)]
    pub stats: bool,
}

impl ReplayArgs {
    fn want(&self) -> Want {
        match (self.per_packet, self.explain) {
            (true, _) => Want::Packets,
            (false, true) => Want::Stories,
            (false, false) => Want::Connections,
        }
    }
}

/// Replays every file. A file that cannot be read is reported and does not keep the others from being read.
///
/// # Errors
/// Only where `out` cannot be written.
pub fn run(args: &ReplayArgs, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut lines = Lines::new(out, args.output);
    let mut code = ExitCode::SUCCESS;
    for file in &args.files {
        match replay_file(file, args, &mut lines) {
            Ok(counts) => {
                if args.stats {
                    complain!("{}: {counts}", file.display());
                }
            }
            // Whoever reads has seen enough (`| head`).
            Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(code),
            Err(Failure::Output(error)) => return Err(error).context("cannot write the result"),
            Err(Failure::Input(error)) => {
                complain!("tcpfsm: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    match lines.flush() {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        _ => Ok(code),
    }
}

/// Why a file could not be replayed.
#[derive(Debug)]
enum Failure {
    Input(anyhow::Error),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn replay_file(path: &Path, args: &ReplayArgs, lines: &mut Lines<'_>) -> Result<Counts, Failure> {
    if path.as_os_str() == "-" {
        return replay("standard input", io::stdin().lock(), args, lines);
    }
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => replay(&name, file, args, lines),
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::NotFound => "check the path",
                ErrorKind::PermissionDenied => "read it as a user who may, or change its mode",
                _ => "check that it is a readable file",
            };
            Err(Failure::Input(anyhow!("cannot open {name}: {}; {remedy}", describe(&error))))
        }
    }
}

fn replay(
    name: &str,
    source: impl Read,
    args: &ReplayArgs,
    lines: &mut Lines<'_>,
) -> Result<Counts, Failure> {
    let want = args.want();
    let refuse = |error: &CaptureError| {
        let remedy = match error {
            CaptureError::Io(_) => "check that it is a readable file",
            _ => "give a file written by tcpdump -w, Wireshark or dumpcap",
        };
        Failure::Input(anyhow!("cannot replay {name}: {error}; {remedy}"))
    };
    let mut capture = Capture::open(source).map_err(|error| refuse(&error))?;
    let mut decoder = Decoder::new(want);
    let mut tracker = Tracker::new(want);
    let mut counts = Counts::default();
    let mut broken = None;
    loop {
        match capture.next() {
            Ok(Some(frame)) => {
                counts.packets += 1;
                match decoder.decode(&frame) {
                    Ok(Said::Icmp { .. }) if args.no_icmp => {}
                    Ok(said) => {
                        let of_flow = observe(&said, (frame.number, frame.time), want, &mut tracker, lines)?;
                        counts.strays += u64::from(!of_flow);
                    }
                    Err(skip) => {
                        counts.skipped[skip as usize] += 1;
                        if !link::is_known(frame.link) {
                            counts.unknown_link = Some(frame.link);
                        }
                    }
                }
            }
            Ok(None) => break,
            Err(error) => {
                if counts.packets > 0 || error.is_partial() {
                    complain!(
                        "tcpfsm: warning: {name} {error}; replayed the {} packets before it",
                        counts.packets
                    );
                }
                if !error.is_partial() {
                    broken = Some(refuse(&error));
                }
                break;
            }
        }
    }
    if let Some(link) = counts.unknown_link {
        complain!("tcpfsm: warning: {name}: frames of link type {link} are not understood and were skipped");
    }
    tracker.end();
    finished(tracker.finished(), lines)?;
    broken.map_or(Ok(counts), Err)
}

/// One frame: to the tracker, and what that says to the output. Says whether it belongs to a flow; fragments
/// and ICMP errors are not asked.
fn observe(
    said: &Said,
    frame: (u64, i64),
    want: Want,
    tracker: &mut Tracker,
    lines: &mut Lines<'_>,
) -> io::Result<bool> {
    let (number, time) = frame;
    let sighting = match said {
        Said::Segment { key, sender, segment, complete } => {
            let packet = Packet { sender: *sender, segment, time, complete: *complete };
            Some(tracker.segment(*key, packet, number))
        }
        Said::Icmp { key, quoted, error } => tracker.icmp(*key, *quoted, error, time),
        Said::Fragment => None,
    };
    let of_flow = sighting.as_ref().is_none_or(|sighting| sighting.is_of_flow);
    if want == Want::Packets
        && let Some(sighting) = sighting.filter(|sighting| sighting.is_of_flow)
    {
        lines.packet(number, time, &sighting)?;
    }
    finished(tracker.finished(), lines)?;
    Ok(of_flow)
}

/// Connections that are over: their stories where they were wanted, else their lines.
fn finished(over: impl Iterator<Item = Summary>, lines: &mut Lines<'_>) -> io::Result<()> {
    for summary in over {
        match &summary.story {
            Some(story) => lines.story(story)?,
            None => lines.connection(&summary)?,
        }
    }
    Ok(())
}

/// What was read and what was not understood.
#[derive(Default)]
struct Counts {
    packets: u64,
    /// TCP segments that belong to no flow.
    strays: u64,
    skipped: [u64; Skip::ALL.len()],
    unknown_link: Option<u16>,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} packets", self.packets)?;
        if self.strays > 0 {
            write!(f, ", {} of no flow", self.strays)?;
        }
        for (reason, count) in Skip::ALL.into_iter().zip(self.skipped) {
            if count > 0 {
                write!(f, ", {} {}", count, reason.name())?;
            }
        }
        Ok(())
    }
}
