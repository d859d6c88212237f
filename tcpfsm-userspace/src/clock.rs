//! Time: the kernel's monotonic nanoseconds, and wall-clock time for people.

use std::fmt;

use jiff::{Timestamp, tz::TimeZone};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const SECOND: u64 = 1_000_000_000;

/// `CLOCK_MONOTONIC` in nanoseconds: the clock of everything that comes from the kernel programs.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec).wrapping_mul(SECOND).wrapping_add(part(time.tv_nsec))
}

/// Wall-clock time, nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(pub u64);

impl Wall {
    /// Hours, minutes, seconds and microseconds here, for people.
    #[must_use]
    pub fn local_time(self, zone: &TimeZone) -> String {
        self.timestamp().to_zoned(zone.clone()).strftime("%H:%M:%S%.6f").to_string()
    }

    fn timestamp(self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.0)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for Wall {
    /// RFC 3339 with microseconds, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.timestamp())
    }
}

impl Serialize for Wall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wall {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: Timestamp = text.parse().map_err(de::Error::custom)?;
        u64::try_from(time.as_nanosecond()).map(Self).map_err(de::Error::custom)
    }
}

/// Turns monotonic time into wall-clock time.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    offset: u64,
}

impl WallClock {
    /// For times that are nanoseconds since 1970 already, as those of captures are.
    pub const EPOCH: Self = Self { offset: 0 };

    /// As the clocks stand now. Take a new one now and then: wall-clock time gets adjusted.
    #[must_use]
    pub fn now() -> Self {
        Self { offset: nanoseconds(ClockId::Realtime).wrapping_sub(monotonic_ns()) }
    }

    /// The wall-clock time of a monotonic one.
    #[must_use]
    pub const fn at(self, monotonic: u64) -> Wall {
        Wall(monotonic.wrapping_add(self.offset))
    }
}

/// A duration as people read it: at most two units, at most 7 characters.
#[must_use]
pub fn short_duration(ns: u64) -> String {
    let (us, ms, s) = (ns / 1_000, ns / 1_000_000, ns / SECOND);
    match s {
        0 if us < 1 => format!("{ns}ns"),
        0 if ms < 1 => format!("{us}us"),
        0 => format!("{ms}ms"),
        1..=9 => format!("{s}.{:02}s", ms % 1_000 / 10),
        10..=59 => format!("{s}.{}s", ms % 1_000 / 100),
        60..=3_599 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..=86_399 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_rfc3339_and_comes_back() {
        let wall = Wall(1_795_341_600_072_385_000);
        assert_eq!(wall.to_string(), "2026-11-22T10:00:00.072385Z");
        let json = serde_json::to_string(&wall).unwrap();
        assert_eq!(serde_json::from_str::<Wall>(&json).unwrap(), wall);
        assert_eq!(wall.local_time(&TimeZone::UTC), "10:00:00.072385");
    }

    #[test]
    fn durations_are_short() {
        for (ns, text) in [
            (0, "0ns"),
            (1_500, "1us"),
            (72_385_000, "72ms"),
            (4_200_000_000, "4.20s"),
            (59_990_000_000, "59.9s"),
            (192_000_000_000, "3m12s"),
            (7_500_000_000_000, "2h05m"),
            (432_000_000_000_000, "5d00h"),
        ] {
            assert_eq!(short_duration(ns), text);
        }
    }

    #[test]
    fn the_clocks_agree() {
        let clock = WallClock::now();
        let now = clock.at(monotonic_ns()).0;
        assert!(now.abs_diff(nanoseconds(ClockId::Realtime)) < SECOND);
    }
}
