//! Whose socket a flow's end is: what the pipeline asks of the host.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::config::Vantage;

/// The process that owns a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub comm: String,
    /// Its systemd unit, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// What can be asked about sockets of this host. Calls may take milliseconds.
pub trait OwnerLookup: Send {
    /// Whether an address is one of this host's.
    fn is_local(&self, address: IpAddr) -> bool;

    /// The owner of a connection's socket.
    fn owner_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Proc>;

    /// The owner of a listening socket.
    fn listener_owner(&mut self, local: SocketAddr) -> Option<Proc>;
}

/// What answers for this vantage.
#[must_use]
pub fn lookup(vantage: Vantage) -> Box<dyn OwnerLookup> {
    match vantage {
        Vantage::Host | Vantage::Gateway | Vantage::Mirror => Box::new(NoHost),
    }
}

/// Knows nothing: for gateways and mirrors, whose flows are other hosts'.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHost;

impl OwnerLookup for NoHost {
    fn is_local(&self, _: IpAddr) -> bool {
        false
    }

    fn owner_of(&mut self, _: SocketAddr, _: SocketAddr) -> Option<Proc> {
        None
    }

    fn listener_owner(&mut self, _: SocketAddr) -> Option<Proc> {
        None
    }
}
