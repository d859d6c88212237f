//! Putting IP fragments together again (RFC 791 §3.2, RFC 8200 §4.5).
//!
//! The kernel programs do not: a first fragment counts for what is in it, the others are skipped. A summary
//! of a capture is expected to know whole segments, and has the time and memory for it.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tcpfsm_common::packet::{Network, PacketBytes};

/// Datagrams kept waiting at most, and their bytes in all: a capture of nothing but first fragments must not
/// take all memory.
const MAX_PENDING: usize = 4096;
const MAX_BYTES: usize = 64 << 20;

/// Linux forgets a datagram after 30 s (`net.ipv4.ipfrag_time`).
const LIFETIME: i64 = 30_000_000_000;

/// Extension headers before the fragment header that are walked.
const MAX_HEADERS: usize = 8;

/// Datagrams of which not all fragments were seen.
#[derive(Default)]
pub(super) struct Fragments {
    pending: HashMap<Identity, Datagram, RandomState>,
    bytes: usize,
    whole: Vec<u8>,
}

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    network: Network,
    src: [u8; 16],
    dst: [u8; 16],
    id: u32,
    protocol: u8,
}

struct Datagram {
    began: i64,
    /// The first fragment's headers, up to where the payload goes.
    header: Vec<u8>,
    payload: Vec<u8>,
    /// Which bytes of the payload are there: disjoint, ascending.
    have: Vec<(usize, usize)>,
    len: Option<usize>,
}

/// A fragment, taken apart.
pub(super) struct Fragment<'a> {
    identity: Identity,
    /// Headers as the whole datagram has them, but for its length.
    header: &'a [u8],
    /// Where the type of what follows the headers stands, and what it is: IPv6 must forget the fragment header.
    next_header: Option<(usize, u8)>,
    offset: usize,
    more: bool,
    payload: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// The fragment in a packet that begins with its network header and ends where that says, if it is one.
    pub(super) fn parse(network: Network, packet: &'a [u8]) -> Option<Self> {
        match network {
            Network::Ipv4 => Self::parse_ipv4(packet),
            Network::Ipv6 => Self::parse_ipv6(packet),
        }
    }

    fn parse_ipv4(packet: &'a [u8]) -> Option<Self> {
        let field = packet.u16(6)?;
        if field & 0x3fff == 0 {
            return None;
        }
        let header_len = usize::from(packet.u8(0)? & 0x0f) * 4;
        let (header, payload) = packet.split_at_checked(header_len)?;
        let address = |at| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&header.read::<4>(at)?);
            Some(bytes)
        };
        Some(Self {
            identity: Identity {
                network: Network::Ipv4,
                src: address(12)?,
                dst: address(16)?,
                id: u32::from(packet.u16(4)?),
                protocol: packet.u8(9)?,
            },
            header,
            next_header: None,
            offset: usize::from(field & 0x1fff) * 8,
            more: field & 0x2000 != 0,
            payload,
        })
    }

    fn parse_ipv6(packet: &'a [u8]) -> Option<Self> {
        let (mut field, mut at) = (6, 40);
        for _ in 0..MAX_HEADERS {
            match packet.u8(field)? {
                0 | 43 | 60 => {
                    field = at;
                    at += (usize::from(packet.u8(at + 1)?) + 1) * 8;
                }
                44 => {
                    let place = packet.u16(at + 2)?;
                    let (offset, more) = (usize::from(place & !7), place & 1 != 0);
                    if offset == 0 && !more {
                        // An atomic fragment (RFC 6946) is whole, and the parser knows it.
                        return None;
                    }
                    let protocol = packet.u8(at)?;
                    return Some(Self {
                        identity: Identity {
                            network: Network::Ipv6,
                            src: packet.read(8)?,
                            dst: packet.read(24)?,
                            id: packet.u32(at + 4)?,
                            // RFC 8200: not part of the identity, only the first fragment's counts.
                            protocol: 0,
                        },
                        header: packet.get(..at)?,
                        next_header: Some((field, protocol)),
                        offset,
                        more,
                        payload: packet.get(at + 8..)?,
                    });
                }
                _ => return None,
            }
        }
        None
    }
}

