//! Who plays which connections, from which addresses: pairs of a client's and a server's thread.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::ground::{self, CLIENTS, Ground};
use super::programs::{KINDS, Meeting, Program};
use crate::lab::Family;
use crate::stop;

/// Servers listen on these, one for each pair; on the first nobody does.
const FIRST_PORT: u16 = 2_000;
/// Clients connect from these, shared among the pairs.
const CLIENT_PORTS: std::ops::Range<u16> = 10_000..64_000;
/// At most so many pairs.
pub const MOST_PAIRS: usize = 256;

/// Everybody's server ports, for the recorder's filter.
pub const SERVER_PORTS: RangeInclusive<u16> = FIRST_PORT..=FIRST_PORT + MOST_PAIRS as u16;

/// What is to be played.
#[derive(Debug, Clone)]
pub struct Plan {
    pub connections: u64,
    pub pairs: usize,
    /// How long a program waits for its peer before it gives up.
    pub patience: Duration,
    /// Kinds in the order of playing, over and over.
    pub menu: Vec<usize>,
}

/// What was played.
#[derive(Debug, Default)]
pub struct Played {
    /// Which kind (an index of [`KINDS`]) each connection was, by client and server address.
    pub kinds: HashMap<[SocketAddr; 2], usize>,
    /// Connections, of these.
    pub connections: u64,
    /// Programs that did not come to their end, by what stopped them.
    pub failures: HashMap<String, u64>,
}

/// The pairs at work.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<std::io::Result<Result<()>>>>,
    started: Instant,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    /// Connections that somebody has taken on.
    taken: AtomicU64,
    done: AtomicU64,
    played: Mutex<Played>,
}

impl Traffic {
    pub fn start(ground: &Ground, plan: Plan) -> Result<Self> {
        let (pairs, patience) = (plan.pairs.clamp(1, MOST_PAIRS), plan.patience);
        let shared = Arc::new(Shared {
            plan,
            taken: AtomicU64::new(0),
            done: AtomicU64::new(0),
            played: Mutex::new(Played::default()),
        });
        let mut threads = Vec::new();
        for number in 0..pairs {
            let (orders, todo) = channel();
            let (reports, done) = channel();
            let listeners = ground.servers.run(|| listen(number))??;
            let meeting = Arc::new(Pair::default());
            let pair = Arc::clone(&meeting);
            threads.push(ground.servers.spawn(move || serve(&listeners, &todo, &reports, &pair, patience))?);
            let shared = Arc::clone(&shared);
            threads.push(ground.clients.spawn(move || ask(number, &shared, &orders, &done, &meeting))?);
        }
        Ok(Self { shared, threads, started: Instant::now() })
    }

    /// Connections so far.
    pub fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub fn is_over(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits for the pairs; after a request to stop they end with the connection at hand.
    pub fn finish(self) -> Result<Played> {
        for thread in self.threads {
            match thread.join() {
                Ok(ended) => ended.context("enter a namespace")??,
                Err(_) => bail!("a thread of the traffic panicked"),
            }
        }
        let mut played = self.shared.played.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut played))
    }
}

/// What client and server of a pair share.
#[derive(Debug, Default)]
struct Pair {
    meeting: Meeting,
    /// The client has come to its end: nobody new will connect.
    client_is_done: AtomicBool,
}

/// What a server is told of the connection that will come.
struct Order {
    program: Program,
    family: Family,
    client: SocketAddr,
}

type Outcome = std::io::Result<()>;

fn listen(pair: usize) -> Result<[TcpListener; 2]> {
    let port = port(pair);
    let open = |family| -> Result<TcpListener> {
        let address = SocketAddr::new(ground::server(family), port);
        let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true).context("set a listener to not block")?;
        Ok(listener)
    };
    Ok([open(Family::V4)?, open(Family::V6)?])
}

fn port(pair: usize) -> u16 {
    FIRST_PORT + 1 + u16::try_from(pair).unwrap_or(0)
}

fn serve(
    listeners: &[TcpListener; 2],
    todo: &Receiver<Order>,
    reports: &Sender<Outcome>,
    pair: &Pair,
    patience: Duration,
) -> Result<()> {
    while let Ok(Order { program, family, client }) = todo.recv() {
        let outcome =
            accept(&listeners[family as usize], client, pair, patience).and_then(|stream| match stream {
                Some(stream) => program(stream, &pair.meeting),
                None => Ok(()),
            });
        if reports.send(outcome).is_err() {
            break;
        }
    }
    Ok(())
}

