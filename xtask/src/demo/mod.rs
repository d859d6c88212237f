//! Real connections through every state of the diagram, in waves, on a [`crate::lab`].
//!
//! - [`scenario`]: the table of what happens
//! - `ordinary`: scenarios with two real sockets
//! - `scripted`: scenarios in which one end plays from a script, because no kernel would do that on request
//! - [`leaky`]: the server that never closes
//! - [`watch`]: which states the kernel's own sockets went through

pub mod leaky;
mod ordinary;
pub mod scenario;
mod scripted;
pub mod watch;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::leaky::LeakyServer;
use self::scenario::{SCENARIOS, Scenario};
use crate::lab::{Family, Lab};
use crate::progress::note;
use crate::stop;

/// Between the starts of two scenarios: a person can follow, and traffic stays at a few connections a second.
const PACE: Duration = Duration::from_millis(300);
/// From wave to wave.
const WAVE: Duration = Duration::from_secs(8);
/// No socket of the demo waits longer than this.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the scenarios play on.
#[derive(Debug)]
pub struct Stage {
    lab: Lab,
    leaky: LeakyServer,
    /// Sockets that stay open as long as the stage does: half-open handshakes belong to their listener.
    #[expect(dead_code, reason = "held, not used")]
    standing: Vec<TcpListener>,
    failures: Mutex<Vec<String>>,
}

impl Stage {
    /// Sets the stage. `xtask` is the program that can play the leaky server.
    pub fn new(lab: Lab, xtask: &Path) -> Result<Self> {
        let leaky = LeakyServer::start(&lab, xtask)?;
        let standing = [Family::V4, Family::V6]
            .into_iter()
            .map(|family| listen(&lab, family.a(), scenario::PORT_HALF_OPEN))
            .collect::<Result<_>>()?;
        Ok(Self { lab, leaky, standing, failures: Mutex::new(Vec::new()) })
    }

    /// The network.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Plays wave after wave until [`stop::requested`], or until `finished` says so.
    pub fn play(&self, finished: &dyn Fn() -> bool) {
        let ends = || stop::requested() || finished();
        for wave in 1_u32.. {
            let started = Instant::now();
            if wave > 1 {
                note(&format!("wave {wave}: the same again"));
            }
            thread::scope(|scope| {
                for scenario in SCENARIOS {
                    if ends() {
                        break;
                    }
                    if wave == 1 {
                        note(&format!("{:<18} {}", scenario.name, scenario.description));
                    }
                    scope.spawn(|| self.perform(scenario));
                    pause(PACE, &ends);
                }
            });
            if pause(WAVE.saturating_sub(started.elapsed()), &ends) {
                return;
            }
        }
    }

    /// What did not go as the scenarios say it must.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().map(|failures| failures.clone()).unwrap_or_default()
    }

    fn perform(&self, scenario: &Scenario) {
        for family in scenario.families {
            let Err(error) = (scenario.play)(self, *family) else { continue };
            // An end in the middle of a scenario is no failure of it.
            if !stop::requested() {
                let failure = format!("{} ({family:?}): {error:#}", scenario.name);
                note(&failure);
                if let Ok(mut failures) = self.failures.lock() {
                    failures.push(failure);
                }
            }
        }
    }

    /// A connection from namespace b to a listener in a: client's end, server's end.
    fn connection(&self, family: Family, port: u16) -> Result<(TcpStream, TcpStream)> {
        let address = SocketAddr::new(family.a(), port);
        let listener = listen(&self.lab, address.ip(), port)?;
        let client = self
            .lab
            .b()
            .run(|| TcpStream::connect_timeout(&address, PATIENCE))?
            .with_context(|| format!("connect to {address}"))?;
        let server = accept(&listener)?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).context("set timeout")?;
        }
        Ok((client, server))
    }
}

fn listen(lab: &Lab, address: std::net::IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    lab.a().run(|| TcpListener::bind(address))?.with_context(|| format!("listen on {address}"))
}

/// Accepts one connection, but does not wait for it for ever.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true).context("set non-blocking")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error).context("accept"),
        }
    }
}

/// Sleeps, but not past an end. True if it ended.
fn pause(duration: Duration, ends: &dyn Fn() -> bool) -> bool {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        if ends() {
            return true;
        }
        thread::sleep(Duration::from_millis(20).min(until.saturating_duration_since(Instant::now())));
    }
    ends()
}
