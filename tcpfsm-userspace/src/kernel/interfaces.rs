//! The network interfaces of this network namespace.
//!
//! Not through `/sys/class/net`: that shows the namespace in which `/sys` was mounted.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::sys;
use crate::error::{Error, Result};

/// What matters of an interface when attaching to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// What is behind it.
    pub kind: Kind,
    /// Whether it is up.
    pub up: bool,
}

/// What is behind an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This host itself.
    Loopback,
    /// Another interface, mostly of a container.
    Veth,
    /// A network card, real or virtual, or anything else.
    Other,
}

impl Interface {
    /// Finds an interface by its name.
    ///
    /// # Errors
    /// There is none of this name; the error names those there are.
    pub fn find(name: &str) -> Result<Self> {
        let unknown = || Error::UnknownInterface { name: name.to_owned(), known: names() };
        let socket = query_socket().map_err(Error::io("ask for network interfaces"))?;
        let index = index_of(name).ok_or_else(unknown)?;
        let flags = sys::interface_flags(socket.as_fd(), name).map_err(|_| unknown())?;
        let kind = if flags & libc::IFF_LOOPBACK != 0 {
            Kind::Loopback
        } else if sys::interface_driver(socket.as_fd(), name).is_ok_and(|driver| driver == "veth") {
            Kind::Veth
        } else {
            Kind::Other
        };
        Ok(Self { name: name.to_owned(), index, kind, up: flags & libc::IFF_UP != 0 })
    }

    /// Whether it is still there, under whatever name. Where that cannot be found out, it is.
    #[must_use]
    pub fn exists(&self) -> bool {
        let is_gone = |error: io::Error| matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO));
        !name_of(self.index).is_err_and(is_gone)
    }
}

/// The names of all interfaces.
#[must_use]
pub fn names() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn query_socket() -> io::Result<std::os::fd::OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

fn index_of(name: &str) -> Option<u32> {
    // The kernel would cut a longer name and find another interface.
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return None;
    }
    netdevice::name_to_index(query_socket().ok()?, name).ok()
}

fn name_of(index: u32) -> io::Result<String> {
    Ok(netdevice::index_to_name(query_socket()?, index)?)
}

/// How long a name is remembered: interfaces get renamed.
const NAMES_LAST: Duration = Duration::from_secs(5);

/// Names by index, remembered: an event names its interface by index.
#[derive(Debug, Default)]
pub struct InterfaceNames {
    names: HashMap<u32, Arc<str>>,
    since: Option<Instant>,
}

impl InterfaceNames {
    /// The name of an interface; its number where it has none any more.
    pub fn name(&mut self, index: u32) -> Arc<str> {
        let name = self.names.entry(index).or_insert_with(|| match name_of(index) {
            Ok(name) => name.into(),
            Err(_) => format!("if{index}").into(),
        });
        Arc::clone(name)
    }

    /// Forgets all that is older than names last.
    pub fn refresh(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now.duration_since(since) >= NAMES_LAST) {
            self.names.clear();
            self.since = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_by_name_and_number() {
        let lo = Interface::find("lo").unwrap();
        assert_eq!(lo.kind, Kind::Loopback);
        assert!(lo.exists());
        assert_eq!(&*InterfaceNames::default().name(lo.index), "lo");
        assert!(names().contains(&"lo".to_owned()));
    }

    #[test]
    fn names_are_asked_for_again() {
        let start = Instant::now();
        let mut names = InterfaceNames::default();
        names.refresh(start);
        names.names.insert(1, "old".into());
        names.refresh(start + NAMES_LAST / 2);
        assert_eq!(&*names.name(1), "old");
        names.refresh(start + NAMES_LAST);
        assert_ne!(&*names.name(1), "old");
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        for name in ["no-such-if", "", "a-name-longer-than-fits", "nul\0"] {
            match Interface::find(name) {
                Err(Error::UnknownInterface { known, .. }) => assert!(known.contains(&"lo".to_owned())),
                other => panic!("{name:?}: {other:?}"),
            }
        }
    }
}
