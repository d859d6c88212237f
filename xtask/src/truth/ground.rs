//! The ground of a truth run: a client's and a server's namespace, and between them a cable or a bad wire.
//!
//! ```text
//!   namespace b: clients                                     namespace a: servers
//!   veth-b 198.18.N.2..5  ──────────────────────────────────  veth-a 198.18.N.1
//!
//!   with --loss or --reorder:
//!   veth-b  ────────── wire-b  [namespace w: wire.rs]  wire-a ────────── veth-a
//! ```
//!
//! Losses happen in the middle, behind the taps of both ends: a tracker sees of a segment what its own stack sees.
//! The tracepoint sees all namespaces of the machine, so each run has addresses of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process;

use anyhow::{Context as _, Result};

use crate::lab::{
    Family, IFACE_A, IFACE_B, Lab, MAC_A, MAC_B, Netns, ip_batch, mac, neighbour, silence_forwarding, stale,
};

/// Addresses that clients connect from, in each family.
pub const CLIENTS: u8 = 4;

/// The wire's ends of the two cables.
pub const WIRE_A: &str = "wire-a";
pub const WIRE_B: &str = "wire-b";

/// The three namespaces, or two; taken away when dropped.
#[derive(Debug)]
pub struct Ground {
    pub servers: Netns,
    pub clients: Netns,
    pub wire: Option<Netns>,
}

impl Ground {
    /// Makes the network.
    pub fn new(bad_wire: bool) -> Result<Self> {
        Lab::requirements()?;
        stale::remove();
        let name = |side: &str| format!("tcpfsm-truth-{}-{side}", process::id());
        let ground = Self {
            servers: Netns::create(&name("a"))?,
            clients: Netns::create(&name("b"))?,
            wire: if bad_wire { Some(Netns::create(&name("w"))?) } else { None },
        };
        for namespace in [&ground.servers, &ground.clients] {
            namespace.run(prepare)??;
        }
        ground.link()?;
        Ok(ground)
    }

    fn link(&self) -> Result<()> {
        let (a, b) = (self.servers.name(), self.clients.name());
        let pair = |iface: &str, mac: &str, peer: &str, there: &str| {
            format!("link add {iface} address {mac} type veth peer name {peer} netns {there}")
        };
        let (mac_a, mac_b) = (mac(MAC_A), mac(MAC_B));
        match &self.wire {
            None => ip_batch(
                a,
                &[format!(
                    "link add {IFACE_A} address {mac_a} type veth peer name {IFACE_B} address {mac_b} netns {b}"
                )],
            )?,
            Some(wire) => {
                let w = wire.name();
                ip_batch(a, &[pair(IFACE_A, &mac_a, WIRE_A, w)])?;
                ip_batch(b, &[pair(IFACE_B, &mac_b, WIRE_B, w)])?;
                ip_batch(w, &[WIRE_A, WIRE_B].map(|iface| format!("link set {iface} addrgenmode none up")))?;
            }
        }
        // On a bad wire each segment is lost by itself, not a super-packet at a time.
        let alone = if self.wire.is_some() { " gso_max_segs 1" } else { "" };
        for (namespace, iface, peer_mac, own, peers) in
            [(a, IFACE_A, &mac_b, 1..=1, 2..=1 + CLIENTS), (b, IFACE_B, &mac_a, 2..=1 + CLIENTS, 1..=1)]
        {
            let mut lines =
                vec!["link set lo up".to_owned(), format!("link set {iface} addrgenmode none{alone} up")];
            for (family, length, nodad) in [(Family::V4, 24, ""), (Family::V6, 64, " nodad")] {
                for number in own.clone() {
                    lines
                        .push(format!("address add {}/{length} dev {iface}{nodad}", address(family, number)));
                }
                for number in peers.clone() {
                    lines.push(neighbour(address(family, number), peer_mac, iface));
                }
            }
            ip_batch(namespace, &lines)?;
        }
        Ok(())
    }
}

/// Where the servers listen.
pub fn server(family: Family) -> IpAddr {
    address(family, 1)
}

/// Where clients connect from; `number` is below [`CLIENTS`].
pub fn client(family: Family, number: u8) -> IpAddr {
    address(family, 2 + number)
}

/// From 198.18.0.0/15 (RFC 2544) and `2001:db8::/32` (RFC 3849), by process.
pub fn address(family: Family, host: u8) -> IpAddr {
    let [high, middle, low, lowest] = process::id().to_be_bytes();
    let (upper, lower) = (u16::from_be_bytes([high, middle]), u16::from_be_bytes([low, lowest]));
    match family {
        Family::V4 => Ipv4Addr::new(198, 18 + (low & 1), lowest, host).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, upper, lower, 0, 0, 0, host.into()).into(),
    }
}

/// No forwarding, and room for all TIME-WAITs of a run: beyond the limit Linux skips the state.
fn prepare() -> Result<()> {
    silence_forwarding();
    let (path, value) = ("/proc/sys/net/ipv4/tcp_max_tw_buckets", "1000000");
    fs::write(path, value).with_context(|| format!("write {value} to {path}"))?;
    Ok(())
}
