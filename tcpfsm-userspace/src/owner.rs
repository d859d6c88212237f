//! Whose socket a flow's end is: what the pipeline asks of the host.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tcpfsm_common::fsm::State;

use crate::{
    config::Vantage,
    host::{Host, Owner},
};

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
    /// Its container, where it runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl From<Owner> for Proc {
    fn from(owner: Owner) -> Self {
        let Owner { pid, comm, exe: _, unit, container, pod: _, confidence: _ } = owner;
        Self { pid, comm, unit, container }
    }
}

/// What can be asked about sockets of this host. Calls may take milliseconds.
pub trait OwnerLookup: Send {
    /// Whether an address is one of this host's.
    fn is_local(&self, address: IpAddr) -> bool;

    /// The owner of a connection's socket.
    fn owner_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Proc>;

    /// The owner of a listening socket.
    fn listener_owner(&mut self, local: SocketAddr) -> Option<Proc>;

    /// The state of the kernel's own socket.
    fn kernel_state(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<State>;
}

impl OwnerLookup for Host {
    fn is_local(&self, address: IpAddr) -> bool {
        Self::is_local(self, address)
    }

    fn owner_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Proc> {
        Self::owner_of(self, local, remote).map(Proc::from)
    }

    fn listener_owner(&mut self, local: SocketAddr) -> Option<Proc> {
        Self::listener_owner(self, local).map(Proc::from)
    }

    fn kernel_state(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<State> {
        Self::kernel_state(self, local, remote)
    }
}

/// What answers for this vantage.
#[must_use]
pub fn lookup(vantage: Vantage) -> Box<dyn OwnerLookup> {
    match vantage {
        Vantage::Host => Box::new(Host::new()),
        // What passes through is other hosts': asking about each flow would cost, and never be answered.
        Vantage::Gateway | Vantage::Mirror => Box::new(NoHost),
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

    fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<State> {
        None
    }
}
