//! Which addresses are this host's.

use std::{
    collections::{HashMap, HashSet},
    ffi::{CStr, c_int},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

/// An address that comes or goes is known after at most this long,
const MIN_INTERVAL: Duration = Duration::from_secs(2);
/// or longer where listing takes long: it may take at most one part in this many of one CPU.
const DUTY: u32 = 100;

/// The addresses of this network namespace, listed again at a bounded rate.
#[derive(Debug)]
pub struct Addresses {
    state: RwLock<Listed>,
}

#[derive(Debug)]
struct Listed {
    addresses: HashSet<IpAddr>,
    next: Instant,
}

impl Default for Addresses {
    fn default() -> Self {
        Self::new()
    }
}

impl Addresses {
    /// Listed at the first question.
    #[must_use]
    pub fn new() -> Self {
        Self { state: RwLock::new(Listed { addresses: HashSet::new(), next: Instant::now() }) }
    }

    /// Whether a packet to this address would end on this host.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        // All of 127/8 is ours, of which the interface lists one address.
        if address.is_loopback() {
            return true;
        }
        let now = Instant::now();
        {
            let listed = self.state.read().unwrap_or_else(PoisonError::into_inner);
            if now < listed.next {
                return listed.addresses.contains(&address);
            }
        }
        let mut listed = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if now >= listed.next {
            // On failure the last list is better than none.
            if let Ok(addresses) = address_interfaces() {
                listed.addresses = addresses.into_keys().collect();
            }
            listed.next = Instant::now() + MIN_INTERVAL.max(now.elapsed() * DUTY);
        }
        listed.addresses.contains(&address)
    }
}

/// The addresses of this network namespace, and the name of the interface that each is on.
///
/// # Errors
/// The system gives no list.
pub fn address_interfaces() -> io::Result<HashMap<IpAddr, String>> {
    let mut list = ptr::null_mut();
    // SAFETY: `list` is a valid place for the pointer that getifaddrs writes.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut addresses = HashMap::new();
    let mut next = list;
    // SAFETY: `next` is null or an element of the list, which stays allocated until freeifaddrs below.
    while let Some(interface) = unsafe { next.as_ref() } {
        // SAFETY: `ifa_addr` is null or points to a sockaddr as long as its family demands.
        if let Some(address) = unsafe { ip_of(interface.ifa_addr) } {
            // SAFETY: `ifa_name` is a C string that lives as long as the list.
            let name = unsafe { CStr::from_ptr(interface.ifa_name) };
            // A label such as eth0:1 belongs to eth0.
            let name = name.to_string_lossy();
            let name = name.split(':').next().unwrap_or_default();
            addresses.insert(address, name.to_owned());
        }
        next = interface.ifa_next;
    }
    // SAFETY: `list` came from getifaddrs and no reference into it is left.
    unsafe { libc::freeifaddrs(list) };
    Ok(addresses)
}

/// # Safety
///
/// `address` is null, or valid for reads of the structure that belongs to its `sa_family`.
unsafe fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the caller promises that it is null or readable.
    let family = unsafe { address.as_ref() }?.sa_family;
    match c_int::from(family) {
        libc::AF_INET => {
            // SAFETY: of family AF_INET it is a sockaddr_in; unaligned, since only sockaddr's alignment is promised.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: of family AF_INET6 it is a sockaddr_in6; unaligned as above.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_documentation_addresses_are_not() {
        let addresses = Addresses::new();
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(addresses.contains(local.parse().unwrap()), "{local}");
        }
        for foreign in ["192.0.2.1", "2001:db8::1", "0.0.0.0", "::"] {
            assert!(!addresses.contains(foreign.parse().unwrap()), "{foreign}");
        }
    }

    #[test]
    fn every_address_that_is_listed_is_local() {
        let addresses = Addresses::new();
        for address in address_interfaces().unwrap().into_keys() {
            assert!(addresses.contains(address), "{address}");
        }
    }
}
