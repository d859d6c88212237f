//! From when on something counts as an anomaly: one rule per kind.

use std::{collections::BTreeMap, fmt, ops::Index, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::states::parse_duration;
use crate::detect::AnomalyKind;

/// From when on one kind is reported. A part that means nothing to the kind is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether the kind is looked for at all.
    pub enabled: bool,
    /// How long it must have lasted.
    pub after: Option<Duration>,
    /// How many there must be; what is counted depends on the kind.
    pub count: Option<u64>,
    /// The time within which they must have happened.
    pub window: Option<Duration>,
    /// The share they must make, in percent.
    pub percent: Option<u8>,
}

impl Rule {
    const NONE: Self = Self { enabled: true, after: None, count: None, window: None, percent: None };

    const fn count(count: u64) -> Self {
        Self { count: Some(count), ..Self::NONE }
    }

    const fn after(self, seconds: u64) -> Self {
        Self { after: Some(Duration::from_secs(seconds)), ..self }
    }

    const fn within(self, seconds: u64) -> Self {
        Self { window: Some(Duration::from_secs(seconds)), ..self }
    }

    const fn percent(self, percent: u8) -> Self {
        Self { percent: Some(percent), ..self }
    }

    /// The default for a kind; docs/anomalies.md says why.
    const fn default_for(kind: AnomalyKind) -> Self {
        match kind {
            // Stuck in a state for as long as [stuck] says.
            AnomalyKind::CloseWaitStuck | AnomalyKind::HalfOpen | AnomalyKind::ViewMismatch => Self::count(1),
            AnomalyKind::FinWait1Stuck
            | AnomalyKind::LastAckStuck
            | AnomalyKind::ClosingStuck
            | AnomalyKind::SynSentStuck => Self::count(3),
            AnomalyKind::FinWait2Stuck => Self::count(10),
            // tcp_keepalive_time and nine probes make 7,875 s.
            AnomalyKind::IdleEstablished => Self::count(10).after(8_100),
            AnomalyKind::ZeroWindowStall => Self::count(1).after(30),
            AnomalyKind::PeerGone => Self::count(3).after(30).within(60),
            AnomalyKind::SynFlood => Self::count(128).within(10).percent(50),
            AnomalyKind::SynackFlood => Self::count(1_000).within(10),
            AnomalyKind::AckFlood => Self::count(1_000).within(10).percent(90),
            AnomalyKind::RstFlood => Self::count(1_000).within(10).percent(67),
            AnomalyKind::PortScan => Self::count(25).within(60).percent(50),
            AnomalyKind::ConnectRefused => Self::count(10).within(60).percent(50),
            AnomalyKind::ConnectTimeout => Self::count(5).within(300).percent(50),
            AnomalyKind::ConnectUnreachable => Self::count(5).within(60).percent(50),
            AnomalyKind::HandshakeAborted => Self::count(10).within(60).percent(10),
            AnomalyKind::AcceptQueueOverflow => Self::count(5).within(60),
            AnomalyKind::HandshakeRetransmission => Self::count(10).within(60).percent(5),
            AnomalyKind::ConnectionAborted => Self::count(20).within(60).percent(10),
            AnomalyKind::RstStorm => Self::count(500).within(10),
            AnomalyKind::RstInexact => Self::count(5).within(60),
            AnomalyKind::RstOutOfWindow | AnomalyKind::TwAssassination | AnomalyKind::IllegalSegments => {
                Self::count(10).within(60)
            }
            AnomalyKind::RstInjection => Self::count(1).within(60),
            AnomalyKind::CloseWaitLeak => Self::count(10).within(300),
            AnomalyKind::TimeWaitPressure => Self::NONE.percent(80),
            AnomalyKind::RetransmissionStorm => Self::count(500).within(60).percent(20),
        }
    }

    /// The number, 1 where the kind has none.
    #[must_use]
    pub fn least(&self) -> u64 {
        self.count.unwrap_or(1)
    }

    /// The time it must last, in nanoseconds.
    #[must_use]
    pub fn after_ns(&self) -> u64 {
        self.after.map_or(0, nanoseconds)
    }

    /// The window, in nanoseconds; a minute where the kind has none.
    #[must_use]
    pub fn window_ns(&self) -> u64 {
        self.window.map_or(60_000_000_000, nanoseconds)
    }

