//! An emulated machine, and the console it speaks on.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::command::end_with_us;

/// What the console says before the first program: before it speak firmware and kernel, in terminal codes.
pub(super) const BEGINNING: &str = "tcpfsm: booted";
/// The console's last line, if all programs came to theirs.
pub(super) const END: &str = "tcpfsm: all programs have run";

/// The longest test takes three minutes there.
const SILENCE: Duration = Duration::from_secs(600);

/// Ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a kernel and hands on what its programs say on the console, line by line, until it switches itself off; says whether it had come to its end.
pub(super) fn boot(kernel: &Path, initramfs: &Path, log: &Path, mut line: impl FnMut(&str)) -> Result<bool> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=3"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    end_with_us(&mut command, Signal::KILL);
    let mut machine = Machine(command.spawn().context("cannot start qemu-system-x86_64")?);
    let console = machine.0.stdout.take().context("the machine has no console")?;
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::Builder::new().spawn(move || {
        for text in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&text).trim_end_matches('\r').to_owned()).is_err() {
                break;
            }
        }
    });
    reader.context("start a thread")?;

    let (mut is_up, mut came_to_its_end) = (false, false);
    let mut heard = Instant::now();
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => {
                heard = Instant::now();
                writeln!(log, "{text}").context("write the console's log")?;
                came_to_its_end |= text == END;
                if is_up && !came_to_its_end {
                    line(&text);
                }
                is_up |= text.ends_with(BEGINNING);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(came_to_its_end),
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > SILENCE => {
                bail!("the machine has said nothing for {} s", SILENCE.as_secs())
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
