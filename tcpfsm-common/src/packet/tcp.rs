//! The TCP header and a bounded walk over its options (RFC 9293 §3.1, §3.2; RFC 7323; RFC 2018).

use super::{PacketBytes, Skip};
use crate::{
    segment::{Segment, TcpFlags, TcpOptions},
    seq::SeqNum,
};

/// How many options (each NOP counts) are read. A Linux SYN has 5, an ACK with SACK 6; past about ten the
/// verifier's work in the kernel explodes, and nothing that the machine reads stands there.
pub const MAX_OPTIONS: usize = 10;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// What Linux puts before the timestamps of every segment that is not a SYN: NOP, NOP, kind 8, length 10.
pub(super) const ALIGNED_TIMESTAMPS: u32 = 0x0101_080a;

/// How long they are with that.
pub(super) const STAMPED_LEN: usize = 12;

/// How long Linux's options of a SYN are.
pub(super) const LINUX_SYN_LEN: usize = 20;

/// The largest shift that counts (RFC 7323 §2.3).
const MAX_SCALE: u8 = 14;

/// Source and destination port at `offset`; enough for an ICMP quotation.
///
/// # Errors
/// `Truncated`.
#[inline(always)]
pub fn parse_ports<B: PacketBytes>(bytes: &B, offset: usize) -> Result<(u16, u16), Skip> {
    let [a, b, c, d] = bytes.read(offset).ok_or(Skip::Truncated)?;
    Ok((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// Parses a TCP header at `offset` with `len` bytes of header and payload; gives the ports and the segment.
///
/// A first fragment has only a part of its payload, so its length is that part and no FIN in it is complete.
///
/// # Errors
/// `Truncated`, or `BadHeader` for a data offset below 5 or beyond `len`.
#[inline(always)]
pub fn parse_tcp<B: PacketBytes>(
    bytes: &B,
    offset: usize,
    len: usize,
    first_fragment: bool,
) -> Result<((u16, u16), Segment), Skip> {
    let header: [u8; 20] = bytes.read(offset).ok_or(Skip::Truncated)?;
    let header_len = usize::from(header[12] >> 4) * 4;
    if header_len < 20 || header_len > len {
        return Err(Skip::BadHeader);
    }
    let options_len = header_len - 20;
    let options =
        if options_len == 0 { TcpOptions::default() } else { parse_options(bytes, offset + 20, options_len) };
    let flags = u16::from_be_bytes([header[12] & 0x01, header[13]]);
    let segment = Segment {
        seq: SeqNum(u32::from_be_bytes([header[4], header[5], header[6], header[7]])),
        ack: SeqNum(u32::from_be_bytes([header[8], header[9], header[10], header[11]])),
        len: (len - header_len) as u32,
        // The FIN of a fragmented segment comes after payload that is not here.
        flags: TcpFlags(if first_fragment { flags & !TcpFlags::FIN } else { flags }),
        window: u16::from_be_bytes([header[14], header[15]]),
        ip_id: 0,
        to_itself: false,
        tap: 0,
        options,
    };
    let ports = (u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]]));
    Ok((ports, segment))
}

#[inline(always)]
fn parse_options<B: PacketBytes>(bytes: &B, start: usize, len: usize) -> TcpOptions {
    // Nearly every segment of a Linux connection: one comparison instead of a walk.
    if len == STAMPED_LEN
        && let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = bytes.read::<STAMPED_LEN>(start)
        && u32::from_be_bytes([a, b, c, d]) == ALIGNED_TIMESTAMPS
    {
        return TcpOptions {
            present: TcpOptions::HAS_TIMESTAMPS,
            tsval: u32::from_be_bytes([e, f, g, h]),
            tsecr: u32::from_be_bytes([i, j, k, l]),
            ..TcpOptions::default()
        };
    }
    bytes.options(start, len)
}

/// What the `len` bytes of options at `start` say.
//
// A zero of which the verifier does not know that it is one, and flags of which it does not know which are
// set: it need not tell the walks apart that found different options.
#[inline(always)]
#[must_use]
pub fn walk_options<B: PacketBytes + ?Sized>(bytes: &B, start: usize, len: usize) -> TcpOptions {
    if bytes.blur(len, 0x3f) == LINUX_SYN_LEN
        && let Some(bytes) = bytes.read::<LINUX_SYN_LEN>(start)
        && let Ok(words) = bytes.as_chunks().0.try_into()
        && is_linux_syn(words)
    {
        return linux_syn_options(words);
    }
    let zero = bytes.blur(0, u32::MAX as usize) as u32;
    let mut options = TcpOptions {
        mss: zero as u16,
        scale: zero as u8,
        present: zero as u8,
        tsval: zero,
        tsecr: zero,
        sack_edge: SeqNum(zero),
    };
    walk(bytes, start, len, &mut options);
    options.present = bytes.blur(usize::from(options.present), 0x3f) as u8;
    options
}

/// The options of a SYN, by words.
type SynWords = [[u8; 4]; LINUX_SYN_LEN / 4];

/// Whether these are the options of a SYN or SYN-ACK as Linux sends it, each in its place: MSS, SACK permitted, timestamps, NOP,
/// window scale. Nearly every handshake between Linux hosts: one comparison instead of a walk.
#[inline(always)]
pub(super) fn is_linux_syn([[a, b, ..], sack_and_timestamps, _, _, [q, r, s, _]]: &SynWords) -> bool {
    // In one comparison: the verifier would follow the walk from each.
    let unlike = u32::from_be_bytes([*a, *b, 0, 0]) ^ 0x0204_0000
        | u32::from_be_bytes(*sack_and_timestamps) ^ 0x0402_080a
        | u32::from_be_bytes([*q, *r, *s, 0]) ^ 0x0103_0300;
    unlike == 0
}

