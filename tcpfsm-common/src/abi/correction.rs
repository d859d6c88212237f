//! A change of verdict that the daemon asks for: what the host's own sockets know better than the wire.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Verdict;
use crate::flow::{FlowKey, FlowKey4, FlowKey6};

/// One change, made in the kernel so that it races with no segment: it happens only if the verdict is still `before`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Correction {
    /// The verdict that the daemon saw.
    pub before: u64,
    /// The verdict that it is to be.
    pub after: u64,
    /// Addresses of the flow's key, low end first; IPv4 in the first word of each.
    pub addr: [[u32; 4]; 2],
    /// Ports, low end first.
    pub port: [u16; 2],
    /// Scope of the key.
    pub scope: u32,
    /// 4 or 6: how to read `addr`.
    pub family: u32,
    /// Written by the kernel: 1 when it was done, 0 when the flow is gone or its verdict is another by now.
    pub done: u32,
}

const _: () = assert!(size_of::<Correction>() == 64);

impl Correction {
    /// Asks that the flow under `key` go from one verdict to the other.
    #[must_use]
    pub fn new(key: &FlowKey, before: Verdict, after: Verdict) -> Self {
        let (family, addr, port, scope) = match *key {
            FlowKey::V4(FlowKey4 { addr: [low, high], port, scope }) => {
                (4, [[low, 0, 0, 0], [high, 0, 0, 0]], port, scope)
            }
            FlowKey::V6(FlowKey6 { addr, port, scope }) => (6, addr, port, scope),
        };
        Self { before: before.0, after: after.0, addr, port, scope, family, done: 0 }
    }

    /// The key of an IPv4 flow.
    #[inline(always)]
    #[must_use]
    pub const fn key4(&self) -> FlowKey4 {
        FlowKey4 { addr: [self.addr[0][0], self.addr[1][0]], port: self.port, scope: self.scope }
    }

    /// The key of an IPv6 flow.
    #[inline(always)]
    #[must_use]
    pub const fn key6(&self) -> FlowKey6 {
        FlowKey6 { addr: self.addr, port: self.port, scope: self.scope }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive() {
        let (before, after) = (Verdict(1), Verdict(2));
        let v4 = FlowKey4 { addr: [1, 2], port: [3, 4], scope: 5 };
        assert_eq!(Correction::new(&FlowKey::V4(v4), before, after).key4(), v4);
        let v6 = FlowKey6 { addr: [[1, 2, 3, 4], [5, 6, 7, 8]], port: [9, 10], scope: 11 };
        let correction = Correction::new(&FlowKey::V6(v6), before, after);
        assert_eq!((correction.key6(), correction.family), (v6, 6));
    }
}
