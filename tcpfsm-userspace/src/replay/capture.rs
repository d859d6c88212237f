//! A capture file of either format, as a stream of frames.
//!
//! The readers are ours because no crate fits: `pcap-parser` allocates the options of every pcapng packet,
//! gives up on a block larger than its buffer, and leaves interfaces and time units to the caller anyway.
//! What is left after that is smaller than an adapter would be, and reads at the speed of the disk.

use std::{
    fmt,
    io::{self, Read},
};

use super::{input::Input, pcap, pcapng};
use crate::error::describe;

/// The largest frame that is believed. Wireshark and libpcap refuse more than 256 KiB for network links; BIG
/// TCP super-packets are at most 512 KiB.
pub(super) const MAX_FRAME: usize = 16 << 20;

/// One captured frame.
pub(super) struct Frame<'a> {
    /// Its number in the file, from 1.
    pub(super) number: u64,
    /// When, in nanoseconds since 1970; clamped where the file says something absurd.
    pub(super) time: i64,
    /// The link type of its interface (the `LINKTYPE_` numbers).
    pub(super) link: u16,
    /// How long it was on the wire.
    pub(super) wire_len: usize,
    /// What was captured of it.
    pub(super) bytes: &'a [u8],
}

/// Why a capture cannot be read, or not to its end.
#[derive(Debug)]
pub(super) enum CaptureError {
    /// The operating system's word.
    Io(io::Error),
    /// It has no capture's magic number; what it seems to be, where that can be told.
    NotACapture(Option<&'static str>),
    /// It ends inside a record that began at this offset.
    Truncated(u64),
    /// The record at this offset contradicts itself.
    Corrupt(u64, &'static str),
}

impl CaptureError {
    /// Whether what came before it is worth having.
    pub(super) const fn is_partial(&self) -> bool {
        matches!(self, Self::Truncated(_) | Self::Corrupt(..))
    }
}

impl From<io::Error> for CaptureError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot be read: {}", describe(error)),
            Self::NotACapture(None) => write!(f, "not a capture file: expected pcap or pcapng"),
            Self::NotACapture(Some(what)) => write!(f, "not a capture file but {what}"),
            Self::Truncated(offset) => write!(f, "ends in the middle of the record at byte {offset}"),
            Self::Corrupt(offset, what) => write!(f, "the record at byte {offset} is corrupt: {what}"),
        }
    }
}

impl std::error::Error for CaptureError {}

/// A capture being read.
pub(super) struct Capture<R> {
    input: Input<R>,
    format: Format,
    number: u64,
}

enum Format {
    Pcap(pcap::Header),
    Pcapng(pcapng::Section),
}

impl<R: Read> Capture<R> {
    /// Recognises the format by its first bytes.
    pub(super) fn open(source: R) -> Result<Self, CaptureError> {
        let mut input = Input::new(source);
        let magic = input.peek(4)?;
        let Some(&magic) = magic.first_chunk::<4>() else {
            return Err(CaptureError::NotACapture(magic.is_empty().then_some("an empty file")));
        };
        let format = if magic == pcapng::MAGIC {
            Format::Pcapng(pcapng::Section::default())
        } else if let Some(magic) = pcap::Magic::parse(magic) {
            Format::Pcap(pcap::Header::read(&mut input, magic)?)
        } else {
            return Err(CaptureError::NotACapture(what_else(magic)));
        };
        Ok(Self { input, format, number: 0 })
    }

    /// The next frame, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let record = match &mut self.format {
            Format::Pcap(header) => header.next(&mut self.input)?,
            Format::Pcapng(section) => section.next(&mut self.input)?,
        };
        let Some(Record { time, link, wire_len, skip, captured, trailer }) = record else { return Ok(None) };
        self.number += 1;
        let bytes = self.input.take(skip + captured + trailer).get(skip..skip + captured).unwrap_or_default();
        Ok(Some(Frame { number: self.number, time, link, wire_len, bytes }))
    }
}

/// Where a frame lies in the record that was just looked at.
pub(super) struct Record {
    pub(super) time: i64,
    pub(super) link: u16,
    pub(super) wire_len: usize,
    /// Bytes of the record before the frame, …
    pub(super) skip: usize,
    /// … of the frame, …
    pub(super) captured: usize,
    /// … and after it.
    pub(super) trailer: usize,
}

const fn what_else(magic: [u8; 4]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some("gzip data: unpack it first (gunzip)"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd data: unpack it first (unzstd)"),
        [0xfd, b'7', b'z', b'X'] => Some("xz data: unpack it first (unxz)"),
        [b's', b'n', b'o', b'o'] => Some("a snoop capture: convert it first (editcap -F pcap)"),
        [0x7f, b'E', b'L', b'F'] => Some("a program"),
        _ => None,
    }
}

/// 16- and 32-bit numbers in the byte order of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Little,
    Big,
}

impl Order {
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    #[inline]
    pub(super) fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }
}
