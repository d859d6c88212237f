//! The host's own view of a flow, under one roof.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tcpfsm_common::fsm::State;

use super::{
    addresses::Addresses,
    cgroup::Placement,
    cgroup_ids::CgroupIds,
    fds::FdIndex,
    owner::{Answer, Confidence, Owner, Whose, WhyUnowned},
    process::{Process, Processes},
    sock_diag::{SockDiag, Socket, States},
};

/// How often all sockets are listed to learn which interfaces some are bound to,
const BOUND_INTERVAL: Duration = Duration::from_secs(30);
/// or less often: listing may take at most one part in this many of one CPU.
const BOUND_DUTY: u32 = 200;
/// Interfaces to try for one flow.
const MAX_BOUND: usize = 16;

/// What this host knows of its flows. Every question blocks, for microseconds mostly. Each question costs a system call or two; walks of `/proc` and lists of all
/// sockets are made at a bounded rate only.
#[derive(Debug)]
pub struct Host {
    sock_diag: SockDiag,
    fds: FdIndex,
    processes: Processes,
    cgroups: CgroupIds,
    addresses: Addresses,
    bound: Bound,
    unanswered: Option<String>,
}

/// The interfaces that some socket is bound to. Mostly none: then one lookup finds every socket.
#[derive(Debug)]
struct Bound {
    interfaces: BTreeSet<u32>,
    next: Instant,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// Looks around once, so that [`degraded`](Self::degraded) holds from the start.
    #[must_use]
    pub fn new() -> Self {
        let mut host = Self::for_sockets();
        host.fds.refresh();
        host
    }

    /// The same for whoever asks about sockets only, not their owners: processes are not looked through.
    #[must_use]
    pub fn for_sockets() -> Self {
        let mut host = Self {
            sock_diag: SockDiag::new(),
            fds: FdIndex::new(),
            processes: Processes::default(),
            cgroups: CgroupIds::new(),
            addresses: Addresses::new(),
            bound: Bound { interfaces: BTreeSet::new(), next: Instant::now() },
            unanswered: None,
        };
        host.learn_bound_interfaces();
        host
    }

