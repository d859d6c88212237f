//! The configuration file.

use std::{fs, path::Path, path::PathBuf};

use serde::Deserialize;

use super::{
    Config, Ingress, Metrics, Output, Vantage, XdpMode, parse_sweep_interval, rules::RuleTable,
    sizes::SizeTable, states::StateTable,
};
use crate::{
    error::{Error, Result},
    logging::LogLevel,
};

/// What the file may say; what it does not say keeps its default.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    interfaces: Option<Vec<String>>,
    vantage: Option<Vantage>,
    ingress: Option<Ingress>,
    xdp_mode: Option<XdpMode>,
    scope: Option<u32>,
    pickup: Option<bool>,
    event_quota: Option<u32>,
    sweep_interval: Option<String>,
    metrics: Option<Metrics>,
    socket: Option<PathBuf>,
    output: Option<Output>,
    log_level: Option<LogLevel>,
    timeouts: StateTable,
    stuck: StateTable,
    detect: RuleTable,
    maps: SizeTable,
}

/// Reads a file over the defaults.
///
/// # Errors
/// The file cannot be read, or says something that cannot be, with line and column.
pub fn load(path: &Path) -> Result<Config> {
    let text =
        fs::read_to_string(path).map_err(|cause| Error::ConfigRead { path: path.to_owned(), cause })?;
    parse(&text).map_err(|cause| Error::Config { path: path.to_owned(), cause })
}

pub(super) fn parse(text: &str) -> Result<Config, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    let File {
        interfaces,
        vantage,
        ingress,
        xdp_mode,
        scope,
        pickup,
        event_quota,
        sweep_interval,
        metrics,
        socket,
        output,
        log_level,
        timeouts,
        stuck,
        detect,
        maps,
    } = file;
    let mut config = Config::default();
    interfaces.iter().flatten().try_for_each(|name| check_interface(name))?;
    set(&mut config.interfaces, interfaces);
    set(&mut config.vantage, vantage);
    set(&mut config.ingress, ingress);
    set(&mut config.xdp_mode, xdp_mode);
    set(&mut config.scope, scope);
    set(&mut config.pickup, pickup);
    set(&mut config.event_quota, event_quota);
    set(&mut config.metrics, metrics);
    set(&mut config.socket, socket);
    set(&mut config.output, output);
    set(&mut config.log_level, log_level);
    if let Some(text) = sweep_interval {
        config.sweep_interval =
            parse_sweep_interval(&text).map_err(|wanted| format!("sweep_interval = {text:?}: {wanted}"))?;
    }
    config.timeouts.apply(&timeouts);
    config.stuck.apply(&stuck);
    config.detect.apply(&detect)?;
    maps.apply(&mut config.maps)?;
    Ok(config)
}

/// Whether an interface can have this name; whether there is one shows when it is attached to.
fn check_interface(name: &str) -> Result<(), String> {
    /// `IFNAMSIZ` of Linux, without the NUL at the end.
    const LONGEST: usize = 15;
    let fits = (1..=LONGEST).contains(&name.len()) && ![".", ".."].contains(&name);
    if fits && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Ok(());
    }
    Err(format!(
        "interfaces: {name:?} is no name of an interface, which has 1 to {LONGEST} bytes such as eth0"
    ))
}

/// Takes a value over where there is one.
fn set<T>(to: &mut T, from: Option<T>) {
    if let Some(value) = from {
        *to = value;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tcpfsm_common::fsm::State;

    use super::*;

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_said_counts() {
        let config = parse(
            "interfaces = [\"eth7\"]\nvantage = \"mirror\"\nmetrics = \"off\"\nsweep_interval = \"200ms\"\n\
             [stuck]\nCLOSE-WAIT = \"5m\"\n[timeouts]\nestablished = \"off\"\n[maps]\nflows4 = 4096\n",
        )
        .unwrap();
        assert_eq!(config.interfaces, ["eth7"]);
        assert_eq!(config.vantage, Vantage::Mirror);
        assert_eq!(config.metrics, Metrics::Off);
        assert_eq!(config.sweep_interval, Duration::from_millis(200));
        assert_eq!(config.stuck[State::CloseWait], Some(Duration::from_secs(300)));
        assert_eq!(config.timeouts[State::Established], None);
        assert_eq!(config.maps.flows4, 4096);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, words) in [
            ("vantage = \"host\"\nifaces = [\"eth0\"]\n", ["line 2", "unknown field `ifaces`"]),
            ("vantage = \"router\"\n", ["line 1", "`host`, `gateway`, `mirror`"]),
            ("[stuck]\nclosewate = \"1s\"\n", ["line 2", "is no TCP state"]),
            ("[stuck]\nclose_wait = \"soon\"\n", ["line 2", "no duration"]),
            ("metrics = 9477\n", ["line 1", "expected a string"]),
            ("metrics = \"9477\"\n", ["line 1", "127.0.0.1:9477"]),
            ("interfaces = [\n", ["line 1", "array"]),
            ("interfaces = [\"eth0\", \"\"]\n", ["interfaces: \"\" is no name", "such as eth0"]),
            ("interfaces = [\"eth0 eth1\"]\n", ["\"eth0 eth1\" is no name", "1 to 15 bytes"]),
            ("interfaces = [\"a-name-too-long-for-it\"]\n", ["is no name", "1 to 15 bytes"]),
            ("[stuck]\nclose_wait = \"0s\"\n", ["line 2", "\"0s\" is no time to wait"]),
            ("[timeouts]\nestablished = \"0\"\n", ["line 2", "off for never"]),
        ] {
            let error = parse(text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{text:?}: {word:?} is not in\n{error}");
            }
        }
    }
}
