//! Reports into the systemd journal, each with its fields: the native protocol over journald's datagram socket
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! The fields are those of the JSON events, in capitals behind `TCPFSM_`, so that both stay the same thing:
//! `{"proc":{"pid":4711}}` is `TCPFSM_PROC_PID=4711`.

use std::{
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use tracing::warn;

use super::text::{TextLines, Width};
use crate::{
    error::{Error, Result},
    pipeline::{Losses, SharedGauges, Sink},
    report::{Body, Phase, Report, Severity},
};

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// How text lines begin: a time, which the journal has itself.
const TIME_COLUMNS: usize = 16;

/// Between two warnings that the journal takes nothing.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Which reports go into the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Anomalies: few, and what somebody must know.
    Anomalies,
    /// Every report: as many as there are connections, and more.
    All,
}

/// Writes reports to journald; one that it has no room for is dropped and counted, since the pipeline never waits.
#[derive(Debug)]
pub struct JournalSink {
    socket: UnixDatagram,
    path: PathBuf,
    which: Which,
    lines: TextLines,
    text: String,
    entry: Vec<u8>,
    shared: SharedGauges,
    warned: Option<Instant>,
}

impl JournalSink {
    /// Makes sure that somebody listens there.
    ///
    /// # Errors
    /// Nobody does.
    pub fn open(path: &Path, which: Which, shared: SharedGauges) -> Result<Self> {
        let failed = |cause| Error::Journal { path: path.to_owned(), cause };
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        // Not connected: journald may be restarted, and then has another socket under the same name.
        UnixDatagram::unbound().and_then(|probe| probe.connect(path)).map_err(failed)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            which,
            lines: TextLines::new(Width::Wide),
            text: String::new(),
            entry: Vec::new(),
            shared,
            warned: None,
        })
    }

    fn render(&mut self, report: &Report) {
        self.text.clear();
        self.lines.write(&mut self.text, report);
        let line = self.text.get(TIME_COLUMNS..).unwrap_or(&self.text);
        let message = line.split_whitespace().collect::<Vec<_>>().join(" ");
        self.entry.clear();
        field(&mut self.entry, "MESSAGE", &message);
        field(&mut self.entry, "PRIORITY", priority(&report.body));
        field(&mut self.entry, "SYSLOG_IDENTIFIER", "tcpfsm");
        if let Some(proc) = report.body.proc() {
            // journald adds what it knows of that process: OBJECT_EXE, OBJECT_SYSTEMD_UNIT and so on.
            field(&mut self.entry, "OBJECT_PID", &proc.pid.to_string());
        }
        if let Ok(value) = serde_json::to_value(report) {
            fields(&mut self.entry, "TCPFSM", &value);
        }
    }
}

impl Sink for JournalSink {
    fn take(&mut self, report: &Report) {
        if self.which == Which::Anomalies && !matches!(report.body, Body::Anomaly(_)) {
            return;
        }
        self.render(report);
        match self.socket.send_to(&self.entry, &self.path) {
            Ok(_) => {}
            Err(error) => {
                Losses::add(&self.shared.losses.journal, 1);
                // Between two that find no room others may find some.
                if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
                    self.warned = Some(Instant::now());
                    let why = match error.kind() {
                        ErrorKind::WouldBlock => "it is too slow".to_owned(),
                        _ => crate::error::describe(&error),
                    };
                    warn!("the journal does not take entries ({why}): they are dropped, and counted");
                }
            }
        }
    }

    fn flush(&mut self) {}
}

/// As syslog counts: 2 critical, 4 warning, 5 notice, 6 informational, 7 debug.
const fn priority(body: &Body) -> &'static str {
    match body {
        Body::Anomaly(anomaly) => match (anomaly.phase, anomaly.severity) {
            (Phase::End, _) => "5",
            (_, Severity::Critical) => "2",
            (_, Severity::Warning) => "4",
            (_, Severity::Info) => "6",
        },
        Body::ConnClosed(_) => "6",
        Body::Transition(_) => "7",
    }
}

/// Every value inside a JSON value, under the names that lead to it.
fn fields(entry: &mut Vec<u8>, name: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Bool(yes) => field(entry, name, if *yes { "true" } else { "false" }),
        Value::Number(number) => field(entry, name, &number.to_string()),
        Value::String(text) => field(entry, name, text),
        Value::Array(items) => {
            let words: Vec<String> = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
                .collect();
            if !words.is_empty() {
                field(entry, name, &words.join(","));
            }
        }
        Value::Object(members) => {
            for (member, value) in members {
                fields(entry, &format!("{name}_{}", member.to_uppercase()), value);
            }
        }
    }
}

