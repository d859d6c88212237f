//! The tracker on a demo network.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Arguments;
use super::daemon::{Daemon, exit_code};
use super::report::{self, Where};
use crate::demo::Stage;
use crate::demo::watch::Watch;
use crate::lab::stale::RunDirectory;
use crate::lab::{IFACE_A, Lab};
use crate::progress::{heading, note};
use crate::stop;
use crate::workspace::Workspace;

/// How long the tracker may take to load its programs and answer on its socket.
const START: Duration = Duration::from_secs(20);

pub(super) fn main(workspace: &Workspace, arguments: &Arguments, program: &Path) -> Result<ExitCode> {
    stop::catch_signals()?;
    heading("Making the demo network: two namespaces, a veth pair");
    let lab = Lab::new("demo")?;
    let run = RunDirectory::create("demo")?;
    let places = Where {
        namespace: lab.a().name().to_owned(),
        program: workspace.short(program).to_string(),
        socket: arguments.value("--socket").map_or_else(|| run.path().join("tcpfsm.sock"), PathBuf::from),
        metrics: arguments.value("--metrics").unwrap_or_else(|| report::DEFAULT_METRICS.to_owned()),
    };
    let watch = Watch::start(&lab)?;
    let stage = Stage::new(lab, &env::current_exe().context("find xtask itself")?)?;

    heading(&format!("Starting the tracker on {IFACE_A} in {}", places.namespace));
    let mut daemon = Daemon::start(command(&stage, arguments, program, &places.socket))?;
    let early = wait_until_ready(&mut daemon, &places.socket, arguments.daemon.is_some())?;
    if let Some(code) = early {
        return Ok(code);
    }
    report::print_where(&places);

    let deadline = arguments.duration().map(|duration| Instant::now() + duration);
    match arguments.seconds {
        Some(seconds) => heading(&format!("Playing connections for {seconds} s")),
        None => heading("Playing connections until Ctrl-C"),
    }
    let ended = std::sync::Mutex::new(None);
    {
        let daemon = std::sync::Mutex::new(&mut daemon);
        stage.play(&|| {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return true;
            }
            let status = daemon.lock().ok().and_then(|mut daemon| daemon.try_wait().ok().flatten());
            match (status, ended.lock()) {
                (Some(status), Ok(mut ended)) => {
                    *ended = Some(status);
                    true
                }
                _ => false,
            }
        });
    }
    if let Some(status) = ended.into_inner().ok().flatten() {
        note(&format!("the tracker ended by itself: {status}"));
        return Ok(exit_code(status));
    }
    let summary = report::Summary::take(&stage, &watch, &places);
    let status = daemon.stop()?;
    summary.print();
    if !status.success() {
        bail!("the tracker failed while ending: {status}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The user's own options win: the tracker would refuse to be told twice.
fn command(stage: &Stage, arguments: &Arguments, program: &Path, socket: &Path) -> Command {
    let mut command = stage.lab().a().command(program);
    command.args(["run", "--iface", IFACE_A]);
    if !arguments.has("--ingress") {
        // `auto` takes TCX on veth devices, for their throughput's sake. The demo is about XDP.
        command.args(["--ingress", "xdp"]);
    }
    if !arguments.has("--socket") {
        command.arg("--socket").arg(socket);
    }
    if !arguments.has("--stuck") {
        // The defaults wait up to a minute: longer than most people watch a demo.
        command.args(["--stuck", "close_wait=5s", "--stuck", "syn_recv=3s"]);
        if !arguments.has("--sweep-interval") {
            command.args(["--sweep-interval", "1s"]);
        }
    }
    command.args(&arguments.args);
    command
}

/// Traffic before the programs are attached would go unseen. An exit code if the tracker ended instead.
fn wait_until_ready(daemon: &mut Daemon, socket: &Path, stand_in: bool) -> Result<Option<ExitCode>> {
    let deadline = Instant::now() + if stand_in { Duration::from_millis(300) } else { START };
    while Instant::now() < deadline && !stop::requested() {
        if let Some(status) = daemon.try_wait()? {
            note(&format!("the tracker ended at once: {status}"));
            return Ok(Some(exit_code(status)));
        }
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Ok(None);
        }
        stop::sleep(Duration::from_millis(50));
    }
    if !stand_in && !stop::requested() {
        note(&format!("the tracker does not answer on {} yet; going on", socket.display()));
    }
    Ok(None)
}
