//! Every element of a hash map, many per system call.

use std::{io, os::fd::BorrowedFd};

use zerocopy::{FromBytes, IntoBytes};

use super::sys;

/// Elements per system call to begin with.
const BATCH: usize = 2_048;

/// Hands out every element, in no order. Elements that come or go meanwhile may be missed or be there twice.
///
/// # Errors
/// `EINVAL` where the kernel has no batch lookup for this type of map.
pub(super) fn for_each<K, V>(map: BorrowedFd<'_>, mut take: impl FnMut(K, &V)) -> io::Result<()>
where
    K: FromBytes + IntoBytes + Copy + Default,
    V: FromBytes + IntoBytes + Copy + Default,
{
    let mut keys = vec![K::default(); BATCH];
    let mut values = vec![V::default(); BATCH];
    let mut position = None;
    loop {
        match sys::lookup_batch(map, position, &mut keys, &mut values) {
            Ok(batch) => {
                for (key, value) in keys.iter().zip(&values).take(batch.count) {
                    take(*key, value);
                }
                match batch.next {
                    Some(next) => position = Some(next),
                    None => return Ok(()),
                }
            }
            // One bucket holds more than fits: the next attempt has room for it.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && keys.len() < 1 << 20 => {
                keys.resize(keys.len() * 2, K::default());
                values.resize(keys.len(), V::default());
            }
            Err(error) => return Err(error),
        }
    }
}
