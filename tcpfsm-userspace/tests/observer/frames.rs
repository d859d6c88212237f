//! Packets whose headers are the matter.

use tcpfsm_common::{
    abi::{FlowRecord, Outcome, Verdict},
    fact::Fact,
    flow::{End, FlowKey},
    fsm::{Config, State, advance},
    packet::{Packet, Parsed, Skip, parse_ether, parse_network},
    segment::{Segment, TcpFlags, TcpOptions},
};

use crate::support::{
    self, Kernel, Through, ethernet,
    segments::{ipv4, ipv6, tcp},
};

/// What must become of a frame.
enum Expect {
    /// It is this much of a segment.
    Segment(fn(&Segment) -> bool),
    /// It is counted under this reason, and nothing else.
    Skip(Skip),
}
use Expect::{Segment as Is, Skip as Skipped};

struct Row {
    id: &'static str,
    what: &'static str,
    /// `network` keeps rows apart.
    build: fn(network: u32) -> Vec<u8>,
    expect: Expect,
}

const ROWS: &[Row] = &[
    Row {
        id: "P19",
        what: "the first fragment: its own length, and no FIN, which belongs behind what is missing",
        build: |network| patched(v4(network, F::FIN | F::ACK, 96), |ip| ip[6] = 0x20),
        expect: Is(|s| s.len == 96 && s.flags.0 == F::ACK),
    },
    Row {
        id: "P19",
        what: "a later fragment",
        build: |network| patched(v4(network, F::ACK, 96), |ip| ip[7] = 12),
        expect: Skipped(Skip::Fragment),
    },
    Row {
        id: "P19",
        what: "the last fragment, at an offset of more than 255 units",
        build: |network| patched(v4(network, F::ACK, 96), |ip| ip[6..8].copy_from_slice(&[0x1f, 0])),
        expect: Skipped(Skip::Fragment),
    },
    Row { id: "P20", what: "one word of IPv4 options", build: |n| ip_options(n, 1), expect: Is(is_syn) },
    Row { id: "P20", what: "ten words of IPv4 options", build: |n| ip_options(n, 10), expect: Is(is_syn) },
    Row {
        id: "P21",
        what: "no tag, as when it was offloaded",
        build: |n| tagged(n, &[]),
        expect: Is(is_syn),
    },
    Row { id: "P21", what: "802.1Q", build: |n| tagged(n, &[0x8100]), expect: Is(is_syn) },
    Row { id: "P21", what: "QinQ", build: |n| tagged(n, &[0x88a8, 0x8100]), expect: Is(is_syn) },
    Row { id: "P21", what: "old QinQ", build: |n| tagged(n, &[0x9100, 0x8100]), expect: Is(is_syn) },
    Row {
        id: "P21",
        what: "more tags than anybody stacks",
        build: |n| tagged(n, &[0x88a8, 0x8100, 0x8100, 0x8100]),
        expect: Skipped(Skip::VlanDepth),
    },
    Row { id: "P22", what: "hop-by-hop", build: |n| extended(n, &[(0, 0)], F::SYN, 0), expect: Is(is_syn) },
    Row {
        id: "P22",
        what: "hop-by-hop, destination options, routing",
        build: |n| extended(n, &[(0, 0), (60, 2), (43, 1)], F::SYN, 0),
        expect: Is(is_syn),
    },
    Row {
        id: "P22",
        what: "eight extension headers",
        build: |n| {
            extended(
                n,
                &[(0, 0), (60, 0), (60, 1), (43, 0), (60, 0), (135, 0), (139, 0), (140, 0)],
                F::SYN,
                0,
            )
        },
        expect: Is(is_syn),
    },
    Row {
        id: "P22",
        what: "nine: given up",
        build: |n| extended(n, &[(60, 0); 9], F::SYN, 0),
        expect: Skipped(Skip::ExtensionHeader),
    },
    Row { id: "P23", what: "an atomic fragment", build: |n| fragment6(n, 0), expect: Is(is_syn) },
    Row {
        id: "P23",
        what: "the first of several fragments",
        build: |n| fragment6(n, 1),
        expect: Skipped(Skip::Fragment),
    },
    Row {
        id: "P23",
        what: "a later fragment",
        build: |n| fragment6(n, 12 << 3),
        expect: Skipped(Skip::Fragment),
    },
    Row {
        id: "P24",
        what: "AH is walked",
        build: |n| extended(n, &[(51, 4)], F::SYN, 0),
        expect: Is(is_syn),
    },
    Row {
        id: "P24",
        what: "behind ESP nothing can be read",
        build: |n| extended(n, &[(50, 0)], F::SYN, 0),
        expect: Skipped(Skip::ExtensionHeader),
    },
    Row {
        id: "P24",
        what: "ESP over IPv4",
        build: |network| patched(v4(network, F::SYN, 0), |ip| ip[9] = 50),
        expect: Skipped(Skip::NotTcp),
    },
    Row {
        id: "P25",
        what: "a super-packet with data and FIN",
        build: |network| ethernet(&v4(network, F::FIN | F::PSH | F::ACK, 3000)),
        expect: Is(|s| s.len == 3000 && s.end_seq() == s.seq.plus(3001)),
    },
    Row {
        id: "P26",
        what: "BIG TCP over IPv4: length 0, the packet's own counts",
        build: |network| patched(v4(network, F::PSH | F::ACK, 3000), |ip| ip[2..4].fill(0)),
        expect: Is(|s| s.len == 3000),
    },
    Row {
        id: "P26",
        what: "BIG TCP over IPv6: length 0",
        build: |network| patched(v6(network, F::PSH | F::ACK, 3000), |ip| ip[4..6].fill(0)),
        expect: Is(|s| s.len == 3000),
    },
    Row {
        id: "P26",
        what: "BIG TCP over IPv6: length 0 and the jumbo option of RFC 2675",
        build: |network| {
            let mut frame = extended(network, &[(0, 0)], F::PSH | F::ACK, 3000);
            frame[18..20].fill(0);
            frame[14 + 42..14 + 48].copy_from_slice(&[0xc2, 4, 0, 0, 0x0b, 0xd4]);
            frame
        },
        expect: Is(|s| s.len == 3000),
    },
    Row {
        id: "P27",
        what: "a bare ACK, padded to the least that Ethernet carries",
        build: |network| [ethernet(&v4(network, F::ACK, 0)), vec![0; 6]].concat(),
        expect: Is(|s| s.len == 0),
    },
    Row {
        id: "P27",
        what: "the same over IPv6, padded by a switch",
        build: |network| [ethernet(&v6(network, F::ACK, 0)), vec![0xff; 20]].concat(),
        expect: Is(|s| s.len == 0),
    },
    Row {
        id: "P28",
        what: "a data offset below 5",
        build: |network| patched(v4(network, F::ACK, 20), |ip| ip[32] = 4 << 4),
        expect: Skipped(Skip::BadHeader),
    },
    Row {
        id: "P28",
        what: "a data offset beyond the packet",
        build: |network| patched(v4(network, F::ACK, 20), |ip| ip[32] = 15 << 4),
        expect: Skipped(Skip::BadHeader),
    },
    Row {
        id: "P28",
        what: "a total length without room for a TCP header",
        build: |network| patched(v4(network, F::ACK, 20), |ip| ip[2..4].copy_from_slice(&[0, 39])),
        expect: Skipped(Skip::BadHeader),
    },
    Row {
        id: "P28",
        what: "a total length below the IP header's",
        build: |network| patched(v4(network, F::ACK, 20), |ip| ip[2..4].copy_from_slice(&[0, 19])),
        expect: Skipped(Skip::BadHeader),
    },
    Row {
        id: "P28",
        what: "an IP header length below 5",
        build: |network| patched(v4(network, F::ACK, 20), |ip| ip[0] = 0x44),
        expect: Skipped(Skip::BadHeader),
    },
    Row {
        id: "P28",
        what: "an IPv6 length without room for a TCP header",
        build: |network| patched(v6(network, F::ACK, 20), |ip| ip[4..6].copy_from_slice(&[0, 19])),
        expect: Skipped(Skip::BadHeader),
    },
    Row {
        id: "P28",
        what: "a frame that ends in the TCP header",
        build: |network| ethernet(&v4(network, F::ACK, 0)[..39]),
        expect: Skipped(Skip::Truncated),
    },
    Row {
        id: "P28",
        what: "a frame that ends in the IPv6 header",
        build: |network| ethernet(&v6(network, F::ACK, 0)[..39]),
        expect: Skipped(Skip::Truncated),
    },
    Row {
        id: "P29",
        what: "an option of length 0: what stands before it counts",
        build: |n| syn_with(n, &[2, 4, 5, 0xb4, 3, 0, 7, 1]),
        expect: Is(|s| s.options.mss == 1460 && is_malformed(s) && !s.options.has(TcpOptions::HAS_SCALE)),
    },
    Row {
        id: "P29",
        what: "an option of length 1",
        build: |n| syn_with(n, &[2, 4, 5, 0xb4, 3, 1, 7, 1]),
        expect: Is(|s| s.options.mss == 1460 && is_malformed(s)),
    },
    Row {
        id: "P29",
        what: "an option that runs over the header's end",
        build: |n| syn_with(n, &[2, 4, 5, 0xb4, 8, 10, 0, 0]),
        expect: Is(|s| {
            s.options.mss == 1460 && is_malformed(s) && !s.options.has(TcpOptions::HAS_TIMESTAMPS)
        }),
    },
    Row {
        id: "P29",
        what: "a window scale of 15 is taken for 14",
        build: |n| syn_with(n, &[3, 3, 15, 1]),
        expect: Is(|s| s.options.scale == 14 && !is_malformed(s)),
    },
    Row {
        id: "P31",
        what: "a checksum that is not made yet, as on the way out: nobody looks at it",
        build: |network| patched(v4(network, F::SYN, 0), |ip| ip[36..38].copy_from_slice(&[0xde, 0xad])),
        expect: Is(is_syn),
    },
];

