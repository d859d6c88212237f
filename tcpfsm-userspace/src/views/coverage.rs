//! Which sockets' segments pass a watched interface: only their flows can be followed.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::IpAddr,
};

use crate::host::{Socket, address_interfaces};

/// How deep devices lie on devices: a VLAN on a bridge on a bond on a card.
const MAX_DEPTH: usize = 4;

/// An interface that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether it is the loopback.
    pub loopback: bool,
}

/// Where the segments of a connection pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Over the loopback: watched where they come in, both directions.
    Loopback(u32),
    /// Over this interface: out on egress, in on ingress.
    Card(u32),
    /// Over one or several of the watched ones.
    Somewhere,
}

/// The watched interfaces, and on which interface each of this host's addresses is.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    watched: Vec<Watched>,
    homes: HashMap<IpAddr, String>,
}

impl Coverage {
    /// As the addresses are now.
    #[must_use]
    pub fn new(watched: impl IntoIterator<Item = Watched>) -> Self {
        Self { watched: watched.into_iter().collect(), homes: address_interfaces().unwrap_or_default() }
    }

    /// Where this socket's segments pass, as far as its addresses tell; `None` where they pass no watched
    /// interface, or that is not clear: such a flow is picked up when the wire shows it.
    #[must_use]
    pub fn passage(&self, socket: &Socket) -> Option<Passage> {
        let index = self.interface_of(socket)?;
        let loopback = self.watched.iter().any(|watched| watched.loopback && watched.index == index);
        // Of several cards, routing may choose another one for each direction.
        let cards = self.watched.iter().filter(|watched| !watched.loopback).count();
        Some(if loopback {
            Passage::Loopback(index)
        } else if cards == 1 {
            Passage::Card(index)
        } else {
            Passage::Somewhere
        })
    }

    fn interface_of(&self, socket: &Socket) -> Option<u32> {
        let (local, remote) = (socket.local.ip(), socket.remote.ip());
        if self.is_ours(local) && self.is_ours(remote) {
            return self.watched.iter().find(|watched| watched.loopback).map(|watched| watched.index);
        }
        if socket.ifindex != 0 {
            let bound = self.watched.iter().find(|watched| watched.index == socket.ifindex);
            return bound.map(|watched| watched.index);
        }
        let home = self.homes.get(&local)?;
        if home == "lo" {
            // An address of a service, kept on the loopback: its segments pass some card.
            let outside = self.watched.iter().find(|watched| !watched.loopback);
            return outside.map(|watched| watched.index);
        }
        self.carries(home, MAX_DEPTH)
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.homes.contains_key(&address)
    }

    /// The watched interface that carries what goes over `name`: itself, or one that it lies on.
    fn carries(&self, name: &str, depth: usize) -> Option<u32> {
        if let Some(watched) = self.watched.iter().find(|watched| watched.name == name) {
            return Some(watched.index);
        }
        let lower = (depth > 0).then(|| lower_devices(name))?;
        lower.iter().find_map(|lower| self.carries(lower, depth - 1))
    }
}

/// The devices that one lies on. `/sys` shows the namespace it was mounted in: elsewhere this finds nothing, or
/// a namesake's, which is not watched.
fn lower_devices(name: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/sys/class/net/{name}")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("lower_").map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::fsm::State;

    use super::*;

    fn socket(local: &str, remote: &str, ifindex: u32) -> Socket {
        Socket {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            state: State::Established,
            inode: 1,
            uid: 0,
            rqueue: 0,
            wqueue: 0,
            timer: None,
            cookie: 0,
            ifindex,
            cgroup: None,
            idle: None,
        }
    }

    #[test]
    fn of_several_cards_none_is_certain() {
        let watched = |name: &str, index| Watched { name: name.into(), index, loopback: name == "lo" };
        let homes: HashMap<IpAddr, String> = [("10.0.0.1".parse().unwrap(), "eth7".to_owned())].into();
        let coverage = |watched| Coverage { watched, homes: homes.clone() };
        let socket = socket("10.0.0.1:1000", "192.0.2.9:443", 0);
        let one = coverage(vec![watched("lo", 1), watched("eth7", 7)]);
        assert_eq!(one.passage(&socket), Some(Passage::Card(7)));
        let two = coverage(vec![watched("eth7", 7), watched("eth8", 8)]);
        assert_eq!(two.passage(&socket), Some(Passage::Somewhere));
        assert_eq!(coverage(vec![watched("eth8", 8)]).passage(&socket), None);
    }

    #[test]
    fn a_socket_passes_the_interface_of_its_address() {
        let watched = |name: &str, index, loopback| Watched { name: name.into(), index, loopback };
        let homes = [("10.0.0.1", "eth7"), ("10.9.0.1", "eth8"), ("198.51.100.1", "lo")];
        let homes: HashMap<IpAddr, String> =
            homes.map(|(ip, name)| (ip.parse().unwrap(), name.to_owned())).into();
        let card = Coverage { watched: vec![watched("eth7", 7, false)], homes: homes.clone() };
        let both = Coverage { watched: vec![watched("lo", 1, true), watched("eth7", 7, false)], homes };
        let far = "192.0.2.9:443";
        for (local, remote, bound, by_card, by_both) in [
            ("10.0.0.1:1000", far, 0, Some(7), Some(7)),
            ("10.0.0.1:1000", far, 8, None, None),
            ("10.9.0.1:1000", far, 0, None, None),
            ("198.51.100.1:443", far, 0, Some(7), Some(7)),
            ("127.0.0.1:1000", "127.0.0.1:80", 0, None, Some(1)),
            ("10.0.0.1:1000", "10.9.0.1:80", 0, None, Some(1)),
            ("203.0.113.1:1000", far, 0, None, None),
        ] {
            let socket = socket(local, remote, bound);
            assert_eq!(card.interface_of(&socket), by_card, "{local} {remote}");
            assert_eq!(both.interface_of(&socket), by_both, "{local} {remote}");
        }
    }
}
