//! A tracepoint's raw records from every CPU, through `perf_event_open(2)`.
//!
//! Everything hangs on file descriptors: whatever ends this process ends the tracing. What a full buffer lost is
//! counted by the kernel (`PERF_RECORD_LOST`).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context as _, Result, bail};

/// Buffer for each CPU; a power of two.
const BUFFER: usize = 8 << 20;
const PAGE: usize = 4096;

const TYPE_TRACEPOINT: u32 = 2;
const SAMPLE_TIME: u64 = 1 << 2;
const SAMPLE_RAW: u64 = 1 << 10;
const FLAG_USE_CLOCKID: u64 = 1 << 25;
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;
const IOC_SET_FILTER: libc::c_ulong = 0x4008_2406;

/// `struct perf_event_attr` as of `PERF_ATTR_SIZE_VER5`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const _: () = assert!(size_of::<Attr>() == 112);

/// What a [`Ring`] gives.
pub enum Record<'a> {
    /// When (CLOCK_MONOTONIC nanoseconds), and the tracepoint's fields.
    Sample(u64, &'a [u8]),
    /// So many found no room.
    Lost(u64),
}

/// One CPU's buffer.
#[derive(Debug)]
pub struct Ring {
    event: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone, and no thread-local state of the kernel hangs on it.
unsafe impl Send for Ring {}

/// One for each CPU that is online.
pub fn open(tracepoint: u64, filter: &str) -> Result<Vec<Ring>> {
    online_cpus()?
        .into_iter()
        .map(|cpu| Ring::open(tracepoint, cpu, filter).with_context(|| format!("trace CPU {cpu}")))
        .collect()
}

impl Ring {
    fn open(tracepoint: u64, cpu: i32, filter: &str) -> Result<Self> {
        let attr = Attr {
            kind: TYPE_TRACEPOINT,
            size: size_of::<Attr>() as u32,
            config: tracepoint,
            sample_period: 1,
            sample_type: SAMPLE_TIME | SAMPLE_RAW,
            flags: FLAG_USE_CLOCKID,
            // The reader looks by itself, now and then.
            wakeup_events: u32::MAX,
            clockid: libc::CLOCK_MONOTONIC,
            ..Attr::default()
        };
        // SAFETY: `attr` is a perf_event_attr of the size it says, and outlives the call.
        let raw = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attr, -1, cpu, -1, FLAG_FD_CLOEXEC)
        };
        let raw = i32::try_from(raw).ok().filter(|raw| *raw >= 0);
        let raw = raw.ok_or_else(io::Error::last_os_error).context("perf_event_open")?;
        // SAFETY: the descriptor was opened above and belongs to nobody else.
        let event = unsafe { OwnedFd::from_raw_fd(raw) };
        let filter = CString::new(filter).context("a filter without NUL")?;
        // SAFETY: the argument is a NUL-terminated string that outlives the call.
        if unsafe { libc::ioctl(event.as_raw_fd(), IOC_SET_FILTER, filter.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error()).context("PERF_EVENT_IOC_SET_FILTER");
        }
        // SAFETY: a new mapping where the kernel likes; the descriptor is a perf event's.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE + BUFFER,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("map the buffer");
        }
        let base = NonNull::new(base.cast::<u8>()).context("mmap gave null")?;
        Ok(Self { event, base })
    }

    /// Hands over everything that is there.
    pub fn drain(&mut self, mut take: impl FnMut(Record<'_>)) -> Result<()> {
        // SAFETY: both words lie in the first page of the mapping, which lives as long as `self`, and are aligned
        // (`struct perf_event_mmap_page`: data_head at 1024, data_tail at 1032).
        let (head, tail) = unsafe {
            let control = self.base.as_ptr().cast::<u64>();
            (control.add(128), control.add(129))
        };
        // SAFETY: as above; the kernel writes the head, so it is read as volatile.
        let (end, mut at) = unsafe { (head.read_volatile(), tail.read_volatile()) };
        fence(Ordering::Acquire);
        let mut record = Vec::new();
        while at < end {
            let header = self.copy(at, 8, &mut record)?;
            let (kind, size) = (number32(header, 0), u64::from(number32(header, 4) >> 16));
            if size < 8 || at + size > end {
                bail!("a malformed record in the trace buffer");
            }
            let bytes = self.copy(at, size as usize, &mut record)?;
            match kind {
                RECORD_SAMPLE => {
                    let fields = 20_usize;
                    let length = number32(bytes, 16) as usize;
                    let raw =
                        bytes.get(fields..fields + length).context("a cut sample in the trace buffer")?;
                    take(Record::Sample(number64(bytes, 8), raw));
                }
                RECORD_LOST => take(Record::Lost(number64(bytes, 16))),
                _ => {}
            }
            at += size;
        }
        fence(Ordering::Release);
        // SAFETY: as above; only this process writes the tail.
        unsafe { tail.write_volatile(at) };
        Ok(())
    }

    /// Bytes of the ring, across its end if need be.
    fn copy<'a>(&self, at: u64, length: usize, into: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        into.clear();
        into.resize(length, 0);
        let start = (at % BUFFER as u64) as usize;
        let first = length.min(BUFFER - start);
        if length > BUFFER {
            bail!("a record longer than the trace buffer");
        }
        // SAFETY: the ring's BUFFER bytes follow the first page; `start + first` and `length - first` lie within
        // them, and the kernel does not write between tail and head.
        unsafe {
            let data = self.base.as_ptr().add(PAGE);
            ptr::copy_nonoverlapping(data.add(start), into.as_mut_ptr(), first);
            ptr::copy_nonoverlapping(data, into.as_mut_ptr().add(first), length - first);
        }
        Ok(into)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open` with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), PAGE + BUFFER) };
        let _ = &self.event;
    }
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// From `0-3,8`.
fn online_cpus() -> Result<Vec<i32>> {
    let path = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (i32, i32) = (first.parse()?, last.parse()?);
        cpus.extend(first..=last);
    }
    Ok(cpus)
}
