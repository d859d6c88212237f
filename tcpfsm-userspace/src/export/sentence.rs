//! An anomaly as a sentence.

use std::fmt::{self, Write as _};

use crate::{
    clock::short_duration,
    detect::AnomalyKind,
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
                let were = if peak == 1 { "was" } else { "were" };
                write!(
                    line,
                    "over: no connection {place} is stuck in {state} any more (at most {peak} {were}){owner}"
                )
            } else {
                write!(line, "over {place} (at most {peak} {}){owner}", kind.counts(peak))
            }
        }
    }
}

fn dwelling(line: &mut String, anomaly: &Anomaly) -> fmt::Result {
    let Anomaly { anomaly: kind, flow, count, oldest_ns, state, kernel_state, .. } = anomaly;
    write!(
        line,
        "{count} {} {} in {}, the oldest for {}: {} -> {}{}",
        kind.counts(*count),
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
    write!(line, "{count} {} {}", kind.counts(*count), place(anomaly))?;
    if let Some(technique) = technique {
        write!(line, " ({technique})")?;
    }
    if let Some(Ratio(permille)) = ratio {
        write!(line, ", {}.{} %", permille / 10, permille % 10)?;
    }
    line.push_str(&since(anomaly));
    if flow.orig.ip().is_unspecified() && flow.resp.ip().is_unspecified() {
        return Ok(());
    }
    if flow.orig.ip().is_unspecified() {
        return write!(line, ": {}", flow.resp);
    }
    write!(line, ": {} -> {}", flow.orig, flow.resp)
}

/// Since when, of what lasts without being a state, and of peers that are gone; how old the example of anything else is,
/// says nothing.
fn since(anomaly: &Anomaly) -> String {
    let Anomaly { anomaly: kind, technique, oldest_ns, .. } = anomaly;
    let ago = short_duration(*oldest_ns);
    match (kind, technique.as_deref()) {
        (AnomalyKind::IdleEstablished | AnomalyKind::ZeroWindowStall, _)
        | (AnomalyKind::PeerGone, Some("unanswered")) => format!(", the oldest for {ago}"),
        // It was noticed by a segment.
        (AnomalyKind::PeerGone, _) => format!(", the first {ago} ago"),
        (_, _) => String::new(),
    }
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
        let one = Anomaly { peak: 1, ..stuck(Phase::End, 0) };
        assert!(written(&one).contains("(at most 1 was), java"));
    }

    #[test]
    fn what_lasts_says_since_when_and_one_is_one() {
        let of = |anomaly, technique: Option<&'static str>, count| {
            let technique = technique.map(Into::into);
            written(&Anomaly { anomaly, technique, peak: count, ..stuck(Phase::Update, count) })
        };
        for (line, words) in [
            (
                of(AnomalyKind::ZeroWindowStall, None, 1),
                "still 1 connection whose window stays closed at 10.0.0.2:8080, the oldest for 3m12s: 10.0.0.1:40001",
            ),
            (
                of(AnomalyKind::PeerGone, Some("unanswered"), 3),
                "3 connections whose peer is gone at 10.0.0.2:8080 (unanswered), the oldest for 3m12s: ",
            ),
            (of(AnomalyKind::PeerGone, Some("reset"), 3), " (reset), the first 3m12s ago: "),
            (
                of(AnomalyKind::IdleEstablished, None, 10),
                "10 idle connections at 10.0.0.2:8080, the oldest for",
            ),
            (
                of(AnomalyKind::RstInjection, None, 1),
                "1 reset that its sender did not send at 10.0.0.2:8080: ",
            ),
        ] {
            assert!(line.contains(words), "{words}: {line}");
        }
        for kind in AnomalyKind::ALL {
            assert_ne!(kind.counts(1), kind.counts(2), "{}", kind.name());
            assert_eq!(kind.counts(0), kind.counts(2), "{}", kind.name());
        }
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
