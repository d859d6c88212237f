//! Packets through a veth pair as fast as one CPU sends and receives them: a packet socket on one side, programs on the
//! other. The receiver's stack drops them, as they are not for its link address.

use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::TcAttachType;
use rustix::net::netdevice::name_to_index;
use xtask::lab::{IFACE_B, Lab};

use super::attach::{tcx, xdp};
use crate::{
    Bench,
    frames::{CLIENT_ISS, DATA, Layout, Options, Shape},
    plan::{CLIENT_PORTS, Step},
    rig::{Clock, Table, go_on},
    subject::{Expect, Sizes, Subject},
    sys,
};

/// Packets of one system call.
const BATCH: usize = 64;
/// Flows that the packets belong to.
const FLOWS: usize = 1024;

/// What is attached to the receiving interface.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Nothing,
    EmptyTcx,
    OursTcx,
    EmptyXdp,
    OursXdp,
}

const CASES: [(&str, On); 5] = [
    ("nothing", On::Nothing),
    ("empty program, TCX ingress", On::EmptyTcx),
    ("tcpfsm, TCX ingress", On::OursTcx),
    ("empty program, XDP", On::EmptyXdp),
    ("tcpfsm, XDP", On::OursXdp),
];

/// Packets a second; in turn with nothing, empty programs, and ours.
pub fn measure(bench: &Bench) -> Result<Table> {
    let lab = Lab::new("bench").context("the lab")?;
    let quiet = format!("/proc/sys/net/ipv6/conf/{IFACE_B}/disable_ipv6");
    // Its own solicitations would be counted among the packets.
    lab.b().run(|| fs::write(&quiet, "1"))?.with_context(|| quiet)?;
    let sender = lab.b().run(|| Sender::open(IFACE_B))??;
    let mut floor = bench.floor.load(1, 1)?;
    let mut subject = Subject::load(&bench.object, &Sizes::default())?;
    floor.program("floor_empty")?;
    floor.program("floor_empty_tc")?;
    subject.program("tcpfsm_xdp")?;
    subject.program("tcpfsm_ingress")?;
    subject.establish(&bench.floor, Layout::Ipv4, u32::try_from(FLOWS)?)?;

    let shape = Shape { layout: Layout::Ipv4, options: Options::Timestamps };
    let mut data = Frames::new(shape);
    let clock = Clock::start();
    let mut rates = vec![Vec::new(); CASES.len()];
    let batches = if bench.quick { 500 } else { 5000 };
    for _ in 0..bench.rounds() {
        go_on()?;
        for ((name, on), rates) in CASES.iter().zip(&mut rates) {
            let link = lab.a().run(|| match on {
                On::Nothing => Ok(None),
                On::EmptyTcx => tcx(floor.object(), "floor_empty_tc", TcAttachType::Ingress).map(Some),
                On::OursTcx => tcx(subject.object(), "tcpfsm_ingress", TcAttachType::Ingress).map(Some),
                On::EmptyXdp => xdp(floor.object(), "floor_empty").map(Some),
                On::OursXdp => xdp(subject.object(), "tcpfsm_xdp").map(Some),
            })?;
            let link = link.with_context(|| (*name).to_owned())?;
            let ours = matches!(on, On::OursTcx | On::OursXdp);
            let expect = Expect::begin(&subject, None)?;
            let first = (data.turn, data.at);
            let began = sys::now();
            let mut sent = 0;
            for _ in 0..batches {
                sent += sender.send(&mut data)?;
            }
            rates.push(sent as f64 / (sys::now() - began) * 1e3);
            if ours {
                expect.nothing_but(&subject, sent, name)?;
            } else {
                // The tracker has not seen these: what it sees next must follow what it saw last.
                (data.turn, data.at) = first;
            }
            drop(link);
        }
    }
    let rows = CASES.iter().map(|(name, _)| *name).zip(rates).collect();
    Ok(Table::of("packets", "M/s", clock, rows))
}

/// One frame a flow; each turn they are the next data of all flows.
struct Frames {
    frames: Vec<Vec<u8>>,
    step: Step,
    turn: u32,
    at: usize,
}

impl Frames {
    fn new(shape: Shape) -> Self {
        let frames = (0..FLOWS)
            .map(|flow| {
                let mut frame = shape.frame(DATA);
                // Not the receiver's link address.
                frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0xff]);
                let port = u16::try_from(CLIENT_PORTS as usize + flow).unwrap();
                frame[34..36].copy_from_slice(&port.to_be_bytes());
                frame
            })
            .collect();
        Self { frames, step: shape.data()[0], turn: 0, at: 0 }
    }

    /// The next batch, numbered.
    fn next(&mut self) -> &mut [Vec<u8>] {
        let seq = (CLIENT_ISS + 1).wrapping_add(self.turn.wrapping_mul(self.step.seq_turn));
        let batch = &mut self.frames[self.at..self.at + BATCH];
        // The same number twice would be the same packet, seen twice.
        let ip_id = (self.turn as u16) | 1 << 15;
        for frame in &mut *batch {
            frame[18..20].copy_from_slice(&ip_id.to_be_bytes());
            frame[38..42].copy_from_slice(&seq.to_be_bytes());
        }
        self.at += BATCH;
        if self.at == FLOWS {
            self.at = 0;
            self.turn += 1;
        }
        batch
    }
}

/// A packet socket that goes past the queueing discipline.
struct Sender(OwnedFd);

impl Sender {
    fn open(iface: &str) -> Result<Self> {
        // SAFETY: socket(2) takes no pointers. Protocol 0: nothing is received.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error()).context("packet socket");
        }
        // SAFETY: opened above, nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: zero is a valid value of every field.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_ifindex = i32::try_from(name_to_index(&socket, iface)?)?;
        let one: libc::c_int = 1;
        // SAFETY: both pointers are to values of the sizes given, which outlive the calls.
        let failed = unsafe {
            libc::bind(raw, (&raw const address).cast(), mem::size_of_val(&address) as libc::socklen_t) != 0
                || libc::setsockopt(
                    raw,
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const one).cast(),
                    mem::size_of_val(&one) as libc::socklen_t,
                ) != 0
        };
        if failed {
            return Err(io::Error::last_os_error()).context("packet socket");
        }
        Ok(Self(socket))
    }

    /// Sends the next batch; says how many went out.
    fn send(&self, frames: &mut Frames) -> Result<u64> {
        let batch = frames.next();
        let mut parts: Vec<libc::iovec> = batch
            .iter_mut()
            .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: zero is a valid value of every field.
                let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: the messages, their parts and the frames outlive the call.
        let sent = unsafe { libc::sendmmsg(self.0.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        if sent != BATCH as i32 {
            bail!("{sent} of {BATCH} frames sent: {}", io::Error::last_os_error());
        }
        Ok(BATCH as u64)
    }
}
