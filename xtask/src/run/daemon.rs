//! The tracker as a child process: it ends when we end, however that happens.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::command::end_with_us;
use crate::progress::note;
use crate::stop;

/// How long an orderly end may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Its stdout is ours.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        // A process group of its own: Ctrl-C reaches us alone, and we pass one signal on, once.
        command.stdin(Stdio::null()).process_group(0);
        // TERM and not KILL, so that even after our sudden death the tracker detaches.
        end_with_us(&mut command, Signal::TERM);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        Ok(Self { child })
    }

    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("wait for the tracker")
    }

    /// Asks it to end, and insists after a while.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::INT);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        note(&format!("the tracker did not end within {} s of SIGINT and was killed", PATIENCE.as_secs()));
        self.child.kill().context("kill the tracker")?;
        self.child.wait().context("wait for the tracker")?;
        bail!("the tracker does not end when asked to; `tcpfsm detach` takes away what it left attached");
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It cannot have been replaced: an unreaped child keeps its number.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only after an error of ours; `stop` has waited otherwise.
        if let Ok(None) = self.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// Becomes the tracker.
pub(super) fn replace(mut command: Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

/// Lets the tracker run for a while on whatever it was told to watch.
pub(super) fn run_for(mut daemon: Daemon, duration: Duration) -> Result<ExitCode> {
    stop::catch_signals()?;
    let deadline = Instant::now() + duration;
    while Instant::now() < deadline && !stop::requested() {
        if let Some(status) = daemon.try_wait()? {
            return Ok(exit_code(status));
        }
        stop::sleep(Duration::from_millis(50));
    }
    Ok(exit_code(daemon.stop()?))
}

/// The tracker's verdict is ours.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    }
}
