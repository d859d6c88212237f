//! The frames that test runs repeat. Addresses, ports and numbers come from the plan, see `plan.rs`.

use crate::plan::{CLIENT_PORTS, CLIENTS, SERVER, SERVER_PORT, STEPS, Step};

pub const FIN: u32 = 1;
pub const SYN: u32 = 2;
pub const PSH: u32 = 8;
pub const ACK: u32 = 16;

/// Each end's initial sequence number.
pub const CLIENT_ISS: u32 = 1000;
pub const SERVER_ISS: u32 = 5000;
/// Bytes of every data segment: few, so that a window lasts for all rounds.
pub const DATA: u32 = 10;
/// The window offered: with the largest scale a gigabyte.
pub const WINDOW: u32 = 65_535;

/// How a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Ipv4,
    /// IPv4 behind one 802.1Q tag.
    Vlan,
    Ipv6,
}

/// Which TCP options a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Options {
    None,
    /// As Linux sends them with every segment but a SYN.
    Timestamps,
    /// As Linux sends them with a SYN, the window scale as large as can be.
    Syn,
}

impl Options {
    fn bytes(self) -> &'static [u8] {
        match self {
            Self::None => &[],
            Self::Timestamps => &[1, 1, 8, 10, 0, 0, 1, 1, 0, 0, 1, 0],
            Self::Syn => &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 3, 14],
        }
    }

    /// Header bytes of a TCP segment with these.
    fn header(self) -> u32 {
        20 + u32::try_from(self.bytes().len()).unwrap()
    }
}

/// A frame, and what a step's `len` must be for a payload.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub layout: Layout,
    pub options: Options,
}

impl Shape {
    /// The length in the IP header of a segment with this payload.
    pub fn len(self, payload: u32) -> u32 {
        let ip = if self.layout == Layout::Ipv6 { 0 } else { 20 };
        ip + self.options.header() + payload
    }

