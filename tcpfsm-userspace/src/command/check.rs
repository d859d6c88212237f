//! `tcpfsm check`: one look at the anomalies that go on, for cron and Nagios.

use std::{fmt::Write as _, process::ExitCode};

use super::print;
use crate::{
    cli::CheckArgs,
    control::filter::Filter,
    error::{Result, complain},
    explain::texts::{self, Entry},
    export::{
        owner,
        text::{TextLines, Width},
    },
    report::{Anomaly, Body, Report, Severity},
};

/// There are anomalies.
const FOUND: u8 = 3;

/// Kinds and services named in the first line; the details follow below it.
const NAMED: usize = 4;

/// Parses a severity.
///
/// # Errors
/// Names those there are.
pub fn parse_severity(text: &str) -> Result<Severity, String> {
    let all = [Severity::Info, Severity::Warning, Severity::Critical];
    all.into_iter()
        .find(|severity| severity.name().eq_ignore_ascii_case(text))
        .ok_or_else(|| format!("there are {}", all.map(Severity::name).join(", ")))
}

pub(super) fn check(args: CheckArgs) -> Result<ExitCode> {
    let CheckArgs { kinds, severity, json, nagios, socket } = args;
    let filter = Filter { kinds, ..Filter::default() };
    let (found, unknown) = match super::anomalies(&socket.socket, filter) {
        Ok(found) => found,
        Err(error) if nagios => {
            // Whoever reads plugins' output reads their first line of stdout.
            print(&format!("TCPFSM UNKNOWN - {error}\n"))?;
            return Ok(ExitCode::from(3));
        }
        Err(error) => return Err(error),
    };
    let found: Vec<Report> = found
        .into_iter()
        .filter(|report| anomaly(report).is_some_and(|it| it.severity >= severity))
        .collect();
    // How much they matter nobody here knows.
    let unknown = if severity <= Severity::Warning { unknown } else { 0 };
    if json {
        if unknown > 0 {
            complain!("tcpfsm: {}", of_unknown_kinds(unknown));
        }
        let mut text = String::new();
        found.iter().for_each(|report| crate::export::jsonl::write(&mut text, report));
        print(&text)?;
    } else {
        print(&summary(&found, unknown))?;
    }
    let unknown = (unknown > 0).then_some(Severity::Warning);
    let worst = found.iter().filter_map(anomaly).map(|anomaly| anomaly.severity).chain(unknown).max();
    Ok(match (worst, nagios) {
        (None, _) => ExitCode::SUCCESS,
        (Some(_), false) => ExitCode::from(FOUND),
        (Some(Severity::Critical), true) => ExitCode::from(2),
        (Some(Severity::Warning | Severity::Info), true) => ExitCode::from(1),
    })
}

fn anomaly(report: &Report) -> Option<&Anomaly> {
    match &report.body {
        Body::Anomaly(anomaly) => Some(anomaly),
        Body::Transition(_) | Body::ConnClosed(_) => None,
    }
}

/// One line as plugins give it, with its figures behind a bar, and the details below.
fn summary(found: &[Report], unknown: usize) -> String {
    let all: Vec<&Anomaly> = found.iter().filter_map(anomaly).collect();
    let of = |severity| all.iter().filter(|anomaly| anomaly.severity == severity).count();
    let figures = format!(
        "anomalies={} critical={} warning={} info={}",
        all.len(),
        of(Severity::Critical),
        of(Severity::Warning),
        of(Severity::Info)
    );
    let Some(worst) = all.iter().map(|anomaly| anomaly.severity).max() else {
        return match unknown {
            0 => format!("TCPFSM OK - no anomalies | {figures}\n"),
            unknown => format!("TCPFSM WARNING - {} | {figures}\n", of_unknown_kinds(unknown)),
        };
    };
    let status = match worst {
        Severity::Critical => "CRITICAL",
        Severity::Warning | Severity::Info => "WARNING",
    };
    let mut named: Vec<String> = all.iter().take(NAMED).map(|anomaly| name(anomaly)).collect();
    if all.len() > NAMED {
        named.push(format!("and {} more", all.len() - NAMED));
    }
    let plural = if all.len() == 1 { "anomaly" } else { "anomalies" };
    let mut text = format!("TCPFSM {status} - {} {plural}: {} | {figures}\n", all.len(), named.join("; "));
    let lines = TextLines::new(Width::Wide);
    for report in found {
        lines.write(&mut text, report);
    }
    let mut kinds = Vec::new();
    for kind in all.iter().map(|anomaly| anomaly.anomaly) {
        if kinds.contains(&kind) {
            continue;
        }
        kinds.push(kind);
        let all_remote =
            all.iter().filter(|anomaly| anomaly.anomaly == kind).all(|anomaly| is_remote(anomaly));
        let Entry { title, remote, .. } = texts::of(kind);
        let hint = match remote {
            Some(remote) if all_remote => format!("at the remote end: {remote}"),
            Some(_) | None => title.clone(),
        };
        let _ = writeln!(text, "{}: {hint}; tcpfsm explain {0}", kind.name());
    }
    if unknown > 0 {
        let _ = writeln!(text, "{}", of_unknown_kinds(unknown));
    }
    text
}

