//! System calls that no crate wraps: batch lookup of map elements, an array in one's own memory, and what kind of device an
//! interface is.

use std::{
    io, mem,
    ops::{Deref, Range},
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    slice,
    sync::atomic::AtomicU64,
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (Linux 5.6).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// `BPF_MAP_UPDATE_ELEM`.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;

/// `BPF_NOEXIST`: only if there is none under this key.
const BPF_NOEXIST: u64 = 1;

/// The members of `union bpf_attr` that commands about one element read.
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts an element into a map where there is none under its key: `EEXIST` says that there is one.
pub(super) fn insert_new<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()>
where
    K: IntoBytes + Immutable,
    V: IntoBytes + Immutable,
{
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: BPF_NOEXIST,
    };
    // SAFETY: the kernel reads `attr`, whose size is given, and one key and one value of the map's sizes, which
    // those of `K` and `V` are (checked when the map was taken); all outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            (&raw mut attr).cast::<libc::c_void>(),
            mem::size_of::<ElementAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The elements of an array map made with `BPF_F_MMAPABLE`, one after the other, as words that the kernel programs may write at
/// any time.
pub(super) struct SharedWords {
    words: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: atomic words, mapped until this is dropped.
unsafe impl Send for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of an array.
    pub(super) fn map(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        // SAFETY: a new mapping, where the kernel likes to have it.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at.cast()) {
            Some(words) if at != libc::MAP_FAILED => Ok(Self { words, count }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Asks memory for the cache line of a word that will be read soon.
    pub(super) fn fetch(&self, word: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(word) = self.get(word) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint about a word that is there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(word.as_ptr().cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = word;
    }

    /// Some of the words, as bytes.
    ///
    /// # Safety
    /// The kernel programs must not write these words as long as the bytes are borrowed.
    pub(super) unsafe fn bytes(&self, words: Range<usize>) -> &[u8] {
        let words = &self[words];
        // SAFETY: as many bytes as the words have, which nobody writes.
        unsafe { slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped, page-aligned, and any bytes make an atomic word.
        unsafe { slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody has a reference any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
    }
}

/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const ETHTOOL_GDRVINFO: u32 = 3;

/// The members of `union bpf_attr` that batch commands read (`linux/bpf.h`, `struct batch`).
#[derive(Default)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a batch lookup goes on: opaque to us, for hash maps a bucket number.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchPosition([u8; 64]);

/// One batch.
pub(super) struct Batch {
    /// How many elements were written.
    pub(super) count: usize,
    /// Where to go on; `None` at the end of the map.
    pub(super) next: Option<BatchPosition>,
}

/// Reads as many elements as fit, from a position on. `ENOSPC` says that not even one bucket fits.
pub(super) fn lookup_batch<K, V>(
    map: BorrowedFd<'_>,
    from: Option<BatchPosition>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Batch>
where
    K: FromBytes + IntoBytes,
    V: FromBytes + IntoBytes,
{
    let mut next = BatchPosition([0; 64]);
    let mut attr = BatchAttr {
        in_batch: from.as_ref().map_or(0, |position| position.0.as_ptr() as u64),
        out_batch: next.0.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        ..BatchAttr::default()
    };
    // SAFETY: the kernel reads `attr`, whose size is given, and `from`, which is longer than any key it takes
    // for a position; it writes at most `count` keys and values, which the two slices have room for and whose
    // types are valid for any bytes, and a position no longer than `next`. All outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            (&raw mut attr).cast::<libc::c_void>(),
            mem::size_of::<BatchAttr>(),
        )
    };
    let count = attr.count as usize;
    if result == 0 {
        return Ok(Batch { count, next: Some(next) });
    }
    let error = io::Error::last_os_error();
    // ENOENT is the end of the map, with the last elements.
    if error.raw_os_error() == Some(libc::ENOENT) { Ok(Batch { count, next: None }) } else { Err(error) }
}

/// Which flags an interface has (`IFF_UP`, `IFF_LOOPBACK`, …).
pub(super) fn interface_flags(socket: BorrowedFd<'_>, name: &str) -> io::Result<i32> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFFLAGS reads the name in `request`, an `ifreq`, and writes its flags.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after SIOCGIFFLAGS the union holds the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(i32::from(flags.cast_unsigned()))
}

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The name of the driver of an interface: `veth`, `virtio_net`, …; an error where it has none.
pub(super) fn interface_driver(socket: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL reads the name in `request` and the command in `info`, which it fills; both are of
    // the sizes that the kernel expects and outlive the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let name = info.driver.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all bytes zero are a valid `ifreq`: integers and a union of plain data.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays 0: names are C strings.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
