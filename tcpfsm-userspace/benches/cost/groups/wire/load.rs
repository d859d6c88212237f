//! Clients in one namespace, servers in the other.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use xtask::lab::{Family, Lab};

/// One server a port; several, because a client's ports are used up otherwise.
const PORTS: std::ops::Range<u16> = 8000..8008;
/// Clients at once: enough that two CPUs are busy.
const CLIENTS: usize = 4;
/// What load is given before it is measured, in seconds: a window has to open, and what a watcher does when it begins, reading the
/// host's sockets for one, is not what it costs from then on.
pub const AHEAD: f64 = 0.3;
/// There and back.
const MESSAGE: [u8; 64] = [b'x'; 64];

/// Room for as many short connections as a second brings, again and again.
pub fn prepare(lab: &Lab) -> Result<()> {
    let set = |name: &str, value: &str| {
        fs::write(format!("/proc/sys/net/ipv4/{name}"), value).with_context(|| format!("set {name}"))
    };
    for namespace in [lab.a(), lab.b()] {
        namespace.run(|| {
            set("ip_local_port_range", "10000 65535")?;
            set("tcp_tw_reuse", "1")?;
            // Beyond this, a socket skips TIME-WAIT: what it costs stays the same in every round.
            set("tcp_max_tw_buckets", "16384")
        })??;
    }
    Ok(())
}

/// What the clients did.
pub struct Connections {
    pub count: u64,
    pub seconds: f64,
    /// Microseconds from `connect` to the last `close`, of each.
    pub took: Vec<f64>,
}

/// Servers that answer until they are dropped.
pub struct Servers {
    stop: Arc<AtomicBool>,
}

impl Servers {
    pub fn start(lab: &Lab) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for port in PORTS {
            let stop = Arc::clone(&stop);
            let address = SocketAddr::new(Family::V4.a(), port);
            let listener = lab.a().run(|| TcpListener::bind(address))?.context("listen")?;
            // Ends with its first connection after the stop, or with the process.
            lab.a().spawn(move || {
                crate::sys::unpin();
                while let Ok((stream, _)) = listener.accept() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    serve(stream);
                }
            })?;
        }
        Ok(Self { stop })
    }

    /// Connections for so many seconds: 64 bytes there, 64 back, close.
    pub fn connect(&self, lab: &Lab, seconds: f64) -> Result<Connections> {
        let began = Instant::now();
        let end = began + Duration::from_secs_f64(seconds);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                lab.b().spawn(move || {
                    crate::sys::unpin();
                    let mut took = Vec::new();
                    let mut port = PORTS.cycle_from(client);
                    while Instant::now() < end {
                        let started = Instant::now();
                        let address = SocketAddr::new(Family::V4.a(), port.next());
                        if converse(address).is_ok() {
                            took.push(started.elapsed().as_secs_f64() * 1e6);
                        }
                    }
                    took
                })
            })
            .collect::<Result<_>>()?;
        let mut took = Vec::new();
        for client in clients {
            took.extend(client.join().expect("a client panicked")?);
        }
        Ok(Connections { count: took.len() as u64, seconds: began.elapsed().as_secs_f64(), took })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream) {
    let mut message = [0; 64];
    while stream.read_exact(&mut message).is_ok() {
        if stream.write_all(&message).is_err() {
            break;
        }
    }
}

fn converse(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&MESSAGE)?;
    stream.read_exact(&mut [0; 64])
}

/// The ports in turn, each client from another on.
struct Cycle(u16);

trait CycleFrom {
    fn cycle_from(&self, client: usize) -> Cycle;
}

impl CycleFrom for std::ops::Range<u16> {
    fn cycle_from(&self, client: usize) -> Cycle {
        Cycle(client as u16 * 2)
    }
}

impl Cycle {
    fn next(&mut self) -> u16 {
        self.0 = (self.0 + 1) % (PORTS.end - PORTS.start);
        PORTS.start + self.0
    }
}

/// One stream from client to server, measured for so many seconds after it went on for `ahead`; gives bytes a second as the server
/// got them.
pub fn stream(lab: &Lab, ahead: f64, seconds: f64) -> Result<f64> {
    let address = SocketAddr::new(Family::V4.a(), 0);
    let listener = lab.a().run(|| TcpListener::bind(address))?.context("listen")?;
    let address = listener.local_addr()?;
    let got = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&got);
    let server = lab.a().spawn(move || -> std::io::Result<()> {
        crate::sys::unpin();
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => counted.fetch_add(count as u64, Ordering::Relaxed),
            };
        }
    })?;
    let client = lab.b().spawn(move || -> std::io::Result<()> {
        crate::sys::unpin();
        let mut stream = TcpStream::connect(address)?;
        let buffer = vec![b'x'; 1 << 17];
        let end = Instant::now() + Duration::from_secs_f64(ahead + seconds + 0.1);
        while Instant::now() < end {
            stream.write_all(&buffer)?;
        }
        stream.shutdown(Shutdown::Write)
    })?;
    thread::sleep(Duration::from_secs_f64(ahead));
    let (began, before) = (Instant::now(), got.load(Ordering::Relaxed));
    thread::sleep(Duration::from_secs_f64(seconds));
    let rate = (got.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    client.join().expect("the client panicked")??;
    server.join().expect("the server panicked")??;
    Ok(rate)
}