impl Fragments {
    /// Adds a fragment seen at `now`. Gives the whole packet once all of it is there.
    pub(super) fn add(&mut self, fragment: &Fragment<'_>, now: i64) -> Option<&[u8]> {
        let &Fragment { identity, header, next_header, offset, more, payload } = fragment;
        let end = offset + payload.len();
        if end > usize::from(u16::MAX) {
            return None;
        }
        self.make_room(identity, now);
        let datagram = self.pending.entry(identity).or_insert_with(|| Datagram {
            began: now,
            header: Vec::new(),
            payload: Vec::new(),
            have: Vec::new(),
            len: None,
        });
        if datagram.payload.len() < end {
            self.bytes += end - datagram.payload.len();
            datagram.payload.resize(end, 0);
        }
        datagram.payload.get_mut(offset..end)?.copy_from_slice(payload);
        insert(&mut datagram.have, offset, end);
        if !more {
            datagram.len = Some(end);
        }
        if offset == 0 {
            datagram.header = header.to_vec();
            if let Some((at, protocol)) = next_header
                && let Some(byte) = datagram.header.get_mut(at)
            {
                *byte = protocol;
            }
        }
        let len = datagram.len?;
        if datagram.header.is_empty()
            || !datagram.have.first().is_some_and(|have| have.0 == 0 && have.1 >= len)
        {
            return None;
        }
        let datagram = self.pending.remove(&identity)?;
        self.bytes = self.bytes.saturating_sub(datagram.payload.len());
        self.whole = datagram.header;
        let header_len = self.whole.len();
        self.whole.extend_from_slice(datagram.payload.get(..len)?);
        let (at, total) =
            if next_header.is_some() { (4, header_len - 40 + len) } else { (2, header_len + len) };
        // A datagram of more than 65535 bytes cannot be: its length stays the first fragment's.
        if let Ok(total) = u16::try_from(total) {
            self.whole.get_mut(at..at + 2)?.copy_from_slice(&total.to_be_bytes());
        }
        if next_header.is_none() {
            self.whole.get_mut(6..8)?.fill(0);
        }
        Some(&self.whole)
    }

    fn make_room(&mut self, identity: Identity, now: i64) {
        if let Some(datagram) = self.pending.get(&identity)
            && now.saturating_sub(datagram.began) > LIFETIME
        {
            // The same identification again: another datagram.
            self.bytes = self.bytes.saturating_sub(datagram.payload.len());
            self.pending.remove(&identity);
        }
        if self.pending.len() >= MAX_PENDING || self.bytes >= MAX_BYTES {
            self.pending.retain(|_, datagram| now.saturating_sub(datagram.began) <= LIFETIME);
            if self.pending.len() >= MAX_PENDING / 2 || self.bytes >= MAX_BYTES {
                self.pending.clear();
            }
            self.bytes = self.pending.values().map(|datagram| datagram.payload.len()).sum();
        }
    }
}