/// `NAME=value`, or, where the value has a line feed in it, with its length.
fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use tcpfsm_common::fsm::State;

    use super::*;
    use crate::{
        clock::Wall,
        detect::AnomalyKind,
        owner::{Confidence, Proc},
        pipeline::{
            Shared,
            synthetic::{Conversation, RESP},
        },
        report::{Anomaly, ConnClosed, Side},
    };

    fn report(body: Body) -> Report {
        Report { v: 1, seq: 7, ts: Wall(1_795_341_600_072_385_000), host: "db1".into(), body }
    }

    fn leak(comm: &str) -> Report {
        report(Body::Anomaly(Anomaly {
            flow: Conversation::new().flow(),
            side: Side::Resp,
            anomaly: AnomalyKind::CloseWaitStuck,
            phase: Phase::Start,
            severity: Severity::Warning,
            service: RESP,
            source: None,
            technique: None,
            ratio: None,
            count: 2_310,
            peak: 2_310,
            first_seen: Wall(0),
            oldest_ns: 61_000_000_000,
            state: State::CloseWait,
            kernel_state: Some("close_wait".into()),
            proc: Some(Proc {
                pid: 4_711,
                comm: comm.into(),
                unit: Some("app.service".into()),
                confidence: Confidence::Socket,
                ..Proc::default()
            }),
            unowned: None,
        }))
    }

    fn closed() -> Report {
        report(Body::ConnClosed(ConnClosed {
            flow: Conversation::new().flow(),
            reason: "finish".into(),
            orig_state: State::TimeWait,
            resp_state: State::Closed,
            duration_ns: 5,
            orig_pkts: 6,
            resp_pkts: 5,
            orig_bytes: 1,
            resp_bytes: 2,
            facts: vec!["open".into(), "fin_rtx".into()],
            proc: None,
            unowned: None,
            sample: 1,
        }))
    }

    /// A journald of our own.
    fn journald() -> (tempfile::TempDir, PathBuf, UnixDatagram) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        (directory, path, socket)
    }

    /// One entry, parsed as the protocol's description says.
    fn entry(socket: &UnixDatagram) -> Option<BTreeMap<String, String>> {
        let mut buffer = vec![0; 1 << 16];
        let length = socket.recv(&mut buffer).ok()?;
        let mut rest = &buffer[..length];
        let mut fields = BTreeMap::new();
        while !rest.is_empty() {
            let line_end = rest.iter().position(|&byte| byte == b'\n').unwrap();
            let line = std::str::from_utf8(&rest[..line_end]).unwrap();
            rest = &rest[line_end + 1..];
            if let Some((name, value)) = line.split_once('=') {
                fields.insert(name.to_owned(), value.to_owned());
            } else {
                let (size, after) = rest.split_first_chunk::<8>().unwrap();
                let size = usize::try_from(u64::from_le_bytes(*size)).unwrap();
                let value = String::from_utf8(after[..size].to_vec()).unwrap();
                assert_eq!(after[size], b'\n');
                fields.insert(line.to_owned(), value);
                rest = &after[size + 1..];
            }
        }
        Some(fields)
    }

    #[test]
    fn an_anomaly_has_a_message_a_priority_and_its_fields() {
        let (_directory, path, socket) = journald();
        let mut sink = JournalSink::open(&path, Which::Anomalies, Arc::new(Shared::default())).unwrap();
        sink.take(&leak("java"));
        let entry = entry(&socket).unwrap();
        for (name, value) in [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "tcpfsm"),
            ("OBJECT_PID", "4711"),
            ("TCPFSM_KIND", "anomaly"),
            ("TCPFSM_ANOMALY", "close_wait_stuck"),
            ("TCPFSM_SEVERITY", "warning"),
            ("TCPFSM_PHASE", "start"),
            ("TCPFSM_COUNT", "2310"),
            ("TCPFSM_SERVICE", "10.0.0.2:8080"),
            ("TCPFSM_ORIG", "10.0.0.1:40001"),
            ("TCPFSM_KERNEL_STATE", "close_wait"),
            ("TCPFSM_PROC_PID", "4711"),
            ("TCPFSM_PROC_COMM", "java"),
            ("TCPFSM_PROC_UNIT", "app.service"),
            ("TCPFSM_PROC_CONFIDENCE", "socket"),
        ] {
            assert_eq!(entry.get(name).map(String::as_str), Some(value), "{name} in {entry:?}");
        }
        let message = &entry["MESSAGE"];
        assert!(
            message.starts_with("WARNING close_wait_stuck: 2310 connections at 10.0.0.2:8080"),
            "{message}"
        );
        for name in entry.keys() {
            let allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            assert!(name.bytes().all(allowed) && name.len() <= 64, "journald refuses {name}");
        }
    }

    #[test]
    fn others_go_only_where_all_were_asked_for() {
        let (_directory, path, socket) = journald();
        JournalSink::open(&path, Which::Anomalies, Arc::default()).unwrap().take(&closed());
        assert_eq!(entry(&socket), None);
        JournalSink::open(&path, Which::All, Arc::default()).unwrap().take(&closed());
        let entry = entry(&socket).unwrap();
        assert_eq!((&*entry["PRIORITY"], &*entry["TCPFSM_REASON"]), ("6", "finish"));
        assert_eq!(entry["TCPFSM_FACTS"], "open,fin_rtx");
    }

    #[test]
    fn a_line_feed_cannot_make_a_field() {
        let (_directory, path, socket) = journald();
        let mut sink = JournalSink::open(&path, Which::All, Arc::default()).unwrap();
        sink.take(&leak("x\nPRIORITY=0"));
        let entry = entry(&socket).unwrap();
        assert_eq!((&*entry["PRIORITY"], &*entry["TCPFSM_PROC_COMM"]), ("4", "x\nPRIORITY=0"));
    }

    #[test]
    fn what_journald_does_not_take_is_counted_and_nobody_waits() {
        let (directory, path, socket) = journald();
        let shared: SharedGauges = Arc::default();
        let mut sink = JournalSink::open(&path, Which::All, Arc::clone(&shared)).unwrap();
        let lost = || Losses::get(&shared.losses.journal);
        // Nobody reads: at some point the socket's queue is full.
        for _ in 0..10_000 {
            sink.take(&closed());
        }
        assert!(lost() > 0);
        let full = lost();
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        sink.take(&closed());
        assert_eq!(lost(), full + 1);
        // It was restarted.
        let again = UnixDatagram::bind(&path).unwrap();
        again.set_nonblocking(true).unwrap();
        sink.take(&closed());
        assert!(entry(&again).is_some());
        drop(directory);
    }

    #[test]
    fn without_journald_the_daemon_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let error =
            JournalSink::open(&directory.path().join("none"), Which::All, Arc::default()).unwrap_err();
        assert!(error.to_string().contains("journal"), "{error}");
    }
}
