//! Bytes to [`Parsed`]: Ethernet, VLAN tags, IPv4, IPv6 and its extension headers, TCP, ICMP errors.
//!
//! One parser, two byte sources: packet memory in the kernel (`tcpfsm-ebpf/src/bytes.rs`) and slices in
//! userspace. What cannot be parsed comes back as a [`Skip`], which has a counter of its own, so that
//! nothing is skipped silently.

mod bytes;
mod ether;
mod icmp;
mod ipv4;
mod ipv6;
mod plain;
mod tcp;

pub use bytes::{PacketBytes, PacketHead};
pub use ether::{MAX_VLAN_TAGS, Network, parse_ether, parse_raw_ip};
pub use icmp::{IcmpError, Unreachable, parse_icmp4, parse_icmp6};
pub use ipv4::{Ipv4, parse_ipv4};
pub use ipv6::{Ipv6, MAX_EXTENSION_HEADERS, parse_ipv6};
pub use plain::{Plain, PlainOptions, plain4, plain6};
pub use tcp::{MAX_OPTIONS, parse_ports, parse_tcp, walk_options};

use crate::{
    flow::{Endpoints4, Endpoints6},
    segment::Segment,
};

/// Why a packet did not become a [`Segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Skip {
    /// Neither IPv4 nor IPv6 (ARP, LLDP, …).
    NotIp = 0,
    /// IP, but neither TCP nor an ICMP error that quotes TCP.
    NotTcp,
    /// A fragment other than the first: it has no TCP header.
    Fragment,
    /// Ends before its headers do.
    Truncated,
    /// A header that contradicts itself: IHL < 5, data offset < 5, lengths that do not fit.
    BadHeader,
    /// More VLAN tags than the walk reads.
    VlanDepth,
    /// More IPv6 extension headers than the walk reads, or ESP, behind which nothing can be read.
    ExtensionHeader,
}

impl Skip {
    /// Every reason, in the order of the codes.
    pub const ALL: [Self; 7] = [
        Self::NotIp,
        Self::NotTcp,
        Self::Fragment,
        Self::Truncated,
        Self::BadHeader,
        Self::VlanDepth,
        Self::ExtensionHeader,
    ];

    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::NotTcp => "not_tcp",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
            Self::VlanDepth => "vlan_depth",
            Self::ExtensionHeader => "extension_header",
        }
    }
}

/// The transport behind an IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// ICMP for IPv4, ICMPv6 for IPv6.
    Icmp,
}

/// A parsed packet of one family: whose it is and what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<E> {
    /// A TCP segment.
    Tcp(E, Segment),
    /// An ICMP error about a TCP segment; the endpoints are those of the quoted segment.
    Icmp(E, IcmpError),
}

/// A parsed packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// IPv4.
    V4(Packet<Endpoints4>),
    /// IPv6.
    V6(Packet<Endpoints6>),
}

/// Parses a packet from its network header on.
///
/// `wire_len` is the frame's true length where the bytes may be less (a snapped capture) or the IP length
/// lies (BIG TCP, whose IP length field is 0); it only serves where the IP header gives no length.
///
/// # Errors
/// [`Skip`] says why the packet is none of the machine's business.
pub fn parse_network<B: PacketBytes>(
    bytes: &B,
    network: Network,
    offset: usize,
    wire_len: usize,
) -> Result<Parsed, Skip> {
    match network {
        Network::Ipv4 => parse_packet4(bytes, offset, || wire_len).map(Parsed::V4),
        Network::Ipv6 => parse_packet6(bytes, offset, || wire_len).map(Parsed::V6),
    }
}

/// [`parse_network`] for IPv4.
///
/// # Errors
/// See [`Skip`].
#[inline(always)]
pub fn parse_packet4<B: PacketBytes>(
    bytes: &B,
    offset: usize,
    wire_len: impl FnOnce() -> usize,
) -> Result<Packet<Endpoints4>, Skip> {
    let ip = parse_ipv4(bytes, offset, wire_len)?;
    match ip.transport {
        Transport::Tcp => {
            let (ports, segment) = parse_tcp(bytes, ip.payload, ip.payload_len, ip.first_fragment)?;
            let ends = Endpoints4 { src: ip.src, dst: ip.dst, src_port: ports.0, dst_port: ports.1 };
            Ok(Packet::Tcp(ends, Segment { ip_id: ip.id, to_itself: ends.is_self_connected(), ..segment }))
        }
        Transport::Icmp => parse_icmp4(bytes, ip.payload).map(|(ends, error)| Packet::Icmp(ends, error)),
    }
}

/// [`parse_network`] for IPv6.
///
/// # Errors
/// See [`Skip`].
#[inline(always)]
pub fn parse_packet6<B: PacketBytes>(
    bytes: &B,
    offset: usize,
    wire_len: impl FnOnce() -> usize,
) -> Result<Packet<Endpoints6>, Skip> {
    let ip = parse_ipv6(bytes, offset, wire_len)?;
    match ip.transport {
        Transport::Tcp => {
            let (ports, segment) = parse_tcp(bytes, ip.payload, ip.payload_len, false)?;
            let ends = Endpoints6 { src: ip.src, dst: ip.dst, src_port: ports.0, dst_port: ports.1 };
            Ok(Packet::Tcp(ends, Segment { to_itself: ends.is_self_connected(), ..segment }))
        }
        Transport::Icmp => parse_icmp6(bytes, ip.payload).map(|(ends, error)| Packet::Icmp(ends, error)),
    }
}
