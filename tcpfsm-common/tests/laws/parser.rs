//! Laws of the parser.

use core::fmt::Debug;

use proptest::prelude::*;
use tcpfsm_common::{
    flow::{End, Endpoints4, Endpoints6},
    packet::{
        MAX_EXTENSION_HEADERS, MAX_OPTIONS, Network, Packet, Parsed, Plain, PlainOptions, Skip, parse_ether,
        parse_network, plain4, plain6,
    },
    segment::{Acknowledgment, Segment, TcpFlags, TcpOptions},
    seq::SeqNum,
};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// An Ethernet frame to be built, and what the parser must make of it.
#[derive(Clone, Debug)]
struct Plan {
    /// EtherTypes of the tags, outermost first.
    tags: Vec<u16>,
    ip: Ip,
    ports: (u16, u16),
    segment: Segment,
    options: Vec<Choice>,
    /// Bytes after the IP packet, as Ethernet pads short frames.
    padding: usize,
}

#[derive(Clone, Debug)]
enum Ip {
    V4 {
        src: [u8; 4],
        dst: [u8; 4],
        /// Words of options.
        options: Vec<u32>,
        more_fragments: bool,
        /// BIG TCP and TSO leave the length 0.
        length_zero: bool,
    },
    V6 {
        src: [u8; 16],
        dst: [u8; 16],
        extensions: Vec<Extension>,
        length_zero: bool,
    },
}

/// An IPv6 extension header; its length counts what follows its first 8 bytes, in units of its own.
#[derive(Clone, Copy, Debug)]
enum Extension {
    /// Hop-by-hop, routing, destination options, mobility, HIP, shim6.
    Generic {
        kind: u8,
        units: u8,
    },
    Authentication {
        words: u8,
    },
    /// Offset 0 and nothing more: a whole packet (RFC 6946).
    AtomicFragment,
}

/// A TCP option.
#[derive(Clone, Debug)]
enum Choice {
    Nop,
    Mss(u16),
    Scale(u8),
    SackPermitted,
    Sack(Vec<[u32; 2]>),
    Timestamps(u32, u32),
    /// A kind that the parser does not know, with so much data.
    Unknown(u8, u8),
}

impl Choice {
    fn strategy() -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => Just(Self::Nop),
            2 => any::<u16>().prop_map(Self::Mss),
            2 => any::<u8>().prop_map(Self::Scale),
            2 => Just(Self::SackPermitted),
            2 => prop::collection::vec(any::<[u32; 2]>(), 1..5).prop_map(Self::Sack),
            3 => any::<(u32, u32)>().prop_map(|(value, echo)| Self::Timestamps(value, echo)),
            1 => (9..255_u8, 0..12_u8).prop_map(|(kind, length)| Self::Unknown(kind, length)),
        ]
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Nop => vec![1],
            Self::Mss(mss) => [&[2, 4], &mss.to_be_bytes()[..]].concat(),
            Self::Scale(scale) => vec![3, 3, *scale],
            Self::SackPermitted => vec![4, 2],
            Self::Sack(blocks) => {
                let edges = blocks.as_flattened().iter().flat_map(|edge| edge.to_be_bytes());
                [5, 2 + 8 * blocks.len() as u8].into_iter().chain(edges).collect()
            }
            Self::Timestamps(value, echo) => {
                [&[8, 10], &value.to_be_bytes()[..], &echo.to_be_bytes()].concat()
            }
            Self::Unknown(kind, length) => {
                let mut bytes = vec![*kind, 2 + length];
                bytes.resize(2 + usize::from(*length), 0xee);
                bytes
            }
        }
    }

    /// What it adds to what is known.
    fn apply(&self, options: &mut TcpOptions) {
        match self {
            Self::Nop | Self::Unknown(..) => {}
            Self::Mss(mss) => {
                options.mss = *mss;
                options.present |= TcpOptions::HAS_MSS;
            }
            Self::Scale(scale) => {
                // RFC 7323 §2.3.
                options.scale = (*scale).min(14);
                options.present |= TcpOptions::HAS_SCALE;
            }
            Self::SackPermitted => options.present |= TcpOptions::SACK_PERMITTED,
            Self::Sack(blocks) => {
                let mut edges = blocks.iter().take(2).map(|block| SeqNum(block[1]));
                let first = edges.next().unwrap_or_default();
                options.sack_edge = edges.fold(first, SeqNum::latest);
                options.present |= TcpOptions::HAS_SACK;
            }
            Self::Timestamps(value, echo) => {
                (options.tsval, options.tsecr) = (*value, *echo);
                options.present |= TcpOptions::HAS_TIMESTAMPS;
            }
        }
    }
}