    /// Whether `part` of `whole` is enough; anything is where the kind has no share.
    #[must_use]
    pub fn is_share(&self, part: u64, whole: u64) -> bool {
        let percent = u128::from(self.percent.unwrap_or(0));
        u128::from(part) * 100 >= u128::from(whole) * percent
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The rules of all kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules([Rule; AnomalyKind::ALL.len()]);

impl Default for Rules {
    fn default() -> Self {
        Self(AnomalyKind::ALL.map(Rule::default_for))
    }
}

impl Index<AnomalyKind> for Rules {
    type Output = Rule;

    fn index(&self, kind: AnomalyKind) -> &Rule {
        &self.0[kind as usize]
    }
}

impl Rules {
    /// Another rule for one kind.
    #[must_use]
    pub fn with(mut self, kind: AnomalyKind, change: impl FnOnce(&mut Rule)) -> Self {
        change(&mut self.0[kind as usize]);
        self
    }

    /// Every kind and its rule.
    pub fn iter(&self) -> impl Iterator<Item = (AnomalyKind, &Rule)> {
        AnomalyKind::ALL.into_iter().zip(&self.0)
    }

    /// Overrides from the configuration file.
    ///
    /// # Errors
    /// Names a part that means nothing to its kind, or cannot be.
    pub(super) fn apply(&mut self, table: &RuleTable) -> Result<(), String> {
        for (&KindName(kind), entry) in &table.0 {
            let rule = &mut self.0[kind as usize];
            match entry {
                Entry::Off => rule.enabled = false,
                Entry::Parts(parts) => parts.apply(kind, rule)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    /// As the configuration file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { enabled, after, count, window, percent } = self;
        if !enabled {
            return f.write_str("\"off\"");
        }
        let time = |name: &str, duration: Option<Duration>| {
            duration.map(|duration| format!("{name} = \"{}\"", humantime::format_duration(duration)))
        };
        let parts: Vec<String> = [
            time("after", after),
            count.map(|count| format!("count = {count}")),
            time("window", window),
            percent.map(|percent| format!("percent = {percent}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        write!(f, "{{ {} }}", parts.join(", "))
    }
}

/// The `[detect]` table of the configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct RuleTable(BTreeMap<KindName, Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KindName(AnomalyKind);

#[derive(Clone, Copy, Debug)]
enum Entry {
    Off,
    Parts(Parts),
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    after: Option<Span>,
    count: Option<u64>,
    window: Option<Span>,
    percent: Option<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Span(Duration);

impl Parts {
    fn apply(self, kind: AnomalyKind, rule: &mut Rule) -> Result<(), String> {
        fn set<T>(name: &str, kind: AnomalyKind, to: &mut Option<T>, from: Option<T>) -> Result<(), String> {
            match (from, to.is_some()) {
                (None, _) => {}
                (Some(value), true) => *to = Some(value),
                (Some(_), false) => return Err(format!("detect.{} has no `{name}`", kind.name())),
            }
            Ok(())
        }
        let Self { after, count, window, percent } = self;
        rule.enabled = true;
        set("after", kind, &mut rule.after, after.map(|Span(duration)| duration))?;
        set("count", kind, &mut rule.count, count)?;
        set("window", kind, &mut rule.window, window.map(|Span(duration)| duration))?;
        set("percent", kind, &mut rule.percent, percent)?;
        if rule.count == Some(0) || rule.percent.is_some_and(|percent| percent > 100) {
            return Err(format!("detect.{}: a count of at least 1, a percentage up to 100", kind.name()));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for KindName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map(Self).map_err(|_| de::Error::custom(format!("{name:?} is no kind of anomaly")))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match parse_duration(&String::deserialize(deserializer)?) {
            Ok(Some(duration)) => Ok(Self(duration)),
            Ok(None) => Err(de::Error::custom("a duration; KIND = \"off\" turns the kind off")),
            Err(error) => Err(de::Error::custom(error)),
        }
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OffOrParts;

        impl<'de> Visitor<'de> for OffOrParts {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"off\" or a table such as { count = 10, window = \"1m\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Entry, E> {
                match text {
                    "off" => Ok(Entry::Off),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Entry, M::Error> {
                Parts::deserialize(MapAccessDeserializer::new(map)).map(Entry::Parts)
            }
        }

        deserializer.deserialize_any(OffOrParts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(text: &str) -> Result<Rules, String> {
        let table: RuleTable = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut rules = Rules::default();
        rules.apply(&table)?;
        Ok(rules)
    }

    #[test]
    fn parts_are_overridden_one_by_one() {
        let rules = apply("syn_flood = { count = 5 }\nport-scan = \"off\"\n").unwrap();
        let flood = &rules[AnomalyKind::SynFlood];
        assert_eq!((flood.count, flood.percent), (Some(5), Some(50)));
        assert!(!rules[AnomalyKind::PortScan].enabled);
        assert_eq!(rules[AnomalyKind::HalfOpen], Rules::default()[AnomalyKind::HalfOpen]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("sin_flood = \"off\"", "no kind of anomaly"),
            ("half_open = { window = \"1m\" }", "detect.half_open has no `window`"),
            ("half_open = { counts = 1 }", "unknown field `counts`"),
            ("half_open = \"never\"", "expected \"off\" or a table"),
            ("half_open = { count = 0 }", "at least 1"),
            ("peer_gone = { after = \"off\" }", "turns the kind off"),
        ] {
            let error = apply(text).unwrap_err();
            assert!(error.contains(words), "{text}: {words:?} is not in\n{error}");
        }
    }

    /// The table of docs/anomalies.md says the defaults, for every kind, and the title of its explanation.
    #[test]
    fn the_page_says_the_defaults() {
        let page = include_str!("../../../docs/anomalies.md");
        for (kind, rule) in Rules::default().iter() {
            let begin = format!("| `{}` | {} | ", kind.name(), crate::explain::texts::of(kind).title);
            let row = page.lines().find(|line| line.starts_with(&begin));
            let row = row.unwrap_or_else(|| panic!("docs/anomalies.md has no row {begin}"));
            assert!(row.contains(&format!("`{rule}`")), "not {rule}: {row}");
        }
    }

    #[test]
    fn shares_are_of_the_whole() {
        let rule = Rules::default()[AnomalyKind::ConnectRefused];
        assert!(rule.is_share(5, 10) && !rule.is_share(4, 10) && rule.is_share(0, 0));
        assert!(Rules::default()[AnomalyKind::RstInexact].is_share(0, u64::MAX), "it has no share");
    }
}