/// Whether the end concerned is another host's, and the other one is this host's.
fn is_remote(anomaly: &Anomaly) -> bool {
    let Anomaly { flow, side, .. } = anomaly;
    flow.local.is_some_and(|local| !local.includes(*side))
}

fn of_unknown_kinds(count: usize) -> String {
    format!("{count} of kinds that this command does not know: is the daemon newer?")
}

fn name(anomaly: &Anomaly) -> String {
    let Anomaly { anomaly: kind, count, service, proc, unowned, .. } = anomaly;
    let owner = owner::cell(proc.as_ref(), unowned.as_ref(), Width::Table);
    let owner = if owner.is_empty() { owner } else { format!(" {owner}") };
    // A bar would begin the figures.
    format!("{} {count} at {service}{owner}", kind.name()).replace('|', "/")
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::fsm::State;

    use super::*;
    use crate::{
        clock::Wall,
        detect::AnomalyKind,
        owner::Proc,
        pipeline::synthetic::{Conversation, RESP},
        report::{Local, Phase, Side},
    };

    fn report(kind: AnomalyKind, severity: Severity, count: u64) -> Report {
        let body = Body::Anomaly(Anomaly {
            flow: Conversation::new().flow(),
            side: Side::Resp,
            anomaly: kind,
            phase: Phase::Update,
            severity,
            service: RESP,
            source: None,
            technique: None,
            ratio: None,
            count,
            peak: count,
            first_seen: Wall(0),
            oldest_ns: 61_000_000_000,
            state: State::CloseWait,
            kernel_state: None,
            proc: Some(Proc { pid: 4_711, comm: "java".into(), ..Proc::default() }),
            unowned: None,
        });
        Report { v: 1, seq: 1, ts: Wall(0), host: "h".into(), body }
    }

    #[test]
    fn nothing_is_one_line() {
        assert_eq!(summary(&[], 0), "TCPFSM OK - no anomalies | anomalies=0 critical=0 warning=0 info=0\n");
        assert!(summary(&[], 2).starts_with("TCPFSM WARNING - 2 of kinds"), "what is not known is not OK");
    }

    #[test]
    fn the_first_line_says_it_all_and_the_rest_in_detail() {
        let found = [
            report(AnomalyKind::CloseWaitStuck, Severity::Critical, 2_310),
            report(AnomalyKind::HalfOpen, Severity::Warning, 7),
        ];
        let text = summary(&found, 0);
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some(
                "TCPFSM CRITICAL - 2 anomalies: close_wait_stuck 2310 at 10.0.0.2:8080 java[4711]; half_open 7 at \
                 10.0.0.2:8080 java[4711] | anomalies=2 critical=1 warning=1 info=0"
            )
        );
        assert!(lines.next().unwrap().contains("CRITICAL close_wait_stuck: still 2310 connections"));
        assert!(text.contains("tcpfsm explain half_open"), "{text}");
    }

    #[test]
    fn a_kind_has_one_hint_wherever_it_stands() {
        use AnomalyKind::{CloseWaitStuck, HalfOpen};
        let found = [CloseWaitStuck, HalfOpen, CloseWaitStuck, HalfOpen]
            .map(|kind| report(kind, Severity::Warning, 7));
        let text = summary(&found, 0);
        let hints: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("; tcpfsm explain "))
            .map(|(_, kind)| kind)
            .collect();
        assert_eq!(hints, ["close_wait_stuck", "half_open"], "{text}");
    }

    #[test]
    fn the_hint_does_not_blame_this_host_for_the_other_one() {
        let hint = |local| {
            let mut found = report(AnomalyKind::CloseWaitStuck, Severity::Warning, 7);
            let Body::Anomaly(anomaly) = &mut found.body else { panic!("an anomaly") };
            anomaly.flow.local = local;
            let text = summary(&[found.clone(), report(AnomalyKind::HalfOpen, Severity::Info, 1)], 0);
            text.lines().find(|line| line.starts_with("close_wait_stuck: ")).unwrap().to_owned()
        };
        assert!(hint(Some(Local::Orig)).contains("at the remote end: This side has closed"));
        for local in [None, Some(Local::Resp), Some(Local::Both)] {
            assert!(hint(local).contains(": The peer has closed, and the program here"), "{local:?}");
        }
    }

    #[test]
    fn severities_in_any_case() {
        assert_eq!(parse_severity("Warning"), Ok(Severity::Warning));
        assert!(parse_severity("bad").unwrap_err().contains("critical"));
    }
}
