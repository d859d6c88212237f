//! Which bytes of one direction's stream were seen: what Zeek's reassembler would deliver, and where it
//! would report a content gap.
//!
//! Positions are relative to the initial sequence number: the first byte of data is 1.

/// Data above a hole that is kept while nothing at all is acknowledged (`tcp_max_above_hole_without_any_acks`).
const MAX_ABOVE_HOLE: u64 = 16_384;
/// The same for data that is not acknowledged any more (`tcp_excessive_data_without_further_acks`).
const MAX_UNACKED: u64 = 10 << 20;
/// Data sent without any acknowledgment after which none is waited for (`tcp_max_initial_window`).
const MAX_INITIAL_WINDOW: u64 = 16_384;
/// Zeek has no bound here; a file of one-byte segments with holes between them must not take quadratic time.
const MAX_BLOCKS: usize = 1024;

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// Everything before was delivered, or given up as a gap.
    delivered: u64,
    /// Everything before was acknowledged.
    trimmed: u64,
    /// What is there and not acknowledged: disjoint, ascending, never touching.
    blocks: Vec<(u64, u64)>,
    /// Given up.
    skipping: bool,
    /// The end was reached and told.
    pub(super) did_eof: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self { delivered: 1, trimmed: 1, blocks: Vec::new(), skipping: false, did_eof: false }
    }
}

/// What the stream needs to know of its endpoint.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    /// Nothing but perhaps the SYN was acknowledged.
    pub(super) nothing_acked: bool,
    /// Bytes sent so far.
    pub(super) size: u64,
    /// The connection's beginning was not seen.
    pub(super) is_partial: bool,
}

impl Stream {
    pub(super) const fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) const fn is_skipping(&self) -> bool {
        self.skipping
    }

    pub(super) const fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }

    /// Payload `[seq, upper)` was sent.
    #[inline]
    pub(super) fn sent(&mut self, seq: u64, upper: u64, sender: Sender) {
        if self.skipping || upper <= self.trimmed {
            return;
        }
        let seq = seq.max(self.trimmed);
        if seq >= upper {
            return;
        }
        self.insert(seq, upper);
        self.deliver(sender);
        let last = self.blocks.last().map_or(0, |&(_, upper)| upper);
        let above_hole = sender.nothing_acked && last.saturating_sub(self.delivered) > MAX_ABOVE_HOLE;
        let held = self.blocks.iter().map(|(seq, upper)| upper - seq).sum::<u64>();
        if above_hole || held > MAX_UNACKED || self.blocks.len() > MAX_BLOCKS {
            self.blocks = Vec::new();
            self.skipping = true;
        }
    }

    /// Everything before `seq` is acknowledged. Gives the number of gaps that this reveals.
    #[inline]
    pub(super) fn acknowledged(&mut self, seq: u64, sender: Sender) -> u32 {
        if seq <= self.trimmed { 0 } else { self.trim(seq, sender) }
    }

    fn insert(&mut self, seq: u64, upper: u64) {
        match self.blocks.last_mut() {
            Some(last) if last.1 == seq => last.1 = upper,
            Some(last) if last.1 > seq => {
                let first = self.blocks.partition_point(|block| block.1 < seq);
                let end = self.blocks.partition_point(|block| block.0 <= upper);
                let touched = self.blocks.get(first..end).unwrap_or_default();
                let seq = touched.first().map_or(seq, |block| block.0.min(seq));
                let upper = touched.last().map_or(upper, |block| block.1.max(upper));
                self.blocks.splice(first..end, [(seq, upper)]);
            }
            Some(_) | None => self.blocks.push((seq, upper)),
        }
    }

    /// Delivers what is contiguous.
    fn deliver(&mut self, sender: Sender) {
        let at = self.blocks.partition_point(|block| block.1 <= self.delivered);
        if let Some(&(seq, upper)) = self.blocks.get(at)
            && seq <= self.delivered
        {
            self.delivered = upper;
            if sender.nothing_acked && sender.size > MAX_INITIAL_WINDOW {
                // The peer's acknowledgments are not seen: do not hold the data for them.
                self.trim(self.delivered, sender);
            }
        }
    }

    fn trim(&mut self, seq: u64, sender: Sender) -> u32 {
        let gaps = if seq > self.delivered { self.give_up_to(seq, sender) } else { 0 };
        let gone = self.blocks.partition_point(|block| block.1 <= seq);
        self.blocks.drain(..gone);
        if let Some(first) = self.blocks.first_mut() {
            first.0 = first.0.max(seq);
            if first.0 == self.delivered {
                self.delivered = first.1;
            }
        }
        self.trimmed = seq;
        gaps
    }

    /// Data up to `seq` was acknowledged and not all of it seen.
    fn give_up_to(&mut self, seq: u64, sender: Sender) -> u32 {
        if seq <= 2 && sender.is_partial {
            // The beginning is made up for partial connections, and a keepalive may have been first.
            return 0;
        }
        let mut gaps = 0;
        if !self.skipping {
            for &(start, upper) in &self.blocks {
                if start >= seq {
                    break;
                }
                if start >= self.delivered {
                    gaps += 1;
                    self.delivered = upper;
                }
            }
            gaps += u32::from(seq > self.delivered);
        }
        self.delivered = self.delivered.max(seq);
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: Sender = Sender { nothing_acked: true, size: 0, is_partial: false };

    fn stream(blocks: &[(u64, u64)]) -> Stream {
        let mut stream = Stream::default();
        for &(seq, upper) in blocks {
            stream.sent(seq, upper, SENDER);
        }
        stream
    }

    #[test]
    fn a_hole_filled_later_is_no_gap() {
        let mut stream = stream(&[(1, 10), (20, 30), (10, 20)]);
        assert_eq!(stream.delivered(), 30);
        assert_eq!(stream.acknowledged(30, SENDER), 0);
        assert!(!stream.has_blocks());
    }

    #[test]
    fn every_hole_that_is_acknowledged_is_a_gap() {
        let mut stream = stream(&[(1, 10), (20, 30), (40, 50)]);
        assert_eq!(stream.delivered(), 10);
        assert_eq!(stream.acknowledged(60, SENDER), 3);
        assert_eq!(stream.delivered(), 60);
    }

    #[test]
    fn overlaps_merge() {
        let s = stream(&[(5, 10), (20, 30), (8, 22), (40, 41), (2, 6)]);
        assert_eq!(s.blocks, [(2, 30), (40, 41)]);
        let s = stream(&[(20, 30), (10, 20), (5, 50)]);
        assert_eq!(s.blocks, [(5, 50)]);
    }

    #[test]
    fn too_much_above_a_hole_is_given_up() {
        let mut stream = stream(&[(2, 20_000)]);
        assert!(stream.is_skipping() && !stream.has_blocks());
        assert_eq!(stream.acknowledged(20_000, SENDER), 0, "no gap is told of a stream given up");
    }
}
