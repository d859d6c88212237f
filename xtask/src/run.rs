//! `cargo xtask run`: the tracker on a real interface, or on a demo network that is made for it and taken away.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::build::{Profile, build};
use crate::command::is_root;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;

pub(crate) mod daemon;
mod on_demo;
mod report;

use daemon::Daemon;

/// `cargo xtask run`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// End by itself after this many seconds, with exit code 0
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Run what is built already (for sudo, where there may be no cargo)
    #[arg(long)]
    pub no_build: bool,
    /// Run this program instead of the tracker, with the same arguments
    #[arg(long, hide = true)]
    pub daemon: Option<PathBuf>,
    /// Arguments of `tcpfsm run`; with `--iface NAME` there is no demo network
    #[arg(last = true)]
    pub args: Vec<OsString>,
}

impl Arguments {
    fn duration(&self) -> Option<Duration> {
        self.seconds.map(Duration::from_secs)
    }

    fn has(&self, option: &str) -> bool {
        let with_value = format!("{option}=");
        self.args
            .iter()
            .map(|arg| arg.to_string_lossy())
            .any(|arg| arg == option || arg.starts_with(&with_value))
    }

    fn value(&self, option: &str) -> Option<String> {
        let with_value = format!("{option}=");
        let args: Vec<_> = self.args.iter().map(|arg| arg.to_string_lossy()).collect();
        args.iter().enumerate().find_map(|(at, arg)| match arg.strip_prefix(&with_value) {
            Some(value) => Some(value.to_owned()),
            None if arg == option => args.get(at + 1).map(ToString::to_string),
            None => None,
        })
    }

    /// Asked for an explanation, the tracker needs neither a network nor privileges.
    fn only_asks(&self) -> bool {
        ["--help", "-h", "--version", "-V"].iter().any(|option| self.has(option))
    }
}

/// The subcommand.
pub fn main(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    if !arguments.no_build && arguments.daemon.is_none() {
        let toolchain = setup::ensure(workspace, Needs::Network)?;
        build(workspace, &toolchain, Profile::Release)?;
    }
    let program = arguments.daemon.clone().unwrap_or_else(|| workspace.daemon(false));
    if !program.is_file() {
        bail!("{} is missing\n  remedy: cargo xtask build", workspace.short(&program));
    }
    if !is_root() && !arguments.only_asks() {
        bail!("{}", sudo_advice(workspace, arguments)?);
    }
    if arguments.has("--iface") || arguments.only_asks() {
        let mut command = std::process::Command::new(&program);
        command.arg("run").args(&arguments.args);
        return match arguments.duration() {
            None => daemon::replace(command),
            Some(duration) => daemon::run_for(Daemon::start(command)?, duration),
        };
    }
    on_demo::main(workspace, arguments, &program)
}

fn sudo_advice(workspace: &Workspace, arguments: &Arguments) -> Result<String> {
    let quoted: Vec<String> = arguments.args.iter().map(|arg| quote(&arg.to_string_lossy())).collect();
    if arguments.has("--iface") && arguments.seconds.is_none() {
        let program = workspace.daemon(false);
        return Ok(format!(
            "attaching needs root (or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON); it is built, so:\n  sudo {} run {}",
            workspace.short(&program),
            quoted.join(" ")
        ));
    }
    let xtask = std::env::current_exe()?;
    let mut line = format!("sudo {} run --no-build", quote(&workspace.short(&xtask).to_string()));
    if let Some(seconds) = arguments.seconds {
        line.push_str(&format!(" --seconds {seconds}"));
    }
    if !quoted.is_empty() {
        line.push_str(&format!(" -- {}", quoted.join(" ")));
    }
    Ok(format!("the demo network needs root; everything is built, so:\n  {line}"))
}

fn quote(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(args: &[&str]) -> Arguments {
        let args = args.iter().map(OsString::from).collect();
        Arguments { seconds: None, no_build: false, daemon: None, args }
    }

    #[test]
    fn options_are_found_in_both_spellings() {
        for args in [["--iface", "eth7"].as_slice(), &["--iface=eth7"]] {
            let arguments = arguments(args);
            assert!(arguments.has("--iface"));
            assert_eq!(arguments.value("--iface").as_deref(), Some("eth7"));
        }
        assert!(!arguments(&["--ifaces=1"]).has("--iface"));
    }

    #[test]
    fn shell_words_survive() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("--metrics=[::1]:80"), "'--metrics=[::1]:80'");
    }
}
