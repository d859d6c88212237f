//! What the demo says on stderr: where to look, and at the end which states were seen.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::demo::Stage;
use crate::demo::watch::Watch;
use crate::lab::Netns;
use crate::progress::{heading, note};

/// Where the tracker serves metrics unless told otherwise.
pub(super) const DEFAULT_METRICS: &str = "127.0.0.1:9477";

/// RFC 9293's states as machine output spells them, in the order of a connection's life.
const STATES: [&str; 11] = [
    "closed",
    "listen",
    "syn_sent",
    "syn_recv",
    "established",
    "fin_wait1",
    "fin_wait2",
    "close_wait",
    "closing",
    "last_ack",
    "time_wait",
];

/// Where the tracker can be reached.
#[derive(Debug, Clone)]
pub(super) struct Where {
    pub(super) namespace: String,
    pub(super) program: String,
    pub(super) socket: PathBuf,
    /// An address, or `off`.
    pub(super) metrics: String,
}

pub(super) fn print_where(places: &Where) {
    let Where { namespace, program, socket, metrics } = places;
    note("while it runs, from another terminal, as root:");
    note(&format!("  flows    {program} list --socket {}", socket.display()));
    if metrics == "off" {
        note("  metrics  off");
    } else {
        note(&format!("  metrics  ip netns exec {namespace} curl -s http://{metrics}/metrics"));
    }
    note(&format!("  sockets  ip netns exec {namespace} ss -tan"));
}

/// Taken while everything still stands.
#[derive(Debug)]
pub(super) struct Summary {
    kernel: BTreeSet<&'static str>,
    tracker: Result<BTreeSet<String>>,
    failures: Vec<String>,
    places: Where,
}

impl Summary {
    pub(super) fn take(stage: &Stage, watch: &Watch, places: &Where) -> Self {
        let tracker = match places.metrics.as_str() {
            "off" => Err(anyhow::anyhow!("metrics are off")),
            address => fetch(stage.lab().a(), address).map(|text| states_entered(&text)),
        };
        Self { kernel: watch.states(), tracker, failures: stage.failures(), places: places.clone() }
    }

    pub(super) fn print(&self) {
        heading("Summary");
        match &self.tracker {
            Ok(states) => {
                note(&format!("states the tracker saw:        {}", list(|state| states.contains(state))));
                let missing: Vec<&str> =
                    STATES.into_iter().filter(|state| !states.contains(*state)).collect();
                if !missing.is_empty() {
                    note(&format!("not seen (longer runs see more): {}", missing.join(" ")));
                }
            }
            Err(error) => note(&format!("states the tracker saw:        unknown: {error:#}")),
        }
        note(&format!("states of the kernel's sockets: {}", list(|state| self.kernel.contains(state))));
        for failure in &self.failures {
            note(&format!("a scenario went wrong: {failure}"));
        }
        note(&format!(
            "the demo network is gone; during a run metrics are at http://{}/metrics in its namespace, flows at \
             `{} list --socket ...`; on a real interface: cargo xtask run -- --iface NAME",
            self.places.metrics, self.places.program
        ));
    }
}

fn list(contains: impl Fn(&str) -> bool) -> String {
    STATES.into_iter().filter(|state| contains(state)).collect::<Vec<_>>().join(" ")
}

/// A GET without an HTTP library: the connection's end is the answer's end.
fn fetch(namespace: &Netns, address: &str) -> Result<String> {
    let address: SocketAddr = address.parse().with_context(|| format!("metrics address {address}"))?;
    let timeout = Duration::from_secs(3);
    let mut stream =
        namespace.run(|| TcpStream::connect_timeout(&address, timeout))?.context("no metrics to be had")?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read metrics")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if !answer.starts_with("HTTP/1.1 200") {
        bail!("metrics: {}", answer.lines().next().unwrap_or("no answer"));
    }
    Ok(answer)
}

/// States left or entered by at least one transition. One left was seen too: `listen` is never entered on the wire.
fn states_entered(metrics: &str) -> BTreeSet<String> {
    let mut states = BTreeSet::new();
    for line in metrics.lines() {
        let Some((labels, value)) =
            line.strip_prefix("tcpfsm_transitions_total{").and_then(|rest| rest.split_once('}'))
        else {
            continue;
        };
        let count: f64 = value.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        if count <= 0.0 {
            continue;
        }
        for label in labels.split(',') {
            if let Some(("from" | "to", state)) = label.trim().split_once('=') {
                states.insert(state.trim_matches('"').to_owned());
            }
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_only_what_happened() {
        let metrics = "\
# TYPE tcpfsm_transitions counter
tcpfsm_transitions_total{from=\"listen\",to=\"syn_recv\",side=\"resp\"} 3
tcpfsm_transitions_total{side=\"orig\",from=\"closing\",to=\"time_wait\"} 0
tcpfsm_connections{state=\"last_ack\",side=\"orig\"} 1
";
        let states = states_entered(metrics);
        assert_eq!(states.into_iter().collect::<Vec<_>>(), ["listen", "syn_recv"]);
    }
}
