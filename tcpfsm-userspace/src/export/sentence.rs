//! An anomaly as a sentence.

use std::fmt::{self, Write as _};

use crate::{
    clock::short_duration,
    owner::{Confidence, Proc},
    report::{Anomaly, Phase, Ratio, Side},
};

/// Appends the sentence, without the end of the line.
pub(super) fn write(line: &mut String, time: &str, anomaly: &Anomaly) -> fmt::Result {
    let Anomaly { anomaly: kind, phase, severity, .. } = anomaly;
    write!(line, "{time:<15} {} {}: ", severity.name().to_uppercase(), kind.name())?;
    let owner = owner(anomaly);
    match phase {
        Phase::Start | Phase::Update => {
            if *phase == Phase::Update {
                line.push_str("still ");
            }
            if kind.is_dwelling() { dwelling(line, anomaly) } else { happening(line, anomaly) }?;
            line.push_str(&owner);
            Ok(())
        }
        Phase::End => {
            let (place, peak) = (place(anomaly), anomaly.peak);
            if kind.is_dwelling() {
                let state = anomaly.state.ss_name();
                write!(
                    line,
                    "over: no connection {place} is stuck in {state} any more (at most {peak} were){owner}"
                )
            } else {
                write!(line, "over {place} (at most {peak} {}){owner}", kind.counts())
            }
        }
    }
}

fn dwelling(line: &mut String, anomaly: &Anomaly) -> fmt::Result {
    let Anomaly { flow, count, oldest_ns, state, kernel_state, .. } = anomaly;
    let connections = if *count == 1 { "connection" } else { "connections" };
    write!(
        line,
        "{count} {connections} {} in {}, the oldest for {}: {} -> {}{}",
        place(anomaly),
        state.ss_name(),
        short_duration(*oldest_ns),
        flow.orig,
        flow.resp,
        match kernel_state.as_deref() {
            Some(kernel) if kernel != state.name() => format!(", where the kernel's own socket is {kernel}"),
            Some(_) | None => String::new(),
        }
    )
}

fn happening(line: &mut String, anomaly: &Anomaly) -> fmt::Result {
    let Anomaly { anomaly: kind, flow, count, technique, ratio, .. } = anomaly;
    write!(line, "{count} {} {}", kind.counts(), place(anomaly))?;
    if let Some(technique) = technique {
        write!(line, " ({technique})")?;
    }
    if let Some(Ratio(permille)) = ratio {
        write!(line, ", {}.{} %", permille / 10, permille % 10)?;
    }
    if flow.orig.ip().is_unspecified() && flow.resp.ip().is_unspecified() {
        return Ok(());
    }
    if flow.orig.ip().is_unspecified() {
        return write!(line, ": {}", flow.resp);
    }
    write!(line, ": {} -> {}", flow.orig, flow.resp)
}

/// Where it is: a source, one end of a service, or the host.
fn place(anomaly: &Anomaly) -> String {
    let Anomaly { side, service, source, .. } = anomaly;
    match (source, side) {
        (Some(source), _) => format!("from {source}"),
        (None, _) if service.ip().is_unspecified() => "on this host".to_owned(),
        (None, Side::Resp) => format!("at {service}"),
        (None, Side::Orig) => format!("with {service}"),
    }
}

fn owner(anomaly: &Anomaly) -> String {
    let Anomaly { flow, side, proc, unowned, .. } = anomaly;
    let own = flow.local.is_some_and(|local| local.includes(*side));
    match (proc, unowned) {
        (Some(Proc { pid, comm, unit, confidence, .. }), _) => {
            let role = if *confidence == Confidence::Listener { "listener " } else { "" };
            let unit = unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
            format!(", {role}{comm}[{pid}]{unit}")
        }
        (None, Some(unowned)) => format!(", no owner: {}", unowned.why.short()),
        (None, None) if own => ", owner unknown".to_owned(),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::fsm::State;

    use super::*;
    use crate::{
        clock::Wall,
        detect::AnomalyKind,
        report::{Flow, Local, Severity},
    };

    fn stuck(phase: Phase, count: u64) -> Anomaly {
        let resp = "10.0.0.2:8080".parse().unwrap();
        Anomaly {
            flow: Flow {
                orig: "10.0.0.1:40001".parse().unwrap(),
                resp,
                iface: "eth0".into(),
                local: Some(Local::Resp),
            },
            side: Side::Resp,
            anomaly: AnomalyKind::CloseWaitStuck,
            phase,
            severity: Severity::Warning,
            service: resp,
            source: None,
            technique: None,
            ratio: None,
            count,
            peak: 2_310,
            first_seen: Wall(0),
            oldest_ns: 192_000_000_000,
            state: State::CloseWait,
            kernel_state: None,
            proc: Some(Proc { pid: 4_711, comm: "java".into(), ..Proc::default() }),
            unowned: None,
        }
    }

    fn written(anomaly: &Anomaly) -> String {
        let mut line = String::new();
        write(&mut line, "10:00:00.072385", anomaly).unwrap();
        line
    }

    #[test]
    fn what_is_stuck() {
        assert_eq!(
            written(&stuck(Phase::Start, 2_310)),
            "10:00:00.072385 WARNING close_wait_stuck: 2310 connections at 10.0.0.2:8080 in CLOSE-WAIT, \
             the oldest for 3m12s: 10.0.0.1:40001 -> 10.0.0.2:8080, java[4711]"
        );
        assert!(written(&stuck(Phase::Update, 1)).contains(": still 1 connection at"));
        assert!(written(&stuck(Phase::End, 0)).contains("over: no connection at 10.0.0.2:8080 is stuck"));
    }

    #[test]
    fn what_happens() {
        let scan = Anomaly {
            anomaly: AnomalyKind::PortScan,
            source: Some("10.0.0.1".parse().unwrap()),
            technique: Some("syn".into()),
            ratio: Some(Ratio(995)),
            proc: None,
            ..stuck(Phase::Start, 1_000)
        };
        assert_eq!(
            written(&scan),
            "10:00:00.072385 WARNING port_scan: 1000 targets from 10.0.0.1 (syn), 99.5 %: \
             10.0.0.1:40001 -> 10.0.0.2:8080, owner unknown"
        );
        let over = Anomaly { phase: Phase::End, ..scan.clone() };
        assert!(written(&over).contains("port_scan: over from 10.0.0.1 (at most 2310 targets)"));
        let mut flood = Anomaly { anomaly: AnomalyKind::SynFlood, source: None, technique: None, ..scan };
        flood.flow.orig = "0.0.0.0:0".parse().unwrap();
        assert!(
            written(&flood).contains("1000 half-open handshakes at 10.0.0.2:8080, 99.5 %: 10.0.0.2:8080,")
        );
    }
}
