//! From a frame of any link type to its network header.

use tcpfsm_common::packet::{Network, PacketBytes, Skip, parse_ether, parse_raw_ip};

/// The `LINKTYPE_` numbers that can carry IP and are read here.
mod linktype {
    pub(super) const NULL: u16 = 0;
    pub(super) const ETHERNET: u16 = 1;
    pub(super) const PPP: u16 = 9;
    pub(super) const RAW_BSD: u16 = 12;
    pub(super) const RAW_OPENBSD: u16 = 14;
    pub(super) const PPP_HDLC: u16 = 50;
    pub(super) const RAW: u16 = 101;
    pub(super) const C_HDLC: u16 = 104;
    pub(super) const LOOP: u16 = 108;
    pub(super) const LINUX_SLL: u16 = 113;
    pub(super) const IPV4: u16 = 228;
    pub(super) const IPV6: u16 = 229;
    pub(super) const LINUX_SLL2: u16 = 276;
}

/// Whether frames of this type are read at all.
pub(super) const fn is_known(link: u16) -> bool {
    use linktype::*;
    matches!(
        link,
        NULL | ETHERNET
            | PPP
            | RAW_BSD
            | RAW_OPENBSD
            | PPP_HDLC
            | RAW
            | C_HDLC
            | LOOP
            | LINUX_SLL
            | IPV4
            | IPV6
            | LINUX_SLL2
    )
}

/// The network header's kind and offset.
#[inline]
pub(super) fn locate(link: u16, bytes: &[u8]) -> Result<(Network, usize), Skip> {
    use linktype::*;
    match link {
        ETHERNET => match parse_ether(&bytes) {
            // MPLS and PPPoE: what the kernel programs leave alone may still be looked at here.
            Err(Skip::NotIp) => walk(bytes, 12),
            found => found,
        },
        RAW | RAW_BSD | RAW_OPENBSD | IPV4 | IPV6 => raw(bytes, 0),
        NULL | LOOP => loopback(bytes),
        LINUX_SLL => walk(bytes, 14),
        LINUX_SLL2 => walk_from(bytes, bytes.u16(0).ok_or(Skip::Truncated)?, 20),
        PPP => ppp(bytes, 0),
        PPP_HDLC => match bytes.u8(0).ok_or(Skip::Truncated)? {
            // Cisco's framing on the same link type.
            0x0f | 0x8f => walk(bytes, 2),
            _ => ppp(bytes, 0),
        },
        C_HDLC => walk(bytes, 2),
        _ => Err(Skip::NotIp),
    }
}

fn raw(bytes: &[u8], offset: usize) -> Result<(Network, usize), Skip> {
    Ok((parse_raw_ip(&bytes, offset)?, offset))
}

/// Four bytes of address family, in the byte order of the host that captured, whose number for IPv6 differs
/// from system to system: the IP version is the better witness.
fn loopback(bytes: &[u8]) -> Result<(Network, usize), Skip> {
    let family = bytes.u32(0).ok_or(Skip::Truncated)?;
    match family.min(family.swap_bytes()) {
        2 | 10 | 23 | 24 | 28 | 30 => raw(bytes, 4),
        _ => Err(Skip::NotIp),
    }
}

/// An EtherType at `at` and what follows it.
fn walk(bytes: &[u8], at: usize) -> Result<(Network, usize), Skip> {
    walk_from(bytes, bytes.u16(at).ok_or(Skip::Truncated)?, at + 2)
}

/// Tags and labels, a bounded number of them.
fn walk_from(bytes: &[u8], ethertype: u16, offset: usize) -> Result<(Network, usize), Skip> {
    const MAX_TAGS: usize = 8;
    let (mut ethertype, mut offset) = (ethertype, offset);
    for _ in 0..MAX_TAGS {
        if let Some(network) = Network::from_ethertype(ethertype) {
            return Ok((network, offset));
        }
        match ethertype {
            0x8100 | 0x88a8 | 0x9100 => {
                ethertype = bytes.u16(offset + 2).ok_or(Skip::Truncated)?;
                offset += 4;
            }
            0x8847 | 0x8848 => return mpls(bytes, offset),
            0x8864 => return ppp(bytes, offset + 6),
            _ => return Err(Skip::NotIp),
        }
    }
    Err(Skip::VlanDepth)
}

