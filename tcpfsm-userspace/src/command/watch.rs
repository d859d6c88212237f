//! `tcpfsm watch`: live events of the running daemon.

use std::{
    io::{BufWriter, Write as _},
    process::ExitCode,
};

use super::print;
use crate::{
    cli::{WatchArgs, WatchFormat},
    control::{
        client::{Answer, Conversation},
        protocol::{Notice, Request, What},
    },
    detect::AnomalyKind,
    error::{Error, Result, complain},
    export::text::{LEGEND, TextLines, Width},
    report::Report,
};

/// Parses a kind of event.
///
/// # Errors
/// Names the kinds there are.
pub fn parse_kind(text: &str) -> Result<String, String> {
    let kinds: Vec<&str> = ["transition", "anomaly", "conn_closed"]
        .into_iter()
        .chain(AnomalyKind::ALL.into_iter().map(AnomalyKind::name))
        .collect();
    let wanted = text.replace('-', "_").to_lowercase();
    if kinds.contains(&wanted.as_str()) { Ok(wanted) } else { Err(format!("there are {}", kinds.join(", "))) }
}

/// Parses a kind of anomaly.
///
/// # Errors
/// Names the kinds there are.
pub fn parse_anomaly(text: &str) -> Result<String, String> {
    text.parse::<AnomalyKind>().map(|kind| kind.name().to_owned()).map_err(|_| {
        let names: Vec<&str> = AnomalyKind::ALL.into_iter().map(AnomalyKind::name).collect();
        format!("there are {}", names.join(", "))
    })
}

pub(super) fn watch(args: WatchArgs) -> Result<ExitCode> {
    let WatchArgs { filter, kinds, output, socket } = args;
    let request = Request::new(What::Watch, filter.filter(kinds));
    let mut conversation = Conversation::start(&socket.socket, &request)?;
    let lines = match output {
        WatchFormat::Table => Some(TextLines::new(Width::Table)),
        WatchFormat::Wide => Some(TextLines::new(Width::Wide)),
        WatchFormat::Jsonl => None,
    };
    if let Some(lines) = &lines {
        complain!("{LEGEND}");
        print(&lines.header())?;
    }
    let mut stdout = BufWriter::new(std::io::stdout().lock());
    let failed = || Error::io("write to stdout");
    let mut text = String::new();
    while let Some(answer) = conversation.next_answer()? {
        match answer {
            Answer::Item(line) => {
                let shown = match &lines {
                    Some(lines) => {
                        text.clear();
                        match Answer::parse::<Report>(line) {
                            Ok(report) => lines.write(&mut text, &report),
                            // A newer daemon may tell of more than we know.
                            Err(_) => text.push_str(line),
                        }
                        &text
                    }
                    None => line,
                };
                stdout.write_all(shown.as_bytes()).map_err(failed())?;
            }
            Answer::Notice(Notice::Lost(count)) => {
                complain!("tcpfsm: {count} events were dropped: this reader is too slow");
            }
            Answer::Notice(Notice::Error(_) | Notice::End(_) | Notice::Note(_)) => {}
        }
        // Live, but not a system call per line when many come at once.
        if conversation.is_drained() {
            stdout.flush().map_err(failed())?;
        }
    }
    stdout.flush().map_err(failed())?;
    Err(conversation.hung_up())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_in_either_spelling() {
        assert_eq!(parse_kind("conn-closed"), Ok("conn_closed".into()));
        assert_eq!(parse_kind("HALF_OPEN"), Ok("half_open".into()));
        assert_eq!(parse_anomaly("half-open"), Ok("half_open".into()));
        assert!(parse_anomaly("transition").unwrap_err().contains("half_open"));
        assert!(parse_kind("weather").unwrap_err().contains("transition"));
    }
}