impl Plan {
    fn strategy() -> impl Strategy<Value = Self> {
        let tag = prop_oneof![Just(0x8100_u16), Just(0x88a8), Just(0x9100)];
        let v4 = (
            any::<[[u8; 4]; 2]>(),
            prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(any::<u32>(), 1..11)],
            prop::bool::weighted(0.1),
            prop::bool::weighted(0.1),
        )
            .prop_map(|([src, dst], options, more_fragments, length_zero)| Ip::V4 {
                src,
                dst,
                options,
                more_fragments,
                length_zero,
            });
        let generic = prop_oneof![Just(0_u8), Just(43), Just(60), Just(135), Just(139), Just(140)];
        let extension = prop_oneof![
            4 => (generic, 0..4_u8).prop_map(|(kind, units)| Extension::Generic { kind, units }),
            1 => (1..12_u8).prop_map(|words| Extension::Authentication { words }),
            1 => Just(Extension::AtomicFragment),
        ];
        let extensions =
            prop_oneof![Just(vec![]), prop::collection::vec(extension, 1..=MAX_EXTENSION_HEADERS)];
        let v6 = (any::<[[u8; 16]; 2]>(), extensions, prop::bool::weighted(0.1))
            .prop_map(|([src, dst], extensions, length_zero)| Ip::V6 { src, dst, extensions, length_zero });
        let segment = (any::<[u32; 2]>(), 0..0x200_u16, any::<u16>(), any::<u16>(), 0..100_u32).prop_map(
            |([seq, ack], flags, window, ip_id, len)| Segment {
                seq: SeqNum(seq),
                ack: SeqNum(ack),
                len,
                flags: TcpFlags(flags),
                window,
                ip_id,
                to_itself: false,
                tap: 0,
                options: TcpOptions::default(),
            },
        );
        let options = prop::collection::vec(Choice::strategy(), 0..=MAX_OPTIONS);
        (
            prop::collection::vec(tag, 0..4),
            prop_oneof![v4, v6],
            any::<(u16, u16)>(),
            segment,
            options,
            0..20_usize,
        )
            .prop_map(|(tags, ip, ports, segment, options, padding)| {
                let mut plan = Self { tags, ip, ports, segment, options, padding };
                plan.make_fit();
                plan
            })
    }

    /// A TCP header has room for 40 bytes of options, and where the length is the frame's, it has no padding.
    fn make_fit(&mut self) {
        let length = |options: &[Choice]| options.iter().map(|option| option.bytes().len()).sum::<usize>();
        // The END that fills the last word is one more that the walk has to look at.
        let looked_at = |options: &[Choice]| options.len() + usize::from(length(options) % 4 != 0);
        while length(&self.options) > 40 || looked_at(&self.options) > MAX_OPTIONS {
            self.options.pop();
        }
        for option in &self.options {
            option.apply(&mut self.segment.options);
        }
        match &mut self.ip {
            Ip::V4 { length_zero: true, .. } | Ip::V6 { length_zero: true, .. } => self.padding = 0,
            Ip::V4 { .. } => {}
            Ip::V6 { .. } => {}
        }
        match self.ip {
            Ip::V4 { more_fragments: true, .. } => self.segment.flags.0 &= !TcpFlags::FIN,
            Ip::V4 { .. } => {}
            Ip::V6 { .. } => self.segment.ip_id = 0,
        }
    }

    /// What the parser must make of it.
    fn expected(&self) -> Parsed {
        let (src_port, dst_port) = self.ports;
        match self.ip {
            Ip::V4 { src, dst, .. } => {
                Parsed::V4(Packet::Tcp(Endpoints4 { src, dst, src_port, dst_port }, self.segment))
            }
            Ip::V6 { src, dst, .. } => {
                Parsed::V6(Packet::Tcp(Endpoints6 { src, dst, src_port, dst_port }, self.segment))
            }
        }
    }

    /// The frame, and how long it is without its payload and padding.
    fn build(&self) -> (Vec<u8>, usize) {
        let tcp = self.tcp();
        let header = tcp.len() - self.segment.len as usize;
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for (number, tag) in (1_u16..).zip(&self.tags) {
            frame.extend(tag.to_be_bytes());
            frame.extend((number * 10).to_be_bytes());
        }
        match &self.ip {
            Ip::V4 { src, dst, options, more_fragments, length_zero } => {
                let words = 5 + options.len();
                let total = if *length_zero { 0 } else { words * 4 + tcp.len() };
                frame.extend([8, 0, 0x40 | words as u8, 0]);
                frame.extend((total as u16).to_be_bytes());
                frame.extend(self.segment.ip_id.to_be_bytes());
                frame.extend([if *more_fragments { 0x20 } else { 0x40 }, 0, 64, 6, 0, 0]);
                frame.extend(src);
                frame.extend(dst);
                frame.extend(options.iter().flat_map(|word| word.to_be_bytes()));
            }
            Ip::V6 { src, dst, extensions, length_zero } => {
                let (first, chain) = chain(extensions);
                let length = if *length_zero { 0 } else { chain.len() + tcp.len() };
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((length as u16).to_be_bytes());
                frame.extend([first, 64]);
                frame.extend(src);
                frame.extend(dst);
                frame.extend(chain);
            }
        }
        let headers = frame.len() + header;
        frame.extend(tcp);
        frame.resize(frame.len() + self.padding, 0);
        (frame, headers)
    }

    fn tcp(&self) -> Vec<u8> {
        let Segment { seq, ack, flags, window, len, .. } = self.segment;
        let mut options: Vec<u8> = self.options.iter().flat_map(Choice::bytes).collect();
        // END, and whatever stands behind it.
        while !options.len().is_multiple_of(4) {
            options.push(0);
        }
        let [high, low] = flags.0.to_be_bytes();
        let mut bytes = Vec::new();
        bytes.extend(self.ports.0.to_be_bytes());
        bytes.extend(self.ports.1.to_be_bytes());
        bytes.extend(seq.0.to_be_bytes());
        bytes.extend(ack.0.to_be_bytes());
        // The three reserved bits are anybody's.
        bytes.extend([((5 + options.len() / 4) as u8 * 16) | 0b1010 | high, low]);
        bytes.extend(window.to_be_bytes());
        bytes.extend([0xaa; 4]);
        bytes.extend(options);
        bytes.resize(bytes.len() + len as usize, b'x');
        bytes
    }
}

