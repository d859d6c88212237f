//! Packets from a builder, and random talks between two ends that stay near what a connection would say.

use proptest::prelude::*;
use tcpfsm_common::{
    flow::{End, FlowKey},
    packet::{Network, Packet, Parsed, parse_network},
    segment::{Segment, TcpFlags},
};

/// Address family of a talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// One segment of a talk, relative to what was said before.
#[derive(Clone, Debug)]
pub struct Move {
    pub from_a: bool,
    pub flags: u16,
    pub seq: Near,
    pub ack: Near,
    pub len: u16,
    pub window: u16,
    pub options: Options,
}

/// A number, by its distance from a landmark.
#[derive(Clone, Copy, Debug)]
pub enum Near {
    /// What is due: SND.NXT for a sequence number, the peer's SND.NXT for an acknowledgment.
    Due(i32),
    /// The initial sequence number of whoever counts.
    Initial(i32),
    /// What the other side last acknowledged, or this side itself.
    Acked(i32),
    Anything(u32),
}

/// TCP options.
#[derive(Clone, Debug)]
pub enum Options {
    None,
    /// What a SYN carries: MSS, SACK-permitted, window scale; and timestamps if asked.
    Syn {
        scale: u8,
        timestamps: bool,
    },
    /// Timestamps, by their distance from the last.
    Timestamps(i32),
    /// A SACK block beyond a hole.
    Sack(u16),
    Malformed([u8; 8]),
}

impl Move {
    /// Mostly what a stack would send, now and then anything.
    pub fn strategy() -> impl Strategy<Value = Self> {
        use TcpFlags as F;
        let flags = prop_oneof![
            30 => Just(F::ACK),
            12 => Just(F::ACK | F::PSH),
            12 => Just(F::SYN),
            12 => Just(F::SYN | F::ACK),
            14 => Just(F::FIN | F::ACK),
            4 => Just(F::RST),
            3 => Just(F::RST | F::ACK),
            1 => Just(F::SYN | F::ECE | F::CWR),
            2 => 0..0x200_u16,
        ];
        let near = || {
            prop_oneof![
                30 => Just(Near::Due(0)),
                4 => (-3..4_i32).prop_map(Near::Due),
                3 => (-3000..3000_i32).prop_map(Near::Due),
                2 => (-200_000..200_000_i32).prop_map(Near::Due),
                6 => (0..3_i32).prop_map(Near::Initial),
                6 => (-2..3_i32).prop_map(Near::Acked),
                1 => any::<u32>().prop_map(Near::Anything),
            ]
        };
        let len = prop_oneof![6 => Just(0_u16), 2 => Just(1_u16), 3 => Just(100_u16), 2 => 0..1460_u16];
        let window =
            prop_oneof![6 => Just(64_240_u16), 2 => Just(63_u16), 1 => Just(0_u16), 1 => any::<u16>()];
        let options = prop_oneof![
            6 => Just(Options::None),
            4 => (0..16_u8, any::<bool>()).prop_map(|(scale, timestamps)| Options::Syn { scale, timestamps }),
            4 => (-3..20_i32).prop_map(Options::Timestamps),
            1 => any::<u16>().prop_map(Options::Sack),
            1 => any::<[u8; 8]>().prop_map(Options::Malformed),
        ];
        (any::<bool>(), flags, near(), near(), len, window, options).prop_map(
            |(from_a, flags, seq, ack, len, window, options)| Self {
                from_a,
                flags,
                seq,
                ack,
                len,
                window,
                options,
            },
        )
    }
}

/// What one end has said.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    iss: u32,
    nxt: u32,
    ack: u32,
    tsval: u32,
    ip_id: u16,
}

/// Two ends that talk.
pub struct Talk {
    family: Family,
    flow: u32,
    sides: [Side; 2],
}

impl Talk {
    /// A talk between addresses of its own.
    pub fn new(family: Family, flow: u32) -> Self {
        let side = |iss| Side { iss, nxt: iss, tsval: 1000, ..Side::default() };
        // One of the two wraps around soon.
        let sides = [side(0xffff_f000_u32.wrapping_add(flow)), side(flow.wrapping_mul(0x9e37_79b9))];
        Self { family, flow, sides }
    }

