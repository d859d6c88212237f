//! The daemon itself: what it costs while nothing happens, and how soon it tells.

use std::{
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use xtask::lab::{Family, Lab};

use super::wire::{Daemon, Flavour};
use crate::{
    Bench,
    rig::{Clock, Table, go_on},
    stats::{most, quantile},
    sys,
};

const FLAVOUR: Flavour = Flavour { xdp: false, output: "jsonl" };

/// Idle CPU, and the time from a connection to the line that tells of it.
pub fn daemon(bench: &Bench) -> Result<Vec<Table>> {
    let lab = Lab::new("bench").context("the lab")?;
    let clock = Clock::start();
    let mut daemon = Daemon::start(bench, &lab, FLAVOUR, Stdio::piped())?;
    let stdout = daemon.child.stdout.take().context("no stdout")?;
    let (lines, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send((Instant::now(), line)).is_err() {
                break;
            }
        }
    });

    let idle = bench.seconds(30.0);
    let (began, spent) = (Instant::now(), sys::process_cpu(daemon.child.id()));
    thread::sleep(Duration::from_secs_f64(idle));
    let busy = (sys::process_cpu(daemon.child.id()) - spent) / began.elapsed().as_secs_f64() * 100.0;

    let address = SocketAddr::new(Family::V4.a(), 8000);
    let listener = lab.a().run(|| TcpListener::bind(address))?.context("listen")?;
    let mut waits = Vec::new();
    for number in 0..if bench.quick { 5 } else { 100_u64 } {
        go_on()?;
        // Not in step with its naps.
        thread::sleep(Duration::from_millis(60 + number * 37 % 90));
        let client = lab.b().run(|| TcpStream::connect(address))?.context("connect")?;
        let (connected, port) = (Instant::now(), client.local_addr()?.port());
        let _accepted = listener.accept()?;
        let needle = format!(":{port}\"");
        loop {
            let Ok((at, line)) = told.recv_timeout(Duration::from_secs(5)) else {
                bail!("no line tells of the connection from port {port}");
            };
            if line.contains(&needle) && line.contains("established") {
                waits.push(at.saturating_duration_since(connected).as_secs_f64() * 1e3);
                break;
            }
        }
    }
    daemon.stop()?;
    let (p99, longest) = (quantile(&waits, 0.99), most(&waits));
    let latency = vec![("from connection to line", waits), ("the slowest", vec![longest])];
    Ok(vec![
        Table::of("daemon", "ms", clock, latency).note(format!("99 % within {p99:.0} ms")),
        Table::of("daemon-idle", "% of a core", clock, vec![("idle", vec![busy])])
            .note(format!("over {idle:.0} s")),
    ])
}
