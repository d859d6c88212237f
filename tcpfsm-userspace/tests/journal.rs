//! A real journald in a mount namespace of its own: what an operator finds with journalctl.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/loopback.rs"]
mod loopback;

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    process::{Command, Stdio},
};

use loopback::{Leak, Running, in_namespace, tcpfsm, text, wait_for};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};
use serde_json::Value;
use tcpfsm_userspace::BPF_OBJECT;

const JOURNALD: &str = "/usr/lib/systemd/systemd-journald";
const JOURNALS: &str = "/run/log/journal";

fn start(command: &mut Command) -> Running {
    Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
}

/// An empty `/run` that only this thread and its children see, with a journald that listens in it.
fn own_journald() -> Running {
    // SAFETY: a new mount namespace, and a working directory of its own, concern this thread alone.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir_all(JOURNALS).unwrap();
    fs::create_dir_all("/run/systemd/journal").unwrap();
    let journald = start(&mut Command::new(JOURNALD));
    wait_for("journald", || Path::new("/run/systemd/journal/socket").exists());
    journald
}

/// The entries that journalctl finds for these matches.
fn entries(matches: &[&str]) -> Vec<Value> {
    let output = Command::new("journalctl")
        .args(["--directory", JOURNALS, "--no-pager", "-o", "json"])
        .args(matches)
        .output()
        .unwrap();
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_anomaly_is_found_by_its_fields() {
    if BPF_OBJECT.is_empty() || !rustix::process::geteuid().is_root() {
        println!("skipped: needs root and the kernel programs (cargo xtask build)");
        return;
    }
    for file in [JOURNALD, "/usr/bin/journalctl", "/etc/machine-id"] {
        if fs::metadata(file).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            println!("skipped: {file} is not there: no journal can be kept");
            return;
        }
    }
    in_namespace(|| {
        let _journald = own_journald();
        let _daemon = start(tcpfsm(&["run", "--iface", "lo", "--metrics", "off", "-o", "journal"]).args([
            "--sweep-interval",
            "100ms",
            "--stuck",
            "close_wait=1500ms",
            "--stuck",
            "fin_wait2=off",
            "--socket",
            "/run/tcpfsm.sock",
        ]));
        // The daemon looks through processes once a second at most: by then it has.
        wait_for("the daemon", || Path::new("/run/tcpfsm.sock").exists());
        let leak = Leak::start();
        let found =
            ["-t", "tcpfsm", "-p", "warning", "TCPFSM_ANOMALY=close_wait_stuck", "TCPFSM_PHASE=start"];
        wait_for("the entry", || !entries(&found).is_empty());
        let [entry] = &entries(&found)[..] else { panic!("one") };
        let pid = std::process::id().to_string();
        for (name, value) in [
            ("PRIORITY", "4"),
            ("TCPFSM_V", "1"),
            ("TCPFSM_KIND", "anomaly"),
            ("TCPFSM_SEVERITY", "warning"),
            ("TCPFSM_SERVICE", &leak.service),
            ("TCPFSM_COUNT", "1"),
            ("TCPFSM_STATE", "close_wait"),
            ("TCPFSM_KERNEL_STATE", "close_wait"),
            ("TCPFSM_PROC_PID", &pid),
            ("TCPFSM_PROC_CONFIDENCE", "socket"),
            ("OBJECT_PID", &pid),
        ] {
            assert_eq!(entry[name], value, "{name} in {entry:#}");
        }
        assert!(entry["MESSAGE"].as_str().unwrap().starts_with("WARNING close_wait_stuck: 1 connection at "));
        // What journald adds by itself: it knew the process.
        assert_eq!(entry["OBJECT_UID"], "0", "{entry:#}");

        let _rest = leak.close();
        let over = ["-t", "tcpfsm", "TCPFSM_ANOMALY=close_wait_stuck", "TCPFSM_PHASE=end"];
        wait_for("the end", || !entries(&over).is_empty());
        assert_eq!(entries(&over)[0]["PRIORITY"], "5");
        assert!(
            entries(&["-t", "tcpfsm", "TCPFSM_KIND=transition"]).is_empty(),
            "only anomalies were asked for"
        );
    });
}
