//! TCP segments in Ethernet frames, built and read byte by byte.
//!
//! Deliberately not tcpfsm-common's parser: tests must not check that parser against itself.

use std::net::{IpAddr, SocketAddr};

/// Bit of the flags field.
pub const FIN: u8 = 0x01;
/// Bit of the flags field.
pub const SYN: u8 = 0x02;
/// Bit of the flags field.
pub const RST: u8 = 0x04;
/// Bit of the flags field.
pub const PSH: u8 = 0x08;
/// Bit of the flags field.
pub const ACK: u8 = 0x10;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_TCP: u8 = 6;

/// One segment, with the addresses of the packet around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver; of the same family.
    pub destination: SocketAddr,
    /// Sequence number of the first byte, or of SYN.
    pub seq: u32,
    /// Acknowledgement number; meaningful with [`ACK`].
    pub ack: u32,
    /// [`FIN`], [`SYN`], [`RST`], [`PSH`], [`ACK`], ...
    pub flags: u8,
    /// Window, unscaled.
    pub window: u16,
    /// Options, a multiple of four bytes long.
    pub options: Vec<u8>,
    /// Data.
    pub payload: Vec<u8>,
}

impl Segment {
    /// The sequence number after this segment: SYN and FIN count one each (RFC 9293, 3.4).
    pub fn end(&self) -> u32 {
        let phantom = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        #[expect(clippy::cast_possible_truncation, reason = "a segment is shorter than 64 KiB")]
        let length = self.payload.len() as u32;
        self.seq.wrapping_add(length).wrapping_add(phantom)
    }

    /// The segment in an Ethernet frame.
    ///
    /// # Panics
    ///
    /// If the addresses are of two families, or the options not a multiple of four bytes long.
    pub fn to_frame(&self, source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
        let tcp = self.tcp_bytes();
        let mut frame = Vec::with_capacity(14 + 40 + tcp.len());
        frame.extend(destination);
        frame.extend(source);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                let mut header = [0_u8; 20];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&length16(20 + tcp.len()));
                header[6] = 0x40; // don't fragment
                header[8] = 64;
                header[9] = PROTOCOL_TCP;
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum);
                frame.extend(header);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(length16(tcp.len()));
                frame.extend([PROTOCOL_TCP, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => panic!("two address families"),
        }
        frame.extend(tcp);
        frame
    }

    /// Reads a frame, if it holds a TCP segment without IP options or extension headers (a lab's kernels send none).
    /// Checksums are not looked at: what a kernel hands to veth has none yet.
    pub fn from_frame(frame: &[u8]) -> Option<Self> {
        let ethertype = be16(frame.get(12..14)?)?;
        let packet = frame.get(14..)?;
        let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match ethertype {
            ETHERTYPE_IPV4 if packet.first()? == &0x45 && packet.get(9)? == &PROTOCOL_TCP => {
                let total = usize::from(be16(packet.get(2..4)?)?);
                let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                (from.into(), to.into(), packet.get(20..total)?)
            }
            ETHERTYPE_IPV6 if packet.get(6)? == &PROTOCOL_TCP => {
                let length = usize::from(be16(packet.get(4..6)?)?);
                let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                (from.into(), to.into(), packet.get(40..40 + length)?)
            }
            _ => return None,
        };
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            source: SocketAddr::new(source, be16(tcp.get(0..2)?)?),
            destination: SocketAddr::new(destination, be16(tcp.get(2..4)?)?),
            seq: be32(tcp.get(4..8)?)?,
            ack: be32(tcp.get(8..12)?)?,
            flags: *tcp.get(13)?,
            window: be16(tcp.get(14..16)?)?,
            options: tcp.get(20..header)?.to_vec(),
            payload: tcp.get(header..)?.to_vec(),
        })
    }

    fn tcp_bytes(&self) -> Vec<u8> {
        assert!(
            self.options.len().is_multiple_of(4) && self.options.len() <= 40,
            "options come in words, ten at most"
        );
        let mut tcp = Vec::with_capacity(20 + self.options.len() + self.payload.len());
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "at most 15, by the assertion above")]
        tcp.push(((5 + self.options.len() / 4) << 4) as u8);
        tcp.push(self.flags);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]); // checksum, urgent pointer
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let mut pseudo = Vec::with_capacity(40);
        for address in [self.source.ip(), self.destination.ip()] {
            match address {
                IpAddr::V4(address) => pseudo.extend(address.octets()),
                IpAddr::V6(address) => pseudo.extend(address.octets()),
            }
        }
        // IPv6 has 32-bit fields here; with the upper halves zero the sum is the same.
        pseudo.extend([0, PROTOCOL_TCP]);
        pseudo.extend(length16(tcp.len()));
        let sum = checksum(&[&pseudo, &tcp]);
        tcp[16..18].copy_from_slice(&sum);
        tcp
    }
}

/// The Internet checksum (RFC 1071) of parts, all but the last of even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum: u32 = 0;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits above")]
    let folded = sum as u16;
    (!folded).to_be_bytes()
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

fn be16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(source: &str, destination: &str) -> Segment {
        Segment {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            seq: 0xffff_ffff,
            ack: 7,
            flags: SYN | ACK,
            window: 65535,
            options: vec![2, 4, 0x05, 0xb4],
            payload: b"odd".to_vec(),
        }
    }

    #[test]
    fn what_is_built_can_be_read() {
        for segment in
            [segment("192.0.2.1:1", "192.0.2.2:65535"), segment("[2001:db8::1]:1", "[2001:db8::2]:65535")]
        {
            let frame = segment.to_frame([1; 6], [2; 6]);
            assert_eq!(Segment::from_frame(&frame), Some(segment));
        }
    }

    #[test]
    fn every_cut_off_frame_is_refused() {
        let frame = segment("192.0.2.1:1", "192.0.2.2:2").to_frame([1; 6], [2; 6]);
        for length in 0..frame.len() {
            assert_eq!(Segment::from_frame(&frame[..length]), None, "{length}");
        }
    }

    /// RFC 1071: the sum over data with its checksum in place is all ones.
    #[test]
    fn checksums_verify() {
        let frame = segment("192.0.2.1:1", "192.0.2.2:2").to_frame([1; 6], [2; 6]);
        assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
        let tcp = &frame[34..];
        let pseudo = [192, 0, 2, 1, 192, 0, 2, 2, 0, 6, 0, tcp.len() as u8];
        assert_eq!(checksum(&[&pseudo, tcp]), [0, 0]);
    }

    /// A header whose checksum is known from elsewhere.
    #[test]
    fn checksum_of_a_known_header() {
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&[&header]), [0xb8, 0x61]);
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert_eq!(segment("192.0.2.1:1", "192.0.2.2:2").end(), 3);
    }
}
