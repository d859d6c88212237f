//! What may watch a namespace, and what each of them lost.

use std::{
    env,
    fs::{self, File},
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::TcAttachType;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;
use xtask::{
    command::end_with_us,
    lab::{IFACE_A, Lab},
};

use super::attach::{self as on, Link};
use crate::Bench;

/// How the daemon runs.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    pub xdp: bool,
    pub output: &'static str,
}

/// The floor's part of what the tracker does.
#[derive(Clone, Copy, Debug)]
pub struct Least {
    pub program: &'static str,
    /// For how many flows its map has room.
    pub flows: u32,
    pub xdp: bool,
}

impl Least {
    pub const EMPTY: Self = Self { program: "floor_empty", flows: 1, xdp: false };
    pub const EMPTY_XDP: Self = Self { xdp: true, ..Self::EMPTY };
    /// No tracker does with less: each packet's flow is looked up, and put in where it is missing.
    pub const TABLE: Self = Self { program: "floor_insert", flows: 1 << 20, xdp: false };
}

/// What watches.
#[derive(Clone, Copy, Debug)]
pub enum Watcher {
    Nothing,
    /// A program of the floor on the hooks that the tracker takes.
    Floor(Least),
    Tcpfsm(Flavour),
    /// A rule that needs connection tracking; with its events read.
    Conntrack {
        events: bool,
    },
    /// The tracepoint of socket states, read as text.
    Tracepoint,
}

/// A watcher at work.
pub enum Running {
    Nothing,
    Floor { _links: [Link; 2] },
    Tcpfsm(Daemon),
    Conntrack { lab: String, listener: Option<Child>, errors: PathBuf },
    Tracepoint { tracefs: Tracefs, instance: PathBuf, reader: Child },
}

impl Watcher {
    pub fn start(self, bench: &Bench, lab: &Lab) -> Result<Running> {
        Ok(match self {
            Self::Nothing => Running::Nothing,
            Self::Floor(least) => Running::Floor { _links: attach(bench, lab, least)? },
            Self::Tcpfsm(flavour) => Running::Tcpfsm(Daemon::start(bench, lab, flavour, Stdio::null())?),
            Self::Conntrack { events } => conntrack(lab, events)?,
            Self::Tracepoint => tracepoint()?,
        })
    }
}

/// A program of the floor on ingress and egress.
fn attach(bench: &Bench, lab: &Lab, Least { program, flows, xdp }: Least) -> Result<[Link; 2]> {
    let mut floor = bench.floor.load(flows, 1)?;
    let tc = format!("{program}_tc");
    floor.program(&tc)?;
    floor.program(program)?;
    lab.a().run(|| {
        let floor = floor.object();
        let ingress = if xdp { on::xdp(floor, program) } else { on::tcx(floor, &tc, TcAttachType::Ingress) }?;
        Ok([ingress, on::tcx(floor, &tc, TcAttachType::Egress)?])
    })?
}

const TABLE: &str = "tcpfsm_bench";

fn conntrack(lab: &Lab, events: bool) -> Result<Running> {
    let rules = format!(
        "table inet {TABLE} {{
            chain in {{ type filter hook input priority 0; ct state established counter; }}
            chain out {{ type filter hook output priority 0; ct state established counter; }}
        }}"
    );
    checked(lab.a().command("nft").arg(rules)).context("nft (apt-get install nftables)")?;
    // Flows of the last slice must not fill the table.
    let _ = lab.a().run(|| fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1"))?;
    let errors = env::temp_dir().join(format!("tcpfsm-bench-conntrack-{}", std::process::id()));
    let listener = if events {
        let mut command = lab.a().command("conntrack");
        // As large a buffer as its manual suggests for busy hosts.
        command.args(["-E", "-p", "tcp", "-b", "8388608"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&errors)?);
        end_with_us(&mut command, Signal::KILL);
        let child = command.spawn().context("conntrack (apt-get install conntrack)")?;
        thread::sleep(Duration::from_millis(100));
        Some(child)
    } else {
        None
    };
    Ok(Running::Conntrack { lab: lab.a().name().to_owned(), listener, errors })
}

