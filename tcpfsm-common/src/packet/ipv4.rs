//! IPv4 (RFC 791).

use network_types::ip::IpProto;

use super::{PacketBytes, Skip, Transport};

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
const TCP: u8 = IpProto::Tcp as u8;
const ICMP: u8 = IpProto::Icmp as u8;

/// What the parser keeps of an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source address, network order.
    pub src: [u8; 4],
    /// Destination address, network order.
    pub dst: [u8; 4],
    /// Identification.
    pub id: u16,
    /// What follows.
    pub transport: Transport,
    /// Where it begins.
    pub payload: usize,
    /// How long it is.
    pub payload_len: usize,
    /// The first of several fragments: it has the TCP header but not all of the payload.
    pub first_fragment: bool,
}

/// Parses an IPv4 header at `offset`.
///
/// # Errors
/// See [`Skip`].
#[inline(always)]
pub fn parse_ipv4<B: PacketBytes>(
    bytes: &B,
    offset: usize,
    wire_len: impl FnOnce() -> usize,
) -> Result<Ipv4, Skip> {
    let header: [u8; 20] = bytes.read(offset).ok_or(Skip::Truncated)?;
    if header[0] >> 4 != 4 {
        return Err(Skip::BadHeader);
    }
    let header_len = usize::from(header[0] & 0x0f) * 4;
    if header_len < 20 {
        return Err(Skip::BadHeader);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let transport = match header[9] {
        TCP => Transport::Tcp,
        ICMP => Transport::Icmp,
        _ => return Err(Skip::NotTcp),
    };
    if fragment & OFFSET_MASK != 0 {
        return Err(Skip::Fragment);
    }
    // BIG TCP and hardware segmentation offload leave 0 here: the packet's own length is the truth then.
    let total_len = match usize::from(u16::from_be_bytes([header[2], header[3]])) {
        0 => wire_len().saturating_sub(offset),
        len => len,
    };
    let payload_len = total_len.checked_sub(header_len).ok_or(Skip::BadHeader)?;
    Ok(Ipv4 {
        src: [header[12], header[13], header[14], header[15]],
        dst: [header[16], header[17], header[18], header[19]],
        id: u16::from_be_bytes([header[4], header[5]]),
        transport,
        payload: offset + header_len,
        payload_len,
        first_fragment: fragment & MORE_FRAGMENTS != 0,
    })
}
