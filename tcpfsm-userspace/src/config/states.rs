//! Durations by state: timeouts and stuck thresholds.

use std::{collections::BTreeMap, fmt, ops::Index, time::Duration};

use serde::{Deserialize, Deserializer, de};
use tcpfsm_common::{
    abi::STATE_SLOTS,
    fsm::{DEFAULT_STUCK_SECONDS, DEFAULT_TIMEOUT_SECONDS, State},
};

/// A duration for each state; `None` means never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerState([Option<Duration>; 11]);

impl PerState {
    /// The timeouts of the machine.
    #[must_use]
    pub fn default_timeouts() -> Self {
        Self::from_seconds(DEFAULT_TIMEOUT_SECONDS)
    }

    /// The stuck thresholds of the machine.
    #[must_use]
    pub fn default_stuck() -> Self {
        Self::from_seconds(DEFAULT_STUCK_SECONDS)
    }

    fn from_seconds(seconds: [u64; 11]) -> Self {
        Self(seconds.map(|s| (s != 0).then(|| Duration::from_secs(s))))
    }

    /// Sets one state's.
    pub fn set(&mut self, StateDuration { state, duration }: StateDuration) {
        self.0[state as usize] = duration;
    }

    /// As the sweep wants them: nanoseconds by state code, 0 for never.
    #[must_use]
    pub fn nanoseconds(&self) -> [u64; STATE_SLOTS] {
        let mut slots = [0; STATE_SLOTS];
        for (slot, duration) in slots.iter_mut().zip(self.0) {
            *slot = duration.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        }
        slots
    }

    /// Every state and its duration.
    pub fn iter(&self) -> impl Iterator<Item = StateDuration> {
        State::ALL.into_iter().zip(self.0).map(|(state, duration)| StateDuration { state, duration })
    }

    /// Overrides from a table of the configuration file.
    pub fn apply(&mut self, table: &StateTable) {
        for (&StateName(state), &Span(duration)) in &table.0 {
            self.set(StateDuration { state, duration });
        }
    }
}

impl Index<State> for PerState {
    type Output = Option<Duration>;

    fn index(&self, state: State) -> &Option<Duration> {
        &self.0[state as usize]
    }
}

/// One state's duration, written `close_wait=90s` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDuration {
    /// The state.
    pub state: State,
    /// Its duration; `None` means never.
    pub duration: Option<Duration>,
}

impl std::str::FromStr for StateDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (state, duration) =
            text.split_once('=').ok_or("STATE=DURATION such as close_wait=90s, or STATE=off")?;
        Ok(Self { state: parse_state(state)?, duration: parse_duration(duration)? })
    }
}

impl fmt::Display for StateDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.duration {
            Some(duration) => {
                write!(f, "{} = \"{}\"", self.state.name(), humantime::format_duration(duration))
            }
            None => write!(f, "{} = \"off\"", self.state.name()),
        }
    }
}

/// Parses a state in any spelling.
///
/// # Errors
/// Names the states there are.
pub fn parse_state(text: &str) -> Result<State, String> {
    text.parse().map_err(|_| {
        let names: Vec<_> = State::ALL.into_iter().map(State::name).collect();
        format!("{text:?} is no TCP state; there are {}", names.join(", "))
    })
}

pub(super) fn parse_duration(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "off" | "never" => Ok(None),
        text => match humantime::parse_duration(text) {
            // At once, or never? Whoever means never says so.
            Ok(duration) if duration.is_zero() => {
                Err(format!("{text:?} is no time to wait: a duration such as 90s, or off for never"))
            }
            Ok(duration) => Ok(Some(duration)),
            Err(error) => Err(format!("{text:?} is no duration such as 90s, 10m or off: {error}")),
        },
    }
}

/// A table `state = "duration"` of the configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct StateTable(BTreeMap<StateName, Span>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StateName(State);

#[derive(Clone, Copy, Debug)]
struct Span(Option<Duration>);

impl<'de> Deserialize<'de> for StateName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_state(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_state_will_do() {
        let expected = StateDuration { state: State::CloseWait, duration: Some(Duration::from_secs(90)) };
        for text in ["close_wait=90s", "CLOSE-WAIT=1m30s", "CloseWait=90s"] {
            assert_eq!(text.parse(), Ok(expected));
        }
        assert_eq!(
            "established=off".parse(),
            Ok(StateDuration { state: State::Established, duration: None })
        );
        assert!("close_wait".parse::<StateDuration>().is_err());
        assert!("closewate=90s".parse::<StateDuration>().unwrap_err().contains("close_wait"));
        assert!("close_wait=soon".parse::<StateDuration>().is_err());
        for zero in ["0", "0s", "0ms"] {
            let error = format!("close_wait={zero}").parse::<StateDuration>().unwrap_err();
            assert!(error.contains("off for never"), "{error}");
        }
    }

    #[test]
    fn off_is_zero_for_the_sweep() {
        let mut stuck = PerState::default_stuck();
        assert_eq!(stuck.nanoseconds()[State::SynRecv as usize], 10_000_000_000);
        stuck.set(StateDuration { state: State::SynRecv, duration: None });
        assert_eq!(stuck.nanoseconds()[State::SynRecv as usize], 0);
        assert_eq!(stuck[State::SynRecv], None);
    }
}
