//! Listeners whose accept queue is full. The kernel then drops SYNs, and on the wire that looks like loss: whether it
//! is, only the listener's own numbers say.

use std::collections::HashMap;

use tcpfsm_common::abi::{ServiceKey, ServiceRecord};

use crate::host::Host;

/// Listeners asked about after one sweep: each is a system call, and a host has few that drop SYNs.
const MAX_ASKED: usize = 64;

/// Remembers at which services SYNs were sent again.
#[derive(Debug, Default)]
pub(super) struct Queues {
    syn_rtx: HashMap<ServiceKey, u64>,
}

impl Queues {
    /// Of the services at which SYNs were sent again since the last time, those of this host whose accept queue is
    /// full.
    pub(super) fn full(
        &mut self,
        host: &mut Host,
        services: &[(ServiceKey, ServiceRecord)],
    ) -> Vec<ServiceKey> {
        let now: HashMap<_, _> = services.iter().map(|(key, record)| (*key, record.syn_rtx)).collect();
        let before = std::mem::replace(&mut self.syn_rtx, now);
        let asked: Vec<_> = services
            .iter()
            .filter(|(key, record)| record.syn_rtx > before.get(key).copied().unwrap_or(0))
            .map(|(key, _)| *key)
            .filter(|key| host.is_local(key.address().ip()))
            .take(MAX_ASKED)
            .collect();
        asked.into_iter().filter(|key| is_full(host, key)).collect()
    }
}

/// As the kernel judges it: a backlog of 8 has room for 9.
fn is_full(host: &mut Host, key: &ServiceKey) -> bool {
    let listener = host.listener(key.address());
    listener.is_ok_and(|found| found.is_some_and(|listener| listener.rqueue > listener.wqueue))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;

    fn service(address: SocketAddr, syn_rtx: u64) -> (ServiceKey, ServiceRecord) {
        let key = ServiceKey {
            addr: [u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets()), 0, 0, 0],
            port: address.port(),
            family: 4,
            scope: 0,
        };
        (key, ServiceRecord { syn_rtx, ..ServiceRecord::default() })
    }

    #[test]
    fn a_listener_that_has_no_room_is_named_while_syns_are_sent_again() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Once more, with room for one.
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let (mut queues, mut host) = (Queues::default(), Host::for_sockets());
        assert_eq!(queues.full(&mut host, &[service(address, 1)]), [], "it has room");
        let _waits = TcpStream::connect(address).unwrap();
        assert_eq!(queues.full(&mut host, &[service(address, 1)]), [], "no SYN was sent again");
        assert_eq!(queues.full(&mut host, &[service(address, 2)]), [service(address, 0).0]);
        let _accepted = listener.accept().unwrap();
        assert_eq!(queues.full(&mut host, &[service(address, 3)]), []);
    }
}