    /// Whether a packet to this address would end here.
    #[must_use]
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.contains(address)
    }

    /// The process that holds the flow's own socket.
    ///
    /// `None` is normal for a flow in TIME_WAIT, one whose socket was closed before the FIN exchange was over, one
    /// that no program has accepted yet, and one forwarded through this host: no process holds those. Also for a
    /// socket opened within the last second or so that is not indexed yet.
    pub fn owner_of(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<Owner> {
        let socket = self.socket(local, remote).ok()??;
        self.owner(&socket)
    }

    /// Whose this host's end of a flow is, and the state of its socket.
    ///
    /// Where the socket has no process yet, or none any more, who listens at `local` is the answer, with that
    /// said; else why there is none.
    pub fn whose(&mut self, local: SocketAddr, remote: SocketAddr) -> Answer {
        let nobody = |why| Whose::Nobody(why, None);
        let socket = match self.socket(local, remote) {
            Ok(Some(socket)) => socket,
            Ok(None) => {
                let whose = match self.listener(local) {
                    Ok(Some(listener)) => match self.owner(&listener) {
                        Some(owner) => Whose::Process(owner),
                        // Somebody listens: who, is not known yet, or may not be seen.
                        None => Whose::Nobody(self.why_unnamed(&listener), self.placement(&listener)),
                    },
                    Ok(None) | Err(_) => nobody(WhyUnowned::NoSocket),
                };
                return Answer { whose, state: None };
            }
            Err(_) => return Answer { whose: nobody(WhyUnowned::Hidden), state: None },
        };
        let state = Some(socket.state);
        let whose = match (socket.state, socket.inode) {
            (State::TimeWait, _) => nobody(WhyUnowned::TimeWait),
            // In the accept queue, or not even there: request sockets and children without a file.
            (State::SynRecv | State::Established | State::CloseWait, 0) => {
                let listener = self.listener_owner(local).map(Whose::Process);
                listener.unwrap_or_else(|| Whose::Nobody(WhyUnowned::NotAccepted, self.placement(&socket)))
            }
            (_, 0) => Whose::Nobody(WhyUnowned::Orphan, self.placement(&socket)),
            (_, _) => match self.owner(&socket) {
                Some(owner) => Whose::Process(owner),
                None => Whose::Nobody(self.why_unnamed(&socket), self.placement(&socket)),
            },
        };
        Answer { whose, state }
    }

    /// Why the process that must hold a socket cannot be named.
    fn why_unnamed(&self, socket: &Socket) -> WhyUnowned {
        let hidden = self.unanswered.is_some()
            || self
                .fds
                .degraded()
                .is_some_and(|degraded| !degraded.partly || self.fds.was_missed(socket.inode));
        if hidden { WhyUnowned::Hidden } else { WhyUnowned::TooNew }
    }

    /// The process that listens at this address and port, wildcard and dual-stack listeners included.
    pub fn listener_owner(&mut self, local: SocketAddr) -> Option<Owner> {
        let listener = self.listener(local).ok()??;
        self.owner(&listener)
    }

    /// The unit, container and pod that a socket was made in, where no process can be named: without the capabilities for that,
    /// or after it was closed (but not in TIME_WAIT). Needs cgroup v2 and kernel 5.9; `None` also for one made in the root
    /// cgroup.
    pub fn placement(&mut self, socket: &Socket) -> Option<Placement> {
        let placement = Placement::of_path(self.cgroups.path(socket.cgroup?)?);
        (placement != Placement::default()).then_some(placement)
    }

    /// The state of the kernel's own socket for this flow; CLOSED when it has none. `None` when that cannot be
    /// said: the address is not ours, or the kernel did not answer.
    ///
    /// The kernel is asked now and the wire was seen a moment ago: a disagreement is one only if it lasts.
    pub fn kernel_state(&mut self, local: SocketAddr, remote: SocketAddr) -> Option<State> {
        if !self.is_local(local.ip()) {
            return None;
        }
        let socket = self.socket(local, remote).ok()?;
        Some(socket.map_or(State::Closed, |socket| socket.state))
    }

    /// The kernel's socket of this flow.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer; no such socket is `Ok(None)`.
    pub fn socket(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
        self.on_each_interface(|sock_diag, ifindex| {
            // For a flow without a socket the kernel names the listener.
            let found = sock_diag.find(local, remote, ifindex)?;
            Ok(found.filter(|socket| socket.state != State::Listen))
        })
    }

    /// The listener that a connection to `local` would reach: its backlog is in `rqueue` of `wqueue`.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer; no listener is `Ok(None)`.
    pub fn listener(&mut self, local: SocketAddr) -> io::Result<Option<Socket>> {
        self.on_each_interface(|sock_diag, ifindex| sock_diag.listener(local, ifindex))
    }

    /// Whether a socket that is not found is really not there: the kernel answers, and not more interfaces have
    /// sockets bound to them than can be tried.
    #[must_use]
    pub fn finds_all(&self) -> bool {
        self.unanswered.is_none() && self.bound.interfaces.len() <= MAX_BOUND
    }

    /// Every TCP socket of this network namespace, listeners included: for a warm start.
    ///
    /// # Errors
    ///
    /// When the kernel does not answer, or has no `inet_diag`.
    pub fn sockets(&mut self) -> io::Result<Vec<Socket>> {
        let sockets = self.sock_diag.list_detailed(States::ALL);
        self.note(&sockets);
        sockets
    }

    /// What keeps owners from being found, if anything does.
    #[must_use]
    pub fn degraded(&self) -> Option<&str> {
        self.unanswered.as_deref().or_else(|| Some(self.fds.degraded()?.reason.as_str()))
    }

    /// The owner of a socket at hand; see [`owner_of`](Self::owner_of).
    pub fn owner(&mut self, socket: &Socket) -> Option<Owner> {
        let confidence =
            if socket.state == State::Listen { Confidence::Listener } else { Confidence::Socket };
        let holder = self.fds.holder(socket.inode)?;
        let Process { pid, comm, exe, placement } = self.processes.find(holder.pid)?.clone();
        let Placement { unit, container, pod } = placement;
        Some(Owner { pid, comm, exe, unit, container, pod, confidence })
    }

    /// Asks for any interface first, which finds every socket that is bound to none, then for each interface that
    /// some socket is bound to.
    fn on_each_interface(
        &mut self,
        mut ask: impl FnMut(&mut SockDiag, u32) -> io::Result<Option<Socket>>,
    ) -> io::Result<Option<Socket>> {
        let mut found = ask(&mut self.sock_diag, 0);
        if matches!(found, Ok(None)) {
            if Instant::now() >= self.bound.next {
                self.learn_bound_interfaces();
            }
            for &ifindex in self.bound.interfaces.iter().take(MAX_BOUND) {
                found = ask(&mut self.sock_diag, ifindex);
                if !matches!(found, Ok(None)) {
                    break;
                }
            }
        }
        self.note(&found);
        found
    }

    fn learn_bound_interfaces(&mut self) {
        let started = Instant::now();
        let sockets = self.sock_diag.list(States::except(&[State::TimeWait]));
        self.note(&sockets);
        if let Ok(sockets) = sockets {
            self.bound.interfaces =
                sockets.iter().map(|socket| socket.ifindex).filter(|&index| index != 0).collect();
        }
        self.bound.next = Instant::now() + BOUND_INTERVAL.max(started.elapsed() * BOUND_DUTY);
    }

    fn note<T>(&mut self, answer: &io::Result<T>) {
        self.unanswered = answer.as_ref().err().map(|error| {
            format!(
                "the kernel does not say which sockets there are (sock_diag: {error}): no flow has an owner"
            )
        });
    }
}