/// The connection of that client; none if its handshake never completed.
fn accept(
    listener: &TcpListener,
    client: SocketAddr,
    pair: &Pair,
    patience: Duration,
) -> std::io::Result<Option<TcpStream>> {
    let mut gone_since = None;
    loop {
        match listener.accept() {
            Ok((stream, from)) if from == client => {
                stream.set_nonblocking(false)?;
                patient(&stream, patience)?;
                return Ok(Some(stream));
            }
            // One that came too late for its own turn.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if pair.client_is_done.load(Ordering::Acquire)
                    && gone_since.get_or_insert_with(Instant::now).elapsed() > LATE_HANDSHAKE
                {
                    return Ok(None);
                }
                let nap = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&nap)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A handshake whose last ACK was lost may complete with a SYN-ACK that is sent again, after a second.
const LATE_HANDSHAKE: Duration = Duration::from_millis(1_500);

fn ask(
    number: usize,
    shared: &Shared,
    orders: &Sender<Order>,
    done: &Receiver<Outcome>,
    pair: &Pair,
) -> Result<()> {
    let menu = &shared.plan.menu;
    let mut places = Places::new(number, shared.plan.pairs);
    // Each pair begins elsewhere on the menu.
    let mut course = number * 7;
    while !stop::requested() {
        let kind = menu[course % menu.len()];
        // Both families in turn, and every kind in both of them.
        let family = if (course + course / menu.len()).is_multiple_of(2) { Family::V4 } else { Family::V6 };
        course += 1;
        let rounds = KINDS[kind].connections;
        if shared.taken.fetch_add(rounds.len() as u64, Ordering::Relaxed) >= shared.plan.connections {
            break;
        }
        let client = places.next(family);
        let listening = rounds.iter().all(|programs| programs.server.is_some());
        let port = if listening { port(number) } else { FIRST_PORT };
        let server = SocketAddr::new(ground::server(family), port);
        shared.note(|played| {
            played.kinds.insert([client, server], kind);
            played.connections += rounds.len() as u64;
        });
        for programs in rounds {
            pair.meeting.reset();
            pair.client_is_done.store(false, Ordering::Release);
            if let Some(program) = programs.server {
                orders.send(Order { program, family, client }).context("the server's thread is gone")?;
            }
            let outcome = match open(client, server, shared.plan.patience) {
                Ok(stream) => (programs.client)(stream, &pair.meeting),
                Err(Errno::CONNREFUSED) if !listening => Ok(()),
                Err(error) => Err(error.into()),
            };
            pair.client_is_done.store(true, Ordering::Release);
            shared.judge(kind, "client", outcome);
            if programs.server.is_some() {
                shared.judge(kind, "server", done.recv().context("the server's thread is gone")?);
            }
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Played)) {
        change(&mut self.played.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Resets and the like are what some kinds are about.
    fn judge(&self, kind: usize, end: &str, outcome: Outcome) {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        if let Err(error) = outcome
            && ![BrokenPipe, ConnectionReset, UnexpectedEof].contains(&error.kind())
        {
            let what = format!("{}: {end}: {error}", KINDS[kind].name);
            self.note(|played| *played.failures.entry(what).or_default() += 1);
        }
    }
}

/// Indices of [`KINDS`] whose name contains the filter, each as often as its weight says, spread out.
pub fn menu(filter: &str) -> Vec<usize> {
    let most = KINDS.iter().map(|kind| kind.weight).max().unwrap_or(1);
    let kinds = KINDS.iter().enumerate().filter(|(_, kind)| kind.name.contains(filter));
    (0..most)
        .flat_map(|round| kinds.clone().filter(move |(_, kind)| kind.weight > round).map(|(at, _)| at))
        .collect()
}

/// The kinds of traffic.
pub fn names() -> Vec<&'static str> {
    KINDS.iter().map(|kind| kind.name).collect()
}

/// The addresses and ports of one pair's clients, none twice within any TIME-WAIT.
struct Places {
    first: u16,
    ports: usize,
    used: usize,
}

impl Places {
    fn new(number: usize, pairs: usize) -> Self {
        let ports = usize::from(CLIENT_PORTS.end - CLIENT_PORTS.start) / pairs.max(1);
        let offset = u16::try_from(number * ports).unwrap_or(0);
        Self { first: CLIENT_PORTS.start + offset, ports, used: 0 }
    }

    fn next(&mut self, family: Family) -> SocketAddr {
        let used = self.used;
        self.used += 1;
        let port = u16::try_from(used % self.ports).unwrap_or(0);
        let host = u8::try_from(used / self.ports % usize::from(CLIENTS)).unwrap_or(0);
        SocketAddr::new(ground::client(family, host), self.first + port)
    }
}

fn open(client: SocketAddr, server: SocketAddr, patience: Duration) -> rustix::io::Result<TcpStream> {
    let family = match client.ip() {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &client)?;
    connect(&socket, &server)?;
    let stream = TcpStream::from(socket);
    patient(&stream, patience).map_err(|_| Errno::INVAL)?;
    Ok(stream)
}

fn patient(stream: &TcpStream, patience: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))
}
