//! The texts: one entry per kind of anomaly, a line per state and per fact. They are data, in `texts/*.toml`.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};
use tcpfsm_common::fsm::State;

use crate::detect::AnomalyKind;

/// What an anomaly is, to somebody who is on call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// In one line.
    pub title: String,
    /// The same where the end concerned is another host's; only for kinds that are about one end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// What the detector goes by.
    pub saw: String,
    /// What it means.
    pub means: String,
    /// Where the standards say so.
    pub rfc: String,
    /// What it mostly comes from, the likeliest first.
    pub causes: Vec<String>,
    /// What to do, in this order.
    #[serde(rename = "do")]
    pub steps: Vec<Step>,
    /// What to change in programs.
    pub code: String,
    /// How sure all this is, and what else it can be.
    pub sure: String,
}

/// Something to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What for.
    pub what: String,
    /// The command, with [`PLACES`] to fill in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
}

/// What can be filled into a command, and what stands there while it is not known.
pub const PLACES: [(&str, &str); 4] =
    [("{port}", "PORT"), ("{ip}", "ADDRESS"), ("{peer}", "PEER"), ("{pid}", "PID")];

const SOURCES: [&str; 5] = [
    include_str!("texts/stuck.toml"),
    include_str!("texts/volume.toml"),
    include_str!("texts/handshake.toml"),
    include_str!("texts/reset.toml"),
    include_str!("texts/trend.toml"),
];

// What is wrong with a text is found by the tests below, never by a user.
static ENTRIES: LazyLock<BTreeMap<String, Entry>> = LazyLock::new(|| {
    SOURCES
        .into_iter()
        .flat_map(|source| toml::from_str::<BTreeMap<_, _>>(source).unwrap_or_default())
        .collect()
});
static STATES: LazyLock<BTreeMap<String, String>> =
    LazyLock::new(|| toml::from_str(include_str!("texts/states.toml")).unwrap_or_default());
static FACTS: LazyLock<BTreeMap<String, String>> =
    LazyLock::new(|| toml::from_str(include_str!("texts/facts.toml")).unwrap_or_default());

const SYN_RECV_ASSUMED: &str = "syn_recv_assumed";

static NOTHING: LazyLock<Entry> = LazyLock::new(Entry::default);

/// The entry of a kind.
#[must_use]
pub fn of(kind: AnomalyKind) -> &'static Entry {
    ENTRIES.get(kind.name()).unwrap_or(&NOTHING)
}

/// What a state waits for. Of a SYN that was only sent to an end, nobody knows whether it was answered, or came.
#[must_use]
pub fn of_state(state: State, confirmed: bool) -> &'static str {
    let name = if state == State::SynRecv && !confirmed { SYN_RECV_ASSUMED } else { state.name() };
    STATES.get(name).map_or("", String::as_str)
}

/// What a fact means, by its name.
#[must_use]
pub fn of_fact(name: &str) -> &'static str {
    FACTS.get(name).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::fact::Fact;

    use super::*;

    #[test]
    fn every_kind_has_an_entry_with_every_part() {
        let mut count = 0;
        for source in SOURCES {
            let entries: BTreeMap<String, Entry> = toml::from_str(source).unwrap();
            count += entries.len();
            for name in entries.keys() {
                assert!(name.parse::<AnomalyKind>().is_ok(), "{name} is no kind of anomaly");
            }
        }
        assert_eq!(count, AnomalyKind::ALL.len(), "an entry twice, or one too few");
        for kind in AnomalyKind::ALL {
            let name = kind.name();
            let Entry { title, remote, saw, means, rfc, causes, steps, code, sure } = of(kind);
            for (part, text) in [("saw", saw), ("means", means), ("code", code), ("sure", sure)] {
                assert!(text.len() >= 20 && text.ends_with('.'), "{name}: {part} is no sentence: {text:?}");
            }
            for title in [Some(title), remote.as_ref()].into_iter().flatten() {
                assert!(
                    title.len() >= 10 && !title.ends_with('.'),
                    "{name}: a title is no sentence: {title:?}"
                );
            }
            assert!(rfc.contains("RFC "), "{name}: no RFC");
            assert!(causes.len() >= 2, "{name}: what else can it come from?");
            assert!(causes.iter().all(|cause| cause.ends_with('.')), "{name}");
            assert!(steps.iter().any(|step| step.run.is_some()), "{name}: nothing to type");
            for command in steps.iter().filter_map(|step| step.run.as_ref()) {
                let left = PLACES.iter().fold(command.clone(), |text, (place, _)| text.replace(place, ""));
                // A place nobody fills in is a typing error; awk's braces hold more than a word.
                let mut words = left.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0));
                assert!(!words.any(|word| word.bytes().all(|b| b.is_ascii_lowercase())), "{name}: {command}");
            }
        }
    }

    /// What is printed is pasted into a shell: it must at least be read by one.
    #[test]
    fn every_command_is_one() {
        for kind in AnomalyKind::ALL {
            for command in of(kind).steps.iter().filter_map(|step| step.run.as_deref()) {
                let read = std::process::Command::new("sh").args(["-n", "-c", command]).output().unwrap();
                assert!(read.status.success(), "{}: {command}: {read:?}", kind.name());
            }
        }
    }

    #[test]
    fn every_state_and_every_fact_has_a_line() {
        for state in State::ALL {
            assert!(!of_state(state, true).is_empty(), "{state:?}");
        }
        assert!(of_state(State::SynRecv, false).contains("not known"));
        assert_eq!(STATES.len(), State::ALL.len() + 1);
        for fact in Fact::ALL {
            assert!(!of_fact(fact.name()).is_empty(), "{fact:?} has no line in texts/facts.toml");
        }
        assert_eq!(FACTS.len(), Fact::ALL.len(), "a line too many");
    }
}