    /// The IP packet of a move.
    pub fn packet(&mut self, next: &Move) -> Vec<u8> {
        let (me, peer) = if next.from_a { (0, 1) } else { (1, 0) };
        let (own, other) = (self.sides[me], self.sides[peer]);
        let resolve = |near: Near, due: u32, initial: u32, acked: u32| match near {
            Near::Due(d) => due.wrapping_add_signed(d),
            Near::Initial(d) => initial.wrapping_add_signed(d),
            Near::Acked(d) => acked.wrapping_add_signed(d),
            Near::Anything(n) => n,
        };
        let syn = next.flags & TcpFlags::SYN != 0;
        let seq = match next.seq {
            Near::Due(0) if syn => own.iss,
            near => resolve(near, own.nxt, own.iss, other.ack),
        };
        let ack = resolve(next.ack, other.nxt, other.iss, own.ack);
        let len = if syn && next.len > 100 { 0 } else { next.len };
        let side = &mut self.sides[me];
        side.ip_id = side.ip_id.wrapping_add(1);
        let end = seq
            .wrapping_add(u32::from(len))
            .wrapping_add(u32::from(syn))
            .wrapping_add(u32::from(next.flags & TcpFlags::FIN));
        if end.wrapping_sub(side.nxt).cast_signed() > 0 && end.wrapping_sub(side.nxt) < 100_000 {
            side.nxt = end;
        }
        if next.flags & TcpFlags::ACK != 0 {
            side.ack = ack;
        }
        let options = match &next.options {
            Options::None => vec![],
            Options::Syn { scale, timestamps } => {
                let mut bytes = vec![2, 4, 5, 0xb4, 4, 2, 1, 3, 3, *scale, 1, 1];
                if *timestamps {
                    bytes.extend(timestamps_option(side.tsval, 7));
                }
                bytes
            }
            Options::Timestamps(d) => {
                side.tsval = side.tsval.wrapping_add_signed(*d);
                timestamps_option(side.tsval, 7)
            }
            Options::Sack(beyond) => {
                let edge = other.nxt.wrapping_add(u32::from(*beyond));
                let mut bytes = vec![1, 1, 5, 10];
                bytes.extend(edge.to_be_bytes());
                bytes.extend(edge.wrapping_add(100).to_be_bytes());
                bytes
            }
            Options::Malformed(bytes) => bytes.to_vec(),
        };
        let ip_id = side.ip_id;
        let (from, to) = if next.from_a { (1, 2) } else { (2, 1) };
        let ports = if next.from_a { (40_000, 443) } else { (443, 40_000) };
        let segment = tcp(ports, seq, ack, next.flags, next.window, &options, usize::from(len));
        match self.family {
            Family::V4 => ipv4(self.flow, from, to, ip_id, &segment),
            Family::V6 => ipv6(self.flow, from, to, &segment),
        }
    }
}

/// The option with its padding.
pub fn timestamps_option(value: u32, echo: u32) -> Vec<u8> {
    let mut bytes = vec![1, 1, 8, 10];
    bytes.extend(value.to_be_bytes());
    bytes.extend(echo.to_be_bytes());
    bytes
}

/// A TCP header with options and payload; no checksum, which nothing here reads.
pub fn tcp(
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u16,
    window: u16,
    options: &[u8],
    payload: usize,
) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4) && options.len() <= 40);
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let [reserved_ae, low] = flags.to_be_bytes();
    let mut bytes = Vec::new();
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([words << 4 | reserved_ae & 1, low]);
    bytes.extend(window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(options);
    bytes.resize(bytes.len() + payload, b'x');
    bytes
}

/// An IPv4 packet between hosts `from` and `to` of network `network`.
pub fn ipv4(network: u32, from: u8, to: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let [_, b, c, d] = network.to_be_bytes();
    let total = u16::try_from(20 + payload.len()).unwrap();
    let mut bytes = vec![0x45, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend(id.to_be_bytes());
    bytes.extend([0x40, 0, 64, 6, 0, 0]);
    // Hosts of 10.b.c.0/24 talk to hosts of 172.16+b.…: enough networks for every flow.
    bytes.extend(if from == 1 { [10, b, c, d] } else { [172, b, c, d] });
    bytes.extend(if to == 1 { [10, b, c, d] } else { [172, b, c, d] });
    bytes.extend(payload);
    bytes
}

/// An IPv6 packet between hosts `from` and `to` of network `network`.
pub fn ipv6(network: u32, from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap();
    let address = |host: u8| {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        address[8..12].copy_from_slice(&network.to_be_bytes());
        address[15] = host;
        address
    };
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(len.to_be_bytes());
    bytes.extend([6, 64]);
    bytes.extend(address(from));
    bytes.extend(address(to));
    bytes.extend(payload);
    bytes
}

/// What the userspace parser makes of an IP packet.
pub fn parse(packet: &[u8]) -> (FlowKey, End, Segment) {
    let network = if packet[0] >> 4 == 4 { Network::Ipv4 } else { Network::Ipv6 };
    match parse_network(&packet, network, 0, packet.len()).unwrap() {
        Parsed::V4(Packet::Tcp(ends, segment)) => {
            let (key, end) = ends.key(0);
            (FlowKey::V4(key), end, segment)
        }
        Parsed::V6(Packet::Tcp(ends, segment)) => {
            let (key, end) = ends.key(0);
            (FlowKey::V6(key), end, segment)
        }
        other => panic!("{other:?} is not TCP"),
    }
}
