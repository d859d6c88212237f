//! The three forms of output. Lines are written by hand into one buffer: no allocation per packet.

use std::io::{self, Write};

use jiff::tz::TimeZone;
use tcpfsm_common::{fact::Facts, flow::Direction, segment::TcpFlags};

use super::{
    time::write_rfc3339,
    tracker::{Sighting, Summary},
};
use crate::{
    community_id,
    explain::{render, story::Story},
};

/// Bytes gathered before they are written.
const FLUSH_AT: usize = 1 << 16;

/// The form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON object per line.
    Jsonl,
}

/// Lines on their way out.
pub(super) struct Lines<'a> {
    out: &'a mut dyn Write,
    format: Format,
    buffer: Vec<u8>,
    headed: bool,
}

impl<'a> Lines<'a> {
    pub(super) fn new(out: &'a mut dyn Write, format: Format) -> Self {
        Self { out, format, buffer: Vec::with_capacity(FLUSH_AT * 2), headed: false }
    }

    /// One packet.
    pub(super) fn packet(&mut self, number: u64, time: i64, sighting: &Sighting) -> io::Result<()> {
        let line = &mut self.buffer;
        match self.format {
            Format::Jsonl => packet_json(line, number, time, sighting)?,
            Format::Table => {
                if !self.headed {
                    writeln!(
                        line,
                        "{:>7} {:27} {:21}   {:21} {:5} {:11} {:11} EVENTS",
                        "PACKET", "TIME", "ORIGINATOR", "RESPONDER", "FLAGS", "ORIG", "RESP"
                    )?;
                }
                packet_row(line, number, time, sighting)?;
            }
        }
        self.headed = true;
        self.flush_if_full()
    }

    /// One connection.
    pub(super) fn connection(&mut self, summary: &Summary) -> io::Result<()> {
        let line = &mut self.buffer;
        match self.format {
            Format::Jsonl => connection_json(line, summary)?,
            Format::Table => {
                if !self.headed {
                    writeln!(
                        line,
                        "{:27} {:>12} {:21} {:21} {:11} {:11} {:6} {:14} {:>13} {:>19} EVENTS",
                        "FIRST",
                        "DURATION",
                        "ORIGINATOR",
                        "RESPONDER",
                        "ORIG",
                        "RESP",
                        "STATE",
                        "HISTORY",
                        "PACKETS",
                        "BYTES"
                    )?;
                }
                connection_row(line, summary)?;
            }
        }
        self.headed = true;
        self.flush_if_full()
    }

    /// One connection, explained.
    pub(super) fn story(&mut self, story: &Story) -> io::Result<()> {
        match self.format {
            Format::Jsonl => {
                serde_json::to_writer(&mut self.buffer, story)?;
                self.buffer.push(b'\n');
            }
            Format::Table => {
                if self.headed {
                    writeln!(self.buffer, "\n{}\n", "-".repeat(96))?;
                }
                self.buffer.extend_from_slice(render::story(story, &TimeZone::UTC).as_bytes());
            }
        }
        self.headed = true;
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= FLUSH_AT { self.flush() } else { Ok(()) }
    }

    /// Writes out what is gathered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        self.out.flush()
    }
}

fn packet_json(line: &mut Vec<u8>, number: u64, time: i64, sighting: &Sighting) -> io::Result<()> {
    let Sighting { orig, resp, direction, flags, states, confirmed, facts, is_of_flow: _ } = sighting;
    line.extend_from_slice(b"{\"packet\":");
    integer(line, number);
    line.extend_from_slice(b",\"ts\":\"");
    write_rfc3339(line, time)?;
    write!(line, "\",\"orig\":\"{orig}\",\"resp\":\"{resp}\"")?;
    text(line, ",\"dir\":\"", direction.name());
    line.extend_from_slice(b",\"flags\":\"");
    letters(line, *flags);
    line.push(b'"');
    text(line, ",\"orig_state\":\"", states[0].name());
    text(line, ",\"resp_state\":\"", states[1].name());
    boolean(line, ",\"orig_confirmed\":", confirmed[0]);
    boolean(line, ",\"resp_confirmed\":", confirmed[1]);
    events(line, *facts);
    line.extend_from_slice(b"}\n");
    Ok(())
}

