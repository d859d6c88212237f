//! The packets that nearly all are: Ethernet without tags, IPv4 without options or IPv6 without extension headers, whole, and in
//! them an ACK of TCP, or a FIN with it, with the options that Linux gives it or none; or a SYN, or a SYN-ACK, with those of Linux.
//! Every field has its place, known beforehand, and one comparison settles several.
//!
//! The parser reads these packets too. A law holds the two to one another.

use network_types::ip::IpProto;

use super::{
    PacketBytes, PacketHead,
    tcp::{ALIGNED_TIMESTAMPS, LINUX_SYN_LEN, STAMPED_LEN, is_linux_syn, linux_syn_options},
};
use crate::{
    flow::{End, Endpoints4, Endpoints6, FlowKey4, FlowKey6},
    segment::{Acknowledgment, Segment, TcpFlags, TcpOptions},
    seq::SeqNum,
};

const TCP: u32 = IpProto::Tcp as u32;

/// Data offset, and the flags that steer the machine, of a TCP header. The others (PSH, URG, ECN's) may be as they are.
const SHAPE: u32 = 0xf << 28 | ((TcpFlags::ACK | TcpFlags::SYN | TcpFlags::RST) as u32) << 16 | FIN;
/// An ACK without options.
const BARE: u32 = 5 << 28 | (TcpFlags::ACK as u32) << 16;
/// An ACK with as many bytes of options as timestamps take.
const STAMPED: u32 = 8 << 28 | (TcpFlags::ACK as u32) << 16;
/// A SYN with as many bytes of options as Linux gives it.
const OPENING: u32 = 10 << 28 | (TcpFlags::SYN as u32) << 16;
/// A FIN.
const FIN: u32 = (TcpFlags::FIN as u32) << 16;
/// An ACK.
const ACK: u32 = (TcpFlags::ACK as u32) << 16;

/// A plain packet. With a FIN or a SYN, it is more than the [`Acknowledgment`] that it says it is.
pub trait Plain: Acknowledgment {
    /// The key of its flow.
    type Key;

    /// All of its segment.
    fn segment(&self) -> Segment;

    /// The key, and the end that is this packet's source.
    fn key(&self, scope: u32) -> (Self::Key, End);
}

/// A plain packet, by its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainOptions<B, S, O> {
    /// Without options.
    Bare(B),
    /// With timestamps.
    Stamped(S),
    /// A SYN or a SYN-ACK as Linux sends it.
    Opening(O),
    /// Something with a FIN or a SYN, which was not asked for, and so not looked at any further.
    More,
}

/// The big-endian number at a place.
macro_rules! number {
    ($head:expr, $at:expr) => {
        u32::from_be_bytes($head.quad::<{ $at }>())
    };
}

/// The same, of two bytes.
macro_rules! short {
    ($head:expr, $at:expr) => {
        u16::from_be_bytes($head.pair::<{ $at }>())
    };
}

/// The words of a Linux SYN's options, which begin at a place.
macro_rules! options {
    ($head:expr, $at:expr) => {
        [
            $head.quad::<{ $at }>(),
            $head.quad::<{ $at + 4 }>(),
            $head.quad::<{ $at + 8 }>(),
            $head.quad::<{ $at + 12 }>(),
            $head.quad::<{ $at + 16 }>(),
        ]
    };
}

