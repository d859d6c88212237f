//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tcpfsm_common::fsm::State;

use crate::{
    config::{
        self, Config, DEFAULT_SOCKET, Ingress, Metrics, Output, StateDuration, Vantage, XdpMode, parse_state,
        parse_sweep_interval,
    },
    control::filter::{Family, Filter},
    error::Result,
    logging::LogLevel,
    replay::ReplayArgs,
    report::Severity,
};

/// Watches TCP from the wire: the state of both ends of every connection, who is stuck, and why.
///
/// Exit codes: 0 ok, 1 failure, 2 usage, 3 a check found anomalies.
#[derive(Debug, Parser)]
#[command(name = "tcpfsm", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon: attach, track, report, serve metrics
    Run(Box<RunArgs>),
    /// Live events of the running daemon
    Watch(WatchArgs),
    /// The flows as they are now
    List(ListArgs),
    /// Counts per state, transitions, losses
    Stats(StatsArgs),
    /// An anomaly or a connection in words: saw, means, owner, likely causes, what to do, how sure
    Explain(ExplainArgs),
    /// Whether any anomaly goes on, for cron and Nagios: exit code 3 if so
    Check(CheckArgs),
    /// Capture files through the same machine
    Replay(ReplayArgs),
    /// Take away what a killed daemon left attached
    Detach(DetachArgs),
    /// The configuration file
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print alerting rules for Prometheus
    Alerts,
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// `tcpfsm run`; options win over the configuration file.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// Interface to watch; repeat for more
    #[arg(short, long, value_name = "NAME", alias = "interface")]
    pub iface: Vec<String>,
    /// Configuration file (TOML); see `tcpfsm config default`
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Whose traffic the interfaces carry [default: host]
    #[arg(long)]
    pub vantage: Option<Vantage>,
    /// How incoming packets are seen [default: auto]
    #[arg(long)]
    pub ingress: Option<Ingress>,
    /// How XDP is attached [default: auto]
    #[arg(long)]
    pub xdp_mode: Option<XdpMode>,
    /// Where events go: stdout as text or JSON lines, the systemd journal, or nowhere [default: text]
    #[arg(short, long)]
    pub output: Option<Output>,
    /// Where metrics are served, or `off` [default: 127.0.0.1:9477]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<Metrics>,
    /// Control socket [default: /run/tcpfsm/tcpfsm.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Time between sweeps, at least 100ms [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = parse_sweep_interval)]
    pub sweep_interval: Option<Duration>,
    /// Silence after which an end counts as closed, or `off`: close_wait=10m; repeat for more
    #[arg(long = "timeout", value_name = "STATE=DURATION")]
    pub timeouts: Vec<StateDuration>,
    /// Time in a state after which an end is stuck, or `off`: close_wait=90s; repeat for more
    #[arg(long, value_name = "STATE=DURATION")]
    pub stuck: Vec<StateDuration>,
    /// What goes to stderr [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

impl RunArgs {
    /// Defaults, then the file, then these options.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong.
    pub fn config(self) -> Result<Config> {
        let Self {
            iface,
            config,
            vantage,
            ingress,
            xdp_mode,
            output,
            metrics,
            socket,
            sweep_interval,
            timeouts,
            stuck,
            log_level,
        } = self;
        let mut merged = match config {
            Some(path) => config::load(&path)?,
            None => Config::default(),
        };
        if !iface.is_empty() {
            merged.interfaces = iface;
        }
        merged.vantage = vantage.unwrap_or(merged.vantage);
        merged.ingress = ingress.unwrap_or(merged.ingress);
        merged.xdp_mode = xdp_mode.unwrap_or(merged.xdp_mode);
        merged.output = output.unwrap_or(merged.output);
        merged.metrics = metrics.unwrap_or(merged.metrics);
        merged.socket = socket.unwrap_or(merged.socket);
        merged.sweep_interval = sweep_interval.unwrap_or(merged.sweep_interval);
        merged.log_level = log_level.unwrap_or(merged.log_level);
        timeouts.into_iter().for_each(|entry| merged.timeouts.set(entry));
        stuck.into_iter().for_each(|entry| merged.stuck.set(entry));
        Ok(merged)
    }
}

/// Where the daemon answers.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// Which events or flows.
#[derive(Debug, Default, Args)]
pub struct FilterArgs {
    /// Only this state of either end, in any spelling: close_wait, CLOSE-WAIT, estab; repeat for more
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state, value_delimiter = ',')]
    pub states: Vec<State>,
    /// Only these ports at this host's end (the responder's on gateways): 80,443
    #[arg(short = 'L', long, value_name = "PORTS", value_delimiter = ',')]
    pub localport: Vec<u16>,
    /// Only these ports at the other end
    #[arg(short = 'D', long, value_name = "PORTS", value_delimiter = ',')]
    pub remoteport: Vec<u16>,
    /// Only what this process owns
    #[arg(short, long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Only IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    pub ipv6: bool,
}