fn connection_json(line: &mut Vec<u8>, summary: &Summary) -> io::Result<()> {
    let Summary { orig, resp, first, last, states, packets, bytes, conn_state, history, facts, story: _ } =
        summary;
    write!(line, "{{\"orig\":\"{orig}\",\"resp\":\"{resp}\"")?;
    line.extend_from_slice(b",\"first_ts\":\"");
    write_rfc3339(line, *first)?;
    line.extend_from_slice(b"\",\"last_ts\":\"");
    write_rfc3339(line, *last)?;
    line.extend_from_slice(b"\",\"duration\":");
    seconds(line, last.saturating_sub(*first))?;
    text(line, ",\"orig_state\":\"", states[0].name());
    text(line, ",\"resp_state\":\"", states[1].name());
    text(line, ",\"conn_state\":\"", conn_state);
    text(line, ",\"history\":\"", history);
    number(line, ",\"orig_pkts\":", packets[0]);
    number(line, ",\"resp_pkts\":", packets[1]);
    number(line, ",\"orig_bytes\":", bytes[0]);
    number(line, ",\"resp_bytes\":", bytes[1]);
    events(line, *facts);
    text(line, ",\"community_id\":\"", &community_id::tcp(*orig, *resp));
    line.extend_from_slice(b"}\n");
    Ok(())
}

fn packet_row(line: &mut Vec<u8>, number: u64, time: i64, sighting: &Sighting) -> io::Result<()> {
    let Sighting { orig, resp, direction, flags, states, confirmed, facts, is_of_flow: _ } = sighting;
    let arrow = match direction {
        Direction::Original => "→",
        Direction::Reply => "←",
    };
    write!(line, "{number:>7} ")?;
    write_rfc3339(line, time)?;
    write!(line, " {:21} {arrow} {:21} ", orig.to_string(), resp.to_string())?;
    let at = line.len();
    letters(line, *flags);
    line.resize(line.len().max(at + 5), b' ');
    for (state, confirmed) in states.iter().zip(confirmed) {
        // What is only assumed is marked, as in `tcpfsm list`.
        let mark = if *confirmed || state.is_closed() { "" } else { "?" };
        write!(line, " {:11}", format!("{}{mark}", state.ss_name()))?;
    }
    for fact in facts.iter() {
        write!(line, " {}", fact.name())?;
    }
    end_row(line);
    Ok(())
}

fn connection_row(line: &mut Vec<u8>, summary: &Summary) -> io::Result<()> {
    let Summary { orig, resp, first, last, states, packets, bytes, conn_state, history, facts, story: _ } =
        summary;
    write_rfc3339(line, *first)?;
    let mut duration = Vec::new();
    seconds(&mut duration, last.saturating_sub(*first))?;
    write!(
        line,
        " {:>12} {:21} {:21} {:11} {:11} {conn_state:6} {history:14} {:>13} {:>19}",
        String::from_utf8_lossy(&duration),
        orig.to_string(),
        resp.to_string(),
        states[0].ss_name(),
        states[1].ss_name(),
        format!("{}/{}", packets[0], packets[1]),
        format!("{}/{}", bytes[0], bytes[1]),
    )?;
    for fact in facts.iter() {
        write!(line, " {}", fact.name())?;
    }
    end_row(line);
    Ok(())
}

fn end_row(line: &mut Vec<u8>) {
    while line.last() == Some(&b' ') {
        line.pop();
    }
    line.push(b'\n');
}

fn integer(line: &mut Vec<u8>, value: u64) {
    line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn number(line: &mut Vec<u8>, name: &str, value: u64) {
    line.extend_from_slice(name.as_bytes());
    integer(line, value);
}

fn text(line: &mut Vec<u8>, name: &str, value: &str) {
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(value.as_bytes());
    line.push(b'"');
}

fn boolean(line: &mut Vec<u8>, name: &str, value: bool) {
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Nanoseconds as seconds, without a tail of zeros: `1.25`.
fn seconds(line: &mut Vec<u8>, nanos: i64) -> io::Result<()> {
    let micros = nanos.max(0) / 1000;
    write!(line, "{}.{:06}", micros / 1_000_000, micros % 1_000_000)?;
    while line.last() == Some(&b'0') && line.get(line.len().wrapping_sub(2)) != Some(&b'.') {
        line.pop();
    }
    Ok(())
}

/// The flags in the order S F R P A U E C.
fn letters(line: &mut Vec<u8>, flags: TcpFlags) {
    const ORDER: [(u16, u8); 8] = [
        (TcpFlags::SYN, b'S'),
        (TcpFlags::FIN, b'F'),
        (TcpFlags::RST, b'R'),
        (TcpFlags::PSH, b'P'),
        (TcpFlags::ACK, b'A'),
        (TcpFlags::URG, b'U'),
        (TcpFlags::ECE, b'E'),
        (TcpFlags::CWR, b'C'),
    ];
    for (mask, letter) in ORDER {
        if flags.any(mask) {
            line.push(letter);
        }
    }
}

fn events(line: &mut Vec<u8>, facts: Facts) {
    line.extend_from_slice(b",\"events\":[");
    let start = line.len();
    for fact in facts.iter() {
        if line.len() > start {
            line.push(b',');
        }
        line.push(b'"');
        line.extend_from_slice(fact.name().as_bytes());
        line.push(b'"');
    }
    line.push(b']');
}