/// The plain packets of one family: where their TCP header begins, how to tell them by their head, what the IP header says of their length
/// and which part of it is the header's own, their identification, and their addresses.
macro_rules! plain {
    (
        $plain:ident, $bare:ident, $stamped:ident, $opening:ident: $key:ident by $ends:ident, TCP at $tcp:literal;
        |$head:ident| is $is:expr; length $length:expr, without $ip:literal; id $id:expr; addresses $addresses:expr;
    ) => {
        /// The packet, if it is plain, with a FIN or a SYN only if `ALL` are asked for. One whose IP header does not say how long it
        /// is, or contradicts itself, is not.
        #[inline(always)]
        #[must_use]
        pub fn $plain<B: PacketBytes, const ALL: bool>(
            bytes: &B,
        ) -> Option<
            PlainOptions<
                $bare<B::Head<{ $tcp + 20 }>>,
                $stamped<B::Head<{ $tcp + 20 + STAMPED_LEN }>>,
                $opening<B::Head<{ $tcp + 20 + LINUX_SYN_LEN }>>,
            >,
        > {
            let $head = bytes.head::<{ $tcp + 20 }>()?;
            if !$is {
                return None;
            }
            let shape = number!($head, $tcp + 12) & SHAPE;
            match if ALL { shape & !FIN } else { shape } {
                STAMPED => {
                    let head = bytes.head::<{ $tcp + 20 + STAMPED_LEN }>()?;
                    let is_stamped = number!(head, $tcp + 20) == ALIGNED_TIMESTAMPS
                        && $length >= $ip + 20 + STAMPED_LEN as u32;
                    is_stamped.then_some(PlainOptions::Stamped($stamped(head)))
                }
                BARE => ($length >= $ip + 20).then_some(PlainOptions::Bare($bare($head))),
                _ if !ALL => (shape & !FIN == BARE || shape & !FIN == STAMPED || shape & !ACK == OPENING)
                    .then_some(PlainOptions::More),
                _ if shape & !ACK == OPENING => {
                    let head = bytes.head::<{ $tcp + 20 + LINUX_SYN_LEN }>()?;
                    let is_opening = is_linux_syn(&options!(head, $tcp + 20))
                        && $length >= $ip + 20 + LINUX_SYN_LEN as u32;
                    is_opening.then_some(PlainOptions::Opening($opening(head)))
                }
                _ => None,
            }
        }

        plain!(
            $bare,
            $key,
            $ends,
            $tcp,
            |$head| $length,
            $ip + 20,
            $id,
            $addresses,
            None,
            TcpOptions::default()
        );
        plain!(
            $stamped,
            $key,
            $ends,
            $tcp,
            |$head| $length,
            $ip + 20 + STAMPED_LEN as u32,
            $id,
            $addresses,
            Some(number!($head, $tcp + 24)),
            TcpOptions {
                present: TcpOptions::HAS_TIMESTAMPS,
                tsval: number!($head, $tcp + 24),
                tsecr: number!($head, $tcp + 28),
                ..TcpOptions::default()
            }
        );
        plain!(
            $opening,
            $key,
            $ends,
            $tcp,
            |$head| $length,
            $ip + 20 + LINUX_SYN_LEN as u32,
            $id,
            $addresses,
            Some(number!($head, $tcp + 28)),
            linux_syn_options(&options!($head, $tcp + 20))
        );
    };
    (
        $name:ident, $key:ident, $ends:ident, $tcp:literal,
        |$head:ident| $length:expr, $headers:expr, $id:expr, $addresses:expr, $tsval:expr, $options:expr
    ) => {
        /// Such a packet's head.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<H>(H);

        impl<H: PacketHead> Plain for $name<H> {
            type Key = $key;

            #[inline(always)]
            fn segment(&self) -> Segment {
                let $head = &self.0;
                Segment {
                    seq: self.seq(),
                    ack: self.ack(),
                    len: self.payload_len(),
                    flags: TcpFlags((number!($head, $tcp + 12) >> 16) as u16 & TcpFlags::ALL),
                    window: self.window(),
                    ip_id: self.ip_id(),
                    to_itself: false,
                    tap: 0,
                    options: $options,
                }
            }

            #[inline(always)]
            fn key(&self, scope: u32) -> ($key, End) {
                let $head = &self.0;
                let [src, dst] = $addresses;
                let [a, b, c, d] = $head.quad::<$tcp>();
                let (src_port, dst_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                $ends { src, dst, src_port, dst_port }.key(scope)
            }
        }

        impl<H: PacketHead> Acknowledgment for $name<H> {
            #[inline(always)]
            fn seq(&self) -> SeqNum {
                SeqNum(number!(self.0, $tcp + 4))
            }

            #[inline(always)]
            fn ack(&self) -> SeqNum {
                SeqNum(number!(self.0, $tcp + 8))
            }

            #[inline(always)]
            fn window(&self) -> u16 {
                short!(self.0, $tcp + 14)
            }

            #[inline(always)]
            fn tsval(&self) -> Option<u32> {
                let $head = &self.0;
                let _ = $head;
                $tsval
            }

            #[inline(always)]
            fn payload_len(&self) -> u32 {
                let $head = &self.0;
                ($length).wrapping_sub($headers)
            }

            #[inline(always)]
            fn ip_id(&self) -> u16 {
                let $head = &self.0;
                let _ = $head;
                $id
            }
        }
    };
}

plain! {
    plain4, Bare4, Stamped4, Opening4: FlowKey4 by Endpoints4, TCP at 34;
    // EtherType, version and header length; no fragment, TCP.
    |head| is number!(head, 12) >> 8 == 0x08_0045 && number!(head, 20) & 0x3fff_00ff == TCP;
    length u32::from(short!(head, 16)), without 20;
    id short!(head, 18);
    addresses [head.quad::<26>(), head.quad::<30>()];
}

plain! {
    plain6, Bare6, Stamped6, Opening6: FlowKey6 by Endpoints6, TCP at 54;
    // EtherType and version; TCP.
    |head| is number!(head, 12) >> 12 == 0x8_6dd6 && number!(head, 18) >> 8 & 0xff == TCP;
    length u32::from(short!(head, 18)), without 0;
    id 0;
    addresses [
        address([head.quad::<22>(), head.quad::<26>(), head.quad::<30>(), head.quad::<34>()]),
        address([head.quad::<38>(), head.quad::<42>(), head.quad::<46>(), head.quad::<50>()]),
    ];
}

#[inline(always)]
fn address([[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]]: [[u8; 4]; 4]) -> [u8; 16] {
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}
