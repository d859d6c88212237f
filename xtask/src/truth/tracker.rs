//! The tracker under test: a daemon at one end, and what it said of that end's sockets.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tcpfsm_common::fsm::State;

use super::lives::End;
use crate::lab::Netns;
use crate::run::daemon::Daemon;
use crate::stop;

/// How long loading the programs may take on a busy machine.
const START: Duration = Duration::from_secs(60);

/// What the tracker said of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Wall clock, microseconds since 1970.
    pub at: i64,
    pub from: State,
    pub to: State,
    pub confirmed: bool,
    /// The cause's `why`.
    pub why: Arc<str>,
}

/// Everything that a daemon said of its host's ends.
#[derive(Debug, Default)]
pub struct Account {
    /// In the order in which it was said.
    pub by_end: HashMap<End, Vec<Said>>,
    /// Lines that did not say that the end is this host's, though it is.
    pub not_local: u64,
    /// Events and lines lost, by where.
    pub lost: Vec<(String, u64)>,
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Tracker {
    daemon: Daemon,
    program: PathBuf,
    socket: PathBuf,
    stdout: File,
    stderr: PathBuf,
    local: HashSet<std::net::IpAddr>,
}

impl Tracker {
    /// Starts one on an interface; `local` are the addresses of its namespace, `flows` the connections to expect.
    pub fn start(
        program: &Path,
        (namespace, iface): (&Netns, &str),
        directory: &Path,
        local: HashSet<std::net::IpAddr>,
        flows: u64,
    ) -> Result<Self> {
        let place = |what: &str| directory.join(format!("{iface}.{what}"));
        let config = place("toml");
        // Nothing may be evicted: flows stay for the minute of TIME-WAIT.
        let room = flows.next_power_of_two().max(8_192);
        fs::write(&config, format!("[maps]\nflows4 = {room}\nflows6 = {room}\n"))
            .with_context(|| format!("write {}", config.display()))?;
        let (socket, stderr) = (place("sock"), place("stderr"));
        // Nobody can be slower than a file, and no name is left behind.
        let stdout = unnamed_file(&place("jsonl"))?;
        let mut command: Command = namespace.command(program);
        command.args(["run", "-o", "jsonl", "--metrics", "off", "--log-level", "warn", "--iface", iface]);
        command.arg("--config").arg(&config).arg("--socket").arg(&socket);
        command.stdout(stdout.try_clone().context("hand over a file")?);
        command.stderr(File::create(&stderr).with_context(|| format!("create {}", stderr.display()))?);
        let daemon = Daemon::start(command)?;
        let mut tracker = Self { daemon, program: program.to_owned(), socket, stdout, stderr, local };
        tracker.wait_until_ready()?;
        Ok(tracker)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("the tracker ended at once, {status}: {}", self.complaints());
            }
            if Instant::now() > deadline || stop::requested() {
                bail!("the tracker does not answer: {}", self.complaints());
            }
            stop::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Ends it; reads what it said.
    pub fn stop(mut self) -> Result<Account> {
        let lost = self.losses()?;
        let status = self.daemon.stop()?;
        if !status.success() {
            bail!("the tracker failed while ending, {status}: {}", self.complaints());
        }
        let mut account = read(&mut self.stdout, &self.local)?;
        account.lost = lost;
        Ok(account)
    }

    fn losses(&self) -> Result<Vec<(String, u64)>> {
        let output = Command::new(&self.program)
            .args(["stats", "-o", "json", "--socket"])
            .arg(&self.socket)
            .output()
            .context("start `tcpfsm stats`")?;
        if !output.status.success() {
            bail!("tcpfsm stats: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let stats: Value = serde_json::from_slice(&output.stdout).context("read `tcpfsm stats`")?;
        let lost = stats["lost"].as_array().context("`tcpfsm stats` has no `lost`")?;
        let lost =
            lost.iter().map(|loss| (text(&loss["name"]).to_owned(), loss["count"].as_u64().unwrap_or(0)));
        Ok(lost.filter(|(_, count)| *count > 0).collect())
    }
}

/// A file that is gone once nobody has it open. Not in the directory itself: that may be a small file system in memory.
fn unnamed_file(path: &Path) -> Result<File> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let path = std::env::temp_dir().join(format!("tcpfsm-truth-{}-{name}", std::process::id()));
    let file = OpenOptions::new().read(true).append(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("create {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    Ok(file)
}

fn read(file: &mut File, local: &HashSet<std::net::IpAddr>) -> Result<Account> {
    file.rewind().context("go back to the beginning")?;
    let mut account = Account::default();
    let mut words: HashMap<String, Arc<str>> = HashMap::new();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).context("read what the tracker said")? == 0 {
            return Ok(account);
        }
        let event: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        if event["kind"] != "transition" {
            continue;
        }
        let side = text(&event["side"]);
        let other = if side == "orig" { "resp" } else { "orig" };
        let address = |side: &str| -> Result<SocketAddr> {
            text(&event[side]).parse().with_context(|| format!("no address of {side}: {line}"))
        };
        let end = End { local: address(side)?, remote: address(other)? };
        if !local.contains(&end.local.ip()) {
            continue;
        }
        if ![side, "both"].contains(&text(&event["local"])) {
            account.not_local += 1;
        }
        let why = text(&event["cause"]["why"]);
        let why = words.entry(why.to_owned()).or_insert_with(|| why.into());
        let state = |name: &str| -> Result<State> {
            text(&event[name]).parse().ok().with_context(|| format!("no state `{name}`: {line}"))
        };
        account.by_end.entry(end).or_default().push(Said {
            at: microseconds(text(&event["ts"])).with_context(|| format!("no time: {line}"))?,
            from: state("from")?,
            to: state("to")?,
            confirmed: event["confirmed"] == true,
            why: Arc::clone(why),
        });
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `2026-11-22T20:07:55.155360Z` as microseconds since 1970.
fn microseconds(timestamp: &str) -> Option<i64> {
    let (date, time) = timestamp.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut time = time.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    // Days of the civil calendar: years begin in March, so that the leap day comes last.
    let years = if month <= 2 { year - 1 } else { year };
    let months = (month + 9) % 12;
    let days =
        365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1 - 719_468;
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_from_1970() {
        assert_eq!(microseconds("1970-01-01T00:00:00.000001Z"), Some(1));
        assert_eq!(microseconds("2000-03-01T00:00:00Z"), Some(951_868_800_000_000));
        assert_eq!(microseconds("2026-11-22T20:07:55.155360Z"), Some(1_795_378_075_155_360));
        assert_eq!(microseconds("yesterday"), None);
    }
}