fn insert(have: &mut Vec<(usize, usize)>, start: usize, end: usize) {
    let first = have.partition_point(|range| range.1 < start);
    let last = have.partition_point(|range| range.0 <= end);
    let touched = have.get(first..last).unwrap_or_default();
    let start = touched.first().map_or(start, |range| range.0.min(start));
    let end = touched.last().map_or(end, |range| range.1.max(end));
    have.splice(first..last.max(first), [(start, end)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet with `payload` cut into pieces of `size`.
    fn cut(payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let mut fragments = Vec::new();
        for (i, piece) in payload.chunks(size).enumerate() {
            let more = (i + 1) * size < payload.len();
            let field = u16::try_from(i * size / 8).unwrap() | if more { 0x2000 } else { 0 };
            let mut packet = vec![0x45, 0];
            packet.extend(u16::try_from(20 + piece.len()).unwrap().to_be_bytes());
            packet.extend([0, 7]);
            packet.extend(field.to_be_bytes());
            packet.extend([64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            packet.extend(piece);
            fragments.push(packet);
        }
        fragments
    }

    fn add(fragments: &mut Fragments, packet: &[u8], now: i64) -> Option<Vec<u8>> {
        let fragment = Fragment::parse(Network::Ipv4, packet).unwrap();
        fragments.add(&fragment, now).map(<[u8]>::to_vec)
    }

    #[test]
    fn fragments_in_any_order_make_the_packet() {
        let payload: Vec<u8> = (0..100).collect();
        let pieces = cut(&payload, 24);
        for rotation in 0..pieces.len() {
            let mut fragments = Fragments::default();
            let mut order = pieces.clone();
            order.rotate_left(rotation);
            let last = order.pop().unwrap();
            for piece in &order {
                assert_eq!(add(&mut fragments, piece, 0), None);
                assert_eq!(add(&mut fragments, piece, 0), None, "a duplicate completes nothing");
            }
            let whole = add(&mut fragments, &last, 0).unwrap();
            assert_eq!(whole[20..], payload);
            assert_eq!(whole[..8], [0x45, 0, 0, 120, 0, 7, 0, 0]);
            assert!(Fragment::parse(Network::Ipv4, &whole).is_none());
            assert_eq!(fragments.bytes, 0);
        }
    }

    #[test]
    fn ipv6_loses_its_fragment_header() {
        let piece = |offset: u16, more: u16, payload: &[u8]| {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
            packet.resize(40, 1);
            // Hop-by-hop options, then the fragment header.
            packet.extend([44, 0, 1, 4, 0, 0, 0, 0, 6, 0]);
            packet.extend((offset | more).to_be_bytes());
            packet.extend([0, 0, 0, 9]);
            packet.extend(payload);
            packet
        };
        let mut fragments = Fragments::default();
        let first = piece(0, 1, &[1; 16]);
        let second = piece(16, 0, &[2; 5]);
        assert!(fragments.add(&Fragment::parse(Network::Ipv6, &second).unwrap(), 0).is_none());
        let whole = fragments.add(&Fragment::parse(Network::Ipv6, &first).unwrap(), 0).unwrap();
        assert_eq!(whole.len(), 40 + 8 + 21);
        assert_eq!((whole[4], whole[5]), (0, 29), "the payload length");
        assert_eq!(whole[40], 6, "TCP follows the options now");
        assert!(Fragment::parse(Network::Ipv6, &piece(0, 0, &[])).is_none(), "an atomic fragment is whole");
    }

    #[test]
    fn memory_is_bounded() {
        let mut fragments = Fragments::default();
        let first = cut(&[0; 48], 24).remove(0);
        for id in 0..=u16::MAX {
            let mut packet = first.clone();
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            assert_eq!(add(&mut fragments, &packet, i64::from(id)), None);
            assert!(fragments.pending.len() <= MAX_PENDING);
        }
    }

    #[test]
    fn an_old_datagram_is_forgotten() {
        let mut fragments = Fragments::default();
        let pieces = cut(&[0; 48], 24);
        assert_eq!(add(&mut fragments, &pieces[0], 0), None);
        assert_eq!(add(&mut fragments, &pieces[1], LIFETIME + 1), None);
    }
    /// An IPv6 packet from the addresses that an IPv4 one's are, and zeros behind, with the same identification.
    #[test]
    fn fragments_of_two_families_are_not_put_together() {
        let mut fragments = Fragments::default();
        let mut first = cut(&[0; 48], 24).remove(0);
        first[9] = 0;
        assert_eq!(add(&mut fragments, &first, 0), None);
        let mut last = vec![0x60, 0, 0, 0, 0, 32, 44, 64];
        for address in [&first[12..16], &first[16..20]] {
            last.extend(address);
            last.resize(last.len() + 12, 0);
        }
        last.extend([0, 0, 0, 24, 0, 0, 0, 7]);
        last.extend([0; 24]);
        assert!(fragments.add(&Fragment::parse(Network::Ipv6, &last).unwrap(), 0).is_none());
    }
}