const TRACING: &str = "/sys/kernel/tracing";

/// Where tracefs is: where it usually is, or where it was mounted for as long as this lives.
pub struct Tracefs {
    root: PathBuf,
    ours: Option<TempDir>,
}

impl Tracefs {
    fn open() -> Result<Self> {
        if Path::new(TRACING).join("instances").is_dir() {
            return Ok(Self { root: TRACING.into(), ours: None });
        }
        let ours = TempDir::with_prefix("tcpfsm-bench-tracing-")?;
        mount("tracefs", ours.path(), "tracefs", MountFlags::empty(), None)
            .with_context(|| format!("mount tracefs on {}", ours.path().display()))?;
        Ok(Self { root: ours.path().to_owned(), ours: Some(ours) })
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if self.ours.is_some() {
            let _ = unmount(&self.root, UnmountFlags::DETACH);
        }
    }
}

fn tracepoint() -> Result<Running> {
    let tracefs = Tracefs::open()?;
    let instance = tracefs.root.join(format!("instances/tcpfsm-bench-{}", std::process::id()));
    if !instance.is_dir() {
        fs::create_dir(&instance).with_context(|| format!("make {}", instance.display()))?;
    }
    fs::write(instance.join("trace"), "")?;
    fs::write(instance.join("events/sock/inet_sock_set_state/enable"), "1")?;
    let mut command = Command::new("cat");
    command.arg(instance.join("trace_pipe")).stdin(Stdio::null()).stdout(Stdio::null());
    end_with_us(&mut command, Signal::KILL);
    Ok(Running::Tracepoint { tracefs, instance, reader: command.spawn().context("cat")? })
}

impl Running {
    /// Takes it away; says what it lost, if it says so, of so many connections.
    pub fn stop(self, connections: u64) -> Result<Loss> {
        match self {
            Self::Nothing | Self::Floor { .. } => Ok(Loss::default()),
            Self::Tcpfsm(mut daemon) => {
                // What is still in the ring.
                thread::sleep(Duration::from_millis(150));
                let (seen, lost) = daemon.stats()?;
                daemon.stop()?;
                let missed = connections.saturating_sub(seen);
                Ok(Loss { events: Some(lost), missed: Some(missed), connections })
            }
            Self::Conntrack { lab, listener, errors } => {
                let mut loss = Loss::default();
                if let Some(mut listener) = listener {
                    interrupt(&listener, Signal::INT);
                    listener.wait()?;
                    let said = fs::read_to_string(&errors).unwrap_or_default();
                    let overran = said.contains("No buffer space") || said.contains("ENOBUFS");
                    loss.events = Some(u64::from(overran));
                    let _ = fs::remove_file(&errors);
                }
                let inside = |arguments: &[&str]| -> Result<()> {
                    checked(Command::new("ip").args(["netns", "exec", &lab]).args(arguments))
                };
                inside(&["nft", "delete", "table", "inet", TABLE])?;
                // Entries that are left would be found by the next slice.
                inside(&["conntrack", "-F"])?;
                Ok(loss)
            }
            Self::Tracepoint { tracefs, instance, mut reader } => {
                fs::write(instance.join("events/sock/inet_sock_set_state/enable"), "0")?;
                thread::sleep(Duration::from_millis(50));
                let mut overrun = 0;
                for entry in fs::read_dir(instance.join("per_cpu"))?.flatten() {
                    let stats = fs::read_to_string(entry.path().join("stats")).unwrap_or_default();
                    let line = stats.lines().find_map(|line| line.strip_prefix("overrun:"));
                    overrun += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
                }
                reader.kill()?;
                reader.wait()?;
                fs::remove_dir(&instance).with_context(|| format!("remove {}", instance.display()))?;
                drop(tracefs);
                Ok(Loss { events: Some(overrun), ..Loss::default() })
            }
        }
    }
}

