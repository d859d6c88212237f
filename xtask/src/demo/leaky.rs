//! A server that never closes: a process of its own, so that "who owns this socket" has an answer worth reading.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::scenario::PORT_LEAKY;
use crate::command::end_with_us;
use crate::lab::{Family, Lab, sockets};

/// The hidden subcommand under which xtask plays the server.
pub const SUBCOMMAND: &str = "demo-leaky-server";

/// Even a leak should not grow for ever when a demo runs all night.
const MOST: usize = 64;

/// The running server; ended when dropped.
#[derive(Debug)]
pub struct LeakyServer {
    child: Mutex<Child>,
}

impl LeakyServer {
    /// Starts it in namespace a and waits until it listens.
    pub fn start(lab: &Lab, xtask: &Path) -> Result<Self> {
        let mut command = lab.a().command(xtask);
        command.arg(SUBCOMMAND).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        // The process would keep its namespace alive.
        end_with_us(&mut command, Signal::KILL);
        let child = command.spawn().with_context(|| format!("start {}", xtask.display()))?;
        let server = Self { child: Mutex::new(child) };
        let deadline = Instant::now() + Duration::from_secs(5);
        let listening = |family: Family| {
            let address = SocketAddr::new(family.a(), PORT_LEAKY);
            sockets::list(lab.a()).is_ok_and(|all| all.iter().any(|socket| socket.local == address))
        };
        while !(listening(Family::V4) && listening(Family::V6)) {
            if Instant::now() > deadline || !server.is_alive() {
                bail!("the leaky server does not listen on port {PORT_LEAKY}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        self.child.lock().is_ok_and(|mut child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for LeakyServer {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.lock() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The server process: accepts, and does nothing else.
pub fn main() -> Result<()> {
    // As `ps` and the tracker will call it.
    rustix::thread::set_name(c"leaky-server").context("set the process name")?;
    let other = thread::spawn(|| leak(Family::V6));
    leak(Family::V4)?;
    other.join().unwrap_or_else(|_| bail!("the IPv6 half panicked"))
}

fn leak(family: Family) -> Result<()> {
    let address = SocketAddr::new(family.a(), PORT_LEAKY);
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let mut kept: VecDeque<TcpStream> = VecDeque::new();
    loop {
        let (stream, _) = listener.accept().context("accept")?;
        kept.push_back(stream);
        if kept.len() > MOST {
            kept.pop_front();
        }
    }
}
