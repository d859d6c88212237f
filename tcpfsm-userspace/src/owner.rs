//! Whose socket a flow's end is: what the pipeline asks of the host.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use tcpfsm_common::fsm::State;

pub use crate::host::{Confidence, WhyUnowned};
use crate::{
    config::Vantage,
    host::{Answer, Host, Owner, Placement, Whose},
};

/// The process that owns a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proc {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub comm: String,
    /// Its executable, where that may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its systemd unit, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its container, where it runs in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Its Kubernetes pod, by UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// How it was found: how much to believe it.
    #[serde(default)]
    pub confidence: Confidence,
}

impl From<Owner> for Proc {
    fn from(owner: Owner) -> Self {
        let Owner { pid, comm, exe, unit, container, pod, confidence } = owner;
        Self { pid, comm, exe, unit, container, pod, confidence }
    }
}

/// No process can be named: why, and what is known all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unowned {
    /// Why.
    pub why: WhyUnowned,
    /// The systemd unit that the socket was made in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The container that the socket was made in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The Kubernetes pod that the socket was made in, by UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

impl From<WhyUnowned> for Unowned {
    fn from(why: WhyUnowned) -> Self {
        Self { why, unit: None, container: None, pod: None }
    }
}

/// The owner of one end, or why there is none. Both are `None` where nobody asked: the end is not this host's,
/// or too many others were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// The process.
    pub proc: Option<Proc>,
    /// Why there is none.
    pub unowned: Option<Unowned>,
    /// The state of the kernel's own socket, where it has one.
    pub kernel_state: Option<State>,
}

impl Ownership {
    /// Nobody, and that for this reason.
    #[must_use]
    pub fn nobody(why: WhyUnowned) -> Self {
        Self { unowned: Some(why.into()), ..Self::default() }
    }
}

impl From<Proc> for Ownership {
    fn from(proc: Proc) -> Self {
        Self { proc: Some(proc), ..Self::default() }
    }
}

impl From<Answer> for Ownership {
    fn from(answer: Answer) -> Self {
        let Answer { whose, state } = answer;
        let (proc, unowned) = match whose {
            Whose::Process(owner) => (Some(owner.into()), None),
            Whose::Nobody(why, placement) => {
                let Placement { unit, container, pod } = placement.unwrap_or_default();
                (None, Some(Unowned { why, unit, container, pod }))
            }
        };
        Self { proc, unowned, kernel_state: state }
    }
}

/// What can be asked about sockets of this host. Calls may take milliseconds.
pub trait OwnerLookup: Send {
    /// Whether an address is one of this host's.
    fn is_local(&self, address: IpAddr) -> bool;

    /// The owner of a connection's socket: who holds it, else who listens where it arrived, else why nobody.
    fn ownership(&mut self, local: SocketAddr, remote: SocketAddr) -> Ownership;

    /// The state of the kernel's own socket.
    fn kernel_state(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<State>;

    /// What keeps owners from being found, if anything does.
    fn degraded(&self) -> Option<String>;
}

impl OwnerLookup for Host {
    fn is_local(&self, address: IpAddr) -> bool {
        Self::is_local(self, address)
    }

    fn ownership(&mut self, local: SocketAddr, remote: SocketAddr) -> Ownership {
        self.whose(local, remote).into()
    }

    fn kernel_state(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<State> {
        Self::kernel_state(self, local, remote)
    }

    fn degraded(&self) -> Option<String> {
        Self::degraded(self).map(str::to_owned)
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

    fn ownership(&mut self, _: SocketAddr, _: SocketAddr) -> Ownership {
        Ownership::default()
    }

    fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<State> {
        None
    }

    fn degraded(&self) -> Option<String> {
        None
    }
}
