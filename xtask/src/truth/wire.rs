//! A bad wire: frames between two interfaces, of which some are lost and some come late.
//!
//! A process and not a queueing discipline or a packet filter, because those differ from kernel to kernel, and none of
//! a plain kernel's reorders.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use super::ground::{WIRE_A, WIRE_B};
use crate::lab::Netns;
use crate::lab::raw::RawPort;

/// A frame that comes late does so by this much and up to four times as much: later segments overtake it.
const LATE: Duration = Duration::from_micros(500);
/// Frames that wait for the wire.
const BUFFER: usize = 16 << 20;
/// The largest super-packet and its headers.
const LONGEST: usize = 70_000;
/// How long a request to end may wait.
const NAP: Duration = Duration::from_millis(50);

/// How bad it is, in parts of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    pub loss: u32,
    pub reorder: u32,
}

/// What became of the frames.
#[derive(Debug, Default)]
pub struct Counts {
    pub frames: AtomicU64,
    pub lost: AtomicU64,
    pub late: AtomicU64,
}

/// The wire at work.
#[derive(Debug)]
pub struct Wire {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Result<()>>>,
}

impl Wire {
    pub fn start(namespace: &Netns, quality: Quality) -> Result<Self> {
        let ports = [WIRE_A, WIRE_B].map(|iface| open(namespace, iface));
        let [a, b] = ports;
        let ports = [a?, b?];
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            namespace.spawn(move || carry(&ports, quality, &counts, &stop))?
        };
        Ok(Self { counts, stop, thread })
    }

    /// Ends it; says what became of the frames.
    pub fn stop(self) -> Result<[u64; 3]> {
        let Self { counts, stop, thread } = self;
        stop.store(true, Ordering::Relaxed);
        match thread.join() {
            Ok(ended) => ended.context("enter the wire's namespace")??,
            Err(_) => bail!("the wire's thread panicked"),
        }
        let Counts { frames, lost, late } = &*counts;
        Ok([frames, lost, late].map(|count| count.load(Ordering::Relaxed)))
    }
}

fn open(namespace: &Netns, iface: &str) -> Result<RawPort> {
    let port = RawPort::open(namespace, iface)?;
    port.keep_offloads()?;
    sockopt::set_socket_recv_buffer_size_force(&port, BUFFER).context("SO_RCVBUFFORCE")?;
    Ok(port)
}

fn carry(ports: &[RawPort; 2], quality: Quality, counts: &Counts, stop: &AtomicBool) -> Result<()> {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut buffer = vec![0_u8; LONGEST];
    let mut late: BinaryHeap<Reverse<(Instant, usize, Vec<u8>)>> = BinaryHeap::new();
    while !stop.load(Ordering::Relaxed) {
        let until =
            late.peek().map_or(NAP, |Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let timeout = Timespec::try_from(until.min(NAP)).context("a nap's length")?;
        let mut waiting = ports.each_ref().map(|port| PollFd::new(port, PollFlags::IN));
        match poll(&mut waiting, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for frames"),
        }
        let readable = waiting.map(|port| port.revents().contains(PollFlags::IN));
        for (from, _) in readable.iter().enumerate().filter(|(_, readable)| **readable) {
            // Not for ever: the other direction wants its turn.
            for _ in 0..64 {
                let length = match recv(&ports[from], &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok((_, length)) => length,
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(error) => return Err(error).context("take a frame from the wire"),
                };
                counts.frames.fetch_add(1, Ordering::Relaxed);
                if dice.falls_within(quality.loss) {
                    counts.lost.fetch_add(1, Ordering::Relaxed);
                } else if dice.falls_within(quality.reorder) {
                    counts.late.fetch_add(1, Ordering::Relaxed);
                    let due = Instant::now() + LATE * (1 + dice.roll() % 4);
                    late.push(Reverse((due, 1 - from, buffer[..length].to_vec())));
                } else {
                    put(&ports[1 - from], &buffer[..length])?;
                }
            }
        }
        while let Some(Reverse((due, to, frame))) = late.pop() {
            if due > Instant::now() {
                late.push(Reverse((due, to, frame)));
                break;
            }
            put(&ports[to], &frame)?;
        }
    }
    Ok(())
}

/// A full queue loses the frame, as on any wire.
fn put(port: &RawPort, frame: &[u8]) -> Result<()> {
    match send(port, frame, SendFlags::empty()) {
        Ok(_) | Err(Errno::NOBUFS | Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("put a frame on the wire"),
    }
}

/// A xorshift generator: chance enough for a wire.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    fn falls_within(&mut self, parts_of_a_million: u32) -> bool {
        self.roll() % 1_000_000 < parts_of_a_million
    }
}
