//! Rounds over all flows: the kernel is asked about each of this host's, a batch after each sweep.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tcpfsm_common::{
    abi::{CloseReason, Correction, FlowRecord, ServiceKey, ServiceRecord, Tap, Verdict},
    flow::{End, FlowKey},
    fsm::State,
};
use tracing::debug;

use super::{
    compare::{Opinion, Views, is_done, without_socket},
    queues::Queues,
};
use crate::{
    clock::monotonic_ns,
    error::Result,
    host::Host,
    kernel::{
        records::{Cursor, FlowMaps},
        sweep::Sweeper,
    },
};

/// At most one part in this many of the time between two sweeps goes into comparing.
const DUTY: u32 = 200;
/// The least and the most that one batch may take.
const BUDGET: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];
/// Flows looked at between two looks at the clock.
const STRIDE: usize = 64;

/// A flow about which the two views differ lastingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The flow.
    pub key: FlowKey,
    /// This host's end.
    pub end: End,
    /// The wire's view of both ends.
    pub verdict: Verdict,
    /// What the kernel's socket is in.
    pub kernel: State,
    /// Since when the wire has had this end in its state.
    pub since: u64,
    /// The interface on which the flow was seen.
    pub ifindex: u32,
}

/// Comparisons so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewCounts {
    /// Connections put into the maps at the start, as their sockets had them.
    pub seeded: u64,
    /// Comparisons in which both views agreed, or differed for a moment only.
    pub agreed: u64,
    /// Comparisons in which they differed lastingly.
    pub differed: u64,
    /// Connections closed because their socket was gone.
    pub gone: u64,
    /// Seeded connections that were given their socket's state.
    pub followed: u64,
}

/// What one batch found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Flows that differ, all of them: they are looked at in every batch.
    pub mismatches: Vec<Mismatch>,
    /// How much was compared, and what came of it.
    pub counts: ViewCounts,
}

/// Goes over all flows again and again.
#[derive(Debug)]
pub struct Rounds {
    host: Host,
    maps: Arc<FlowMaps>,
    cursor: Cursor,
    views: Views,
    queues: Queues,
    budget: Duration,
    interval: Duration,
    next: Instant,
}

impl Rounds {
    /// `interval`: the time between two sweeps.
    #[must_use]
    pub fn new(host: Host, maps: Arc<FlowMaps>, interval: Duration) -> Self {
        Self {
            host,
            maps,
            cursor: Cursor::default(),
            views: Views::default(),
            queues: Queues::default(),
            budget: (interval / DUTY).clamp(BUDGET[0], BUDGET[1]),
            interval,
            next: Instant::now(),
        }
    }

    /// Compares a batch, and has corrected what the sockets know better. `None` when it is too early for one:
    /// sweeps that somebody asked for come more often.
    ///
    /// # Errors
    /// A system call on the maps failed.
    pub fn compare(&mut self, sweeper: &mut Sweeper) -> Result<Option<Round>> {
        let started = Instant::now();
        if started < self.next {
            return Ok(None);
        }
        // A tick early is early enough.
        self.next = started + self.interval / 2;
        let deadline = started + self.budget;
        let mut round = Round::default();
        let suspects = self.views.suspects();
        for key in &suspects {
            match self.maps.find(key)? {
                Some(record) => self.flow(key, &record, sweeper, &mut round)?,
                None => {
                    self.views.clear(key, End::Low);
                    self.views.clear(key, End::High);
                }
            }
        }
        while Instant::now() < deadline {
            let batch = self.maps.walk(&mut self.cursor, STRIDE)?;
            for (key, record) in &batch {
                if !is_done(record) && !suspects.contains(key) {
                    self.flow(key, record, sweeper, &mut round)?;
                }
            }
            if self.cursor.is_at_start() {
                self.views.round_done();
                break;
            }
        }
        let Round { mismatches, counts } = &round;
        debug!("compared with sockets: {counts:?}, {} differ, {:?}", mismatches.len(), started.elapsed());
        Ok(Some(round))
    }

    /// Services at which SYNs were sent again since the last sweep because their accept queue is full.
    pub fn full_queues(&mut self, services: &[(ServiceKey, ServiceRecord)]) -> Vec<ServiceKey> {
        self.queues.full(&mut self.host, services)
    }

    fn flow(
        &mut self,
        key: &FlowKey,
        record: &FlowRecord,
        sweeper: &mut Sweeper,
        round: &mut Round,
    ) -> Result<()> {
        for end in [End::Low, End::High] {
            let (local, remote) = (key.socket_addr(end), key.socket_addr(end.other()));
            if !self.host.is_local(local.ip()) {
                continue;
            }
            let Ok(socket) = self.host.socket(local, remote) else { continue };
            if socket.is_none() && !self.host.finds_all() {
                continue;
            }
            let kernel = socket.map(|socket| socket.state);
            let verdict = Verdict(record.shared.verdict);
            let at = end as usize & 1;
            match self.views.judge(key, end, verdict, kernel, monotonic_ns()) {
                Opinion::Agree | Opinion::NotYet => round.counts.agreed += 1,
                Opinion::Differ => {
                    round.counts.differed += 1;
                    if let Some(kernel) = kernel {
                        let (since, ifindex) =
                            (record.shared.since[at], Tap(record.shared.tap[at]).ifindex());
                        round.mismatches.push(Mismatch { key: *key, end, verdict, kernel, since, ifindex });
                    }
                }
                Opinion::Follow(state) => {
                    let after = following(verdict, end, state);
                    if sweeper.correct(&Correction::new(key, verdict, after))? {
                        round.counts.followed += 1;
                    }
                    self.views.clear(key, end);
                    // What was read of the record no longer holds.
                    return Ok(());
                }
                Opinion::Gone => {
                    let peer_is_ours = self.host.is_local(remote.ip());
                    let after = without_socket(verdict, end, peer_is_ours);
                    if sweeper.correct(&Correction::new(key, verdict, after))? {
                        round.counts.gone += 1;
                    }
                    self.views.clear(key, end);
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The verdict once an end is in its socket's state.
fn following(verdict: Verdict, end: End, state: State) -> Verdict {
    let after = verdict.with_state(end, state, true);
    let ends = after.is_over() && !verdict.is_over();
    if ends { after.with_close_reason(CloseReason::Finish) } else { after }
}

impl ViewCounts {
    /// Adds what another batch counted.
    pub fn add(&mut self, other: &Self) {
        let Self { seeded, agreed, differed, gone, followed } = other;
        self.seeded += seeded;
        self.agreed += agreed;
        self.differed += differed;
        self.gone += gone;
        self.followed += followed;
    }
}
