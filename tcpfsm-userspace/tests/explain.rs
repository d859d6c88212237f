//! `explain` and `check` with a daemon that has something to say, and without one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/loopback.rs"]
mod loopback;

use std::process::Output;

use loopback::{Daemon, Leak, in_namespace, tcpfsm, text, wait_for};
use serde_json::Value;
use tcpfsm_userspace::BPF_OBJECT;

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

#[test]
fn a_leak_is_checked_explained_and_over() {
    if BPF_OBJECT.is_empty() || !rustix::process::geteuid().is_root() {
        println!("skipped: needs root and the kernel programs (cargo xtask build)");
        return;
    }
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let daemon =
            Daemon::start(directory.path(), &["--stuck", "close_wait=200ms", "--stuck", "fin_wait2=off"]);
        let clean = daemon.ask(&["check"]);
        assert_eq!(clean.status.code(), Some(0), "{}", text(&clean.stderr));
        assert!(text(&clean.stdout).starts_with("TCPFSM OK - no anomalies |"), "{}", text(&clean.stdout));

        let leak = Leak::start();
        let (address, service) = (leak.client.local_addr().unwrap().to_string(), leak.service.clone());

        let check = |arguments: &[&str]| daemon.ask(&[&["check"], arguments].concat());
        wait_for("the anomaly", || check(&[]).status.code() == Some(3));
        let found = check(&["--kind", "close-wait-stuck", "--severity", "warning"]);
        assert_eq!(found.status.code(), Some(3));
        let words = text(&found.stdout);
        let first = words.lines().next().unwrap();
        assert!(first.starts_with("TCPFSM WARNING - 1 anomaly: close_wait_stuck 1 at "), "{first}");
        assert!(
            first.contains(&service) && first.ends_with("| anomalies=1 critical=0 warning=1 info=0"),
            "{first}"
        );
        assert_eq!(check(&["--kind", "syn_flood"]).status.code(), Some(0), "not of this kind");
        assert_eq!(check(&["--severity", "critical"]).status.code(), Some(0), "not as bad as that");
        assert_eq!(check(&["--nagios"]).status.code(), Some(1), "a warning");
        assert_eq!(check(&["--kind", "weather"]).status.code(), Some(2), "usage");
        let event: Value = json(&check(&["--json"]));
        assert_eq!((&event["kind"], &event["anomaly"]), (&"anomaly".into(), &"close_wait_stuck".into()));

        // The kind, with what goes on now.
        let about = text(&daemon.ask(&["explain", "close_wait_stuck"]).stdout);
        assert!(
            about.contains("NOW\n  ") && about.contains(&format!("explain {address} {service}")),
            "{about}"
        );
        let port = service.rsplit(':').next().unwrap();
        assert!(about.contains(&format!("sport = :{port}")), "the port is filled in: {about}");
        let about = json(&daemon.ask(&["explain", "close_wait_stuck", "--json"]));
        assert_eq!(about["active"].as_array().unwrap().len(), 1);

        // The connection, in either order, as `list` prints it.
        for ends in [[&address, &service], [&service, &address]] {
            let story = json(&daemon.ask(&["explain", ends[0], &format!("{}*", ends[1]), "--json"]));
            assert_eq!((&story["orig"], &story["resp"]), (&address.clone().into(), &service.clone().into()));
            assert_eq!(story["resp_end"]["state"], "close_wait");
            assert_eq!(story["kernel_state"], "close_wait");
            assert_eq!((&story["timeline_whole"], &story["local"]), (&true.into(), &"both".into()));
            assert_eq!(story["anomalies"][0], "close_wait_stuck", "{story}");
            let flags: Vec<_> = story["timeline"]
                .as_array()
                .unwrap()
                .iter()
                .map(|moment| moment["flags"].as_str().unwrap())
                .collect();
            assert_eq!(flags[..3], ["S", "SA", "A"]);
            assert!(flags.contains(&"FA"), "{flags:?}");
        }
        let words = text(&daemon.ask(&["explain", &format!("{address} -> {service}")]).stdout);
        for part in [
            "WHAT I SAW",
            "CLOSE-WAIT",
            "WHAT IT MEANS",
            "close_wait_stuck: ",
            "WHOSE IT IS",
            "WHAT TO DO",
            "HOW SURE",
        ] {
            assert!(words.contains(part), "{part}: {words}");
        }

        // More and fewer of them are no event each, but whoever asks is told.
        let counts = || {
            let event = json(&check(&["--kind", "close_wait_stuck", "--json"]));
            (event["count"].as_u64().unwrap(), event["peak"].as_u64().unwrap())
        };
        let others: Vec<_> = (0..6).map(|_| leak.another()).collect();
        wait_for("all seven", || counts() == (7, 7));
        drop(others);
        wait_for("one that is left", || counts() == (1, 7));

        let _rest = leak.close();
        wait_for("the end of the anomaly", || check(&[]).status.code() == Some(0));
        let unknown = daemon.ask(&["explain", "192.0.2.1:1", "192.0.2.2:2"]);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(
            text(&unknown.stderr).contains("nothing is known of a connection"),
            "{}",
            text(&unknown.stderr)
        );
    });
}

#[test]
fn without_a_daemon_check_fails_and_explain_explains() {
    let directory = tempfile::tempdir().unwrap();
    let ask = |arguments: &[&str]| {
        tcpfsm(arguments).arg("--socket").arg(directory.path().join("none.sock")).output().unwrap()
    };
    let check = ask(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert!(text(&check.stderr).contains("start it: sudo tcpfsm run"), "{}", text(&check.stderr));
    let nagios = ask(&["check", "--nagios"]);
    assert_eq!(nagios.status.code(), Some(3), "to a plugin that is unknown");
    assert!(text(&nagios.stdout).starts_with("TCPFSM UNKNOWN - no tcpfsm daemon answers"));

    let about = ask(&["explain", "syn-flood"]);
    assert_eq!(about.status.code(), Some(0), "{}", text(&about.stderr));
    assert!(
        text(&about.stdout).contains("RFC 4987")
            && text(&about.stdout).contains("Not known: no tcpfsm daemon")
    );
    assert!(text(&ask(&["explain"]).stdout).contains("view_mismatch"));
    assert_eq!(ask(&["explain", "weather"]).status.code(), Some(2));
    assert_eq!(ask(&["explain", "10.0.0.1:1", "10.0.0.2:2"]).status.code(), Some(1));
}