use TcpFlags as F;

#[test]
fn frames_are_parsed_alike_by_userspace_and_every_hook() {
    for row in ROWS {
        let _ = in_userspace(row, 0);
    }
    println!("{} frames through the parser", ROWS.len());
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let mut network = 0;
    for row in ROWS {
        for (hook, through) in [Through::Xdp, Through::TcIngress, Through::TcEgress].into_iter().enumerate() {
            network += 1;
            let at = format!("{} ({}), {through:?}", row.id, row.what);
            let frame = (row.build)(network);
            let parsed = in_userspace(row, network);
            if !support::takes(through, &frame) {
                continue;
            }
            let before = kernel.counters();
            kernel.run(through, &frame);
            let after = kernel.counters();
            let counted: Vec<_> = Outcome::names()
                .zip(after.packets[hook].iter().zip(&before.packets[hook]))
                .filter(|(_, (after, before))| after != before)
                .map(|(name, _)| name)
                .collect();
            match parsed {
                Ok((key, sender, segment)) => {
                    // What follows is the machine's business, and the same for both.
                    let mut record = FlowRecord::default();
                    let (step, _) = advance(&mut record, sender, &segment, 0, Config::default());
                    assert_eq!(step.facts.has(Fact::BadOption), is_malformed(&segment), "{at}");
                    let (in_kernel, _) = kernel.record(&key).unwrap_or_else(|| panic!("{at}: {counted:?}"));
                    assert_eq!(support::comparable(&in_kernel), support::comparable(&record), "{at}");
                }
                Err(skip) => assert_eq!(counted, [skip.name()], "{at}"),
            }
        }
    }
    println!("and through XDP, TC ingress and TC egress");
}

