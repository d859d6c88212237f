//! `tcpfsm run`: the daemon, from the command line to the last summary.

use std::{future::Future, path::Path, process::ExitCode, sync::Arc, time::Duration};

use aya_log::EbpfLogger;
use tcpfsm_common::abi::{ByMapAndState, Health};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::{broadcast, oneshot, watch},
    time::{interval, timeout},
};
use tracing::{info, warn};

use crate::{
    BPF_OBJECT,
    alive::{Alive, Gap},
    cli::RunArgs,
    config::{Config, Metrics, Output, Vantage},
    control::{
        office::Office,
        server::{ControlSocket, check_free},
    },
    error::{Error, Result},
    export::{
        http,
        journal::{self, JournalSink, Which},
        stdout,
    },
    host::Host,
    insight::Insight,
    kernel::{
        attach,
        counters::CounterMap,
        events::Events,
        evictions,
        interfaces::{self, Interface, Kind},
        loader,
        records::FlowMaps,
        sweep::Sweeper,
    },
    logging, owner,
    pipeline::{Background, Ending, Engine, Losses, Shared, SharedGauges, Sink, backlog, start_publisher},
    views::{self, Coverage, Rounds, Watched},
};

/// Events that a watcher may be behind before it loses some.
const WATCH_QUEUE: usize = 16_384;

/// Between two looks at what the kernel programs logged, where they do.
const KERNEL_LOG_NAP: Duration = Duration::from_millis(100);

/// How long each part of the end may take.
const GRACE: Duration = Duration::from_millis(300);

pub(super) fn run(args: RunArgs) -> Result<ExitCode> {
    let config = args.config()?;
    logging::start(config.log_level);
    if config.interfaces.is_empty() {
        return Err(Error::NoInterface { known: interfaces::names() });
    }
    // What is cheap to find out comes before what takes time, and before anything is attached.
    for name in &config.interfaces {
        Interface::find(name)?;
    }
    check_free(&config.socket)?;
    loader::check(BPF_OBJECT)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::io("start the runtime"))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(GRACE);
    result
}

async fn serve(config: Config) -> Result<ExitCode> {
    let (stop, stopping) = watch::channel(false);
    stop_on_signals(stop.clone())?;
    let listener = match config.metrics {
        Metrics::At(address) => Some(http::bind(address).await?),
        Metrics::Off => None,
    };

    let mut kernel = loader::load(BPF_OBJECT, &config)?;
    let waiting = Events::take(&mut kernel)?;
    let counters = Arc::new(CounterMap::take(&mut kernel)?);
    let maps = Arc::new(FlowMaps::take(&mut kernel)?);
    if config.log_level.kernel() > 0
        && let Some(logger) = kernel.take_logger()
    {
        tokio::spawn(forward_kernel_log(logger));
    }

    let shared = SharedGauges::default();
    let (events, _) = broadcast::channel(WATCH_QUEUE);
    // Events wait where they are until everything else stands.
    let attachments = attach::attach(&mut kernel, &config)?;
    let gap = Gap::until_now(&config.socket);
    shared.update(|gauges| gauges.gap = gap);
    let mut sweeper = Sweeper::take(kernel, Arc::clone(&counters))?;
    let coverage = Coverage::new(watched(&attachments));
    let (broken, unwritten) = oneshot::channel();
    let printing = stdout::start(config.output, Arc::clone(&shared), broken)?;
    let (sink, stdout_thread) = match printing {
        Some((sink, thread)) => (Some(Box::new(sink) as Box<dyn Sink>), Some(thread)),
        None => (journal(config.output, &shared)?, None),
    };
    let host = owner::lookup(config.vantage);
    if let Some(reason) = host.degraded() {
        warn!("{reason}");
    }
    let (publisher, publish_thread) = start_publisher(host, sink, events.clone(), Arc::clone(&shared))?;

    let engine = Engine::new(&config, waiting, attachments, publisher, Arc::clone(&shared));

    // Packets are seen from here on: what is seeded now and what they show leaves no gap.
    let rounds = match config.vantage {
        Vantage::Host => {
            let (rounds, seeded) = warm_up(&config, Arc::clone(&maps), coverage, &shared).await?;
            sweeper = sweeper.with_seeded(seeded);
            Some(rounds)
        }
        // The sockets of those whose traffic this is are elsewhere.
        Vantage::Gateway | Vantage::Mirror => None,
    };

    let insight = Arc::new(Insight::new(counters, maps, Arc::clone(&shared), &config));
    // Only now: whoever finds the socket may rely on it that packets are seen and existing connections known.
    let socket = ControlSocket::bind(&config.socket)?;
    let alive = Alive::start(&config.socket, gap)?;
    let office = Office {
        answers: Arc::clone(&insight) as _,
        events: events.downgrade(),
        shared: Arc::clone(&shared),
    };
    let (close, closed) = oneshot::channel::<()>();
    let serving = tokio::spawn(socket.serve(office, async {
        let _ = closed.await;
        events
    }));
    if let Some(listener) = listener {
        info!("metrics on http://{}/metrics", config.metrics);
        let stopping = stopped(stopping.clone());
        tokio::spawn(http::serve(listener, Arc::clone(&insight) as _, stopping));
    }
    let printing = tokio::spawn(async move {
        let error = unwritten.await.ok()?;
        let _ = stop.send(true);
        Some(error)
    });

    let ended = start_engine(engine, Background { sweeper, rounds }, stopped(stopping))?.await;
    let ending = ended.map_err(std::io::Error::other).map_err(Error::io("run the engine"))?;
    drop(alive);
    backlog::finish(publish_thread, stdout_thread, &shared);
    // Nobody tells of anything any more: watchers read to the end.
    drop(close);
    let _ = serving.await;
    summarise(&insight, &shared);
    // One that still waits for its reader is left alone, and that the reader has gone is no failure.
    if let Ok(Ok(Some(error))) = timeout(GRACE, printing).await
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Error::io("write to stdout")(error));
    }
    match ending {
        Ending::Requested => Ok(ExitCode::SUCCESS),
        Ending::InterfacesGone(names) => Err(Error::InterfacesGone { names }),
    }
}

