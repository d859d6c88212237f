//! The next generation format: blocks of many kinds, several interfaces, several sections
//! (draft-ietf-opsawg-pcapng).

use std::io::Read;

use super::{
    capture::{CaptureError, MAX_FRAME, Order, Record},
    input::Input,
};

/// The type of a section header block, which is the same in both byte orders.
pub(super) const MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

const OPTION_END: u16 = 0;
const OPTION_TSRESOL: u16 = 9;
const OPTION_TSOFFSET: u16 = 14;

/// What a section may describe before it is taken for an attack on memory.
const MAX_INTERFACES: usize = 1 << 16;

const NANOS: i128 = 1_000_000_000;

/// The present section.
#[derive(Default)]
pub(super) struct Section {
    order: Order,
    interfaces: Vec<Interface>,
}

/// What frames of one interface have in common.
#[derive(Clone, Copy)]
struct Interface {
    link: u16,
    snaplen: u32,
    clock: Clock,
}

/// How an interface counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    ticks_per_second: u128,
    offset_seconds: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { ticks_per_second: 1_000_000, offset_seconds: 0 }
    }
}

impl Clock {
    /// `if_tsresol`: a power of ten, or of two where the highest bit is set.
    const fn with_resolution(self, code: u8) -> Self {
        let exponent = (code & 0x7f) as u32;
        let base: u128 = if code & 0x80 == 0 { 10 } else { 2 };
        match base.checked_pow(exponent) {
            Some(ticks_per_second) => Self { ticks_per_second, ..self },
            None => self,
        }
    }

    fn nanos(self, ticks: u64) -> i64 {
        let per_second = self.ticks_per_second;
        if per_second == 1_000_000 && self.offset_seconds == 0 {
            return i64::try_from(ticks).unwrap_or(i64::MAX).saturating_mul(1000);
        }
        let ticks = u128::from(ticks);
        let seconds = i128::try_from(ticks / per_second).unwrap_or(i128::MAX >> 64);
        // At most 2^94 for 10^38 ticks per second were the product taken first.
        let rest = ticks % per_second;
        let rest = rest.checked_mul(NANOS as u128).map_or(0, |n| n / per_second);
        let total = (seconds + i128::from(self.offset_seconds)) * NANOS + i128::try_from(rest).unwrap_or(0);
        i64::try_from(total).unwrap_or(if total < 0 { i64::MIN } else { i64::MAX })
    }
}

impl Section {
    /// Walks to the next packet block.
    pub(super) fn next<R: Read>(&mut self, input: &mut Input<R>) -> Result<Option<Record>, CaptureError> {
        loop {
            let offset = input.offset();
            let head = input.peek(12)?;
            if head.len() < 12 {
                return if head.is_empty() { Ok(None) } else { Err(CaptureError::Truncated(offset)) };
            }
            let kind = self.order.u32(head, 0);
            if kind == SECTION {
                self.order = match head[8..12] {
                    [0x4d, 0x3c, 0x2b, 0x1a] => Order::Little,
                    [0x1a, 0x2b, 0x3c, 0x4d] => Order::Big,
                    _ => return Err(CaptureError::Corrupt(offset, "no byte order magic")),
                };
                self.interfaces.clear();
            }
            let len = self.order.u32(head, 4) as usize;
            if len < 12 || !len.is_multiple_of(4) {
                return Err(CaptureError::Corrupt(offset, "an impossible block length"));
            }
            match kind {
                INTERFACE | OLD_PACKET | SIMPLE_PACKET | ENHANCED_PACKET => {
                    if len > MAX_FRAME {
                        return Err(CaptureError::Corrupt(offset, "a frame length beyond all reason"));
                    }
                    let block = input.peek(len)?;
                    if block.len() < len {
                        return Err(CaptureError::Truncated(offset));
                    }
                    // The body, without type, both lengths.
                    let body = &block[8..len - 4];
                    let record = match kind {
                        INTERFACE => {
                            if body.len() < 8 || self.interfaces.len() >= MAX_INTERFACES {
                                return Err(CaptureError::Corrupt(offset, "a bad interface description"));
                            }
                            self.interfaces.push(interface(self.order, body));
                            None
                        }
                        ENHANCED_PACKET => self.enhanced(body),
                        SIMPLE_PACKET => self.simple(body),
                        _ => self.old(body),
                    };
                    match record {
                        Some(record) => {
                            let trailer = len.saturating_sub(8 + record.skip + record.captured);
                            return Ok(Some(Record { skip: record.skip + 8, trailer, ..record }));
                        }
                        None if kind == INTERFACE => {
                            input.take(len);
                        }
                        None => return Err(CaptureError::Corrupt(offset, "a bad packet block")),
                    }
                }
                // Names, statistics, secrets, custom blocks: of no interest here, whatever their size.
                _ => {
                    if !input.skip(len as u64)? {
                        return Err(CaptureError::Truncated(offset));
                    }
                }
            }
        }
    }

