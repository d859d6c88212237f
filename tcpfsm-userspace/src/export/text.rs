//! Live events for people: a line each, in columns as `ss` and `tcpstates` have them.

use std::fmt::Write as _;

use jiff::tz::TimeZone;

use super::{owner, sentence};
use crate::{
    clock::short_duration,
    owner::{Proc, Unowned},
    report::{Body, ConnClosed, Flow, Report, Side, Transition},
};

/// How much goes into a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Width {
    /// What fits a terminal.
    #[default]
    Table,
    /// Interface, flags, direction and unit too.
    Wide,
}

/// Writes lines.
#[derive(Debug)]
pub struct TextLines {
    zone: TimeZone,
    width: Width,
}

/// Says what the marks mean; for stderr, once.
pub const LEGEND: &str = "* this host's end   ? assumed: that end has not proved it yet   (name) only listens there   was name: has closed it";

impl TextLines {
    /// Lines with local time.
    #[must_use]
    pub fn new(width: Width) -> Self {
        Self { zone: TimeZone::system(), width }
    }

    /// The line above the others.
    #[must_use]
    pub fn header(&self) -> String {
        let mut line = format!(
            "{:<15} {:<22} {:<22} {:<5} {:<26} {:>7}  {:<17} {}",
            "TIME", "ORIGINATOR", "RESPONDER", "END", "STATE", "DWELL", "CAUSE", "PROCESS"
        );
        if self.width == Width::Wide {
            let at = line.len() - "PROCESS".len();
            line.insert_str(at, &format!("{:<10} ", "IFACE"));
        }
        line.push('\n');
        line
    }

    /// Appends one report.
    pub fn write(&self, line: &mut String, report: &Report) {
        let time = report.ts.local_time(&self.zone);
        // Writing to a string cannot fail.
        let _ = match &report.body {
            Body::Transition(transition) => self.transition(line, &time, transition),
            Body::ConnClosed(closed) => self.closed(line, &time, closed),
            Body::Anomaly(anomaly) => sentence::write(line, &time, anomaly),
        };
        while line.ends_with(' ') {
            line.pop();
        }
        line.push('\n');
    }

    fn transition(&self, line: &mut String, time: &str, transition: &Transition) -> std::fmt::Result {
        let Transition { flow, side, from, to, confirmed, dwell_ns, cause, proc, unowned, sample } =
            transition;
        let states = format!("{} -> {}{}", from.ss_name(), to.ss_name(), if *confirmed { "" } else { "?" });
        let dwell = if *dwell_ns == 0 { "-".to_owned() } else { short_duration(*dwell_ns) };
        let cause = if cause.flags.is_empty() {
            cause.why.to_string()
        } else {
            format!("{} ({})", cause.why, cause.flags)
        };
        let cause = cause + &times(*sample);
        write_ends(line, time, flow)?;
        write!(line, "{:<5} {states:<26} {dwell:>7}  {cause:<17} ", end(flow, *side))?;
        self.iface(line, flow)?;
        // The owner is that of this host's socket: on the other end's lines it would mislead.
        let own = flow.local.is_some_and(|local| local.includes(*side));
        if own { self.process(line, proc.as_ref(), unowned.as_ref()) } else { Ok(()) }
    }

    fn closed(&self, line: &mut String, time: &str, closed: &ConnClosed) -> std::fmt::Result {
        let ConnClosed {
            flow,
            reason,
            duration_ns,
            orig_pkts,
            resp_pkts,
            orig_bytes,
            resp_bytes,
            facts,
            proc,
            unowned,
            sample,
            ..
        } = closed;
        let totals = format!(
            "{} / {} out, {} / {} back",
            orig_pkts,
            bytes(*orig_bytes),
            resp_pkts,
            bytes(*resp_bytes)
        );
        write_ends(line, time, flow)?;
        let reason = reason.replace('_', " ") + &times(*sample);
        write!(
            line,
            "{:<5} {:<26} {:>7}  {totals}",
            "both",
            format!("over: {reason}"),
            short_duration(*duration_ns)
        )?;
        if self.width == Width::Wide {
            write!(line, "  {}", flow.iface)?;
            let noteworthy: Vec<&str> =
                facts.iter().map(AsRef::as_ref).filter(|fact| !ORDINARY.contains(fact)).collect();
            if !noteworthy.is_empty() {
                write!(line, "  {}", noteworthy.join(","))?;
            }
            line.push_str("  ");
            self.process(line, proc.as_ref(), unowned.as_ref())?;
        }
        Ok(())
    }

    fn iface(&self, line: &mut String, flow: &Flow) -> std::fmt::Result {
        if self.width == Width::Wide { write!(line, "{:<10} ", flow.iface) } else { Ok(()) }
    }

