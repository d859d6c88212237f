//! `cargo xtask captures`: public captures through `tcpfsm replay`, scored against independent ground truth.
//!
//! Needs a release build of the daemon, and the captures, which are no part of the project: a directory with
//! `captures.tar.xz` and `groundtruth.jsonl.xz` (see `docs/captures.md`).

mod score;
mod speed;
mod truth;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::progress::{heading, note, seconds};
use crate::workspace::Workspace;

use self::score::Score;
use self::truth::Truth;

const POLL: Duration = Duration::from_millis(1);

/// What to replay, and what to print.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Where captures.tar.xz and groundtruth.jsonl.xz are; next to the checkout if not given
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The program to score; target/release/tcpfsm if not given
    #[arg(long)]
    binary: Option<PathBuf>,
    /// List every difference
    #[arg(long)]
    differences: bool,
    /// A file that takes longer hangs
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    timeout: u64,
    /// Instead, compare the speed of `replay` with tcptrace's and tshark's, on files made for it (1.1 GB, 4 minutes)
    #[arg(long)]
    speed: bool,
    /// Rounds of --speed, of which the median counts
    #[arg(long, default_value_t = 3, value_name = "N", requires = "speed")]
    rounds: usize,
}

/// The subcommand. Fails where a file crashes or hangs the program, or a goal is missed.
pub fn main(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let binary = arguments.binary.clone().unwrap_or_else(|| workspace.target().join("release/tcpfsm"));
    if !binary.is_file() {
        bail!("{} is not built\n  remedy: cargo xtask build", binary.display());
    }
    if arguments.speed {
        let scratch = Scratch::new()?;
        speed::main(&binary, scratch.path(), arguments.rounds)?;
        return Ok(ExitCode::SUCCESS);
    }
    let dir = arguments.dir.clone().unwrap_or_else(|| workspace.root().join("../shared/captures"));
    let (archive, truth) = (dir.join("captures.tar.xz"), dir.join("groundtruth.jsonl.xz"));
    for file in [&archive, &truth] {
        if !file.is_file() {
            bail!("{} is not there\n  remedy: name the directory of the captures with --dir", file.display());
        }
    }

    heading("Unpacking the captures");
    let scratch = Scratch::new()?;
    let root = scratch.path().join("unpacked");
    fs::create_dir(&root).with_context(|| format!("create {}", root.display()))?;
    output(Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(&root))?;
    let lines = output(Command::new("xz").arg("-dc").arg(&truth))?;
    let truths = Truth::parse_all(&lines).with_context(|| format!("read {}", truth.display()))?;
    let root = if root.join("captures").is_dir() { root.join("captures") } else { root };
    let mut files = Vec::new();
    list(&root, &mut files)?;
    files.sort();

    heading(&format!("Replaying {} files", files.len()));
    let started = Instant::now();
    let mut by_file: HashMap<String, Vec<Truth>> = HashMap::new();
    for truth in truths {
        by_file.entry(truth.file.clone()).or_default().push(truth);
    }
    let mut score = Score::default();
    let out = scratch.path().join("out");
    let timeout = Duration::from_secs(arguments.timeout);
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).to_string_lossy().into_owned();
        let expected = by_file.remove(&name).unwrap_or_default();
        // The reference reads TCP alone: what it is compared with must have read the same.
        let [found, without_icmp] = [&[][..], &["--no-icmp"]].map(|options| {
            match replay(&binary, options, file, &out, timeout)? {
                Outcome::Read => {}
                Outcome::Refused if options.is_empty() => score.refused(&name),
                Outcome::Refused => {}
                Outcome::Crashed(how) => score.crashed(&name, &how),
                Outcome::Hung => score.hung(&name),
            }
            anyhow::Ok(fs::read_to_string(&out).unwrap_or_default())
        });
        let (found, without_icmp) = (found?, without_icmp?);
        score
            .file(&name, &expected, &found, &without_icmp)
            .with_context(|| format!("the output for {name}"))?;
    }
    note(&format!("done in {}", seconds(started.elapsed())));
    for name in by_file.keys() {
        score.absent(name);
    }
    score.print(arguments.differences);
    Ok(if score.reaches_its_goals() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a file did to the program.
enum Outcome {
    Read,
    Refused,
    Crashed(String),
    Hung,
}

fn replay(binary: &Path, options: &[&str], file: &Path, out: &Path, timeout: Duration) -> Result<Outcome> {
    let stdout = File::create(out).with_context(|| format!("create {}", out.display()))?;
    let mut child = Command::new(binary)
        .args(["replay", "-o", "jsonl"])
        .args(options)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", binary.display()))?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("wait for the replay")? {
            return Ok(match status.code() {
                Some(0) => Outcome::Read,
                Some(1) => Outcome::Refused,
                _ => Outcome::Crashed(status.to_string()),
            });
        }
        if started.elapsed() > timeout {
            child.kill().context("stop a replay that hangs")?;
            child.wait().context("wait for the replay")?;
            return Ok(Outcome::Hung);
        }
        thread::sleep(POLL);
    }
}

/// Runs a tool and gives its output.
fn output(command: &mut Command) -> Result<String> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{tool}`\n  remedy: apt-get install tar xz-utils"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("`{tool}` failed ({}): {}\n  remedy: apt-get install tar xz-utils", output.status, why.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{tool}`"))
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// A directory that is gone when this is.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("tcpfsm-captures-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left for the system to clean.
        let _ = fs::remove_dir_all(&self.0);
    }
}