    fn enhanced(&self, body: &[u8]) -> Option<Record> {
        let order = self.order;
        let interface = self.interface(order.u32(body, 0))?;
        self.record(interface, body, [4, 8, 12, 16], 20)
    }

    /// The packet block of 2004, obsolete but still met: the interface has 16 bits, drops the other 16.
    fn old(&self, body: &[u8]) -> Option<Record> {
        let interface = self.interface(u32::from(self.order.u16(body, 0)))?;
        self.record(interface, body, [4, 8, 12, 16], 20)
    }

    /// No time, no interface, and the captured length must be worked out.
    fn simple(&self, body: &[u8]) -> Option<Record> {
        let interface = self.interface(0)?;
        let wire_len = (body.len() >= 4).then(|| self.order.u32(body, 0))? as usize;
        let snaplen = match interface.snaplen {
            0 => usize::MAX,
            n => n as usize,
        };
        let captured = wire_len.min(snaplen).min(body.len() - 4);
        Some(Record { time: 0, link: interface.link, wire_len, skip: 4, captured, trailer: 0 })
    }

    fn record(&self, interface: &Interface, body: &[u8], at: [usize; 4], skip: usize) -> Option<Record> {
        let [high, low, captured, wire_len] = at.map(|at| self.order.u32(body, at));
        let captured = captured as usize;
        if body.len() < skip || captured > body.len() - skip {
            return None;
        }
        Some(Record {
            time: interface.clock.nanos(u64::from(high) << 32 | u64::from(low)),
            link: interface.link,
            wire_len: (wire_len as usize).max(captured),
            skip,
            captured,
            trailer: 0,
        })
    }

    fn interface(&self, id: u32) -> Option<&Interface> {
        self.interfaces.get(id as usize)
    }
}

fn interface(order: Order, body: &[u8]) -> Interface {
    let mut clock = Clock::default();
    let mut at = 8;
    while let Some(option) = body.get(at..at + 4) {
        let (code, len) = (order.u16(option, 0), usize::from(order.u16(option, 2)));
        let Some(value) = body.get(at + 4..at + 4 + len) else { break };
        match (code, value) {
            (OPTION_END, _) => break,
            (OPTION_TSRESOL, &[code]) => clock = clock.with_resolution(code),
            (OPTION_TSOFFSET, value) => {
                if let Some(&value) = value.first_chunk::<8>() {
                    clock.offset_seconds = match order {
                        Order::Little => i64::from_le_bytes(value),
                        Order::Big => i64::from_be_bytes(value),
                    };
                }
            }
            _ => {}
        }
        at += 4 + len.next_multiple_of(4);
    }
    Interface { link: order.u16(body, 0), snaplen: order.u32(body, 4), clock }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resolution_gives_a_time() {
        for code in 0..=255 {
            for ticks in [0, 1, 1 << 40, u64::MAX] {
                for offset_seconds in [0, i64::MIN, i64::MAX] {
                    Clock { offset_seconds, ..Clock::default() }.with_resolution(code).nanos(ticks);
                }
            }
        }
        let nanos = |code, ticks| Clock::default().with_resolution(code).nanos(ticks);
        assert_eq!(nanos(6, 1_500_000), 1_500_000_000);
        assert_eq!(nanos(9, 1_500_000_001), 1_500_000_001);
        assert_eq!(nanos(3, 1_500), 1_500_000_000);
        assert_eq!(nanos(0x8a, 1536), 1_500_000_000, "2^10 ticks a second");
        assert_eq!(Clock { offset_seconds: -2, ..Clock::default() }.nanos(1_000_000), -1_000_000_000);
    }
}