    fn process(&self, line: &mut String, proc: Option<&Proc>, unowned: Option<&Unowned>) -> std::fmt::Result {
        line.write_str(&owner::cell(proc, unowned, self.width))
    }
}

/// Facts that every connection has.
const ORDINARY: [&str; 4] = ["open", "established", "closed", "half_closed"];

/// Behind what stands for more than itself.
fn times(sample: u8) -> String {
    if sample == 1 { String::new() } else { format!(" x{sample}") }
}

fn write_ends(line: &mut String, time: &str, flow: &Flow) -> std::fmt::Result {
    // Padding needs a string: an address formats itself without looking at the width.
    write!(line, "{time:<15} {:<22} {:<22} ", flow.orig.to_string(), flow.resp.to_string())
}

fn end(flow: &Flow, side: Side) -> String {
    let local = flow.local.is_some_and(|local| local.includes(side));
    format!("{}{}", side.name(), if local { "*" } else { "" })
}

/// Bytes as people read them.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["K", "M", "G", "T", "P"];
    if count < 1_024 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1_024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1_023.95 {
            break;
        }
        value /= 1_024.0;
        unit = next;
    }
    format!("{value:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{flow::Direction, fsm::State};

    use super::*;
    use crate::{
        clock::Wall,
        report::{Cause, Local},
    };

    fn lines(width: Width) -> TextLines {
        TextLines { zone: TimeZone::UTC, width }
    }

    fn flow() -> Flow {
        Flow {
            orig: "10.0.0.1:40001".parse().unwrap(),
            resp: "10.0.0.2:8080".parse().unwrap(),
            iface: "eth0".into(),
            local: Some(Local::Resp),
        }
    }

    fn written(width: Width, body: Body) -> String {
        let mut line = String::new();
        let report = Report { v: 1, seq: 1, ts: Wall(1_795_341_600_072_385_000), host: "h".into(), body };
        lines(width).write(&mut line, &report);
        line
    }

    fn transition(confirmed: bool) -> Body {
        Body::Transition(Transition {
            flow: flow(),
            side: Side::Resp,
            from: State::Established,
            to: State::CloseWait,
            confirmed,
            dwell_ns: 4_200_000_000,
            cause: Cause { dir: Some(Direction::Original), flags: "FA".into(), why: "peer_fin".into() },
            proc: Some(Proc {
                pid: 4_711,
                comm: "java".into(),
                unit: Some("app.service".into()),
                ..Proc::default()
            }),
            unowned: None,
            sample: 1,
        })
    }

    #[test]
    fn a_transition_reads_from_left_to_right() {
        assert_eq!(
            lines(Width::Table).header() + &written(Width::Table, transition(false)),
            "TIME            ORIGINATOR             RESPONDER              END   STATE                        DWELL  CAUSE             PROCESS\n\
             10:00:00.072385 10.0.0.1:40001         10.0.0.2:8080          resp* ESTAB -> CLOSE-WAIT?         4.20s  peer_fin (FA)     java[4711]\n"
        );
        let wide = written(Width::Wide, transition(true));
        assert!(
            wide.contains("CLOSE-WAIT  ") && wide.ends_with("eth0       java[4711] app.service\n"),
            "{wide}"
        );
    }

    #[test]
    fn one_of_a_sample_says_how_many_it_stands_for() {
        let Body::Transition(told) = transition(true) else { unreachable!() };
        let line = written(Width::Table, Body::Transition(Transition { sample: 64, ..told }));
        assert!(line.contains("peer_fin (FA) x64 java[4711]"), "{line}");
    }

    #[test]
    fn the_end_of_a_connection_has_its_totals() {
        let closed = Body::ConnClosed(ConnClosed {
            flow: flow(),
            reason: "reset_by_responder".into(),
            orig_state: State::Closed,
            resp_state: State::Closed,
            duration_ns: 1_250_000_000,
            orig_pkts: 6,
            resp_pkts: 5,
            orig_bytes: 120,
            resp_bytes: 4_300,
            facts: vec!["open".into(), "rtx".into()],
            proc: None,
            unowned: None,
            sample: 64,
        });
        let line = written(Width::Wide, closed);
        assert!(line.contains("over: reset by responder x64"), "{line}");
        assert!(line.contains("1.25s  6 / 120B out, 5 / 4.2K back  eth0  rtx\n"), "{line}");
    }

    #[test]
    fn bytes_have_a_unit() {
        for (count, text) in
            [(0, "0B"), (1_023, "1023B"), (1_024, "1.0K"), (1 << 20, "1.0M"), (u64::MAX, "16384.0P")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
