//! The state diagram and its table, drawn from the one function that is the diagram.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tcpfsm_common::fsm::{DEFAULT_STUCK_SECONDS, DEFAULT_TIMEOUT_SECONDS, Event, State, next};

use super::markdown;
use super::source::items;

/// Events that lead from many states to one: drawn, they would hide the others. They have a list of their own.
const EXITS: [Event; 5] = [Event::SentRst, Event::RcvdRst, Event::Unreachable, Event::Pickup, Event::Expired];

/// The diagram without [`EXITS`], in Mermaid's language.
pub(super) fn diagram() -> String {
    let mut text = String::from("```mermaid\nstateDiagram-v2\n");
    for state in State::ALL {
        text.push_str(&format!("    state \"{}\" as {}\n", state.ss_name(), state.name()));
    }
    for from in State::ALL {
        for to in State::ALL {
            let events: Vec<String> = Event::ALL
                .into_iter()
                .filter(|event| !EXITS.contains(event) && next(from, *event) == Some(to))
                .map(|event| format!("{event:?}"))
                .collect();
            if !events.is_empty() {
                text.push_str(&format!("    {} --> {}: {}\n", from.name(), to.name(), events.join(", ")));
            }
        }
    }
    text + "```\n"
}

/// What [`diagram`] leaves out: from which states each of these events leads where.
pub(super) fn exits() -> String {
    let mut rows = Vec::new();
    for event in EXITS {
        for to in State::ALL {
            let from: Vec<&str> = State::ALL
                .into_iter()
                .filter(|from| next(*from, event) == Some(to))
                .map(State::ss_name)
                .collect();
            if !from.is_empty() {
                rows.push(vec![format!("`{event:?}`"), from.join(", "), to.ss_name().to_owned()]);
            }
        }
    }
    markdown(&["event", "in", "leads to"], &rows)
}

/// Every cell of events by states.
pub(super) fn table() -> String {
    let header: Vec<&str> =
        std::iter::once("event").chain(State::ALL.into_iter().map(State::ss_name)).collect();
    let rows: Vec<Vec<String>> = Event::ALL
        .into_iter()
        .map(|event| {
            let cells = State::ALL.into_iter().map(|state| match next(state, event) {
                Some(to) => to.ss_name().to_owned(),
                None => "-".to_owned(),
            });
            std::iter::once(format!("`{event:?}`")).chain(cells).collect()
        })
        .collect();
    markdown(&header, &rows)
}

/// The states: names, defaults of both clocks, meaning.
pub(super) fn states(root: &Path) -> Result<String> {
    let items = items(root, "tcpfsm-common/src/fsm/state.rs", "enum State")?;
    ensure!(items.len() == State::ALL.len(), "fsm/state.rs: {} states found", items.len());
    let rows: Vec<Vec<String>> = State::ALL
        .into_iter()
        .zip(items)
        .map(|(state, item)| {
            let at = state as usize;
            vec![
                at.to_string(),
                format!("`{}`", state.name()),
                state.ss_name().to_owned(),
                duration(DEFAULT_TIMEOUT_SECONDS[at]),
                duration(DEFAULT_STUCK_SECONDS[at]),
                item.words,
            ]
        })
        .collect();
    Ok(markdown(&["code", "machine name", "for people", "timeout", "stuck after", "meaning"], &rows))
}

/// The events and what they mean.
pub(super) fn events(root: &Path) -> Result<String> {
    let items = items(root, "tcpfsm-common/src/fsm/transition.rs", "enum Event")?;
    ensure!(items.len() == Event::ALL.len(), "fsm/transition.rs: {} events found", items.len());
    let rows: Vec<Vec<String>> = Event::ALL
        .into_iter()
        .zip(items)
        .map(|(event, item)| vec![format!("`{event:?}`"), item.words])
        .collect();
    Ok(markdown(&["event", "meaning"], &rows))
}

fn duration(seconds: u64) -> String {
    let whole = Duration::from_secs(seconds).as_secs();
    match whole {
        0 => "never".to_owned(),
        days if days % 86_400 == 0 => format!("{} d", days / 86_400),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_is_drawn_or_listed() {
        let (drawn, listed) = (diagram(), exits());
        for from in State::ALL {
            for event in Event::ALL {
                let Some(to) = next(from, event) else { continue };
                if EXITS.contains(&event) {
                    assert!(listed.contains(&format!("`{event:?}`")), "{event:?}");
                } else {
                    let arrow = format!("{} --> {}: ", from.name(), to.name());
                    let line =
                        drawn.lines().find(|line| line.trim_start().starts_with(&arrow)).unwrap_or_default();
                    assert!(line.contains(&format!("{event:?}")), "{from:?} {event:?}");
                }
            }
        }
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([0, 60, 432_000].map(duration), ["never", "60 s", "5 d"]);
    }
}
