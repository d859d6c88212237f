//! A network of two namespaces joined by a veth pair, for the demo and for tests with real sockets.
//!
//! ```text
//!   namespace a (watched)                          namespace b (the rest of the world)
//!   veth-a 192.0.2.1 2001:db8::1  ───────────────  veth-b 192.0.2.2 2001:db8::2
//!                                                  192.0.2.100.. 2001:db8::100..: no kernel's, see `peer`
//! ```
//!
//! - [`netns`]: a namespace, and how to run closures and programs inside it
//! - [`segment`]: TCP segments as bytes, checksums included
//! - [`raw`]: frames in and out of a namespace
//! - [`peer`]: one end of a connection played from a script
//! - [`sockets`]: what the kernel itself says of its sockets
//! - [`stale`]: what killed runs left behind

pub mod netns;
pub mod peer;
pub mod raw;
pub mod segment;
pub mod sockets;
pub mod stale;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

pub use self::netns::Netns;
use crate::command::{is_root, which};

/// The watched namespace's interface.
pub const IFACE_A: &str = "veth-a";
/// The other end of the pair.
pub const IFACE_B: &str = "veth-b";
/// Link address of [`IFACE_A`].
pub const MAC_A: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
/// Link address of [`IFACE_B`]; scripted peers use it too.
pub const MAC_B: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];

/// Scripted peers have host numbers from here on.
const FIRST_QUIET: u8 = 100;
/// How many there are.
pub const QUIET_PEERS: u8 = 32;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// 192.0.2.0/24 (RFC 5737).
    V4,
    /// `2001:db8::/64` (RFC 3849).
    V6,
}

impl Family {
    fn host(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, number).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
        }
    }

    /// Address of the watched namespace.
    pub fn a(self) -> IpAddr {
        self.host(1)
    }

    /// Address of the other namespace.
    pub fn b(self) -> IpAddr {
        self.host(2)
    }

    /// An address in b's direction that no kernel owns: nobody answers, unless a script does.
    ///
    /// # Panics
    ///
    /// If `number` is not below [`QUIET_PEERS`].
    pub fn quiet(self, number: u8) -> IpAddr {
        assert!(number < QUIET_PEERS, "there are {QUIET_PEERS} quiet addresses");
        self.host(FIRST_QUIET + number)
    }
}

/// The network; taken away when dropped.
#[derive(Debug)]
pub struct Lab {
    a: Netns,
    b: Netns,
}

impl Lab {
    /// Makes the network. `kind` (letters only) becomes part of the names: `tcpfsm-KIND-PID-a`.
    pub fn new(kind: &str) -> Result<Self> {
        Self::requirements()?;
        stale::remove();
        static MADE: AtomicU32 = AtomicU32::new(0);
        let stem = match MADE.fetch_add(1, Ordering::Relaxed) {
            0 => format!("tcpfsm-{kind}-{}", process::id()),
            // Tests make several in one process.
            number => format!("tcpfsm-{kind}-{}.{number}", process::id()),
        };
        let lab = Self { a: Netns::create(&format!("{stem}-a"))?, b: Netns::create(&format!("{stem}-b"))? };
        lab.b.run(silence_forwarding)?;
        lab.link()?;
        Ok(lab)
    }

    /// Why a lab cannot be made here, if it cannot: tests print it as their reason to skip.
    pub fn requirements() -> Result<()> {
        if !is_root() {
            bail!("network namespaces need root");
        }
        if which("ip").is_none() {
            bail!("`ip` is missing (apt-get install iproute2)");
        }
        Ok(())
    }

    /// The watched namespace.
    pub fn a(&self) -> &Netns {
        &self.a
    }

    /// The rest of the world.
    pub fn b(&self) -> &Netns {
        &self.b
    }

    /// Everything static: no address resolution and no duplicate address detection, so that the only traffic is
    /// what a test sends, from the first packet on.
    fn link(&self) -> Result<()> {
        let (a, b) = (self.a.name(), self.b.name());
        let (mac_a, mac_b) = (mac(MAC_A), mac(MAC_B));
        ip_batch(
            a,
            &[format!(
                "link add {IFACE_A} address {mac_a} type veth peer name {IFACE_B} address {mac_b} netns {b}"
            )],
        )?;
        for (namespace, iface, peer_mac, own, peer) in
            [(a, IFACE_A, &mac_b, 1_u8, 2_u8), (b, IFACE_B, &mac_a, 2, 1)]
        {
            let mut lines =
                vec!["link set lo up".to_owned(), format!("link set {iface} addrgenmode none up")];
            for (family, length, nodad) in [(Family::V4, 24, ""), (Family::V6, 64, " nodad")] {
                lines.push(format!("address add {}/{length} dev {iface}{nodad}", family.host(own)));
                lines.push(neighbour(family.host(peer), peer_mac, iface));
                if namespace == a {
                    lines.extend(
                        (0..QUIET_PEERS).map(|number| neighbour(family.quiet(number), &mac_b, iface)),
                    );
                }
            }
            ip_batch(namespace, &lines)?;
        }
        Ok(())
    }
}

/// New namespaces may inherit forwarding from the host. Then b would answer for the quiet addresses.
pub(crate) fn silence_forwarding() {
    for name in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        // Where /proc/sys is read-only (containers) forwarding is normally off anyway.
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), "0");
    }
}

pub(crate) fn neighbour(address: IpAddr, mac: &str, iface: &str) -> String {
    format!("neighbour replace {address} lladdr {mac} dev {iface} nud permanent")
}

pub(crate) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

pub(crate) fn ip_batch(namespace: &str, lines: &[String]) -> Result<()> {
    let mut child = netns::ip()?
        .args(["-netns", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        // If `ip` ended early, its own message below says why.
        let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("ip -netns {namespace} -batch: {}\n  commands:\n    {}", message.trim(), lines.join("\n    "));
    }
    Ok(())
}
