//! `tcpfsm explain`: an anomaly or a connection, in words.

use std::{fmt::Write as _, net::SocketAddr, path::Path, process::ExitCode};

use jiff::tz::TimeZone;
use serde::Serialize;

use super::print;
use crate::{
    cli::ExplainArgs,
    control::{
        client::{Answer, Conversation},
        filter::Filter,
        protocol::Request,
    },
    detect::AnomalyKind,
    error::{Error, Result},
    explain::{
        places::Places,
        render,
        story::Story,
        texts::{self, Entry},
    },
    export::text::{TextLines, Width},
    report::{Anomaly, Body, Report},
};

/// What is to be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Every kind of anomaly, in a line each.
    Everything,
    /// One kind.
    Kind(AnomalyKind),
    /// The connection between these two.
    Flow([SocketAddr; 2]),
}

pub(super) fn explain(args: ExplainArgs) -> Result<ExitCode> {
    let ExplainArgs { subject, json, socket } = args;
    let path = &socket.socket;
    let text = match parse(&subject)? {
        Subject::Everything if json => to_json(&AnomalyKind::ALL.map(|kind| About::new(kind, None)))?,
        Subject::Everything => everything(),
        Subject::Kind(kind) => {
            // Without a daemon the meaning is the same; only whether it goes on now is not known.
            let active = super::anomalies(path, kinds(kind)).map(|(found, _)| found);
            if json {
                let reports = active.ok().map(|found| found.into_iter().map(|report| report.body).collect());
                to_json(&About::new(kind, reports))?
            } else {
                about(kind, active)
            }
        }
        Subject::Flow(ends) => {
            let line = story(path, ends)?;
            if json { line } else { render::story(&Answer::parse::<Story>(&line)?, &TimeZone::system()) }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A kind of anomaly in JSON.
#[derive(Serialize)]
struct About {
    kind: AnomalyKind,
    #[serde(flatten)]
    entry: &'static Entry,
    /// The anomalies of this kind that go on; none where no daemon answers.
    active: Option<Vec<Body>>,
}

impl About {
    fn new(kind: AnomalyKind, active: Option<Vec<Body>>) -> Self {
        Self { kind, entry: texts::of(kind), active }
    }
}

/// A kind, or two addresses as `list` and `watch` print them: with `*` behind this host's, and an arrow between.
fn parse(words: &[String]) -> Result<Subject> {
    let words: Vec<&str> = words
        .iter()
        .flat_map(|word| word.split_whitespace())
        .filter(|word| !["->", "→", "-", "<->"].contains(word))
        .map(|word| word.trim_end_matches(['*', ',']))
        .collect();
    let address = |word: &str| {
        word.parse::<SocketAddr>().map_err(|_| {
            Error::Usage(format!(
                "{word:?} is no address with a port such as 10.0.0.1:40001 or [fd00::1]:443"
            ))
        })
    };
    match words[..] {
        [] => Ok(Subject::Everything),
        [kind] => match kind.parse() {
            Ok(kind) => Ok(Subject::Kind(kind)),
            Err(_) if kind.parse::<SocketAddr>().is_ok() => {
                Err(Error::Usage("a connection has two ends: name both, as `tcpfsm list` prints them".into()))
            }
            Err(_) => {
                let names: Vec<&str> = AnomalyKind::ALL.into_iter().map(AnomalyKind::name).collect();
                Err(Error::Usage(format!("{kind:?} is no kind of anomaly; there are {}", names.join(", "))))
            }
        },
        [one, other] => Ok(Subject::Flow([address(one)?, address(other)?])),
        _ => Err(Error::Usage("explain takes a kind of anomaly, or the two ends of a connection".into())),
    }
}

fn kinds(kind: AnomalyKind) -> Filter {
    Filter { kinds: vec![kind.name().to_owned()], ..Filter::default() }
}

fn everything() -> String {
    let mut text = String::new();
    for kind in AnomalyKind::ALL {
        let _ = writeln!(text, "{:<26} {}", kind.name(), texts::of(kind).title);
    }
    text.push_str("\ntcpfsm explain KIND, or tcpfsm explain ADDRESS:PORT ADDRESS:PORT, says more.\n");
    text
}

fn about(kind: AnomalyKind, active: Result<Vec<Report>>) -> String {
    let first = active.as_ref().ok().and_then(|reports| reports.first());
    let places = match first.map(|report| &report.body) {
        Some(Body::Anomaly(anomaly)) => Places::of_anomaly(anomaly),
        Some(Body::Transition(_) | Body::ConnClosed(_)) | None => Places::default(),
    };
    let mut text = render::kind(kind, &places);
    text.push_str("\nNOW\n");
    match active {
        Ok(reports) if reports.is_empty() => text.push_str("  The daemon sees none.\n"),
        Ok(reports) => {
            let lines = TextLines::new(Width::Wide);
            for report in &reports {
                text.push_str("  ");
                lines.write(&mut text, report);
                if let Body::Anomaly(Anomaly { flow, .. }) = &report.body {
                    let _ = writeln!(text, "    tcpfsm explain {} {}", flow.orig, flow.resp);
                }
            }
        }
        Err(error) => {
            let _ = writeln!(text, "  Not known: {error}.");
        }
    }
    text
}

/// The story of a connection, as the daemon tells it.
fn story(path: &Path, ends: [SocketAddr; 2]) -> Result<String> {
    let mut conversation = Conversation::start(path, &Request::explain(ends))?;
    match conversation.next_answer()? {
        Some(Answer::Item(line)) => Ok(line.to_owned()),
        Some(Answer::Notice(_)) | None => Err(Error::HungUp),
    }
}

fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map(|json| json + "\n").map_err(|error| Error::Answer(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Subject, String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flow_is_taken_as_list_and_watch_print_it() {
        let flow = Subject::Flow(["10.0.0.1:40001".parse().unwrap(), "10.0.0.2:8080".parse().unwrap()]);
        for words in [
            &["10.0.0.1:40001", "10.0.0.2:8080"][..],
            &["10.0.0.1:40001", "->", "10.0.0.2:8080*"],
            &["10.0.0.1:40001  10.0.0.2:8080*"],
        ] {
            assert_eq!(parsed(words), Ok(flow));
        }
        assert!(parsed(&["[fd00::1]:1", "[fd00::2]:2"]).is_ok());
        assert!(parsed(&["10.0.0.1:40001"]).unwrap_err().contains("name both"));
        assert!(parsed(&["10.0.0.1", "10.0.0.2"]).unwrap_err().contains("no address with a port"));
        assert!(parsed(&["a", "b", "c"]).is_err());
    }

    #[test]
    fn a_kind_is_taken_in_any_spelling() {
        for word in ["close_wait_stuck", "CLOSE-WAIT-STUCK", "CloseWaitStuck"] {
            assert_eq!(parsed(&[word]), Ok(Subject::Kind(AnomalyKind::CloseWaitStuck)));
        }
        assert_eq!(parsed(&[]), Ok(Subject::Everything));
        let refusal = parsed(&["weather"]).unwrap_err();
        assert!(refusal.contains("close_wait_stuck") && refusal.contains("view_mismatch"));
    }

    #[test]
    fn without_a_daemon_the_meaning_is_the_same() {
        let text = about(AnomalyKind::HalfOpen, Err(Error::HungUp));
        assert!(text.contains("HOW SURE") && text.contains("Not known: the daemon has ended."));
        assert_eq!(everything().lines().count(), AnomalyKind::ALL.len() + 2);
        let json = to_json(&About::new(AnomalyKind::HalfOpen, None)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["kind"], &value["active"]), (&"half_open".into(), &serde_json::Value::Null));
        assert!(value["do"].as_array().unwrap().len() >= 3);
    }
}
