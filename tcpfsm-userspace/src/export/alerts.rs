//! Alerting rules for Prometheus: one for each kind of anomaly, and some about tcpfsm itself.
//!
//! The detectors have thresholds and windows of their own, so the rules of their kinds wait for nothing. A short anomaly may come
//! and go between two scrapes; the counter tells of it.

use std::fmt::Write as _;

use crate::{
    detect::{AnomalyKind, severity},
    explain::texts,
};

/// One rule.
struct Rule {
    alert: String,
    expr: String,
    /// How long it must hold.
    hold: &'static str,
    severity: &'static str,
    summary: String,
    description: String,
}

/// What is amiss with tcpfsm: the alert, its expression, for how long, severity, summary, description.
const ITSELF: [[&str; 6]; 7] = [
    [
        "TcpfsmDown",
        r#"up{job=~".*tcpfsm.*"} == 0"#,
        "5m",
        "critical",
        "tcpfsm does not answer",
        "Nobody watches TCP there: systemctl status tcpfsm. The rule goes by the name of the scrape job, which must contain tcpfsm.",
    ],
    [
        "TcpfsmEventsLost",
        "increase(tcpfsm_ring_dropped_total[5m]) > 0",
        "0s",
        "warning",
        "Events were lost between kernel and daemon",
        "Reports are missing; states and counters are exact all the same. A larger ring (maps.events in the configuration) or less output helps.",
    ],
    [
        "TcpfsmReportsLost",
        "increase(tcpfsm_lost_total[5m]) > 0",
        "0s",
        "warning",
        "Reports were lost at {{ $labels.where }}",
        "Whoever reads there is too slow. Counters and states are exact all the same.",
    ],
    [
        "TcpfsmLiveFlowsEvicted",
        r#"sum without (state) (increase(tcpfsm_map_evictions_total{state!~"closed|time_wait"}[5m])) > 0"#,
        "0s",
        "warning",
        "The map {{ $labels.map }} is too small: flows that live were evicted",
        "They are picked up again when they send, without their past. More room: [maps] in the configuration.",
    ],
    [
        "TcpfsmFlowsNotStored",
        "increase(tcpfsm_map_insert_failed_total[5m]) > 0",
        "0s",
        "warning",
        "Flows found no place in the maps",
        "They are not tracked. More room: [maps] in the configuration.",
    ],
    [
        "TcpfsmSweepStands",
        "increase(tcpfsm_sweeps_total[5m]) == 0",
        "10m",
        "critical",
        "No sweep for a quarter of an hour",
        "Gauges are old, and nothing is found stuck or ended by timeout. The log says why: journalctl -u tcpfsm.",
    ],
    [
        "TcpfsmNotObserved",
        "increase(tcpfsm_observation_gap_seconds_total[1h]) > 60",
        "0s",
        "info",
        "For more than a minute of the last hour nobody observed",
        "The daemon was not running. Forwarded connections of that time are picked up when they send.",
    ],
];

/// The rules as a file for Prometheus.
#[must_use]
pub fn render() -> String {
    let mut text = String::from(
        "# Alerting rules for tcpfsm, by `tcpfsm alerts`. Prometheus reads them where `rule_files` of its configuration names them.\n\
         groups:\n",
    );
    group(&mut text, "tcpfsm-anomalies", AnomalyKind::ALL.into_iter().map(of_kind));
    group(&mut text, "tcpfsm-itself", ITSELF.into_iter().map(of_itself));
    text
}

fn of_kind(kind: AnomalyKind) -> Rule {
    let name = kind.name();
    let entry = texts::of(kind);
    Rule {
        alert: format!("Tcpfsm{}", camel(name)),
        expr: format!(
            r#"tcpfsm_anomalies_active{{kind="{name}"}} > 0 or increase(tcpfsm_anomalies_total{{kind="{name}"}}[5m]) > 0"#
        ),
        hold: "0s",
        severity: severity(kind, 1).name(),
        summary: entry.title.clone(),
        description: format!(
            "{} On the host: `tcpfsm check --kind {name}` says where and whose, `tcpfsm explain {name}` what to do.",
            entry.means
        ),
    }
}

fn of_itself([alert, expr, hold, severity, summary, description]: [&'static str; 6]) -> Rule {
    Rule {
        alert: alert.to_owned(),
        expr: expr.to_owned(),
        hold,
        severity,
        summary: summary.to_owned(),
        description: description.to_owned(),
    }
}

fn group(text: &mut String, name: &str, rules: impl Iterator<Item = Rule>) {
    let _ = write!(text, "  - name: {name}\n    rules:\n");
    for Rule { alert, expr, hold, severity, summary, description } in rules {
        let _ = write!(
            text,
            "      - alert: {alert}\n        expr: {}\n        for: {hold}\n        labels:\n          severity: {severity}\n        \
             annotations:\n          summary: {}\n          description: {}\n",
            scalar(&expr),
            scalar(&format!("{{{{ $labels.instance }}}}: {summary}")),
            scalar(&description),
        );
    }
}

/// A string in double quotes: what JSON writes, YAML reads.
fn scalar(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `close_wait_stuck` as `CloseWaitStuck`.
fn camel(name: &str) -> String {
    name.split('_')
        .flat_map(|word| {
            let (first, rest) = word.split_at(1.min(word.len()));
            [first.to_ascii_uppercase(), rest.to_owned()]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of metrics and labels in an expression that begin with the prefix of ours.
    fn metrics(expr: &str) -> impl Iterator<Item = &str> {
        expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .filter(|word| word.starts_with("tcpfsm_"))
    }

    #[test]
    fn every_metric_is_one_that_is_served() {
        let served = include_str!("../../tests/golden/metrics.prom");
        let rules = AnomalyKind::ALL.into_iter().map(of_kind).chain(ITSELF.into_iter().map(of_itself));
        let mut count = 0;
        for Rule { alert, expr, .. } in rules {
            for metric in metrics(&expr) {
                assert!(served.contains(&format!("# TYPE {metric} ")), "{alert}: no metric {metric}");
                count += 1;
            }
        }
        assert_eq!(count, 2 * AnomalyKind::ALL.len() + ITSELF.len() - 1, "all but `up` are ours");
    }

    #[test]
    fn names_are_in_one_word() {
        assert_eq!(camel("close_wait_stuck"), "CloseWaitStuck");
        let text = render();
        assert!(text.contains("- alert: TcpfsmFinWait2Stuck\n"), "{text}");
        assert!(text.contains(r#"expr: "tcpfsm_anomalies_active{kind=\"half_open\"} > 0 or "#), "{text}");
    }
}
