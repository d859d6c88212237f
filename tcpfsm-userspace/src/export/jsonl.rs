//! Live events as JSON lines, schema version 1.

use crate::report::Report;

/// Appends one report and a line feed.
pub fn write(line: &mut String, report: &Report) {
    // Serialising these types cannot fail: no maps with keys other than strings, no foreign implementations.
    if let Ok(json) = serde_json::to_string(report) {
        line.push_str(&json);
        line.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tcpfsm_common::{flow::Direction, fsm::State};

    use super::*;
    use crate::{
        clock::Wall,
        detect::AnomalyKind,
        owner::{Proc, WhyUnowned},
        report::{Anomaly, Body, Cause, ConnClosed, Flow, Local, Phase, Severity, Side, Transition},
    };

    fn flow() -> Flow {
        Flow {
            orig: "10.0.0.1:40001".parse().unwrap(),
            resp: "[fd00::2]:8080".parse().unwrap(),
            iface: "eth0".into(),
            local: Some(Local::Resp),
        }
    }

    fn report(body: Body) -> Report {
        Report { v: 1, seq: 123, ts: Wall(1_795_341_600_072_385_000), host: "db1".into(), body }
    }

    fn proc() -> Option<Proc> {
        Some(Proc { pid: 4_711, comm: "java".into(), unit: Some("app.service".into()), ..Proc::default() })
    }

    fn transition() -> Report {
        report(Body::Transition(Transition {
            flow: flow(),
            side: Side::Resp,
            from: State::Established,
            to: State::CloseWait,
            confirmed: true,
            dwell_ns: 4_200_000_000,
            cause: Cause { dir: Some(Direction::Original), flags: "FA".into(), why: "peer_fin".into() },
            proc: proc(),
            unowned: None,
            sample: 1,
        }))
    }

    fn written(report: &Report) -> String {
        let mut line = String::new();
        write(&mut line, report);
        line
    }

    #[test]
    fn a_transition_is_the_documented_line() {
        assert_eq!(
            written(&transition()),
            concat!(
                r#"{"v":1,"seq":123,"ts":"2026-11-22T10:00:00.072385Z","host":"db1","kind":"transition","#,
                r#""orig":"10.0.0.1:40001","resp":"[fd00::2]:8080","iface":"eth0","local":"resp","#,
                r#""side":"resp","from":"established","to":"close_wait","confirmed":true,"#,
                r#""dwell_ns":4200000000,"cause":{"dir":"original","flags":"FA","why":"peer_fin"},"#,
                r#""proc":{"pid":4711,"comm":"java","unit":"app.service","confidence":"socket"}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn one_of_a_sample_says_how_many_it_stands_for() {
        let mut told = transition();
        if let Body::Transition(transition) = &mut told.body {
            transition.sample = 64;
        }
        let line = written(&told);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["sample"], 64);
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), told);
    }

    #[test]
    fn an_anomaly_adds_its_own_fields() {
        let anomaly = report(Body::Anomaly(Anomaly {
            flow: Flow { local: None, ..flow() },
            side: Side::Resp,
            anomaly: AnomalyKind::CloseWaitStuck,
            phase: Phase::Start,
            severity: Severity::Warning,
            service: flow().resp,
            source: None,
            technique: None,
            ratio: None,
            count: 2_310,
            peak: 2_310,
            first_seen: Wall(1_795_341_600_000_000_000),
            oldest_ns: 61_000_000_000,
            state: State::CloseWait,
            kernel_state: Some("close_wait".into()),
            proc: None,
            unowned: Some(WhyUnowned::TimeWait.into()),
        }));
        let value: Value = serde_json::from_str(&written(&anomaly)).unwrap();
        assert_eq!(value["kind"], "anomaly");
        assert_eq!(value["anomaly"], "close_wait_stuck");
        assert_eq!((&value["severity"], &value["count"]), (&json!("warning"), &json!(2_310)));
        assert_eq!(value["first_seen"], "2026-11-22T10:00:00.000000Z");
        assert_eq!((&value["phase"], &value["state"]), (&json!("start"), &json!("close_wait")));
        assert_eq!(value["local"], Value::Null);
        assert!(value.get("proc").is_none());
        assert_eq!(value["unowned"], json!({"why": "time_wait"}));
    }

    #[test]
    fn the_end_of_a_connection_has_its_totals() {
        let closed = report(Body::ConnClosed(ConnClosed {
            flow: flow(),
            reason: "finish".into(),
            orig_state: State::TimeWait,
            resp_state: State::Closed,
            duration_ns: 1_250_000_000,
            orig_pkts: 6,
            resp_pkts: 5,
            orig_bytes: 120,
            resp_bytes: 4_096,
            facts: vec!["open".into(), "fin_rtx".into()],
            proc: None,
            unowned: Some(WhyUnowned::TimeWait.into()),
            sample: 1,
        }));
        let value: Value = serde_json::from_str(&written(&closed)).unwrap();
        assert_eq!(value["kind"], "conn_closed");
        assert_eq!((&value["reason"], &value["duration_ns"]), (&json!("finish"), &json!(1_250_000_000)));
        assert_eq!((&value["orig_pkts"], &value["resp_bytes"]), (&json!(6), &json!(4_096)));
        assert_eq!(value["facts"], json!(["open", "fin_rtx"]));
    }

    #[test]
    fn lines_read_back_as_they_were() {
        let line = written(&transition());
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), transition());
        let mut by_the_clock = transition();
        if let Body::Transition(transition) = &mut by_the_clock.body {
            transition.cause = Cause { dir: None, flags: "".into(), why: "timeout".into() };
        }
        assert_eq!(serde_json::from_str::<Report>(&written(&by_the_clock)).unwrap(), by_the_clock);
    }
}
