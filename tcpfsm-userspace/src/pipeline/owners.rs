//! Who owns this host's end of a flow: asked once per flow, and never for more than a share of the time.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tcpfsm_common::fsm::State;

use crate::{
    owner::{Confidence, OwnerLookup, Ownership, Proc, Unowned, WhyUnowned},
    report::{Flow, Local, Side},
};

/// Flows remembered; then all are forgotten and asked for again.
const MAX_REMEMBERED: usize = 32_768;

const WINDOW: Duration = Duration::from_secs(1);

/// Asks the host and remembers.
pub struct Owners {
    host: Box<dyn OwnerLookup>,
    known: HashMap<(SocketAddr, SocketAddr), Proc>,
    /// For what there is much of: transitions.
    often: Budget,
    /// For what is rare: a storm of transitions must not keep an anomaly from being asked about.
    seldom: Budget,
    /// How many owners were not asked for since too much was spent.
    unasked: u64,
}

/// How much may be spent on asking.
struct Budget {
    share: Duration,
    /// When the present second began; `None`: the share is all there is.
    window: Option<Instant>,
    spent: Duration,
}

impl Budget {
    const fn new(share: Duration, window: Option<Instant>) -> Self {
        Self { share, window, spent: Duration::ZERO }
    }

    fn is_left(&mut self) -> bool {
        if self.window.is_some_and(|window| window.elapsed() >= WINDOW) {
            self.window = Some(Instant::now());
            self.spent = Duration::ZERO;
        }
        self.spent < self.share
    }
}

impl Owners {
    /// `budget`: how much of each second may be spent on asking about transitions, and as much about anomalies.
    #[must_use]
    pub fn new(host: Box<dyn OwnerLookup>, budget: Duration) -> Self {
        Self::with(host, budget, Some(Instant::now()))
    }

    /// To answer one question: `budget` is how much may be spent in all.
    #[must_use]
    pub fn once(host: Box<dyn OwnerLookup>, budget: Duration) -> Self {
        Self::with(host, budget, None)
    }

    fn with(host: Box<dyn OwnerLookup>, budget: Duration, window: Option<Instant>) -> Self {
        let [often, seldom] = [budget; 2].map(|share| Budget::new(share, window));
        Self { host, known: HashMap::new(), often, seldom, unasked: 0 }
    }

    /// How many owners were not asked for since too much was spent.
    #[must_use]
    pub const fn unasked(&self) -> u64 {
        self.unasked
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
        let Some(side) = own_side(flow, side) else { return Ownership::default() };
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
        if !self.often.is_left() {
            self.unasked += 1;
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
        self.often.spent += asked.elapsed();
        found
    }

    /// The same for what lasts: whether the program that had the socket still holds it, is asked now. `state`: of the
    /// end's socket, else of the end.
    pub(super) fn owner_now(&mut self, flow: &Flow, side: Side, state: State) -> Ownership {
        let Some(side) = own_side(flow, side) else { return Ownership::default() };
        let ends = (flow.address(side), flow.address(side.other()));
        let was = self.known.get(&ends).cloned();
        let found = if state == State::TimeWait {
            Ownership::nobody(WhyUnowned::TimeWait)
        } else if self.seldom.is_left() {
            let asked = Instant::now();
            let found = self.host.ownership(ends.0, ends.1);
            self.seldom.spent += asked.elapsed();
            found
        } else {
            return was.map(Ownership::from).unwrap_or_default();
        };
        match (was, &found.proc) {
            (_, Some(owner)) if owner.confidence == Confidence::Socket => found,
            // Some process holds it: it is only not known which.
            (Some(was), None)
                if matches!(
                    &found.unowned,
                    Some(Unowned { why: WhyUnowned::Hidden | WhyUnowned::TooNew, .. })
                ) =>
            {
                was.into()
            }
            (Some(was), _) => Proc { confidence: Confidence::Earlier, ..was }.into(),
            (None, _) => found,
        }
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
}

/// The side that is this host's; the one asked about where both are.
fn own_side(flow: &Flow, side: Side) -> Option<Side> {
    Some(match flow.local? {
        Local::Orig => Side::Orig,
        Local::Resp => Side::Resp,
        Local::Both => side,
    })
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

    /// A host whose program closes its socket after it has been asked about once.
    struct Closing(bool);

    impl OwnerLookup for Closing {
        fn is_local(&self, address: IpAddr) -> bool {
            address == RESP.ip()
        }

        fn ownership(&mut self, _: SocketAddr, _: SocketAddr) -> Ownership {
            if std::mem::replace(&mut self.0, true) {
                Ownership::nobody(WhyUnowned::Orphan)
            } else {
                named("worker", Confidence::Socket).into()
            }
        }

        fn kernel_state(&mut self, _: SocketAddr, _: SocketAddr) -> Option<State> {
            None
        }

        fn degraded(&self) -> Option<String> {
            None
        }
    }

    #[test]
    fn one_that_has_closed_its_socket_does_not_hold_it() {
        let mut owners = Owners::new(Box::new(Closing(false)), WINDOW);
        let flow = flow(&owners);
        let found = owners.owner(&flow, Side::Resp, OPEN).proc;
        assert_eq!(found, Some(named("worker", Confidence::Socket)));
        let found = owners.owner_now(&flow, Side::Resp, State::LastAck).proc;
        assert_eq!(found, Some(named("worker", Confidence::Earlier)));
        owners.forget(&flow);
        let found = owners.owner_now(&flow, Side::Resp, State::LastAck);
        assert_eq!(found, Ownership::nobody(WhyUnowned::Orphan));
    }

    #[test]
    fn a_budget_for_one_question_does_not_come_again() {
        let spent = |window| Budget { spent: WINDOW, ..Budget::new(WINDOW, window) };
        let a_second_ago = Instant::now().checked_sub(WINDOW);
        assert!(spent(a_second_ago).is_left());
        assert!(!spent(Some(Instant::now())).is_left());
        assert!(!spent(None).is_left());
    }

    #[test]
    fn other_hosts_sockets_have_no_owner_here() {
        let mut owners = Owners::new(Box::new(crate::owner::NoHost), WINDOW);
        let flow = flow(&owners);
        assert_eq!((flow.local, owners.owner(&flow, Side::Resp, OPEN)), (None, Ownership::default()));
    }
}
