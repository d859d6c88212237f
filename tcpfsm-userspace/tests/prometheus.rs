//! What Prometheus makes of us: its own tool finds nothing wrong with metrics and rules, it scrapes the daemon, and a leak is an alert.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/loopback.rs"]
mod loopback;
mod support;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use loopback::{Daemon, Leak, Running, in_namespace, tcpfsm, text, wait_for};
use serde_json::Value;

const PROMETHEUS: &str = "/usr/bin/prometheus";
const PROMTOOL: &str = "/usr/bin/promtool";

/// Returns from a test where Prometheus is not installed, saying so.
macro_rules! needs_prometheus {
    () => {
        if !Path::new(PROMETHEUS).exists() {
            println!("skipped: {PROMETHEUS} is not installed: cargo xtask setup, as root on Debian");
            return;
        }
    };
}

/// The rules in a directory, as a user has them there.
fn rules(directory: &Path) -> String {
    let printed = tcpfsm(&["alerts"]).output().unwrap();
    assert!(printed.status.success() && printed.stderr.is_empty());
    let file = directory.join("alerts.yml");
    fs::write(&file, printed.stdout).unwrap();
    file.display().to_string()
}

/// What is served there, without the head.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

fn promtool(arguments: &[&str], input: &str) {
    let mut child = Command::new(PROMTOOL)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[test]
fn promtool_takes_the_rules_and_they_fire_when_they_should() {
    needs_prometheus!();
    let directory = tempfile::tempdir().unwrap();
    promtool(&["check", "rules", &rules(directory.path())], "");
    let test = directory.path().join("test.yml");
    fs::write(
        &test,
        r#"
rule_files: [alerts.yml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      # One that goes on, one that came and went between two scrapes.
      - {series: 'tcpfsm_anomalies_active{kind="close_wait_stuck",instance="a"}', values: '0 1 1 0x30'}
      - {series: 'tcpfsm_anomalies_total{kind="close_wait_stuck",instance="a"}', values: '0 1 1 1x30'}
      - {series: 'tcpfsm_anomalies_active{kind="syn_flood",instance="a"}', values: '0x33'}
      - {series: 'tcpfsm_anomalies_total{kind="syn_flood",instance="a"}', values: '0 1x32'}
      - {series: 'tcpfsm_anomalies_active{kind="half_open",instance="a"}', values: '0x33'}
      - {series: 'tcpfsm_anomalies_total{kind="half_open",instance="a"}', values: '0x33'}
      # Evictions of what has closed are no news.
      - {series: 'tcpfsm_map_evictions_total{map="flows4",state="time_wait",instance="a"}', values: '0+9x33'}
      - {series: 'tcpfsm_map_evictions_total{map="flows4",state="established",instance="a"}', values: '0x33'}
      - {series: 'tcpfsm_map_evictions_total{map="flows6",state="established",instance="a"}', values: '0+1x33'}
      - {series: 'tcpfsm_sweeps_total{instance="a"}', values: '0+3x33'}
      - {series: 'tcpfsm_sweeps_total{instance="b"}', values: '7x80'}
      - {series: 'up{job="node/tcpfsm",instance="c"}', values: '0x80'}
    promql_expr_test:
      - {expr: 'ALERTS{alertname="TcpfsmCloseWaitStuck",alertstate="firing"}', eval_time: 30s, exp_samples: [
          {labels: 'ALERTS{alertname="TcpfsmCloseWaitStuck",alertstate="firing",instance="a",kind="close_wait_stuck",severity="warning"}', value: 1}]}
      - {expr: 'ALERTS{alertname="TcpfsmSynFlood",alertstate="firing"}', eval_time: 1m, exp_samples: [
          {labels: 'ALERTS{alertname="TcpfsmSynFlood",alertstate="firing",instance="a",kind="syn_flood",severity="critical"}', value: 1}]}
      - {expr: 'ALERTS{alertname=~"TcpfsmHalfOpen|TcpfsmSweepStands",alertstate="firing"}', eval_time: 1m, exp_samples: []}
      - {expr: 'ALERTS{alertname="TcpfsmLiveFlowsEvicted"}', eval_time: 1m, exp_samples: [
          {labels: 'ALERTS{alertname="TcpfsmLiveFlowsEvicted",alertstate="firing",instance="a",map="flows6",severity="warning"}', value: 1}]}
      - {expr: 'ALERTS{alertname="TcpfsmCloseWaitStuck"}', eval_time: 8m, exp_samples: []}
      - {expr: 'ALERTS{alertname="TcpfsmDown",alertstate="firing"}', eval_time: 6m, exp_samples: [
          {labels: 'ALERTS{alertname="TcpfsmDown",alertstate="firing",instance="c",job="node/tcpfsm",severity="critical"}', value: 1}]}
      - {expr: 'ALERTS{alertname="TcpfsmSweepStands",alertstate="firing",instance="b"}', eval_time: 16m, exp_samples: [
          {labels: 'ALERTS{alertname="TcpfsmSweepStands",alertstate="firing",instance="b",severity="critical"}', value: 1}]}
"#,
    )
    .unwrap();
    promtool(&["test", "rules", &test.display().to_string()], "");
}

#[test]
fn prometheus_scrapes_the_daemon_and_a_leak_is_an_alert() {
    needs_kernel!();
    needs_prometheus!();
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let ours = "127.0.0.1:9477";
        let _daemon = Daemon::start(directory.path(), &["--metrics", ours, "--stuck", "close_wait=200ms"]);
        promtool(&["check", "metrics"], &get(ours, "/metrics").unwrap());

        let config = directory.path().join("prometheus.yml");
        let rules = rules(directory.path());
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{rules}']\n\
                 scrape_configs: [{{job_name: tcpfsm, static_configs: [{{targets: ['{ours}']}}]}}]\n"
            ),
        )
        .unwrap();
        let theirs = "127.0.0.1:9090";
        let _prometheus = Running::start(
            Command::new(PROMETHEUS)
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
                .arg(format!("--web.listen-address={theirs}"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let ask = |query: &str| -> Vec<Value> {
            let query: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let answer = get(theirs, &format!("/api/v1/query?query={query}"));
            let Some(answer) = answer.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else {
                return Vec::new();
            };
            answer["data"]["result"].as_array().cloned().unwrap_or_default()
        };
        // Asked for in vain, it would be an anomaly: connect_refused.
        wait_for("Prometheus to listen", || {
            let sockets = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
            sockets.contains(&format!("{:04X} 00000000:0000 0A", 9090))
        });
        wait_for("the first scrape", || ask("up").first().is_some_and(|up| up["value"][1] == "1"));
        assert_eq!(ask("ALERTS").len(), 0, "all is well: {:?}", ask("ALERTS"));

        let _leak = Leak::start();
        wait_for("the alert", || {
            !ask("ALERTS{alertname=\"TcpfsmCloseWaitStuck\",alertstate=\"firing\"}").is_empty()
        });
        let alert = &ask("ALERTS{alertname=\"TcpfsmCloseWaitStuck\"}")[0]["metric"];
        assert_eq!((&alert["severity"], &alert["job"]), (&"warning".into(), &"tcpfsm".into()), "{alert}");
        // Nobody has lost anything, and only the leak is told of.
        assert_eq!(ask("ALERTS{alertname!~\"TcpfsmCloseWaitStuck\"}").len(), 0, "{:?}", ask("ALERTS"));
    });
}
