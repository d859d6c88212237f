//! docs/json.md is the schema: every key of what is printed for programs is there, and no other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;
use tcpfsm_common::{flow::Direction, fsm::State};
use tcpfsm_userspace::{
    clock::Wall,
    control::{
        protocol::FlowLine,
        stats::{AnomalyLine, AttachedLine, Count, MapLine, PacketLine, StateLine, Stats, TransitionLine},
    },
    detect::AnomalyKind,
    explain::story::{EndStory, Moment, Origin, Step, Story},
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

/// The same, with those of the objects of a list behind brackets, where the page gives them rows.
fn keys_of(value: &Value, rows: &[(String, bool)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    keys(value, "", &mut found);
    let lists: BTreeSet<&str> = rows.iter().filter_map(|(key, _)| Some(key.split_once("[]")?.0)).collect();
    for list in lists {
        for each in value[list].as_array().unwrap() {
            keys(each, &format!("{list}[]."), &mut found);
        }
    }
    found.retain(|key| !key.starts_with("proc.") && !key.starts_with("unowned."));
    found.extend(["proc", "unowned"].iter().filter(|key| value.get(key).is_some()).map(|&key| key.into()));
    found
}

/// Whether the section below a heading has all of these keys, and no other; `bare` may lack what is marked for that.
fn assert_documented(heading: &str, full: &Value, bare: &Value) {
    let rows = documented(heading);
    let page = |all: bool| rows.iter().filter(|row| all || !row.1).map(|row| row.0.clone()).collect();
    assert_eq!(keys_of(full, &rows), page(true), "{heading}");
    assert_eq!(keys_of(bare, &rows), page(false), "{heading}, without what may be left out");
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

fn flow_line(owner: bool) -> FlowLine {
    FlowLine {
        orig: flow().orig,
        resp: flow().resp,
        iface: "eth0".into(),
        local: None,
        orig_state: State::Established,
        resp_state: State::CloseWait,
        orig_confirmed: true,
        resp_confirmed: true,
        orig_dwell_ns: 1,
        resp_dwell_ns: 1,
        orig_dwell_at_least: true,
        resp_dwell_at_least: true,
        idle_ns: 1,
        age_ns: 1,
        orig_pkts: 1,
        resp_pkts: 1,
        orig_bytes: 1,
        resp_bytes: 1,
        orig_rtx: 1,
        resp_rtx: 1,
        picked_up: false,
        facts: vec![],
        proc: proc().filter(|_| owner),
        unowned: unowned().filter(|_| owner),
        kernel_state: owner.then_some(State::CloseWait),
    }
}

fn story(all: bool) -> Story {
    let number = all.then_some(1);
    let end = EndStory { sent_to: number, acked_to: number, ..EndStory::default() };
    let step = Step {
        side: Side::Orig,
        from: State::SynSent,
        to: State::Established,
        confirmed: true,
        dwell_ns: 1,
        why: "syn_ack".into(),
    };
    let moment = Moment {
        ts: Wall(0),
        packet: all.then_some(1),
        dir: None,
        flags: "SA".into(),
        seq: 0,
        ack: number,
        len: 0,
        steps: if all { vec![step] } else { vec![] },
        facts: if all { vec!["open".into()] } else { vec![] },
    };
    Story {
        orig: flow().orig,
        resp: flow().resp,
        iface: if all { "eth0".into() } else { "".into() },
        local: all.then_some(Local::Resp),
        orig_end: end,
        resp_end: end,
        age_ns: 1,
        idle_ns: 1,
        close_reason: all.then(|| "finish".into()),
        origin: Origin::Seen,
        facts: vec![],
        timeline: vec![moment],
        plain_segments: 1,
        left_out: 0,
        left_out_at: 0,
        timeline_whole: true,
        kernel_state: all.then_some(State::CloseWait),
        proc: proc().filter(|_| all),
        unowned: unowned().filter(|_| all),
        anomalies: vec![],
    }
}

#[test]
fn flows_and_stories_are_documented() {
    let json = |line: &FlowLine| serde_json::to_value(line).unwrap();
    assert_documented("\n## `list -o jsonl`", &json(&flow_line(true)), &json(&flow_line(false)));
    let json = |story: &Story| serde_json::to_value(story).unwrap();
    assert_documented("\n## `explain --json`: a connection", &json(&story(true)), &json(&story(false)));
    let step = &serde_json::to_value(story(true)).unwrap()["timeline"][0]["steps"][0];
    for key in step.as_object().unwrap().keys() {
        assert!(PAGE.contains(&format!("`{key}`")), "{key} of a step");
    }
}

#[test]
fn stats_are_documented() {
    let stats = Stats {
        attached: vec![AttachedLine::default()],
        states: vec![StateLine::default()],
        transitions: vec![TransitionLine::default()],
        closed: vec![Count::default()],
        packets: vec![PacketLine::default()],
        anomalies: vec![AnomalyLine::default()],
        maps: vec![MapLine::default()],
        lost: vec![Count::default()],
        ..Stats::default()
    };
    let json = serde_json::to_value(stats).unwrap();
    assert_documented("\n## `stats -o json`", &json, &json);
}

/// What a command prints.
fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tcpfsm")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn kinds_of_anomaly_are_documented() {
    let kinds: Value =
        serde_json::from_str(&printed(&["explain", "--json", "--socket", "/nonexistent/tcpfsm.sock"]))
            .unwrap();
    let kinds = kinds.as_array().unwrap();
    assert_eq!(kinds.len(), AnomalyKind::ALL.len());
    let has_run = |step: &Value| step.get("run").is_some();
    assert!(kinds.iter().any(|kind| kind.get("remote").is_some()), "some are about one end");
    for mut kind in kinds.clone() {
        let bare = {
            let mut bare = kind.clone();
            bare.as_object_mut().unwrap().remove("remote");
            bare["do"].as_array_mut().unwrap().iter_mut().for_each(|step| {
                step.as_object_mut().unwrap().remove("run");
            });
            bare
        };
        kind["remote"] = "elsewhere".into();
        let steps = kind["do"].as_array_mut().unwrap();
        if !steps.iter().any(has_run) {
            steps[0]["run"] = "true".into();
        }
        assert_documented("\n## `explain --json`: a kind", &kind, &bare);
    }
}

#[test]
fn replayed_packets_and_connections_are_documented() {
    let capture = tempfile::NamedTempFile::new().unwrap();
    // A header of microseconds and raw IP, and one SYN.
    let mut bytes =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 101, 0, 0, 0];
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 40, 0, 0, 0, 40, 0, 0, 0]);
    bytes.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    bytes.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    std::fs::write(&capture, bytes).unwrap();
    let path = capture.path().to_str().unwrap();
    for (arguments, heading) in [
        (&["replay", "-o", "jsonl", path][..], "\n## `replay -o jsonl`:"),
        (&["replay", "-o", "jsonl", "--per-packet", path], "\n## `replay -o jsonl --per-packet`"),
    ] {
        let printed = printed(arguments);
        let line: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
        assert_documented(heading, &line, &line);
    }
}