impl FilterArgs {
    /// As it goes to the daemon.
    #[must_use]
    pub fn filter(self, kinds: Vec<String>) -> Filter {
        let Self { states, localport, remoteport, pid, ipv4, ipv6 } = self;
        let family = match (ipv4, ipv6) {
            (true, _) => Some(Family::V4),
            (_, true) => Some(Family::V6),
            (false, false) => None,
        };
        Filter { states, kinds, local_ports: localport, remote_ports: remoteport, pid, family }
    }
}

/// How `watch` writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WatchFormat {
    /// Columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// JSON lines, schema version 1
    Jsonl,
}

/// How `list` writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// Columns
    #[default]
    Table,
    /// More columns
    Wide,
    /// One JSON array
    Json,
    /// A JSON object per line
    Jsonl,
}

/// How `stats` writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// Tables
    #[default]
    Table,
    /// One JSON object
    #[value(alias = "jsonl")]
    Json,
}

/// `tcpfsm watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub filter: FilterArgs,
    /// Only this kind: transition, anomaly, conn_closed, or one anomaly's; repeat for more
    #[arg(long = "kind", value_name = "KIND", value_parser = crate::command::watch::parse_kind, value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: WatchFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub socket: SocketArgs,
}

/// `tcpfsm list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub filter: FilterArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: ListFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub socket: SocketArgs,
}

/// `tcpfsm stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: StatsFormat,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub socket: SocketArgs,
}

/// `tcpfsm explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A kind of anomaly, such as close_wait_stuck, or the two ends of a connection as `list` prints them; without
    /// either, all kinds
    #[arg(value_name = "KIND | ADDRESS:PORT ADDRESS:PORT")]
    pub subject: Vec<String>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub socket: SocketArgs,
}

/// `tcpfsm check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Only this kind of anomaly; repeat for more
    #[arg(long = "kind", value_name = "KIND", value_parser = crate::command::watch::parse_anomaly, value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// Only from this severity on: info, warning, critical
    #[arg(long, value_name = "SEVERITY", value_parser = crate::command::check::parse_severity, default_value = "info")]
    pub severity: Severity,
    /// Events as JSON lines instead of words
    #[arg(long)]
    pub json: bool,
    /// Exit codes of a Nagios plugin: 1 warning, 2 critical, 3 no answer
    #[arg(long)]
    pub nagios: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub socket: SocketArgs,
}

/// `tcpfsm detach`.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Only this interface [default: all]
    #[arg(short, long, value_name = "NAME")]
    pub iface: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would take them for help")]
    pub socket: SocketArgs,
}

/// `tcpfsm config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a configuration file
    Check {
        /// The file
        file: PathBuf,
    },
    /// Print a complete configuration file with comments
    Default,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_win_over_defaults() {
        let cli = Cli::try_parse_from([
            "tcpfsm",
            "run",
            "--iface",
            "eth7",
            "--iface",
            "eth8",
            "--metrics",
            "off",
            "--stuck",
            "CLOSE-WAIT=90s",
            "--sweep-interval",
            "200ms",
            "-o",
            "jsonl",
            "--xdp-mode",
            "generic",
        ])
        .unwrap();
        let Command::Run(args) = cli.command else { panic!("run") };
        let config = args.config().unwrap();
        assert_eq!(config.interfaces, ["eth7", "eth8"]);
        assert_eq!(config.metrics, Metrics::Off);
        assert_eq!(config.stuck[State::CloseWait], Some(Duration::from_secs(90)));
        assert_eq!((config.output, config.xdp_mode), (Output::Jsonl, XdpMode::Generic));
        assert_eq!(config.vantage, Vantage::Host);
    }

    #[test]
    fn filters_take_lists_and_any_spelling() {
        let cli = Cli::try_parse_from([
            "tcpfsm",
            "watch",
            "--state",
            "close-wait,ESTAB",
            "-L",
            "80,443",
            "-4",
            "--kind",
            "anomaly",
        ])
        .unwrap();
        let Command::Watch(args) = cli.command else { panic!("watch") };
        let filter = args.filter.filter(args.kinds);
        assert_eq!(filter.states, [State::CloseWait, State::Established]);
        assert_eq!(filter.local_ports, [80, 443]);
        assert_eq!((filter.family, filter.kinds), (Some(Family::V4), vec!["anomaly".to_owned()]));
        assert!(Cli::try_parse_from(["tcpfsm", "watch", "-4", "-6"]).is_err());
        assert!(Cli::try_parse_from(["tcpfsm", "watch", "--kind", "weather"]).is_err());
    }
}