/// What a watcher says that it did not see; nothing where it does not say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// Events; of `conntrack`, which does not count them, whether there were any.
    events: Option<u64>,
    /// Connections, of so many.
    missed: Option<u64>,
    connections: u64,
}

/// What was lost over all rounds.
pub fn summary(losses: &[Loss]) -> String {
    let sum = |pick: fn(&Loss) -> Option<u64>| losses.iter().map(pick).sum::<Option<u64>>();
    match (sum(|loss| loss.events), sum(|loss| loss.missed)) {
        (Some(events), Some(missed)) => {
            let all: u64 = losses.iter().map(|loss| loss.connections).sum();
            format!("{events} events lost, {missed} of {all} connections missed")
        }
        (Some(events), None) => format!("{events} losses said"),
        _ => "says nothing of losses".to_owned(),
    }
}

/// The daemon as a child.
pub struct Daemon {
    pub child: Child,
    directory: TempDir,
}

impl Daemon {
    pub fn start(bench: &Bench, lab: &Lab, flavour: Flavour, stdout: Stdio) -> Result<Self> {
        let program = bench.daemon.as_ref().context("the daemon's path is not known: TCPFSM_DAEMON")?;
        let directory = tempfile::Builder::new().prefix("tcpfsm-bench-").tempdir()?;
        let mut command = lab.a().command(program);
        let ingress = if flavour.xdp { "xdp" } else { "tcx" };
        command.args(["run", "--iface", IFACE_A, "--metrics", "off", "--log-level", "warn"]);
        command.args(["--ingress", ingress, "--output", flavour.output]);
        command.arg("--socket").arg(directory.path().join("socket"));
        command.stdin(Stdio::null()).stdout(stdout);
        command.stderr(File::create(directory.path().join("stderr"))?);
        // Not first before everybody, as the bench is.
        // SAFETY: between fork and exec, system calls alone.
        unsafe {
            command.pre_exec(|| {
                crate::sys::unpin();
                Ok(())
            });
        }
        end_with_us(&mut command, Signal::KILL);
        let mut daemon = Self { child: command.spawn().context("start the daemon")?, directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(daemon.socket()).is_err() {
            if let Some(status) = daemon.child.try_wait()? {
                let said = fs::read_to_string(daemon.directory.path().join("stderr")).unwrap_or_default();
                bail!("the daemon ended at once, {status}: {said}");
            }
            if Instant::now() > deadline {
                bail!("the daemon does not answer");
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It answers before it has attached everything.
        thread::sleep(Duration::from_millis(50));
        Ok(daemon)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Connections opened, and everything that was lost, anywhere.
    pub fn stats(&self) -> Result<(u64, u64)> {
        let program = fs::read_link(format!("/proc/{}/exe", self.child.id()))?;
        let output =
            Command::new(program).args(["stats", "-o", "json", "--socket"]).arg(self.socket()).output()?;
        if !output.status.success() {
            bail!("stats: {}", String::from_utf8_lossy(&output.stderr));
        }
        let stats: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let lost = stats["lost"].as_array().context("no `lost` in the stats")?;
        let lost = lost.iter().filter_map(|count| count["count"].as_u64()).sum();
        Ok((stats["opened"].as_u64().context("no `opened` in the stats")?, lost))
    }

    pub fn stop(&mut self) -> Result<()> {
        interrupt(&self.child, Signal::INT);
        let status = self.child.wait()?;
        if !status.success() {
            let said = fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default();
            bail!("the daemon failed, {status}: {said}");
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn interrupt(child: &Child, signal: Signal) {
    // It has not been waited for: the number is its own.
    let _ = kill_process(Pid::from_child(child), signal);
}

fn checked(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