/// P25, P26 at the sizes that they are named for: the kernel's own test runs take no such skb.
#[test]
fn super_packets_have_the_length_of_the_packet() {
    let gso = v4(0, F::FIN | F::PSH | F::ACK, 60_000);
    assert_eq!(parse(&ethernet(&gso)).unwrap().2.len, 60_000);
    for (mut packet, length) in [(v4(0, F::PSH | F::ACK, 1000), 2..4), (v6(0, F::PSH | F::ACK, 1000), 4..6)] {
        packet[length].fill(0);
        packet.resize(packet.len() + 199_000, b'x');
        assert_eq!(parse(&ethernet(&packet)).unwrap().2.len, 200_000);
    }
}

/// P25 through XDP, which takes frames in several buffers (`xdp.frags`).
#[test]
fn a_frame_in_several_buffers_has_the_length_of_all_of_them() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    // BIG TCP: only the frame itself says how long it is.
    let packet = patched(v4(1, F::PSH | F::ACK, 40_000), |ip| ip[2..4].fill(0));
    kernel.run(Through::Xdp, &packet);
    let (key, sender, _) = parse(&packet).unwrap();
    let (record, _) = kernel.record(&key).unwrap();
    assert_eq!(record.sent_by(sender).bytes, 40_000);
}

/// Some drivers leave the headers in fragments too: mlx5 does with large frames.
#[test]
fn a_first_buffer_without_headers_hides_nothing() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    for (network, first) in (1..).zip([0, 14, 34, 60, 4000]) {
        let packet =
            ethernet(&ipv4(network, 1, 2, 1, &tcp((40_000, 443), 100, 0, F::SYN, 64_240, &[], 5000)));
        kernel.run_in_pieces(&packet, first);
        let (key, sender, _) = parse(&packet).unwrap();
        let (record, _) = kernel.record(&key).unwrap_or_else(|| panic!("{first} bytes in the first buffer"));
        assert_eq!(record.sent_by(sender).bytes, 5000, "{first} bytes in the first buffer");
    }
    let truncated = kernel.counters().packets[0][Outcome::ALL.len() + Skip::Truncated as usize];
    assert_eq!(truncated, 0);
}

