//! A buffered byte source that gives out whole blocks without copying them.

use std::io::{self, ErrorKind, Read};

/// How much is asked of the source at a time.
const CHUNK: usize = 1 << 20;

/// Bytes from a file or a pipe, looked at block by block.
pub(super) struct Input<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
    at_eof: bool,
}

impl<R: Read> Input<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, buffer: vec![0; CHUNK], start: 0, end: 0, offset: 0, at_eof: false }
    }

    /// How many bytes were consumed.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// The next `len` bytes, or fewer where the source ends before; nothing is consumed.
    ///
    /// The buffer grows only as bytes really arrive, so a length that lies costs nothing.
    #[inline]
    pub(super) fn peek(&mut self, len: usize) -> io::Result<&[u8]> {
        if self.end - self.start < len {
            self.fill(len)?;
        }
        let end = self.end.min(self.start.saturating_add(len));
        Ok(self.buffer.get(self.start..end).unwrap_or_default())
    }

    /// The `len` bytes that a [`Self::peek`] of at least that length has just shown; consumes them.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> &[u8] {
        let start = self.start;
        let end = self.end.min(start.saturating_add(len));
        self.start = end;
        self.offset += (end - start) as u64;
        self.buffer.get(start..end).unwrap_or_default()
    }

    /// Consumes `len` bytes, however many; says whether there were so many.
    pub(super) fn skip(&mut self, mut len: u64) -> io::Result<bool> {
        while len > 0 {
            let part = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
            let got = self.peek(part)?.len();
            if got == 0 {
                return Ok(false);
            }
            self.take(got);
            len -= got as u64;
        }
        Ok(true)
    }

    #[cold]
    fn fill(&mut self, len: usize) -> io::Result<()> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < len && !self.at_eof {
            if self.end == self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.at_eof = true,
                Ok(n) => self.end += n.min(self.buffer.len() - self.end),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte per read, as a slow pipe may.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(out.len()).min(1);
            out[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn blocks_come_whole_from_a_dripping_source() {
        let mut input = Input::new(Drip(b"abcdefgh"));
        assert_eq!(input.peek(3).unwrap(), b"abc");
        assert_eq!(input.take(2), b"ab");
        assert_eq!(input.peek(3).unwrap(), b"cde");
        assert!(input.skip(3).unwrap());
        assert_eq!(input.peek(9).unwrap(), b"fgh", "the source ends before");
        assert_eq!(input.offset(), 5);
        assert!(!input.skip(4).unwrap());
    }

    #[test]
    fn a_block_larger_than_the_buffer_grows_it() {
        let bytes = vec![7; CHUNK * 2 + 5];
        let mut input = Input::new(bytes.as_slice());
        assert_eq!(input.peek(usize::MAX / 2).unwrap().len(), bytes.len());
    }
}
