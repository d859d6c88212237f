//! Packages that bring a service of their own: it is neither started nor left enabled.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};

/// Debian asks this file before a package's script starts a service; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While this exists, no package starts a service.
pub(super) struct Unstarted {
    /// Whether the policy is ours, or was somebody's before.
    ours: bool,
}

impl Unstarted {
    pub(super) fn new() -> Self {
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        // One that is there already is the administrator's, and stays. One that cannot be written cannot be obeyed.
        let ours = made.is_ok_and(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n").is_ok());
        Self { ours }
    }
}

/// Does not let a service start with the next boot.
pub(super) fn disable(service: &str) {
    // Without systemd nothing is enabled.
    let _ = Command::new("systemctl")
        .args(["disable", "--quiet", service])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

impl Drop for Unstarted {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