/// Runs the engine in a thread of its own. In the runtime that all share, the end of each nap would wake two threads, and
/// they each other.
fn start_engine(
    engine: Engine,
    background: Background,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<oneshot::Receiver<Ending>> {
    let runtime =
        Builder::new_current_thread().enable_all().build().map_err(Error::io("start the engine"))?;
    let (end, ended) = oneshot::channel();
    let work = move || {
        let ending = runtime.block_on(engine.run(background, stop));
        runtime.shutdown_timeout(GRACE);
        let _ = end.send(ending);
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(work)
        .map_err(Error::io("start the engine"))?;
    Ok(ended)
}

/// The journal, where it is asked for.
fn journal(output: Output, shared: &SharedGauges) -> Result<Option<Box<dyn Sink>>> {
    let which = match output {
        Output::Journal => Which::Anomalies,
        Output::JournalAll => Which::All,
        Output::Text | Output::Jsonl | Output::None => return Ok(None),
    };
    let sink = JournalSink::open(Path::new(journal::SOCKET), which, Arc::clone(shared))?;
    Ok(Some(Box::new(sink)))
}

fn watched(attachments: &[attach::Attachment]) -> Vec<Watched> {
    let interfaces = attachments.iter().map(|attachment| &attachment.interface);
    interfaces
        .map(|Interface { name, index, kind, up: _ }| Watched {
            name: name.clone(),
            index: *index,
            loopback: *kind == Kind::Loopback,
        })
        .collect()
}

/// Puts the flows of existing sockets into the maps; gives what compares flows with sockets from then on, and what was
/// put where.
async fn warm_up(
    config: &Config,
    maps: Arc<FlowMaps>,
    coverage: Coverage,
    shared: &SharedGauges,
) -> Result<(Rounds, ByMapAndState)> {
    let (scope, interval, pickup) = (config.scope, config.sweep_interval, config.pickup);
    let work = move || {
        let mut host = Host::for_sockets();
        // Who does not want connections begun earlier does not want them from their sockets either.
        let seeded =
            if pickup { views::warm_start(&mut host, &maps, scope, &coverage)? } else { evictions::NONE };
        Ok::<_, Error>((Rounds::new(host, maps, interval), seeded))
    };
    let joined = tokio::task::spawn_blocking(work).await;
    let (rounds, seeded) = joined.map_err(std::io::Error::other).map_err(Error::io("list sockets"))??;
    shared.update(|gauges| gauges.views.seeded = seeded.as_flattened().iter().sum());
    Ok((rounds, seeded))
}

/// Ready once the daemon is to stop.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn stop_on_signals(stop: watch::Sender<bool>) -> Result<()> {
    let catch = |kind| signal(kind).map_err(Error::io("catch signals"));
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    // `nohup` and the like.
    let mut hang_up = (!is_ignored(libc::SIGHUP)).then(|| catch(SignalKind::hangup())).transpose()?;
    tokio::spawn(async move {
        let hung_up = async {
            match &mut hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hung_up => {}
        }
        let _ = stop.send(true);
    });
    Ok(())
}

/// Whether whoever started us had a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// What the kernel programs log comes out with our own.
async fn forward_kernel_log(mut logger: EbpfLogger<&'static dyn log::Log>) {
    let mut nap = interval(KERNEL_LOG_NAP);
    loop {
        nap.tick().await;
        logger.flush();
    }
}

fn summarise(insight: &Insight, shared: &Shared) {
    let Ok(counters) = insight.counters() else { return };
    let events = counters.health[Health::EventsSent as usize];
    let lost = counters.health[Health::EventsLost as usize];
    let elsewhere: Vec<String> = insight
        .losses()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(place, count)| format!(", {count} {place}"))
        .collect();
    let packets: u64 = counters.packets.as_flattened().iter().sum();
    info!(
        "detached; {packets} packets, {events} events, {} reports; lost: {lost} in the ring{}",
        Losses::get(&shared.reports),
        elsewhere.concat()
    );
}
