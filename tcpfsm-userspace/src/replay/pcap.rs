//! The classic format: a header, then records one after the other (draft-ietf-opsawg-pcap).

use std::io::Read;

use super::{
    capture::{CaptureError, MAX_FRAME, Order, Record},
    input::Input,
};

const NANOS: i64 = 1_000_000_000;

/// What the first four bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Magic {
    order: Order,
    nanos: bool,
    record_header: usize,
}

impl Magic {
    pub(super) fn parse(bytes: [u8; 4]) -> Option<Self> {
        let (order, magic) = match bytes[0] {
            0xa1 => (Order::Big, u32::from_be_bytes(bytes)),
            _ => (Order::Little, u32::from_le_bytes(bytes)),
        };
        match magic {
            0xa1b2_c3d4 => Some(Self { order, nanos: false, record_header: 16 }),
            0xa1b2_3c4d => Some(Self { order, nanos: true, record_header: 16 }),
            // Kuznetzov's libpcap of the 1990s: interface, protocol and packet type after the lengths.
            0xa1b2_cd34 => Some(Self { order, nanos: false, record_header: 24 }),
            _ => None,
        }
    }
}

/// What the file header says of all records.
pub(super) struct Header {
    magic: Magic,
    link: u16,
}

impl Header {
    pub(super) fn read<R: Read>(input: &mut Input<R>, magic: Magic) -> Result<Self, CaptureError> {
        if input.peek(24)?.len() < 24 {
            return Err(CaptureError::NotACapture(Some("the beginning of a pcap header")));
        }
        // The upper half holds the length of the frame check sequence, where it is known.
        let link = magic.order.u32(input.take(24), 20) as u16;
        Ok(Self { magic, link })
    }

    #[inline]
    pub(super) fn next<R: Read>(&mut self, input: &mut Input<R>) -> Result<Option<Record>, CaptureError> {
        let Magic { order, nanos, record_header } = self.magic;
        let offset = input.offset();
        let header = input.peek(record_header)?;
        if header.len() < record_header {
            return if header.is_empty() { Ok(None) } else { Err(CaptureError::Truncated(offset)) };
        }
        let (seconds, fraction) = (order.u32(header, 0), order.u32(header, 4));
        let captured = order.u32(header, 8) as usize;
        let wire_len = order.u32(header, 12) as usize;
        if captured > MAX_FRAME {
            return Err(CaptureError::Corrupt(offset, "a frame length beyond all reason"));
        }
        if input.peek(record_header + captured)?.len() < record_header + captured {
            return Err(CaptureError::Truncated(offset));
        }
        let fraction = i64::from(fraction) * if nanos { 1 } else { 1000 };
        Ok(Some(Record {
            // A fraction of more than a second is damage: the second itself is the best that is known.
            time: i64::from(seconds) * NANOS + fraction.min(NANOS - 1),
            link: self.link,
            // Some writers leave the wire length out, or swap the two.
            wire_len: wire_len.max(captured),
            skip: record_header,
            captured,
            trailer: 0,
        }))
    }
}