/// Behind one tag a settled flow's segments take a short path too: it makes the same of them, FIN and all.
#[test]
fn a_tag_changes_nothing() {
    crate::needs_kernel!();
    let talk = [
        (true, [100, 0], F::SYN, 0),
        (false, [500, 101], F::SYN | F::ACK, 0),
        (true, [101, 501], F::ACK, 0),
        (true, [101, 501], F::PSH | F::ACK, 300),
        (false, [501, 401], F::ACK, 0),
        (false, [501, 401], F::PSH | F::ACK, 200),
        (true, [401, 701], F::ACK, 0),
        (true, [401, 701], F::FIN | F::ACK, 0),
        (false, [701, 402], F::ACK, 0),
    ];
    let mut kernel = Kernel::load();
    for through in [Through::Xdp, Through::TcIngress, Through::TcEgress] {
        let made = [1, 2].map(|network| {
            let mut last = Vec::new();
            for (number, &(from_client, [seq, ack], flags, len)) in (1..).zip(&talk) {
                let (ports, from, to) =
                    if from_client { ((40_000, 443), 1, 2) } else { ((443, 40_000), 2, 1) };
                let segment = tcp(ports, seq, ack, flags, 64_240, &[], len);
                last = ethernet(&ipv4(network + 2 * through as u32, from, to, number, &segment));
                if network == 2 {
                    last.splice(12..12, [0x81, 0, 0, 7]);
                }
                kernel.run(through, &last);
            }
            let (key, ..) = parse(&last).unwrap();
            support::comparable(&kernel.record(&key).unwrap().0)
        });
        assert_eq!(made[0], made[1], "through {through:?}");
    }
}

/// P28 on a flow that lives: malformed packets do not touch it.
#[test]
fn malformed_packets_leave_a_flow_alone() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let packet = v4(1, F::SYN, 0);
    kernel.run(Through::TcEgress, &ethernet(&packet));
    let (key, ..) = parse(&ethernet(&packet)).unwrap();
    let before = kernel.record(&key).unwrap().0;
    for row in ROWS.iter().filter(|row| matches!(row.expect, Skipped(_))) {
        for through in [Through::Xdp, Through::TcEgress] {
            let frame = (row.build)(1);
            if support::takes(through, &frame) {
                kernel.run(through, &frame);
            }
        }
    }
    assert_eq!(kernel.record(&key).unwrap().0, before);
}

/// P30: what a NAT changes between the hooks is two flows, each seen from one side.
#[test]
fn a_translated_connection_is_two_flows() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let mut keys = Vec::new();
    for (network, through) in [(1, Through::Xdp), (2, Through::TcEgress)] {
        let frame = ethernet(&v4(network, F::SYN, 0));
        kernel.run(through, &frame);
        keys.push(parse(&frame).unwrap());
    }
    assert_ne!(keys[0].0, keys[1].0);
    for (key, sender, _) in keys {
        let (record, embryonic) = kernel.record(&key).unwrap();
        let verdict = Verdict(record.shared.verdict);
        assert_eq!((verdict.state(sender), embryonic), (State::SynSent, true));
    }
}

