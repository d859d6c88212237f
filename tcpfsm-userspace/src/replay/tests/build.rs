//! Captures for the tests, byte by byte.

use super::super::capture::Order;

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

/// An IPv4 packet: client 10.0.0.1:40001, server 10.0.0.2:8080; numbers are relative to the initial ones.
pub(super) fn packet(from_client: bool, flags: u8, seq: u32, ack: u32, payload: usize) -> Vec<u8> {
    let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let (src, dst) = if from_client { (client, server) } else { (server, client) };
    let (sport, dport) = if from_client { (40_001_u16, 8080_u16) } else { (8080, 40_001) };
    let (own, peer) = if from_client { (1000, 9000) } else { (9000, 1000) };
    let mut bytes = vec![0x45, 0];
    bytes.extend(u16::try_from(40 + payload).unwrap().to_be_bytes());
    bytes.extend([0, 1, 0, 0, 64, 6, 0, 0]);
    bytes.extend(src);
    bytes.extend(dst);
    bytes.extend(sport.to_be_bytes());
    bytes.extend(dport.to_be_bytes());
    bytes.extend((own + seq).to_be_bytes());
    bytes.extend(if flags & ACK == 0 { 0 } else { peer + ack }.to_be_bytes());
    bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(bytes.len() + payload, 0x61);
    bytes
}

pub(super) type Step = (bool, u8, u32, u32, usize);

/// A handshake, a request, an answer, and both ends close.
pub(super) const WHOLE: &[Step] = &[
    (true, SYN, 0, 0, 0),
    (false, SYN | ACK, 0, 1, 0),
    (true, ACK, 1, 1, 0),
    (true, PSH | ACK, 1, 1, 100),
    (false, ACK, 1, 101, 0),
    (false, PSH | ACK, 1, 101, 200),
    (true, ACK, 101, 201, 0),
    (true, FIN | ACK, 101, 201, 0),
    (false, FIN | ACK, 201, 102, 0),
    (true, ACK, 102, 202, 0),
];

/// Steps 1 ms apart from 2026-11-22T10:00:00Z on.
pub(super) const START: u64 = 1_795_341_600;

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Pcap { order: Order, nanos: bool },
    Pcapng { order: Order, block: u32 },
}

pub(super) const KINDS: [Kind; 10] = [
    Kind::Pcap { order: Order::Little, nanos: false },
    Kind::Pcap { order: Order::Little, nanos: true },
    Kind::Pcap { order: Order::Big, nanos: false },
    Kind::Pcap { order: Order::Big, nanos: true },
    Kind::Pcapng { order: Order::Little, block: 6 },
    Kind::Pcapng { order: Order::Big, block: 6 },
    Kind::Pcapng { order: Order::Little, block: 2 },
    Kind::Pcapng { order: Order::Big, block: 2 },
    Kind::Pcapng { order: Order::Little, block: 3 },
    Kind::Pcapng { order: Order::Big, block: 3 },
];

pub(super) fn put(out: &mut Vec<u8>, order: Order, values: &[u32]) {
    for value in values {
        match order {
            Order::Little => out.extend(value.to_le_bytes()),
            Order::Big => out.extend(value.to_be_bytes()),
        }
    }
}

pub(super) fn put16(out: &mut Vec<u8>, order: Order, values: &[u16]) {
    for value in values {
        match order {
            Order::Little => out.extend(value.to_le_bytes()),
            Order::Big => out.extend(value.to_be_bytes()),
        }
    }
}

pub(super) fn block(out: &mut Vec<u8>, order: Order, kind: u32, body: &[u8]) {
    let padded = body.len().next_multiple_of(4);
    let len = u32::try_from(padded + 12).unwrap();
    put(out, order, &[kind, len]);
    out.extend(body);
    out.resize(out.len() + padded - body.len(), 0);
    put(out, order, &[len]);
}

/// A section header, an interface that counts milliseconds and is of another link type, one that counts
/// nanoseconds from an hour ago, and a statistics block; frames come from the second.
pub(super) fn pcapng_head(order: Order, link: u16, only_one: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut body = Vec::new();
    put(&mut body, order, &[0x1a2b_3c4d]);
    put16(&mut body, order, &[1, 0]);
    put(&mut body, order, &[u32::MAX, u32::MAX]);
    block(&mut out, order, 0x0a0d_0d0a, &body);
    if !only_one {
        let mut body = Vec::new();
        put16(&mut body, order, &[105, 0]);
        put(&mut body, order, &[0]);
        put16(&mut body, order, &[9, 1]);
        body.extend([3, 0, 0, 0]);
        block(&mut out, order, 1, &body);
    }
    let mut body = Vec::new();
    put16(&mut body, order, &[link, 0]);
    put(&mut body, order, &[0]);
    // if_name, if_tsresol, if_tsoffset, end.
    put16(&mut body, order, &[2, 3]);
    body.extend(b"eth\0");
    put16(&mut body, order, &[9, 1]);
    body.extend([9, 0, 0, 0]);
    put16(&mut body, order, &[14, 8]);
    let hour_ago = (START - 3600).to_be_bytes();
    body.extend(match order {
        Order::Big => hour_ago,
        Order::Little => {
            let mut bytes = hour_ago;
            bytes.reverse();
            bytes
        }
    });
    put16(&mut body, order, &[0, 0]);
    block(&mut out, order, 1, &body);
    block(&mut out, order, 5, &[0; 12]);
    out
}

pub(super) fn capture(kind: Kind, link: u16, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    match kind {
        Kind::Pcap { order, nanos } => {
            put(&mut out, order, &[if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }]);
            put16(&mut out, order, &[2, 4]);
            put(&mut out, order, &[0, 0, 65_535, u32::from(link)]);
            for (frame, i) in frames.iter().zip(0_u32..) {
                let fraction = i * if nanos { 1_000_000 } else { 1000 };
                let len = u32::try_from(frame.len()).unwrap();
                put(&mut out, order, &[u32::try_from(START).unwrap(), fraction, len, len]);
                out.extend(frame);
            }
        }
        Kind::Pcapng { order, block: packet_block } => {
            out = pcapng_head(order, link, packet_block == 3);
            for (frame, i) in frames.iter().zip(0_u64..) {
                let ticks = 3600 * 1_000_000_000 + i * 1_000_000;
                let len = u32::try_from(frame.len()).unwrap();
                let mut body = Vec::new();
                let time = [u32::try_from(ticks >> 32).unwrap(), ticks as u32];
                match packet_block {
                    6 => put(&mut body, order, &[1, time[0], time[1], len, len]),
                    2 => {
                        put16(&mut body, order, &[1, 0]);
                        put(&mut body, order, &[time[0], time[1], len, len]);
                    }
                    _ => put(&mut body, order, &[len]),
                }
                body.extend(frame);
                block(&mut out, order, packet_block, &body);
            }
        }
    }
    out
}
