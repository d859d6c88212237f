//! What the kernel itself says of the sockets in a namespace, from procfs.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use super::Netns;

/// A TCP socket as `/proc/net/tcp` and `tcp6` list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Its own address.
    pub local: SocketAddr,
    /// Its peer's; zero when it listens.
    pub remote: SocketAddr,
    /// Its state, spelled as tcpfsm's machine output does: `syn_recv`.
    pub state: &'static str,
}

/// All TCP sockets of a namespace.
pub fn list(namespace: &Netns) -> Result<Vec<Socket>> {
    namespace.run(list_here)?
}

/// The state of one connection's socket; none if there is none.
pub fn state(namespace: &Netns, local: SocketAddr, remote: SocketAddr) -> Result<Option<&'static str>> {
    let sockets = list(namespace)?;
    Ok(sockets
        .into_iter()
        .find(|socket| socket.local == local && socket.remote == remote)
        .map(|found| found.state))
}

/// All TCP sockets of the namespace that the calling thread is in.
pub fn list_here() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for file in ["tcp", "tcp6"] {
        // Not /proc/net: that is the namespace of the process's first thread.
        let path = format!("/proc/thread-self/net/{file}");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        sockets.extend(text.lines().skip(1).filter_map(parse_line));
    }
    Ok(sockets)
}

fn parse_line(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    Some(Socket {
        local: parse_address(fields.next()?)?,
        remote: parse_address(fields.next()?)?,
        state: state_name(fields.next()?)?,
    })
}

/// `0100007F:1F90`: the address in words of the machine's own byte order, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for start in (0..address.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(address.get(start..start + 8)?, 16).ok()?.to_ne_bytes());
    }
    let address: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// Codes of the kernel's `include/net/tcp_states.h`; NEW_SYN_RECV is shown as SYN_RECV there already.
fn state_name(code: &str) -> Option<&'static str> {
    Some(match code {
        "01" => "established",
        "02" => "syn_sent",
        "03" => "syn_recv",
        "04" => "fin_wait1",
        "05" => "fin_wait2",
        "06" => "time_wait",
        "07" => "closed",
        "08" => "close_wait",
        "09" => "last_ack",
        "0A" => "listen",
        "0B" => "closing",
        _ => return None,
    })
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn reads_both_families() {
        let v4 =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1";
        let socket = parse_line(v4).unwrap();
        assert_eq!((socket.local, socket.state), ("127.0.0.1:8080".parse().unwrap(), "listen"));
        let v6 = "   1: B80D0120000000000000000001000000:0050 B80D0120000000000000000002000000:0051 0B 0 0";
        let socket = parse_line(v6).unwrap();
        assert_eq!(socket.local, "[2001:db8::1]:80".parse().unwrap());
        assert_eq!((socket.remote, socket.state), ("[2001:db8::2]:81".parse().unwrap(), "closing"));
    }
}