type Found = (FlowKey, End, Segment);

fn parse(frame: &[u8]) -> Result<Found, Skip> {
    let (network, offset) = parse_ether(&frame)?;
    match parse_network(&frame, network, offset, frame.len())? {
        Parsed::V4(Packet::Tcp(ends, segment)) => {
            let (key, end) = ends.key(0);
            Ok((FlowKey::V4(key), end, segment))
        }
        Parsed::V6(Packet::Tcp(ends, segment)) => {
            let (key, end) = ends.key(0);
            Ok((FlowKey::V6(key), end, segment))
        }
        other => panic!("{other:?} is not TCP"),
    }
}

/// Checks what the parser makes of a row, and gives it.
fn in_userspace(row: &Row, network: u32) -> Result<Found, Skip> {
    let parsed = parse(&(row.build)(network));
    match (&row.expect, &parsed) {
        (Is(holds), Ok((_, _, segment))) => assert!(holds(segment), "{} ({}): {segment:?}", row.id, row.what),
        (Skipped(expected), Err(skip)) => assert_eq!(skip, expected, "{} ({})", row.id, row.what),
        (_, other) => panic!("{} ({}): {other:?}", row.id, row.what),
    }
    parsed
}

fn is_syn(segment: &Segment) -> bool {
    segment.flags.0 == F::SYN && segment.len == 0
}

fn is_malformed(segment: &Segment) -> bool {
    segment.options.has(TcpOptions::MALFORMED)
}

fn segment(flags: u16, len: usize) -> Vec<u8> {
    tcp((40_000, 443), 1000, 2000, flags, 64_240, &[], len)
}

fn v4(network: u32, flags: u16, len: usize) -> Vec<u8> {
    ipv4(network, 1, 2, 7, &segment(flags, len))
}

fn v6(network: u32, flags: u16, len: usize) -> Vec<u8> {
    ipv6(network, 1, 2, &segment(flags, len))
}

/// A frame with a packet that was changed.
fn patched(mut packet: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut packet);
    ethernet(&packet)
}

fn syn_with(network: u32, options: &[u8]) -> Vec<u8> {
    ethernet(&ipv4(network, 1, 2, 7, &tcp((40_000, 443), 1000, 0, F::SYN, 64_240, options, 0)))
}

fn ip_options(network: u32, words: usize) -> Vec<u8> {
    let mut packet = v4(network, F::SYN, 0);
    packet[0] = 0x45 + words as u8;
    packet[3] += 4 * words as u8;
    packet.splice(20..20, [1].repeat(4 * words));
    ethernet(&packet)
}

fn tagged(network: u32, tags: &[u16]) -> Vec<u8> {
    let mut frame = ethernet(&v4(network, F::SYN, 0));
    let tags = (10_u16..).zip(tags).flat_map(|(id, tag)| [tag.to_be_bytes(), id.to_be_bytes()].concat());
    frame.splice(12..12, tags.collect::<Vec<u8>>());
    frame
}

/// An IPv6 packet with extension headers: kind, and length in the kind's own units.
fn extended(network: u32, headers: &[(u8, u8)], flags: u16, len: usize) -> Vec<u8> {
    let mut chain = Vec::new();
    for (at, &(kind, length)) in headers.iter().enumerate() {
        let next = headers.get(at + 1).map_or(6, |header| header.0);
        let bytes = if kind == 51 { 8 + 4 * usize::from(length) } else { 8 + 8 * usize::from(length) };
        let begins = chain.len();
        chain.extend([next, length]);
        chain.resize(begins + bytes, 0);
    }
    with_chain(network, headers[0].0, chain, &segment(flags, len))
}

fn fragment6(network: u32, offset_and_more: u16) -> Vec<u8> {
    let [high, low] = offset_and_more.to_be_bytes();
    with_chain(network, 44, vec![6, 0, high, low, 0, 0, 0, 1], &segment(F::SYN, 0))
}

fn with_chain(network: u32, first: u8, chain: Vec<u8>, segment: &[u8]) -> Vec<u8> {
    let mut packet = ipv6(network, 1, 2, &[&chain[..], segment].concat());
    packet[6] = first;
    ethernet(&packet)
}
