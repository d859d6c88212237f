//! Community ID v1: one name for a flow that Zeek, Suricata and others compute alike.
//!
//! <https://github.com/corelight/community-id-spec>: SHA-1 over seed, addresses, protocol and ports, the
//! smaller end first.

use std::net::{IpAddr, SocketAddr};

use base64::{Engine, engine::general_purpose::STANDARD};

const SEED: [u8; 2] = [0, 0];
const TCP: u8 = 6;

/// The ID of a TCP flow with seed 0; the order of the ends does not matter.
#[must_use]
pub fn tcp(a: SocketAddr, b: SocketAddr) -> String {
    // IPv4 and IPv6 never meet in one flow; within a family the order is that of the bytes.
    let (first, second) = if (a.ip(), a.port()) <= (b.ip(), b.port()) { (a, b) } else { (b, a) };
    let mut hash = sha1_smol::Sha1::new();
    hash.update(&SEED);
    for end in [first, second] {
        match end.ip() {
            IpAddr::V4(ip) => hash.update(&ip.octets()),
            IpAddr::V6(ip) => hash.update(&ip.octets()),
        }
    }
    hash.update(&[TCP, 0]);
    hash.update(&first.port().to_be_bytes());
    hash.update(&second.port().to_be_bytes());
    let mut id = String::from("1:");
    STANDARD.encode_string(hash.digest().bytes(), &mut id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification's baseline for its `tcp.pcap` and `ipv6.pcap`.
    #[test]
    fn baseline() {
        let id = |a: &str, b: &str| tcp(a.parse().unwrap(), b.parse().unwrap());
        let expected = "1:LQU9qZlK+B5F3KDmev6m5PMibrg=";
        assert_eq!(id("128.232.110.120:34855", "66.35.250.204:80"), expected);
        assert_eq!(id("66.35.250.204:80", "128.232.110.120:34855"), expected);
    }

    #[test]
    fn one_host_with_two_ports() {
        let (a, b) = ("[::1]:80".parse().unwrap(), "[::1]:4000".parse().unwrap());
        assert_eq!(tcp(a, b), tcp(b, a));
    }
}
