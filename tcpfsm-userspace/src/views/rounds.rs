//! Rounds over all flows: the kernel is asked about each of this host's, a batch after each sweep.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use tcpfsm_common::{
    abi::{CloseReason, Correction, FlowRecord, ServiceKey, ServiceRecord, SweepRequest, Tap, Verdict},
    flow::{End, FlowKey},
    fsm::State,
};
use tracing::debug;

use super::{
    compare::{Opinion, Views, is_done, without_socket},
    held::{MAX_WAITING, is_to_be_held, with_socket_in},
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
    /// Connections that were given their socket's state: seeded ones, and ends that only the clock had ended.
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
    stuck: VecDeque<FlowKey>,
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
            stuck: VecDeque::new(),
            queues: Queues::default(),
            budget: (interval / DUTY).clamp(BUDGET[0], BUDGET[1]),
            interval,
            next: Instant::now(),
        }
    }

    /// Flows that the next batches are to begin with: stuck ones, whose time may be up before their turn comes.
    pub fn look_first(&mut self, stuck: Vec<FlowKey>) {
        self.stuck.extend(stuck);
        self.stuck.truncate(MAX_WAITING);
    }

    /// Compares a batch, and has corrected what the sockets know better. `None` when it is too early for one:
    /// sweeps that somebody asked for come more often. `request` is that of the sweep before.
    ///
    /// # Errors
    /// A system call on the maps failed.
    pub fn compare(&mut self, sweeper: &mut Sweeper, request: &SweepRequest) -> Result<Option<Round>> {
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
                Some(record) => self.flow(key, &record, request, sweeper, &mut round)?,
                None => {
                    self.views.clear(key, End::Low);
                    self.views.clear(key, End::High);
                }
            }
        }
        // The others are to have their turn too.
        while Instant::now() + self.budget / 2 < deadline {
            let Some(key) = self.stuck.pop_front() else { break };
            if let Some(record) = self.maps.find(&key)?
                && !suspects.contains(&key)
            {
                self.flow(&key, &record, request, sweeper, &mut round)?;
            }
        }
        while Instant::now() < deadline {
            let batch = self.maps.walk(&mut self.cursor, STRIDE)?;
            for (key, record) in &batch {
                if !is_done(record) && !suspects.contains(key) {
                    self.flow(key, record, request, sweeper, &mut round)?;
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
        request: &SweepRequest,
        sweeper: &mut Sweeper,
        round: &mut Round,
    ) -> Result<()> {
        let mut verdict = Verdict(record.shared.verdict);
        for end in [End::Low, End::High] {
            let mut held = false;
            if let Some(kernel) = self.ask(key, end) {
                match self.views.judge(key, end, verdict, kernel, monotonic_ns()) {
                    Opinion::Agree | Opinion::NotYet => round.counts.agreed += 1,
                    Opinion::Differ => {
                        round.counts.differed += 1;
                        round.mismatches.extend(mismatch(key, end, verdict, kernel, record));
                    }
                    Opinion::Follow(state) => {
                        if sweeper.correct(&Correction::new(key, verdict, following(verdict, end, state)))? {
                            round.counts.followed += 1;
                        }
                        self.views.clear(key, end);
                        // What was read of the record no longer holds.
                        return Ok(());
                    }
                    Opinion::Gone => {
                        let peer_is_ours = self.host.is_local(key.socket_addr(end.other()).ip());
                        let after = without_socket(verdict, end, peer_is_ours);
                        if sweeper.correct(&Correction::new(key, verdict, after))? {
                            round.counts.gone += 1;
                        }
                        self.views.clear(key, end);
                        return Ok(());
                    }
                }
                held = is_to_be_held(record, verdict, end, kernel, request);
            }
            // Whoever cannot be asked any more is left to the clock again.
            if held != verdict.is_held(end) {
                let after = verdict.with_held(end, held);
                if !sweeper.correct(&Correction::new(key, verdict, after))? {
                    return Ok(());
                }
                verdict = after;
            }
        }
        Ok(())
    }

    /// What this end's socket is in, or that there is none; `None` where that cannot be said.
    fn ask(&mut self, key: &FlowKey, end: End) -> Option<Option<State>> {
        let (local, remote) = (key.socket_addr(end), key.socket_addr(end.other()));
        if !self.host.is_local(local.ip()) {
            return None;
        }
        let socket = self.host.socket(local, remote).ok()?;
        (socket.is_some() || self.host.finds_all()).then(|| socket.map(|socket| socket.state))
    }
}

/// How an end differs from its socket, if it has one.
fn mismatch(
    key: &FlowKey,
    end: End,
    verdict: Verdict,
    kernel: Option<State>,
    record: &FlowRecord,
) -> Option<Mismatch> {
    let FlowRecord { shared, .. } = record;
    let at = end as usize & 1;
    let (since, ifindex) = (shared.since[at], Tap(shared.tap[at]).ifindex());
    Some(Mismatch { key: *key, end, verdict, kernel: kernel?, since, ifindex })
}

/// The verdict once an end is in its socket's state.
fn following(verdict: Verdict, end: End, state: State) -> Verdict {
    let after = with_socket_in(verdict, end, state);
    match (verdict.is_over(), after.is_over()) {
        (false, true) => after.with_close_reason(CloseReason::Finish),
        (true, false) => after.with_close_reason(CloseReason::Open),
        (true, true) | (false, false) => after,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_its_socket_has_the_reason_to_have_ended_that_this_gives() {
        let half_closed = Verdict::default().with_state(End::Low, State::FinWait2, true).with_state(
            End::High,
            State::Closed,
            true,
        );
        let after = following(half_closed, End::Low, State::TimeWait);
        assert!(after.is_over() && after.is_confirmed(End::Low));
        assert_eq!(after.close_reason(), CloseReason::Finish);
        let expired =
            half_closed.with_state(End::Low, State::Closed, false).with_close_reason(CloseReason::Timeout);
        let after = following(expired, End::Low, State::FinWait2);
        assert_eq!((after.state(End::Low), after.close_reason()), (State::FinWait2, CloseReason::Open));
        assert!(after.is_held(End::Low), "else the next sweep ends it again");
        assert_eq!(following(after, End::Low, State::CloseWait).close_reason(), CloseReason::Open);
    }
}
