//! Ethernet II with 802.1Q and 802.1ad tags.

use network_types::eth::{EthHdr, EtherType};

use super::{PacketBytes, Skip};

/// 802.1Q, QinQ, and one more for provider bridges that stack three.
pub const MAX_VLAN_TAGS: usize = 3;

const ETHERTYPE_IPV4: u16 = u16::from_be(EtherType::Ipv4 as u16);
const ETHERTYPE_IPV6: u16 = u16::from_be(EtherType::Ipv6 as u16);
const ETHERTYPE_8021Q: u16 = u16::from_be(EtherType::Ieee8021q as u16);
const ETHERTYPE_8021AD: u16 = u16::from_be(EtherType::Ieee8021ad as u16);
const ETHERTYPE_QINQ_OLD: u16 = u16::from_be(EtherType::Ieee8021QinQ1 as u16);

/// Which network header follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Network {
    /// From an EtherType in host order.
    #[inline(always)]
    #[must_use]
    pub const fn from_ethertype(ethertype: u16) -> Option<Self> {
        match ethertype {
            ETHERTYPE_IPV4 => Some(Self::Ipv4),
            ETHERTYPE_IPV6 => Some(Self::Ipv6),
            _ => None,
        }
    }
}

/// The network header's kind and offset in an Ethernet frame.
///
/// # Errors
/// `NotIp`, `Truncated`, or `VlanDepth` for more than [`MAX_VLAN_TAGS`] tags.
#[inline(always)]
pub fn parse_ether<B: PacketBytes>(bytes: &B) -> Result<(Network, usize), Skip> {
    let mut ethertype = bytes.u16(12).ok_or(Skip::Truncated)?;
    let mut tags = 0;
    for _ in 0..MAX_VLAN_TAGS {
        match ethertype {
            ETHERTYPE_8021Q | ETHERTYPE_8021AD | ETHERTYPE_QINQ_OLD => {
                ethertype = bytes.u16(16 + tags).ok_or(Skip::Truncated)?;
                tags += 4;
            }
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => break,
            _ => return Err(Skip::NotIp),
        }
    }
    let offset = EthHdr::LEN + bytes.blur(tags, 0x1f);
    match ethertype {
        ETHERTYPE_IPV4 => Ok((Network::Ipv4, offset)),
        ETHERTYPE_IPV6 => Ok((Network::Ipv6, offset)),
        _ => Err(Skip::VlanDepth),
    }
}

/// The network header's kind in a packet without link header: the IP version says.
///
/// # Errors
/// `Truncated` or `NotIp`.
#[inline(always)]
pub fn parse_raw_ip<B: PacketBytes>(bytes: &B, offset: usize) -> Result<Network, Skip> {
    match bytes.u8(offset).ok_or(Skip::Truncated)? >> 4 {
        4 => Ok(Network::Ipv4),
        6 => Ok(Network::Ipv6),
        _ => Err(Skip::NotIp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[u16], ethertype: u16) -> [u8; 64] {
        let mut frame = [0; 64];
        let mut at = 12;
        for tag in tags {
            frame[at..at + 2].copy_from_slice(&tag.to_be_bytes());
            at += 4;
        }
        frame[at..at + 2].copy_from_slice(&ethertype.to_be_bytes());
        frame
    }

    #[test]
    fn tags_are_walked_to_the_bound() {
        let case = |tags: &[u16], ethertype| parse_ether(&frame(tags, ethertype).as_slice());
        assert_eq!(case(&[], 0x0800), Ok((Network::Ipv4, 14)));
        assert_eq!(case(&[0x8100], 0x86dd), Ok((Network::Ipv6, 18)));
        assert_eq!(case(&[0x88a8, 0x8100], 0x0800), Ok((Network::Ipv4, 22)));
        assert_eq!(case(&[0x88a8, 0x8100, 0x8100], 0x0800), Ok((Network::Ipv4, 26)));
        assert_eq!(case(&[0x88a8, 0x8100, 0x8100, 0x8100], 0x0800), Err(Skip::VlanDepth));
        assert_eq!(case(&[0x8100], 0x0806), Err(Skip::NotIp));
        assert_eq!(parse_ether(&[0_u8; 13].as_slice()), Err(Skip::Truncated));
    }
}
