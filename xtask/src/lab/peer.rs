//! One end of a connection played from a script, at an address that no kernel owns.
//!
//! Simultaneous opens and closes, half-open handshakes and late acknowledgements need an end that does exactly what
//! the script says; a kernel would answer by itself. The other end is a real socket.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::raw::RawPort;
use super::segment::{ACK, FIN, RST, SYN, Segment};
use super::{IFACE_B, Lab, MAC_A, MAC_B};

/// How long a kernel may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Maximum segment size, so that SYNs look like anyone's.
const MSS: [u8; 4] = [2, 4, 0x05, 0xa0];

/// The scripted end.
#[derive(Debug)]
pub struct ScriptedPeer {
    port: RawPort,
    local: SocketAddr,
    remote: SocketAddr,
    /// Sequence number of what is sent next.
    pub next: u32,
    /// Acknowledgement number that goes into what is sent.
    pub acked: u32,
}

impl ScriptedPeer {
    /// A peer at `local` (see [`super::Family::quiet`]) for a socket of namespace a at `remote`. Port 0 in `remote`
    /// stands for the port of the first segment that arrives. Make it before that segment can be sent.
    pub fn new(lab: &Lab, local: SocketAddr, remote: SocketAddr) -> Result<Self> {
        let port = RawPort::open(lab.b(), IFACE_B)?;
        // Fixed, and near the end, so that sequence numbers wrap within a few bytes: reproducible and demanding.
        Ok(Self { port, local, remote, next: 0xffff_fffa, acked: 0 })
    }

    /// The address of the real socket.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Sends a segment without data, from `next`, acknowledging `acked`.
    pub fn send(&mut self, flags: u8) -> Result<()> {
        self.send_data(flags, b"")
    }

    /// Sends a segment, from `next`, acknowledging `acked`.
    pub fn send_data(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        let segment = Segment {
            source: self.local,
            destination: self.remote,
            seq: self.next,
            ack: if flags & ACK != 0 { self.acked } else { 0 },
            flags,
            window: 0xffff,
            options: if flags & SYN != 0 { MSS.to_vec() } else { Vec::new() },
            payload: payload.to_vec(),
        };
        self.next = segment.end();
        self.send_segment(&segment)
    }

    /// Sends any segment at all; `next` stays as it is.
    pub fn send_segment(&self, segment: &Segment) -> Result<()> {
        self.port.send(&segment.to_frame(MAC_B, MAC_A))
    }

    /// Waits for a segment with exactly these of SYN, FIN, RST and ACK. Others are passed over. It is acknowledged
    /// only by [`Self::acknowledge`]: being late with that is half of what scripts are for.
    pub fn expect(&mut self, flags: u8) -> Result<Segment> {
        let deadline = Instant::now() + PATIENCE;
        let mut passed_over = Vec::new();
        while let Some(segment) = self.receive(deadline)? {
            if segment.flags & (SYN | FIN | RST | ACK) == flags {
                return Ok(segment);
            }
            passed_over.push(format!("{:#04x}", segment.flags));
        }
        bail!(
            "no segment with flags {flags:#04x} within {PATIENCE:?}; came instead: [{}]",
            passed_over.join(" ")
        )
    }

    /// The next segment from the remote socket, if one comes before the deadline.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<Segment>> {
        while let Some(frame) = self.port.receive(deadline)? {
            let Some(segment) = Segment::from_frame(&frame) else { continue };
            let from_remote = segment.source.ip() == self.remote.ip()
                && (self.remote.port() == 0 || segment.source.port() == self.remote.port());
            if from_remote && segment.destination == self.local {
                self.remote = segment.source;
                return Ok(Some(segment));
            }
        }
        Ok(None)
    }

    /// From now on acknowledges everything up to the end of `segment`.
    pub fn acknowledge(&mut self, segment: &Segment) {
        self.acked = segment.end();
    }

    /// The three-way handshake with a listening socket.
    pub fn connect(&mut self) -> Result<()> {
        self.send(SYN)?;
        let answer = self.expect(SYN | ACK).context("handshake")?;
        self.acknowledge(&answer);
        self.send(ACK)
    }
}
