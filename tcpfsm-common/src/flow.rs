//! Whose segment it is: endpoints as they stand in the packet, and the key under which both directions meet.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The IPv4 endpoints of a packet, as they stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints4 {
    /// Source address.
    pub src: [u8; 4],
    /// Destination address.
    pub dst: [u8; 4],
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
}

/// The IPv6 endpoints of a packet, as they stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints6 {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
}

/// One of the two ends of a flow, by its place in the key: `Low` sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum End {
    /// The end whose address and port sort first.
    Low = 0,
    /// The other end.
    High = 1,
}

impl End {
    /// The other end.
    #[inline(always)]
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }

    /// From bit 0 of a code.
    #[inline(always)]
    #[must_use]
    pub const fn from_bit(bit: u64) -> Self {
        if bit & 1 == 0 { Self::Low } else { Self::High }
    }
}

/// Which way a segment goes: from the originator (who sent the first SYN) or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sent by the originator.
    Original,
    /// Sent by the responder.
    Reply,
}

impl Direction {
    /// The name used in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Reply => "reply",
        }
    }
}

/// Key of an IPv4 flow: 16 bytes, endpoints sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey4 {
    /// Addresses, network order, the low end first.
    pub addr: [u32; 2],
    /// Ports, host order, the low end first.
    pub port: [u16; 2],
    /// Keeps equal tuples on different networks apart; 0 unless configured.
    pub scope: u32,
}

/// Key of an IPv6 flow: 40 bytes, endpoints sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowKey6 {
    /// Addresses as four words each, the low end first.
    pub addr: [[u32; 4]; 2],
    /// Ports, host order, the low end first.
    pub port: [u16; 2],
    /// Keeps equal tuples on different networks apart; 0 unless configured.
    pub scope: u32,
}

const _: () = assert!(size_of::<FlowKey4>() == 16 && size_of::<FlowKey6>() == 40);

impl Endpoints4 {
    /// The key, and the end that is this packet's source.
    #[inline(always)]
    #[must_use]
    pub const fn key(&self, scope: u32) -> (FlowKey4, End) {
        let (src, dst) = (u32::from_ne_bytes(self.src), u32::from_ne_bytes(self.dst));
        // The order needs to be total and the same for both directions, not meaningful: sorting the
        // network-order words saves the byte swaps.
        if src < dst || (src == dst && self.src_port <= self.dst_port) {
            (FlowKey4 { addr: [src, dst], port: [self.src_port, self.dst_port], scope }, End::Low)
        } else {
            (FlowKey4 { addr: [dst, src], port: [self.dst_port, self.src_port], scope }, End::High)
        }
    }

    /// Whether both ends are the same socket address: a socket connected to itself.
    #[inline(always)]
    #[must_use]
    pub fn is_self_connected(&self) -> bool {
        self.src_port == self.dst_port && self.src == self.dst
    }
}

const fn words(bytes: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

impl Endpoints6 {
    /// The key, and the end that is this packet's source.
    #[inline(always)]
    #[must_use]
    pub fn key(&self, scope: u32) -> (FlowKey6, End) {
        let (src, dst) = (words(self.src), words(self.dst));
        // Addresses of one network differ late: compare from the last word.
        let src_first = if src[3] != dst[3] {
            src[3] < dst[3]
        } else if src[2] != dst[2] {
            src[2] < dst[2]
        } else if src[1] != dst[1] {
            src[1] < dst[1]
        } else if src[0] != dst[0] {
            src[0] < dst[0]
        } else {
            self.src_port <= self.dst_port
        };
        if src_first {
            (FlowKey6 { addr: [src, dst], port: [self.src_port, self.dst_port], scope }, End::Low)
        } else {
            (FlowKey6 { addr: [dst, src], port: [self.dst_port, self.src_port], scope }, End::High)
        }
    }

    /// Whether both ends are the same socket address: a socket connected to itself.
    #[inline(always)]
    #[must_use]
    pub fn is_self_connected(&self) -> bool {
        self.src_port == self.dst_port && self.src == self.dst
    }
}

/// The key of a flow of either family: what userspace keeps flows under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowKey {
    /// IPv4.
    V4(FlowKey4),
    /// IPv6.
    V6(FlowKey6),
}

impl FlowKey {
    /// Address and port of one end.
    #[must_use]
    pub fn socket_addr(&self, end: End) -> core::net::SocketAddr {
        let at = end as usize & 1;
        match self {
            Self::V4(key) => (key.addr[at].to_ne_bytes(), key.port[at]).into(),
            Self::V6(key) => {
                let mut bytes = [0; 16];
                for (chunk, word) in bytes.chunks_exact_mut(4).zip(key.addr[at]) {
                    chunk.copy_from_slice(&word.to_ne_bytes());
                }
                (bytes, key.port[at]).into()
            }
        }
    }

    /// The scope that keeps equal tuples apart.
    #[must_use]
    pub const fn scope(&self) -> u32 {
        match self {
            Self::V4(key) => key.scope,
            Self::V6(key) => key.scope,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_meet_in_one_key() {
        let forward = Endpoints4 { src: [10, 0, 0, 1], dst: [10, 0, 0, 2], src_port: 40_000, dst_port: 80 };
        let back = Endpoints4 { src: forward.dst, dst: forward.src, src_port: 80, dst_port: 40_000 };
        let ((a, from_a), (b, from_b)) = (forward.key(0), back.key(0));
        assert_eq!(a, b);
        assert_eq!(from_a, from_b.other());
        assert_ne!(forward.key(1).0, a, "another scope is another flow");
        assert_eq!(FlowKey::V4(a).socket_addr(from_a), ([10, 0, 0, 1], 40_000).into());
    }

    #[test]
    fn one_host_with_two_ports_is_sorted_by_port() {
        let ends = |src_port, dst_port| Endpoints6 { src: [7; 16], dst: [7; 16], src_port, dst_port };
        assert_eq!(ends(1, 2).key(0).0, ends(2, 1).key(0).0);
        assert!(ends(5, 5).is_self_connected());
    }
}
