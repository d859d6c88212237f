//! IPv6 and a bounded walk over its extension headers (RFC 8200 §4).

use network_types::ip::{IpProto, Ipv6Hdr};

use super::{PacketBytes, Skip, Transport};

/// How many extension headers are walked before the packet is given up.
pub const MAX_EXTENSION_HEADERS: usize = 8;

const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const TCP: u8 = IpProto::Tcp as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const ESP: u8 = IpProto::Esp as u8;
const AUTHENTICATION: u8 = IpProto::Ah as u8;
const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;
const MOBILITY: u8 = IpProto::MobilityHeader as u8;
const HIP: u8 = IpProto::Hip as u8;
const SHIM6: u8 = IpProto::Shim6 as u8;

/// What the parser keeps of an IPv6 header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// What follows.
    pub transport: Transport,
    /// Where it begins.
    pub payload: usize,
    /// How long it is.
    pub payload_len: usize,
}

/// Parses an IPv6 header at `offset` and walks to the transport header.
///
/// # Errors
/// See [`Skip`].
#[inline(always)]
pub fn parse_ipv6<B: PacketBytes>(
    bytes: &B,
    offset: usize,
    wire_len: impl FnOnce() -> usize,
) -> Result<Ipv6, Skip> {
    let fixed: [u8; Ipv6Hdr::LEN] = bytes.read(offset).ok_or(Skip::Truncated)?;
    if fixed[0] >> 4 != 6 {
        return Err(Skip::BadHeader);
    }
    let (src, dst) = (address(&fixed, 8), address(&fixed, 24));
    let start = offset + Ipv6Hdr::LEN;
    let end = match usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) {
        // A jumbogram (RFC 2675), which is how BIG TCP looks on the way out.
        0 => wire_len(),
        len => start + len,
    };
    let (transport, payload) = match fixed[6] {
        TCP => (Transport::Tcp, start),
        ICMPV6 => (Transport::Icmp, start),
        next => walk_extensions(bytes, next, start)?,
    };
    let payload_len = end.checked_sub(payload).ok_or(Skip::BadHeader)?;
    Ok(Ipv6 { src, dst, transport, payload, payload_len })
}

#[inline(always)]
fn address(header: &[u8; Ipv6Hdr::LEN], at: usize) -> [u8; 16] {
    let mut address = [0; 16];
    for (to, from) in address.iter_mut().zip(header.iter().skip(at)) {
        *to = *from;
    }
    address
}

#[inline(always)]
fn walk_extensions<B: PacketBytes>(bytes: &B, next: u8, start: usize) -> Result<(Transport, usize), Skip> {
    let mut next = next;
    let mut walked = 0;
    for _ in 0..MAX_EXTENSION_HEADERS {
        let at = start + walked;
        let step = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6 => {
                let [following, len] = bytes.read(at).ok_or(Skip::Truncated)?;
                next = following;
                (usize::from(len) + 1) * 8
            }
            AUTHENTICATION => {
                let [following, len] = bytes.read(at).ok_or(Skip::Truncated)?;
                next = following;
                (usize::from(len) + 2) * 4
            }
            FRAGMENT => {
                let [following, _, hi, lo] = bytes.read(at).ok_or(Skip::Truncated)?;
                // An atomic fragment (RFC 6946), offset 0 and nothing more, is a whole packet.
                if u16::from_be_bytes([hi, lo]) & 0xfff9 != 0 {
                    return Err(Skip::Fragment);
                }
                next = following;
                8
            }
            ESP => return Err(Skip::ExtensionHeader),
            _ => return Err(Skip::NotTcp),
        };
        // Eight headers of 2,048 bytes are the most.
        walked = bytes.blur(walked + step, 0x7fff);
        match next {
            TCP => return Ok((Transport::Tcp, start + walked)),
            ICMPV6 => return Ok((Transport::Icmp, start + walked)),
            _ => {}
        }
    }
    Err(Skip::ExtensionHeader)
}
