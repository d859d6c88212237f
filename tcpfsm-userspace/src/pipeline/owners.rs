//! Who owns this host's end of a flow: asked once per flow, and never for more than a share of the time.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tcpfsm_common::fsm::State;

use crate::{
    owner::{Confidence, OwnerLookup, Ownership, Proc, WhyUnowned},
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

    /// The owner of this host's end, or why it has none; of `side` where both are. `states`: the originator's and
    /// the responder's.
    pub fn owner(&mut self, flow: &Flow, side: Side, states: [State; 2]) -> Ownership {
        let side = match flow.local {
            None => return Ownership::default(),
            Some(Local::Orig) => Side::Orig,
            Some(Local::Resp) => Side::Resp,
            Some(Local::Both) => side,
        };
        let state = states[side as usize & 1];
        let is_done = state.is_closed() || state == State::TimeWait;
        let ends = (flow.address(side), flow.address(side.other()));
        if let Some(owner) = self.known.get(&ends) {
            let confidence = if is_done { Confidence::Earlier } else { owner.confidence };
            return Proc { confidence, ..owner.clone() }.into();
        }
        if state == State::TimeWait {
            return Ownership::nobody(WhyUnowned::TimeWait);
        }
        if !self.may_ask() {
            return Ownership::default();
        }
        let asked = Instant::now();
        let found = self.host.ownership(ends.0, ends.1);
        if let Some(owner) = &found.proc
            // Who listens is the answer only until there is a better one.
            && owner.confidence == Confidence::Socket
        {
            if self.known.len() >= MAX_REMEMBERED {
                self.known.clear();
            }
            self.known.insert(ends, owner.clone());
        }
        self.spent += asked.elapsed();
        found
    }

    /// What keeps owners from being found, if anything does.
    #[must_use]
    pub fn degraded(&self) -> Option<String> {
        self.host.degraded()
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

    fn named(comm: &str, confidence: Confidence) -> Proc {
        Proc { pid: 1, comm: comm.into(), confidence, ..Proc::default() }
    }

    impl OwnerLookup for Fake {
        fn is_local(&self, address: IpAddr) -> bool {
            address == RESP.ip()
        }

        fn ownership(&mut self, local: SocketAddr, remote: SocketAddr) -> Ownership {
            self.asked.fetch_add(1, Ordering::Relaxed);
            assert_eq!((local, remote), (RESP, ORIG), "the local end comes first");
            if self.accepted {
                named("worker", Confidence::Socket).into()
            } else {
                named("listener", Confidence::Listener).into()
            }
        }

        fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<State> {
            None
        }

        fn degraded(&self) -> Option<String> {
            None
        }
    }

    const OPEN: [State; 2] = [State::Established; 2];

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
            assert_eq!(owners.owner(&flow, Side::Orig, OPEN).proc, Some(named("worker", Confidence::Socket)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        owners.forget(&flow);
        let _ = owners.owner(&flow, Side::Resp, OPEN);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn before_accept_the_listener_answers_and_is_not_remembered() {
        let asked = Arc::new(AtomicU32::new(0));
        let mut owners = Owners::new(Box::new(Fake { asked: Arc::clone(&asked), accepted: false }), WINDOW);
        let flow = flow(&owners);
        for _ in 0..2 {
            let found = owners.owner(&flow, Side::Resp, OPEN).proc;
            assert_eq!(found, Some(named("listener", Confidence::Listener)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn time_wait_has_no_owner_but_the_one_it_had() {
        let asked = Arc::new(AtomicU32::new(0));
        let mut owners = Owners::new(Box::new(Fake { asked: Arc::clone(&asked), accepted: true }), WINDOW);
        let flow = flow(&owners);
        let waiting = [State::Closed, State::TimeWait];
        let found = owners.owner(&flow, Side::Resp, waiting);
        assert_eq!(found, Ownership::nobody(WhyUnowned::TimeWait));
        assert_eq!(asked.load(Ordering::Relaxed), 0, "the answer is known");
        let _ = owners.owner(&flow, Side::Resp, OPEN);
        let found = owners.owner(&flow, Side::Resp, waiting).proc;
        assert_eq!(found, Some(named("worker", Confidence::Earlier)));
    }

    #[test]
    fn other_hosts_sockets_have_no_owner_here() {
        let mut owners = Owners::new(Box::new(crate::owner::NoHost), WINDOW);
        let flow = flow(&owners);
        assert_eq!((flow.local, owners.owner(&flow, Side::Resp, OPEN)), (None, Ownership::default()));
    }
}