/// A stack of labels; what lies below the last has no type of its own (RFC 3032 §2.2).
fn mpls(bytes: &[u8], offset: usize) -> Result<(Network, usize), Skip> {
    const MAX_LABELS: usize = 8;
    let mut offset = offset;
    for _ in 0..MAX_LABELS {
        let label = bytes.u32(offset).ok_or(Skip::Truncated)?;
        offset += 4;
        if label & 0x100 != 0 {
            return raw(bytes, offset);
        }
    }
    Err(Skip::VlanDepth)
}

/// PPP with or without address and control, with one or two bytes of protocol (RFC 1661 §2, RFC 1662 §3.1).
fn ppp(bytes: &[u8], offset: usize) -> Result<(Network, usize), Skip> {
    let offset = if bytes.u16(offset) == Some(0xff03) { offset + 2 } else { offset };
    match bytes.u8(offset).ok_or(Skip::Truncated)? {
        0x21 => Ok((Network::Ipv4, offset + 1)),
        0x57 => Ok((Network::Ipv6, offset + 1)),
        _ => match bytes.u16(offset).ok_or(Skip::Truncated)? {
            0x0021 => Ok((Network::Ipv4, offset + 2)),
            0x0057 => Ok((Network::Ipv6, offset + 2)),
            _ => Err(Skip::NotIp),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_type_finds_its_network_header() {
        let v4 = [0x45_u8; 20];
        let v6 = [0x60_u8; 40];
        let cases: &[(u16, &[u8], &[u8], Network)] = &[
            (0, &[2, 0, 0, 0], &v4, Network::Ipv4),
            (0, &[0, 0, 0, 2], &v4, Network::Ipv4),
            (0, &[30, 0, 0, 0], &v6, Network::Ipv6),
            (1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0], &v4, Network::Ipv4),
            (1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 5, 0x86, 0xdd], &v6, Network::Ipv6),
            (
                1,
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x47, 0, 0, 0, 9, 0, 0, 1, 9],
                &v4,
                Network::Ipv4,
            ),
            (
                1,
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x64, 0x11, 0, 0, 1, 0, 9, 0, 0x57],
                &v6,
                Network::Ipv6,
            ),
            (9, &[0xff, 3, 0, 0x21], &v4, Network::Ipv4),
            (9, &[0x21], &v4, Network::Ipv4),
            (9, &[0, 0x57], &v6, Network::Ipv6),
            (12, &[], &v4, Network::Ipv4),
            (14, &[], &v6, Network::Ipv6),
            (50, &[0xff, 3, 0, 0x21], &v4, Network::Ipv4),
            (50, &[0x0f, 0, 8, 0], &v4, Network::Ipv4),
            (101, &[], &v4, Network::Ipv4),
            (104, &[0x0f, 0, 0x86, 0xdd], &v6, Network::Ipv6),
            (108, &[0, 0, 0, 24], &v6, Network::Ipv6),
            (113, &[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0], &v4, Network::Ipv4),
            (113, &[0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0x81, 0, 0, 5, 8, 0], &v4, Network::Ipv4),
            (228, &[], &v4, Network::Ipv4),
            (229, &[], &v6, Network::Ipv6),
            (276, &[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0], &v4, Network::Ipv4),
            (
                276,
                &[
                    0x88, 0xa8, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x81, 0, 0, 2, 8,
                    0,
                ],
                &v4,
                Network::Ipv4,
            ),
        ];
        for (link, header, packet, network) in cases {
            let frame = [*header, *packet].concat();
            assert_eq!(locate(*link, &frame), Ok((*network, header.len())), "link type {link}, {header:x?}");
            assert!(is_known(*link));
            for len in 0..header.len() {
                let _ = locate(*link, &frame[..len]);
            }
        }
        assert_eq!(locate(105, &[0; 64]), Err(Skip::NotIp));
    }
}