/// Extension headers in a row, and the number of the first.
fn chain(extensions: &[Extension]) -> (u8, Vec<u8>) {
    let number = |extension: &Extension| match extension {
        Extension::Generic { kind, .. } => *kind,
        Extension::Authentication { .. } => 51,
        Extension::AtomicFragment => 44,
    };
    let mut bytes = Vec::new();
    for (at, extension) in extensions.iter().enumerate() {
        let next = extensions.get(at + 1).map_or(6, number);
        let (length, field) = match extension {
            Extension::Generic { units, .. } => (8 + 8 * usize::from(*units), *units),
            Extension::Authentication { words } => (8 + 4 * usize::from(*words), *words),
            Extension::AtomicFragment => (8, 0xff),
        };
        let begins = bytes.len();
        bytes.extend([next, field]);
        // An atomic fragment's offset and flag are here.
        bytes.extend([0, 0]);
        bytes.resize(begins + length, 0x5a);
    }
    (extensions.first().map_or(6, number), bytes)
}

fn parse(frame: &[u8], wire_len: usize) -> Result<Parsed, Skip> {
    let (network, offset) = parse_ether(&frame)?;
    parse_network(&frame, network, offset, wire_len)
}

proptest! {
    #![proptest_config(config(20_000))]

    /// What was built is what is read, whatever stands before the TCP header and in it.
    #[test]
    fn what_is_built_can_be_read(plan in Plan::strategy()) {
        let (frame, _) = plan.build();
        prop_assert_eq!(parse(&frame, frame.len()), Ok(plan.expected()));
    }

    /// A capture that was cut off behind the headers tells the same; one cut off in them is refused, or, where
    /// only options are missing, read as far as it goes. The length is the IP header's and the wire's, never the
    /// capture's.
    #[test]
    fn what_is_cut_off_is_refused_or_the_same(plan in Plan::strategy(), cut in any::<prop::sample::Index>()) {
        let (frame, headers) = plan.build();
        let cut = cut.index(frame.len() + 1);
        let parsed = parse(&frame[..cut], frame.len());
        let options = headers - plan.options_len();
        if cut >= headers {
            prop_assert_eq!(parsed, Ok(plan.expected()));
        } else if cut < options {
            prop_assert_eq!(parsed, Err(Skip::Truncated));
        } else {
            let Ok(parsed) = parsed else { return Err(TestCaseError::fail(format!("{parsed:?}"))) };
            prop_assert_eq!(without_options(parsed), without_options(plan.expected()));
        }
    }

    /// A plain packet is taken for one, whole or cut off behind its headers.
    #[test]
    fn plain_packets_are_plain(plan in Plan::plain(), cut in any::<prop::sample::Index>()) {
        let (frame, headers) = plan.build();
        let cut = headers + cut.index(frame.len() + 1 - headers);
        prop_assert!(is_plain(&frame[..cut]), "{:x?}", frame);
        agree(&frame[..cut])?;
    }

    /// Whatever is taken for a plain packet, the parser reads alike.
    #[test]
    fn plain_packets_are_what_the_parser_reads(
        plan in prop_oneof![4 => Plan::plain(), 1 => Plan::strategy()],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (mut frame, headers) = plan.build();
        for (at, byte) in changes {
            frame[at.index(headers)] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        agree(&frame)?;
    }

    /// Two extension headers too many are refused, not guessed at.
    #[test]
    fn the_walk_over_extension_headers_is_bounded(
        plan in Plan::strategy(),
        surplus in 1..4_usize,
    ) {
        let mut plan = plan;
        let Ip::V6 { extensions, length_zero, .. } = &mut plan.ip else { return Ok(()) };
        *length_zero = false;
        extensions.resize(MAX_EXTENSION_HEADERS + surplus, Extension::Generic { kind: 60, units: 0 });
        let (frame, _) = plan.build();
        prop_assert_eq!(parse(&frame, frame.len()), Err(Skip::ExtensionHeader));
    }

    #[test]
    fn mutated_packets_never_panic(
        plan in Plan::strategy(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        wire_len in prop::option::of(any::<usize>()),
    ) {
        let (mut frame, _) = plan.build();
        let wire_len = wire_len.unwrap_or(frame.len());
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        never_panics(&frame, wire_len);
    }

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        wire_len in any::<usize>(),
        first in prop_oneof![Just(0x45_u8), Just(0x46), Just(0x60), any::<u8>()],
    ) {
        let mut bytes = bytes;
        never_panics(&bytes, wire_len);
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        never_panics(&bytes, wire_len);
    }
}

fn is_plain(frame: &[u8]) -> bool {
    plain4::<_, true>(&frame).is_some() || plain6::<_, true>(&frame).is_some()
}

/// What a plain packet says is what the parser reads, if it is taken for one.
fn agree(frame: &[u8]) -> Result<(), TestCaseError> {
    let parsed = parse(frame, frame.len());
    match (plain4::<_, true>(&frame), plain6::<_, true>(&frame), parsed) {
        (None, None, _) => {
            prop_assert!(matches!(plain4::<_, false>(&frame), None | Some(PlainOptions::More)));
            prop_assert!(matches!(plain6::<_, false>(&frame), None | Some(PlainOptions::More)));
            Ok(())
        }
        (Some(packet), None, Ok(Parsed::V4(Packet::Tcp(ends, segment)))) => {
            either_says(&packet, &plain4::<_, false>(&frame), &segment, ends.key(7))
        }
        (None, Some(packet), Ok(Parsed::V6(Packet::Tcp(ends, segment)))) => {
            either_says(&packet, &plain6::<_, false>(&frame), &segment, ends.key(7))
        }
        (.., parsed) => Err(TestCaseError::fail(format!("{parsed:?}"))),
    }
}

fn either_says<
    K: PartialEq + Debug,
    B: Plain<Key = K> + PartialEq + Debug,
    S: Plain<Key = K> + PartialEq + Debug,
    O: Plain<Key = K> + PartialEq + Debug,
>(
    packet: &PlainOptions<B, S, O>,
    acknowledgment: &Option<PlainOptions<B, S, O>>,
    segment: &Segment,
    key: (K, End),
) -> Result<(), TestCaseError> {
    let wanted = if segment.is_acknowledgment() { packet } else { &PlainOptions::More };
    prop_assert_eq!(acknowledgment.as_ref(), Some(wanted));
    match packet {
        PlainOptions::Bare(packet) => says(packet, segment, key),
        PlainOptions::Stamped(packet) => says(packet, segment, key),
        PlainOptions::Opening(packet) => says(packet, segment, key),
        PlainOptions::More => Err(TestCaseError::fail("all were asked for")),
    }
}

fn says<P: Plain<Key: PartialEq + Debug>>(
    packet: &P,
    segment: &Segment,
    key: (P::Key, End),
) -> Result<(), TestCaseError> {
    fn all<A: Acknowledgment>(of: &A) -> (SeqNum, SeqNum, u16, Option<u32>, u32, u16) {
        (of.seq(), of.ack(), of.window(), of.tsval(), of.payload_len(), of.ip_id())
    }
    prop_assert_eq!(packet.key(7), key);
    prop_assert_eq!(all(packet), all(segment));
    // Whether it is its own receiver, the key says.
    prop_assert_eq!(packet.segment(), Segment { to_itself: false, ..*segment });
    Ok(())
}

impl Plan {
    /// A plain packet: an ACK in one piece, or a FIN with it, with the options of Linux or none; or a handshake's first or second
    /// segment with those of Linux.
    fn plain() -> impl Strategy<Value = Self> {
        let others =
            TcpFlags::FIN | TcpFlags::PSH | TcpFlags::URG | TcpFlags::ECE | TcpFlags::CWR | TcpFlags::AE;
        let opening = (any::<bool>(), any::<u16>(), any::<u8>());
        let drawn = (Self::strategy(), 0..3, any::<(u32, u32)>(), opening);
        drawn.prop_map(move |(mut plan, kind, stamps, (answers, mss, scale))| {
            plan.tags.clear();
            match &mut plan.ip {
                Ip::V4 { options, more_fragments, length_zero, .. } => {
                    options.clear();
                    (*more_fragments, *length_zero) = (false, false);
                }
                Ip::V6 { extensions, length_zero, .. } => {
                    extensions.clear();
                    *length_zero = false;
                }
            }
            plan.segment.flags.0 = plan.segment.flags.0 & others | TcpFlags::ACK;
            plan.segment.options = TcpOptions::default();
            plan.options.clear();
            let timestamps = Choice::Timestamps(stamps.0, stamps.1);
            if kind == 1 {
                plan.options = vec![Choice::Nop, Choice::Nop, timestamps];
            } else if kind == 2 {
                let (mss, scale) = (Choice::Mss(mss), Choice::Scale(scale));
                plan.options = vec![mss, Choice::SackPermitted, timestamps, Choice::Nop, scale];
                let not = TcpFlags::FIN | if answers { 0 } else { TcpFlags::ACK };
                plan.segment.flags.0 = plan.segment.flags.0 & !not | TcpFlags::SYN;
            }
            plan.make_fit();
            plan
        })
    }

    fn options_len(&self) -> usize {
        self.options.iter().map(|option| option.bytes().len()).sum::<usize>().next_multiple_of(4)
    }
}

fn without_options(parsed: Parsed) -> Parsed {
    let strip = |segment: Segment| Segment { options: TcpOptions::default(), ..segment };
    match parsed {
        Parsed::V4(Packet::Tcp(ends, segment)) => Parsed::V4(Packet::Tcp(ends, strip(segment))),
        Parsed::V6(Packet::Tcp(ends, segment)) => Parsed::V6(Packet::Tcp(ends, strip(segment))),
        other => other,
    }
}

/// Frames and bare packets, with the network header wherever it may be.
fn never_panics(bytes: &[u8], wire_len: usize) {
    let _ = parse(bytes, wire_len);
    for network in [Network::Ipv4, Network::Ipv6] {
        for offset in [0, 1, 14, bytes.len(), bytes.len() + 1] {
            if let Ok(Parsed::V4(Packet::Tcp(_, segment)) | Parsed::V6(Packet::Tcp(_, segment))) =
                parse_network(&bytes, network, offset, wire_len)
            {
                let _ = (segment.end_seq(), segment.flags.kind());
                assert!(segment.options.scale <= 14);
            }
        }
    }
}