/// What they say.
#[inline(always)]
pub(super) fn linux_syn_options([[.., c, d], _, tsval, tsecr, [.., scale]]: &SynWords) -> TcpOptions {
    TcpOptions {
        mss: u16::from_be_bytes([*c, *d]),
        scale: (*scale).min(MAX_SCALE),
        present: TcpOptions::HAS_MSS
            | TcpOptions::SACK_PERMITTED
            | TcpOptions::HAS_TIMESTAMPS
            | TcpOptions::HAS_SCALE,
        tsval: u32::from_be_bytes(*tsval),
        tsecr: u32::from_be_bytes(*tsecr),
        sack_edge: SeqNum(0),
    }
}

#[inline(always)]
fn walk<B: PacketBytes + ?Sized>(bytes: &B, start: usize, len: usize, options: &mut TcpOptions) {
    let mut walked = 0;
    for _ in 0..MAX_OPTIONS {
        walked = bytes.blur(walked, 0x3f);
        if walked >= len {
            return;
        }
        let at = start + walked;
        let Some(kind) = bytes.u8(at) else { break };
        match kind {
            END => return,
            NOP => {
                walked += 1;
                continue;
            }
            _ => {}
        }
        let Some(option_len) = bytes.u8(at + 1) else { break };
        let option_len = usize::from(option_len);
        if option_len < 2 || walked + option_len > len {
            break;
        }
        match (kind, option_len) {
            (MSS, 4) => {
                let Some(mss) = bytes.u16(at + 2) else { break };
                options.mss = mss;
                options.present |= TcpOptions::HAS_MSS;
            }
            (WINDOW_SCALE, 3) => {
                let Some(scale) = bytes.u8(at + 2) else { break };
                options.scale = if scale > MAX_SCALE { MAX_SCALE } else { scale };
                options.present |= TcpOptions::HAS_SCALE;
            }
            (SACK_PERMITTED, 2) => options.present |= TcpOptions::SACK_PERMITTED,
            (SACK, 10 | 18 | 26 | 34) => {
                // The blocks come newest first; the machine needs the highest right edge of the first two.
                let Some(edge) = bytes.u32(at + 6) else { break };
                options.sack_edge = SeqNum(edge);
                options.present |= TcpOptions::HAS_SACK;
                if option_len > 10 {
                    let Some(edge) = bytes.u32(at + 14) else { break };
                    options.sack_edge = options.sack_edge.latest(SeqNum(edge));
                }
            }
            (TIMESTAMPS, 10) => {
                let (Some(tsval), Some(tsecr)) = (bytes.u32(at + 2), bytes.u32(at + 6)) else { break };
                options.tsval = tsval;
                options.tsecr = tsecr;
                options.present |= TcpOptions::HAS_TIMESTAMPS;
            }
            (MSS | WINDOW_SCALE | SACK_PERMITTED | SACK | TIMESTAMPS, _) => break,
            _ => {}
        }
        walked += option_len;
    }
    if walked < len {
        options.present |= TcpOptions::MALFORMED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(options: &[u8]) -> TcpOptions {
        walk_options(&options, 0, options.len())
    }

    #[test]
    fn linux_syn() {
        let options = walked(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7, 1, 3, 3, 10]);
        assert_eq!((options.mss, options.scale, options.tsval, options.tsecr), (1460, 10, 9, 7));
        assert!(options.has(TcpOptions::SACK_PERMITTED) && !options.has(TcpOptions::MALFORMED));
    }

    #[test]
    fn linux_syn_equals_the_walk() {
        let mut bytes = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 10];
        let mut alike = 0;
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 3, 4, 8, 10, 14, 15, 255] {
                let before = core::mem::replace(&mut bytes[at], value);
                let mut options = TcpOptions::default();
                walk(&bytes.as_slice(), 0, bytes.len(), &mut options);
                let words = bytes.as_chunks().0.try_into().unwrap();
                if is_linux_syn(words) {
                    assert_eq!(linux_syn_options(words), options, "{bytes:?}");
                    alike += 1;
                }
                bytes[at] = before;
            }
        }
        assert!(alike > 100, "every value of the numbers is one: {alike}");
    }

    #[test]
    fn aligned_timestamps_equal_the_walk() {
        let bytes = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(parse_options(&bytes.as_slice(), 0, 12), walked(&bytes));
    }

    #[test]
    fn scale_above_14_is_clamped() {
        assert_eq!(walked(&[3, 3, 15, 0]).scale, 14);
    }

    #[test]
    fn what_precedes_a_fault_counts() {
        for fault in [[9, 0, 0, 0], [9, 1, 0, 0], [9, 9, 0, 0], [2, 3, 0, 0]] {
            let mut bytes = [2, 4, 1, 2, 0, 0, 0, 0];
            bytes[4..].copy_from_slice(&fault);
            let options = walked(&bytes);
            assert_eq!(options.mss, 0x102, "{fault:?}");
            assert!(options.has(TcpOptions::MALFORMED), "{fault:?}");
        }
    }

    #[test]
    fn sack_gives_the_highest_edge() {
        let mut bytes = [0_u8; 20];
        bytes[..4].copy_from_slice(&[1, 1, 5, 18]);
        bytes[8..12].copy_from_slice(&500_u32.to_be_bytes());
        bytes[16..20].copy_from_slice(&900_u32.to_be_bytes());
        assert_eq!(walked(&bytes).sack_edge, SeqNum(900));
    }
}