    /// A frame with room for `payload` bytes: flow 0's, from the client, an ACK.
    pub fn frame(self, payload: u32) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if self.layout == Layout::Vlan {
            frame.extend([0x81, 0, 0, 7]);
        }
        let len = u16::try_from(self.len(payload)).unwrap().to_be_bytes();
        let (client, server) = (CLIENTS.to_be_bytes(), SERVER.to_be_bytes());
        if self.layout == Layout::Ipv6 {
            const NETWORK: [u8; 12] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0];
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], 6, 64]);
            for host in [client, server] {
                frame.extend(NETWORK);
                frame.extend(host);
            }
        } else {
            frame.extend([8, 0, 0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, 6, 0, 0]);
            frame.extend(client);
            frame.extend(server);
        }
        frame.extend(u16::try_from(CLIENT_PORTS).unwrap().to_be_bytes());
        frame.extend(SERVER_PORT.to_be_bytes());
        frame.extend((CLIENT_ISS + 1).to_be_bytes());
        frame.extend((SERVER_ISS + 1 + DATA).to_be_bytes());
        frame.extend([u8::try_from(self.options.header() / 4).unwrap() << 4, ACK as u8]);
        frame.extend(u16::try_from(WINDOW).unwrap().to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(self.options.bytes());
        frame.resize(frame.len() + payload as usize, b'x');
        // The least that Ethernet carries.
        frame.resize(frame.len().max(60), 0);
        frame
    }

    /// A step with sequence numbers relative to each end's initial one.
    fn step(self, reverse: bool, flags: u32, seq: u32, ack: u32, payload: u32) -> Step {
        let (own, other) = if reverse { (SERVER_ISS, CLIENT_ISS) } else { (CLIENT_ISS, SERVER_ISS) };
        Step {
            reverse: u32::from(reverse),
            flags,
            seq: own + seq,
            seq_turn: 0,
            ack: if flags & ACK == 0 { 0 } else { other + ack },
            ack_turn: 0,
            len: self.len(payload),
            window: WINDOW,
        }
    }

    /// SYN and SYN-ACK.
    pub fn opening(self) -> Vec<Step> {
        vec![self.step(false, SYN, 0, 0, 0), self.step(true, SYN | ACK, 0, 1, 0)]
    }

    /// The third segment, data from the server, and its acknowledgment: both ends have proved their state.
    pub fn settling(self) -> Vec<Step> {
        vec![
            self.step(false, ACK, 1, 1, 0),
            self.step(true, ACK | PSH, 1, 1, DATA),
            self.step(false, ACK, 1, 1 + DATA, 0),
        ]
    }

    /// Data from the client of a settled flow, in order each turn.
    pub fn data(self) -> Vec<Step> {
        vec![Step { seq_turn: DATA, ..self.step(false, ACK | PSH, 1, 1 + DATA, DATA) }]
    }

    /// A bare acknowledgment from the client of a settled flow, with nothing outstanding.
    pub fn pure_ack(self) -> Vec<Step> {
        vec![self.step(false, ACK, 1, 1 + DATA, 0)]
    }

    /// Data from the client, then its acknowledgment from the server.
    pub fn data_and_ack(self) -> Vec<Step> {
        let ack = self.step(true, ACK, 1 + DATA, 1 + DATA, 0);
        vec![self.data()[0], Step { ack_turn: DATA, ..ack }]
    }

    /// A SYN.
    pub fn syn(self) -> Vec<Step> {
        vec![self.step(false, SYN, 0, 0, 0)]
    }

    /// A short connection as Linux makes it: open, a request and its answer, close from the client.
    pub fn short_connection(self) -> Vec<(&'static str, Step)> {
        let (data, push) = (DATA, ACK | PSH);
        vec![
            ("SYN", self.step(false, SYN, 0, 0, 0)),
            ("SYN-ACK", self.step(true, SYN | ACK, 0, 1, 0)),
            ("third ACK", self.step(false, ACK, 1, 1, 0)),
            ("request", self.step(false, push, 1, 1, data)),
            ("its ACK", self.step(true, ACK, 1, 1 + data, 0)),
            ("response", self.step(true, push, 1, 1 + data, data)),
            ("ACK of it", self.step(false, ACK, 1 + data, 1 + data, 0)),
            ("FIN", self.step(false, FIN | ACK, 1 + data, 1 + data, 0)),
            ("the other FIN", self.step(true, FIN | ACK, 1 + data, 2 + data, 0)),
            ("last ACK", self.step(false, ACK, 2 + data, 2 + data, 0)),
        ]
    }

    /// The frame of a step.
    pub fn played(self, step: &Step, id: u16) -> Vec<u8> {
        let payload = step.len - Shape { options: Options::Timestamps, ..self }.len(0);
        let mut frame = self.frame(payload);
        let (ip, tcp) = (14, 34);
        frame[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
        if step.reverse != 0 {
            for at in 0..4 {
                frame.swap(ip + 12 + at, ip + 16 + at);
            }
            frame.swap(tcp, tcp + 2);
            frame.swap(tcp + 1, tcp + 3);
        }
        frame[tcp + 4..tcp + 8].copy_from_slice(&step.seq.to_be_bytes());
        frame[tcp + 8..tcp + 12].copy_from_slice(&step.ack.to_be_bytes());
        frame[tcp + 13] = step.flags as u8;
        frame
    }

    /// A whole connection: open, two requests and answers, close from the client.
    pub fn connection(self) -> Vec<Step> {
        let (data, push) = (DATA, ACK | PSH);
        vec![
            self.step(false, SYN, 0, 0, 0),
            self.step(true, SYN | ACK, 0, 1, 0),
            self.step(false, ACK, 1, 1, 0),
            self.step(false, push, 1, 1, data),
            self.step(true, ACK, 1, 1 + data, 0),
            self.step(true, push, 1, 1 + data, data),
            self.step(false, ACK, 1 + data, 1 + data, 0),
            self.step(false, push, 1 + data, 1 + data, data),
            self.step(true, push, 1 + data, 1 + 2 * data, data),
            self.step(false, ACK, 1 + 2 * data, 1 + 2 * data, 0),
            self.step(false, FIN | ACK, 1 + 2 * data, 1 + 2 * data, 0),
            self.step(true, FIN | ACK, 1 + 2 * data, 2 + 2 * data, 0),
            self.step(false, ACK, 2 + 2 * data, 2 + 2 * data, 0),
        ]
    }
}

const _: () = assert!(STEPS >= 13);
