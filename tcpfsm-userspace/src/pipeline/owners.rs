//! Who owns this host's end of a flow: asked once per flow, and never for more than a share of the time.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tcpfsm_common::fsm::State;

use crate::{
    owner::{OwnerLookup, Proc},
    report::{Flow, Local, Side},
};

/// Flows remembered; then all are forgotten and asked for again.
const MAX_REMEMBERED: usize = 32_768;

const WINDOW: Duration = Duration::from_secs(1);

/// Asks the host and remembers.
pub struct Owners {
    host: Box<dyn OwnerLookup>,
    budget: Duration,
    known: HashMap<(SocketAddr, SocketAddr), Proc>,
    window: Instant,
    spent: Duration,
}

impl Owners {
    /// `budget`: how much of each second may be spent on asking.
    #[must_use]
    pub fn new(host: Box<dyn OwnerLookup>, budget: Duration) -> Self {
        Self { host, budget, known: HashMap::new(), window: Instant::now(), spent: Duration::ZERO }
    }

    /// Whether an address is this host's.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.host.is_local(address)
    }

    /// Which ends are this host's.
    pub(super) fn local(&self, orig: SocketAddr, resp: SocketAddr) -> Option<Local> {
        Local::of(self.is_local(orig.ip()), self.is_local(resp.ip()))
    }

    /// The owner of this host's end; of `side` where both are.
    pub fn owner(&mut self, flow: &Flow, side: Side) -> Option<Proc> {
        let side = match flow.local? {
            Local::Orig => Side::Orig,
            Local::Resp => Side::Resp,
            Local::Both => side,
        };
        let ends = (flow.address(side), flow.address(side.other()));
        if let Some(owner) = self.known.get(&ends) {
            return Some(owner.clone());
        }
        if !self.may_ask() {
            return None;
        }
        let asked = Instant::now();
        let mut owner = self.host.owner_of(ends.0, ends.1);
        if let Some(owner) = &owner {
            if self.known.len() >= MAX_REMEMBERED {
                self.known.clear();
            }
            self.known.insert(ends, owner.clone());
        } else if side == Side::Resp {
            // Not accepted yet, or gone: the listener's is the best answer, until there is a better one.
            owner = self.host.listener_owner(ends.0);
        }
        self.spent += asked.elapsed();
        owner
    }

    /// The state of the kernel's own socket at one end, if it is this host's.
    pub fn kernel_state(&mut self, flow: &Flow, side: Side) -> Option<State> {
        if !flow.local?.includes(side) {
            return None;
        }
        self.host.kernel_state(flow.address(side), flow.address(side.other()))
    }

    /// The flow is over: its endpoints will be another's.
    pub(super) fn forget(&mut self, flow: &Flow) {
        self.known.remove(&(flow.orig, flow.resp));
        self.known.remove(&(flow.resp, flow.orig));
    }

    fn may_ask(&mut self) -> bool {
        if self.window.elapsed() >= WINDOW {
            self.window = Instant::now();
            self.spent = Duration::ZERO;
        }
        self.spent < self.budget
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::pipeline::synthetic::{ORIG, RESP};

    struct Fake {
        asked: Arc<AtomicU32>,
        accepted: bool,
    }

    fn named(comm: &str) -> Proc {
        Proc { pid: 1, comm: comm.into(), unit: None, container: None }
    }

    impl OwnerLookup for Fake {
        fn is_local(&self, address: IpAddr) -> bool {
            address == RESP.ip()
        }

        fn owner_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Proc> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            assert_eq!((local, remote), (RESP, ORIG), "the local end comes first");
            self.accepted.then(|| named("worker"))
        }

        fn listener_owner(&mut self, local: SocketAddr) -> Option<Proc> {
            assert_eq!(local, RESP);
            Some(named("listener"))
        }

        fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<State> {
            None
        }
    }

    fn flow(owners: &Owners) -> Flow {
        Flow { orig: ORIG, resp: RESP, iface: "lo".into(), local: owners.local(ORIG, RESP) }
    }

    #[test]
    fn a_known_owner_is_not_asked_for_again() {
        let asked = Arc::new(AtomicU32::new(0));
        let mut owners = Owners::new(Box::new(Fake { asked: Arc::clone(&asked), accepted: true }), WINDOW);
        let flow = flow(&owners);
        assert_eq!(flow.local, Some(Local::Resp));
        for _ in 0..3 {
            assert_eq!(owners.owner(&flow, Side::Orig), Some(named("worker")));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        owners.forget(&flow);
        owners.owner(&flow, Side::Resp);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn before_accept_the_listener_answers() {
        let asked = Arc::default();
        let mut owners = Owners::new(Box::new(Fake { asked, accepted: false }), WINDOW);
        let flow = flow(&owners);
        assert_eq!(owners.owner(&flow, Side::Resp), Some(named("listener")));
    }

    #[test]
    fn other_hosts_sockets_have_no_owner_here() {
        let mut owners = Owners::new(Box::new(crate::owner::NoHost), WINDOW);
        let flow = flow(&owners);
        assert_eq!((flow.local, owners.owner(&flow, Side::Resp)), (None, None));
    }
}
