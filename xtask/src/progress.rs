//! What a person sees while something takes long: each step named before it starts, timed when it ends, and the
//! end of its log when it fails.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::command::{display, stderr_as_stdout};

const POLL: Duration = Duration::from_millis(120);
const HEARTBEAT: Duration = Duration::from_secs(15);
const TAIL_LINES: usize = 15;

/// Announces what comes next.
pub fn heading(text: &str) {
    eprintln!("==> {text}");
}

/// Adds a detail to the step at hand.
pub fn note(text: &str) {
    eprintln!("    {text}");
}

/// Runs a command whose own output is worth watching (cargo's): its stdout and stderr both go to our stderr.
pub fn run_shown(step: &str, command: &mut Command) -> Result<()> {
    heading(step);
    let started = Instant::now();
    let status = command
        .stdout(stderr_as_stdout()?)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{step}: cannot start `{}`", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{step} failed ({status}); the cause is above\n  command: {}", display(command));
    }
    note(&format!("done in {}", seconds(started.elapsed())));
    Ok(())
}

/// Runs a long command with its output in a log file, and shows that it is alive.
pub fn run_logged(step: &str, log: &Path, remedy: &str, command: &mut Command) -> Result<()> {
    heading(step);
    note(&format!("$ {}", display(command)));
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let out = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let started = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn().with_context(|| {
            format!("{step}: cannot start `{}`\n  remedy: {remedy}", command.get_program().to_string_lossy())
        })?;
    let mut ticker = Ticker::new(log.to_path_buf(), started);
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("{step}: wait"))? {
            break status;
        }
        ticker.tick();
        thread::sleep(POLL);
    };
    ticker.clear();
    if !status.success() {
        let tail = last_lines(log, TAIL_LINES).join("\n    | ");
        bail!(
            "{step} failed ({status}) after {}\n  cause, from {}:\n    | {tail}\n  remedy: {remedy}",
            seconds(started.elapsed()),
            log.display()
        );
    }
    note(&format!("done in {}", seconds(started.elapsed())));
    Ok(())
}

/// A duration in the unit people read it in.
pub fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        whole @ 60.. => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{:.1} s", elapsed.as_secs_f64()),
    }
}

/// A line that repaints itself on a terminal, a line now and then elsewhere.
struct Ticker {
    log: PathBuf,
    started: Instant,
    last_beat: Instant,
    on_terminal: bool,
}

impl Ticker {
    fn new(log: PathBuf, started: Instant) -> Self {
        Self { log, started, last_beat: started, on_terminal: io::stderr().is_terminal() }
    }

    fn tick(&mut self) {
        if !self.on_terminal && self.last_beat.elapsed() < HEARTBEAT {
            return;
        }
        self.last_beat = Instant::now();
        let line = last_lines(&self.log, 1).pop().unwrap_or_default();
        let line: String = line.chars().filter(|c| !c.is_control()).take(90).collect();
        let elapsed = seconds(self.started.elapsed());
        let mut stderr = io::stderr().lock();
        // A progress line that cannot be written is not worth failing for.
        if self.on_terminal {
            let _ = write!(stderr, "\r\x1b[K    {elapsed}  {line}");
            let _ = stderr.flush();
        } else {
            let _ = writeln!(stderr, "    {elapsed} so far: {line}");
        }
    }

    fn clear(&self) {
        if self.on_terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// The last lines of a file that may still be growing.
fn last_lines(path: &Path, count: usize) -> Vec<String> {
    const WINDOW: u64 = 8192;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.split(['\n', '\r']).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_step_cause_and_remedy() {
        let log = std::env::temp_dir().join(format!("tcpfsm-xtask-progress-{}", std::process::id()));
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo the cause >&2; exit 3"]);
        let error = run_logged("making tea", &log, "buy tea", &mut command).unwrap_err().to_string();
        fs::remove_file(&log).unwrap();
        for part in ["making tea failed", "exit status: 3", "| the cause", "remedy: buy tea"] {
            assert!(error.contains(part), "{part:?} missing in {error}");
        }
    }

    #[test]
    fn durations_read_naturally() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
