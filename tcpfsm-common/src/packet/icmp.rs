//! ICMP and ICMPv6 errors that quote a TCP segment (RFC 792, RFC 4443).

use super::{PacketBytes, Skip, ipv4, tcp};
use crate::{
    flow::{Endpoints4, Endpoints6},
    seq::SeqNum,
};

/// What an ICMP error says of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Unreachable {
    /// Network unreachable, no route.
    Network = 0,
    /// Host or address unreachable.
    Host = 1,
    /// Protocol unreachable.
    Protocol = 2,
    /// Port unreachable.
    Port = 3,
    /// Administratively prohibited.
    Prohibited = 4,
    /// Anything that says nothing of reachability: packet too big, a fragment that was waited for in vain, source quench.
    Soft = 5,
    /// It was given up on the way: a hop limit exceeded, a parameter problem, a source route.
    Transit = 6,
}

/// An ICMP error about a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// What it says.
    pub reason: Unreachable,
    /// The quoted SEG.SEQ (RFC 5927 §4: an error about another sequence number proves nothing).
    pub seq: SeqNum,
    /// Whether an end whose SYN-ACK it quotes gives the request up for it, as Linux does (`tcp_req_err`).
    pub drops_request: bool,
}

/// Parses an ICMP error at `offset`; the endpoints are the quoted segment's.
///
/// # Errors
/// `NotTcp` where it is no error or quotes something else.
#[inline(always)]
pub fn parse_icmp4<B: PacketBytes>(bytes: &B, offset: usize) -> Result<(Endpoints4, IcmpError), Skip> {
    let [kind, code] = bytes.read(offset).ok_or(Skip::Truncated)?;
    let reason = match (kind, code) {
        (3, 0 | 5 | 6 | 11) => Unreachable::Network,
        (3, 1 | 7 | 8 | 12) => Unreachable::Host,
        (3, 2) => Unreachable::Protocol,
        (3, 3) => Unreachable::Port,
        (3, 9 | 10 | 13..=15) => Unreachable::Prohibited,
        (11, 0) | (12, _) => Unreachable::Transit,
        (3 | 4 | 11, _) => Unreachable::Soft,
        _ => return Err(Skip::NotTcp),
    };
    let quoted = ipv4::parse_ipv4(bytes, offset + 8, || 0)?;
    if quoted.transport != super::Transport::Tcp {
        return Err(Skip::NotTcp);
    }
    let (src_port, dst_port) = tcp::parse_ports(bytes, quoted.payload)?;
    let seq = bytes.u32(quoted.payload + 4).ok_or(Skip::Truncated)?;
    Ok((
        Endpoints4 { src: quoted.src, dst: quoted.dst, src_port, dst_port },
        IcmpError {
            reason,
            seq: SeqNum(seq),
            drops_request: matches!((kind, code), (3, 0 | 1) | (11, 0) | (12, _)),
        },
    ))
}

/// Parses an ICMPv6 error at `offset`; the endpoints are the quoted segment's. Only a quotation without
/// extension headers is read.
///
/// # Errors
/// `NotTcp` where it is no error or quotes something else.
#[inline(always)]
pub fn parse_icmp6<B: PacketBytes>(bytes: &B, offset: usize) -> Result<(Endpoints6, IcmpError), Skip> {
    let [kind, code] = bytes.read(offset).ok_or(Skip::Truncated)?;
    let reason = match (kind, code) {
        (1, 0) => Unreachable::Network,
        (1, 1 | 5 | 6) => Unreachable::Prohibited,
        (1, 2 | 3) => Unreachable::Host,
        (1, 4) => Unreachable::Port,
        (1 | 3 | 4, _) => Unreachable::Transit,
        (2, _) => Unreachable::Soft,
        _ => return Err(Skip::NotTcp),
    };
    let quoted = offset + 8;
    if bytes.u8(quoted + 6).ok_or(Skip::Truncated)? != 6 {
        return Err(Skip::NotTcp);
    }
    let src = bytes.read(quoted + 8).ok_or(Skip::Truncated)?;
    let dst = bytes.read(quoted + 24).ok_or(Skip::Truncated)?;
    let (src_port, dst_port) = tcp::parse_ports(bytes, quoted + 40)?;
    let seq = bytes.u32(quoted + 44).ok_or(Skip::Truncated)?;
    let drops_request = matches!((kind, code), (1, 1 | 4..) | (4, _));
    Ok((Endpoints6 { src, dst, src_port, dst_port }, IcmpError { reason, seq: SeqNum(seq), drops_request }))
}
