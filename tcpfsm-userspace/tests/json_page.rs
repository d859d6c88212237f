//! docs/json.md is the schema: every key that an event can have is there, and no other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::Value;
use tcpfsm_common::{flow::Direction, fsm::State};
use tcpfsm_userspace::{
    clock::Wall,
    detect::AnomalyKind,
    export::jsonl,
    owner::{Proc, Unowned, WhyUnowned},
    report::{
        Anomaly, Body, Cause, ConnClosed, Flow, Local, Phase, Ratio, Report, SCHEMA_VERSION, Severity, Side,
        Transition,
    },
};

const PAGE: &str = include_str!("../../docs/json.md");

fn flow() -> Flow {
    Flow {
        orig: "192.0.2.2:40000".parse().unwrap(),
        resp: "[2001:db8::1]:8080".parse().unwrap(),
        iface: "eth0".into(),
        local: Some(Local::Resp),
    }
}

fn proc() -> Option<Proc> {
    let some = || Some("x".to_owned());
    let proc = Proc { exe: some(), unit: some(), container: some(), pod: some(), ..Proc::default() };
    Some(proc)
}

fn unowned() -> Option<Unowned> {
    let some = || Some("x".to_owned());
    Some(Unowned { unit: some(), container: some(), pod: some(), ..WhyUnowned::Hidden.into() })
}

/// One of each kind, with everything that it can have.
fn full() -> [Body; 3] {
    let transition = Transition {
        flow: flow(),
        side: Side::Resp,
        from: State::Established,
        to: State::CloseWait,
        confirmed: true,
        dwell_ns: 1,
        cause: Cause { dir: Some(Direction::Original), flags: "FA".into(), why: "peer_fin".into() },
        proc: proc(),
        unowned: unowned(),
        sample: 61,
    };
    let closed = ConnClosed {
        flow: flow(),
        reason: "finish".into(),
        orig_state: State::TimeWait,
        resp_state: State::Closed,
        duration_ns: 1,
        orig_pkts: 1,
        resp_pkts: 1,
        orig_bytes: 1,
        resp_bytes: 1,
        facts: vec!["open".into()],
        proc: proc(),
        unowned: unowned(),
        sample: 61,
    };
    let anomaly = Anomaly {
        flow: flow(),
        side: Side::Resp,
        anomaly: AnomalyKind::PortScan,
        phase: Phase::Start,
        severity: Severity::Warning,
        service: flow().resp,
        source: Some(flow().orig.ip()),
        technique: Some("syn".into()),
        ratio: Some(Ratio(1)),
        count: 1,
        peak: 1,
        first_seen: Wall(0),
        oldest_ns: 1,
        state: State::CloseWait,
        kernel_state: Some("close_wait".into()),
        proc: proc(),
        unowned: unowned(),
    };
    [Body::Transition(transition), Body::ConnClosed(closed), Body::Anomaly(anomaly)]
}

/// The keys of an object, those of objects in it behind a dot.
fn keys(value: &Value, before: &str, found: &mut BTreeSet<String>) {
    for (key, value) in value.as_object().unwrap() {
        let path = format!("{before}{key}");
        if value.is_object() {
            keys(value, &format!("{path}."), found);
        } else {
            found.insert(path);
        }
    }
}

/// The keys in the tables below a heading that begins so; and whether each may be left out.
fn documented(heading: &str) -> Vec<(String, bool)> {
    let (_, section) = PAGE.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    rows.filter_map(|cell| {
        let key = cell.trim_matches('*').strip_prefix('`')?.strip_suffix('`')?;
        Some((key.to_owned(), cell.starts_with('*')))
    })
    .collect()
}

#[test]
fn every_key_is_documented_and_no_other() {
    for body in full() {
        let kind = body.kind();
        let report = Report { v: SCHEMA_VERSION, seq: 1, ts: Wall(0), host: "vm".into(), body };
        let mut line = String::new();
        jsonl::write(&mut line, &report);
        assert_eq!(line.matches('\n').count(), 1, "a line: {line}");
        let mut written = BTreeSet::new();
        keys(&serde_json::from_str(&line).unwrap(), "", &mut written);
        // The objects' own names have rows too, for what they are.
        let objects = ["proc", "unowned"];
        let page: BTreeSet<String> = [documented("\n## Every event"), documented(&format!("\n## `{kind}`"))]
            .concat()
            .into_iter()
            .map(|(key, _)| key)
            .filter(|key| !objects.contains(&key.as_str()))
            .collect();
        assert_eq!(written, page, "{kind}");
    }
}

#[test]
fn what_may_be_left_out_is_marked() {
    for mut body in full() {
        let kind = body.kind();
        match &mut body {
            Body::Transition(it) => (it.proc, it.unowned, it.sample) = (None, None, 1),
            Body::ConnClosed(it) => (it.proc, it.unowned, it.sample) = (None, None, 1),
            Body::Anomaly(it) => {
                (it.proc, it.unowned, it.source, it.technique, it.ratio) = (None, None, None, None, None);
                it.kernel_state = None;
            }
        }
        let written = serde_json::to_value(&body).unwrap();
        for (key, optional) in documented(&format!("\n## `{kind}`")) {
            let there = written.pointer(&format!("/{}", key.replace('.', "/"))).is_some();
            assert_eq!(there, !optional, "{kind}: {key}");
        }
    }
}
