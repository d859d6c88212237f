//! What the daemon is told to do: defaults, then the file, then the command line.

mod file;
mod rules;
mod sizes;
mod states;
mod template;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

pub use file::load;
pub use rules::{Rule, Rules};
pub use sizes::MapSizes;
pub use states::{PerState, StateDuration, parse_state};
pub use template::default_file;

use crate::logging::LogLevel;

/// Where the control socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tcpfsm/tcpfsm.sock";

/// Where metrics are served unless told otherwise.
pub const DEFAULT_METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// Events of what moves no connection, told one by one in a second: more than anybody reads, and nothing to the ring.
const EVENT_QUOTA: u32 = 4_096;

/// The shortest interval between sweeps.
pub const MIN_SWEEP: Duration = Duration::from_millis(100);

/// Whose traffic an interface carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vantage {
    /// This host's own: one direction comes in, the other goes out.
    #[default]
    Host,
    /// Other hosts', forwarded: each packet comes in on one interface, so ingress shows both directions.
    Gateway,
    /// A copy of other hosts': everything comes in.
    Mirror,
}

/// How packets coming in are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ingress {
    /// TCX on veth and loopback, where XDP would cost the segmentation offload; XDP elsewhere.
    #[default]
    Auto,
    /// XDP; TCX where that does not work, or the XDP slot is somebody else's.
    Xdp,
    /// TCX, or clsact on kernels without it.
    Tcx,
    /// A filter on the clsact qdisc, and egress too.
    Clsact,
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the network stack.
    Generic,
}

/// What goes to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// A line per event, for people.
    #[default]
    Text,
    /// A JSON object per line, schema version 1.
    Jsonl,
    /// Nothing, but anomalies go into the systemd journal, with fields.
    Journal,
    /// Nothing, but every event goes into the systemd journal.
    #[serde(rename = "journal-all")]
    JournalAll,
    /// Nothing.
    None,
}

/// Where metrics are served: an address, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl FromStr for Metrics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| "an address with a port such as 127.0.0.1:9477 or [::1]:9477, or `off`".into())
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|wanted| de::Error::custom(format!("{text:?} is not {wanted}")))
    }
}

/// Everything the daemon is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Interfaces to watch.
    pub interfaces: Vec<String>,
    /// Whose traffic they carry.
    pub vantage: Vantage,
    /// How incoming packets are seen.
    pub ingress: Ingress,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Written into every flow key: keeps equal tuples on different networks apart.
    pub scope: u32,
    /// Whether connections begun before the daemon are tracked.
    pub pickup: bool,
    /// Events of what moves no connection told one by one in about a second; 0: all.
    pub event_quota: u32,
    /// How long an end may be silent in each state before it counts as closed.
    pub timeouts: PerState,
    /// How long an end may stay in each state before it is reported as stuck.
    pub stuck: PerState,
    /// From when on each kind of anomaly is reported.
    pub detect: Rules,
    /// Time between sweeps over the flows.
    pub sweep_interval: Duration,
    /// Sizes of the kernel's maps.
    pub maps: MapSizes,
    /// Where metrics are served.
    pub metrics: Metrics,
    /// The control socket.
    pub socket: PathBuf,
    /// What goes to stdout.
    pub output: Output,
    /// What goes to stderr.
    pub log_level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            vantage: Vantage::default(),
            ingress: Ingress::default(),
            xdp_mode: XdpMode::default(),
            scope: 0,
            pickup: true,
            event_quota: EVENT_QUOTA,
            timeouts: PerState::default_timeouts(),
            stuck: PerState::default_stuck(),
            detect: Rules::default(),
            sweep_interval: Duration::from_secs(5),
            maps: MapSizes::for_this_machine(),
            metrics: Metrics::At(DEFAULT_METRICS),
            socket: DEFAULT_SOCKET.into(),
            output: Output::default(),
            log_level: LogLevel::default(),
        }
    }
}

/// Parses the time between sweeps.
///
/// # Errors
/// Says what is wanted.
pub fn parse_sweep_interval(text: &str) -> Result<Duration, String> {
    let interval =
        humantime::parse_duration(text).map_err(|error| format!("a duration such as 5s: {error}"))?;
    if interval < MIN_SWEEP {
        return Err(format!("at least {}", humantime::format_duration(MIN_SWEEP)));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_addresses() {
        assert_eq!("off".parse(), Ok(Metrics::Off));
        assert_eq!("127.0.0.1:9477".parse(), Ok(Metrics::At(DEFAULT_METRICS)));
        assert!("localhost".parse::<Metrics>().is_err());
        assert!("9477".parse::<Metrics>().is_err());
    }

    #[test]
    fn sweeps_have_a_lower_limit() {
        assert_eq!(parse_sweep_interval("100ms"), Ok(MIN_SWEEP));
        assert!(parse_sweep_interval("99ms").is_err());
        assert!(parse_sweep_interval("often").is_err());
    }
}
