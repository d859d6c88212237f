//! Random talks between two ends that stay near what a connection would say.

use proptest::prelude::*;
use tcpfsm_common::{
    segment::{Segment, TcpFlags, TcpOptions},
    seq::SeqNum,
};

/// One segment of a talk, relative to what was said before.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    pub(crate) from_a: bool,
    flags: u16,
    seq: Near,
    ack: Near,
    len: u32,
    window: u16,
    options: Options,
}

/// A number, by its distance from a landmark.
#[derive(Clone, Copy, Debug)]
enum Near {
    /// What is due: SND.NXT for a sequence number, the peer's SND.NXT for an acknowledgment.
    Due(i32),
    /// The initial sequence number of whoever counts.
    Initial(i32),
    /// What the other side last acknowledged, or this side itself.
    Acked(i32),
    Anything(u32),
}

#[derive(Clone, Debug)]
enum Options {
    None,
    Syn {
        scale: u8,
        timestamps: bool,
    },
    /// By the distance from the last.
    Timestamps(i32),
    /// Beyond a hole.
    Sack(u16),
    Malformed,
}

impl Move {
    /// Mostly what a stack would send, now and then anything.
    pub(crate) fn strategy() -> impl Strategy<Value = Self> {
        use TcpFlags as F;
        let flags = prop_oneof![
            30 => Just(F::ACK),
            12 => Just(F::ACK | F::PSH),
            10 => Just(F::SYN),
            10 => Just(F::SYN | F::ACK),
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
        let len = prop_oneof![6 => Just(0_u32), 2 => Just(1), 3 => Just(100), 2 => 0..1460_u32, 1 => 0..200_000_u32];
        let window = prop_oneof![6 => Just(64_240_u16), 2 => Just(63), 1 => Just(0), 1 => any::<u16>()];
        let options = prop_oneof![
            6 => Just(Options::None),
            4 => (0..15_u8, any::<bool>()).prop_map(|(scale, timestamps)| Options::Syn { scale, timestamps }),
            4 => (-3..20_i32).prop_map(Options::Timestamps),
            1 => any::<u16>().prop_map(Options::Sack),
            1 => Just(Options::Malformed),
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

    /// Data back and forth after a handshake, mostly in order, and now and then anything.
    pub(crate) fn chat(length: usize) -> impl Strategy<Value = Vec<Self>> {
        let number = || {
            prop_oneof![
                20 => Just(Near::Due(0)),
                4 => Just(Near::Acked(0)),
                2 => (-200..200_i32).prop_map(Near::Due),
                1 => (-100_000..100_000_i32).prop_map(Near::Due),
            ]
        };
        let len = prop_oneof![2 => Just(0_u32), 4 => Just(100), 2 => 0..1460_u32, 1 => 0..60_000_u32];
        let window = prop_oneof![6 => Just(64_240_u16), 2 => 1..100_u16, 1 => any::<u16>()];
        let told = (any::<bool>(), number(), number(), len, window, -1..20_i32);
        (
            0..15_u8,
            any::<bool>(),
            prop::collection::vec((told, prop::option::weighted(0.04, Self::strategy())), 0..length),
        )
            .prop_map(|(scale, timestamps, rest)| {
                let mut moves = Self::handshake(scale, timestamps);
                moves.extend(rest.into_iter().map(|((from_a, seq, ack, len, window, tick), other)| {
                    let options = if timestamps { Options::Timestamps(tick) } else { Options::None };
                    other.unwrap_or(Self { from_a, flags: TcpFlags::ACK, seq, ack, len, window, options })
                }));
                moves
            })
    }

    /// More than 2 GiB, all of it in order and acknowledged, after a handshake in which the server scales its windows or does not; or
    /// of one side alone, until at last the other one joins, and acknowledges more.
    pub(crate) fn upload(server: Option<bool>) -> Vec<Self> {
        let mut moves = Vec::new();
        if let Some(scales) = server {
            moves = Self::handshake(7, false);
            if !scales {
                moves[1].options = Options::None;
            }
        }
        let step = |from_a, len, ack| Self {
            from_a,
            flags: TcpFlags::ACK,
            seq: Near::Due(0),
            ack: Near::Due(ack),
            len,
            window: 64_240,
            options: Options::None,
        };
        for _ in 0..38_000 {
            moves.push(step(true, 60_000, 0));
            if server.is_some() {
                moves.push(step(false, 0, 0));
            }
        }
        moves.push(step(false, 0, if server.is_some() { 0 } else { 50_000 }));
        moves.extend([step(true, 100, 0), step(true, 100, 0), step(false, 100, 0), step(true, 100, 0)]);
        moves
    }

    /// So many, most of them after a handshake: what comes after it is seen best from there.
    pub(crate) fn talk(length: usize) -> impl Strategy<Value = Vec<Self>> {
        let random = move || prop::collection::vec(Self::strategy(), 0..length);
        prop_oneof![
            1 => random(),
            3 => (0..15_u8, any::<bool>(), random()).prop_map(|(scale, timestamps, rest)| {
                let mut moves = Self::handshake(scale, timestamps);
                moves.extend(rest);
                moves
            }),
        ]
    }

    fn handshake(scale: u8, timestamps: bool) -> Vec<Self> {
        let options = |syn| match (syn, timestamps) {
            (true, _) => Options::Syn { scale, timestamps },
            (false, true) => Options::Timestamps(1),
            (false, false) => Options::None,
        };
        let step = |from_a, flags, syn| Self {
            from_a,
            flags,
            seq: Near::Due(0),
            ack: Near::Due(0),
            len: 0,
            window: 64_240,
            options: options(syn),
        };
        use TcpFlags as F;
        vec![
            step(true, F::SYN, true),
            step(false, F::SYN | F::ACK, true),
            step(true, F::ACK, false),
            // The server proves its state.
            Self { len: 100, ..step(false, F::ACK | F::PSH, false) },
        ]
    }

    /// Only flags that no conforming stack sends.
    pub(crate) fn with_flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }
}

/// What one end has said.
#[derive(Clone, Copy, Default)]
struct Side {
    iss: u32,
    nxt: u32,
    ack: u32,
    tsval: u32,
    ip_id: u16,
}

/// Two ends that talk.
pub(crate) struct Talk([Side; 2]);

impl Talk {
    pub(crate) fn new() -> Self {
        let side = |iss| Side { iss, nxt: iss, tsval: 1000, ..Side::default() };
        // One of the two wraps around soon.
        Self([side(0xffff_f000), side(0x1234_5678)])
    }

    /// The segment of a move.
    pub(crate) fn segment(&mut self, next: &Move) -> Segment {
        let (me, peer) = if next.from_a { (0, 1) } else { (1, 0) };
        let (own, other) = (self.0[me], self.0[peer]);
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
        let side = &mut self.0[me];
        side.ip_id = side.ip_id.wrapping_add(1);
        let options = match next.options {
            Options::None => TcpOptions::default(),
            Options::Syn { scale, timestamps } => TcpOptions {
                mss: 1460,
                scale,
                present: TcpOptions::HAS_MSS
                    | TcpOptions::HAS_SCALE
                    | TcpOptions::SACK_PERMITTED
                    | if timestamps { TcpOptions::HAS_TIMESTAMPS } else { 0 },
                tsval: if timestamps { side.tsval } else { 0 },
                ..TcpOptions::default()
            },
            Options::Timestamps(d) => {
                side.tsval = side.tsval.wrapping_add_signed(d);
                TcpOptions { tsval: side.tsval, present: TcpOptions::HAS_TIMESTAMPS, ..TcpOptions::default() }
            }
            Options::Sack(beyond) => TcpOptions {
                sack_edge: SeqNum(other.nxt.wrapping_add(u32::from(beyond))),
                present: TcpOptions::HAS_SACK,
                ..TcpOptions::default()
            },
            Options::Malformed => TcpOptions { present: TcpOptions::MALFORMED, ..TcpOptions::default() },
        };
        let segment = Segment {
            seq: SeqNum(seq),
            ack: SeqNum(ack),
            len,
            flags: TcpFlags(next.flags),
            window: next.window,
            ip_id: side.ip_id,
            to_itself: false,
            tap: 0,
            options,
        };
        let ahead = segment.end_seq().since(SeqNum(side.nxt));
        if (1..100_000).contains(&ahead) {
            side.nxt = segment.end_seq().0;
        }
        if next.flags & TcpFlags::ACK != 0 {
            side.ack = ack;
        }
        segment
    }
}
