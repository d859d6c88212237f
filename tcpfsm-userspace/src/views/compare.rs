//! What differs between the two views, and for how long. Pure: answers and the time go in.
//!
//! The kernel is asked now and the wire was seen a moment ago, so a difference counts only once it has lasted
//! through several looks. And a flow without a socket may never have had one: what is forwarded with a
//! translated address (NAT) looks like this host's. Only a socket that was there can be gone.

use std::{
    collections::{HashMap, HashSet},
    hash::BuildHasher as _,
};

use foldhash::fast::RandomState;
use tcpfsm_common::{
    abi::{CloseReason, FlowRecord, Verdict},
    flow::{End, FlowKey},
    fsm::State,
};

use super::held::was_ended_by_the_clock;

/// A difference must last this long,
const LASTING_NS: u64 = 2_000_000_000;
/// and through so many looks.
const LASTING_LOOKS: u32 = 3;
/// Differences followed at a time.
pub(super) const MAX_SUSPECTS: usize = 4_096;
/// Flows whose socket was seen, per round (8 MB).
const MAX_KNOWN: usize = 1 << 20;

/// What to make of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opinion {
    /// Both views agree, or there never was a socket.
    Agree,
    /// They differ, but not for long.
    NotYet,
    /// They differ lastingly.
    Differ,
    /// They differ lastingly, and of this flow the socket knows more.
    Follow(State),
    /// The socket is gone, and the wire has shown no end.
    Gone,
}

/// What was found of one end so far.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    wire: State,
    kernel: Option<State>,
    since: u64,
    looks: u32,
}

/// The memory of the comparison.
#[derive(Debug, Default)]
pub(super) struct Views {
    suspects: HashMap<(FlowKey, End), Suspect>,
    /// Hashes of the ends whose socket was seen, in this round and the one before.
    known: [HashSet<u64>; 2],
    hasher: RandomState,
}

impl Views {
    /// Compares one end; `kernel` is `None` where this host has no such socket.
    pub(super) fn judge(
        &mut self,
        key: &FlowKey,
        end: End,
        verdict: Verdict,
        kernel: Option<State>,
        now: u64,
    ) -> Opinion {
        let at = (*key, end);
        let wire = verdict.state(end);
        if kernel.is_some() {
            self.remember(at);
        }
        let agree = match kernel {
            Some(kernel) => kernel == wire,
            // TIME_WAIT is cut short under pressure and reused; nobody is told.
            None => wire.is_closed() || wire == State::TimeWait || !self.had_socket(at, verdict),
        };
        if agree {
            self.suspects.remove(&at);
            return Opinion::Agree;
        }
        let room = self.suspects.len() < MAX_SUSPECTS;
        let fresh = Suspect { wire, kernel, since: now, looks: 0 };
        let Some(suspect) = (if room || self.suspects.contains_key(&at) {
            Some(self.suspects.entry(at).or_insert(fresh))
        } else {
            None
        }) else {
            return Opinion::NotYet;
        };
        if (suspect.wire, suspect.kernel) != (wire, kernel) {
            *suspect = fresh;
        }
        suspect.looks = suspect.looks.saturating_add(1);
        if suspect.looks < LASTING_LOOKS || now.saturating_sub(suspect.since) < LASTING_NS {
            return Opinion::NotYet;
        }
        match kernel {
            None => Opinion::Gone,
            Some(kernel) if verdict.has(Verdict::SEEDED) || was_ended_by_the_clock(verdict, end, kernel) => {
                Opinion::Follow(kernel)
            }
            Some(_) => Opinion::Differ,
        }
    }

    /// The ends that differed at the last look.
    pub(super) fn suspects(&self) -> HashSet<FlowKey> {
        self.suspects.keys().map(|(key, _)| *key).collect()
    }

    /// Forgets a difference: the flow is gone, or was corrected.
    pub(super) fn clear(&mut self, key: &FlowKey, end: End) {
        self.suspects.remove(&(*key, end));
    }

    /// Every flow was looked at: what was not seen in two rounds is forgotten.
    pub(super) fn round_done(&mut self) {
        self.known.swap(0, 1);
        self.known[0].clear();
    }

    fn remember(&mut self, at: (FlowKey, End)) {
        if self.known[0].len() < MAX_KNOWN {
            self.known[0].insert(self.hasher.hash_one(at));
        }
    }

    fn had_socket(&self, at: (FlowKey, End), verdict: Verdict) -> bool {
        let hash = self.hasher.hash_one(at);
        // Of a seeded flow, what was confirmed without a segment was confirmed by a socket.
        (verdict.has(Verdict::SEEDED) && verdict.is_confirmed(at.1))
            || verdict.is_held(at.1)
            || self.suspects.get(&at).is_some_and(|suspect| suspect.kernel.is_none())
            || self.known.iter().any(|known| known.contains(&hash))
    }
}

/// Whether both ends have finished, which each has acknowledged, and nothing was sent since: of such a flow the sockets know no
/// more. On a host with many short connections nearly all flows are of this kind. A host that drops the last segment behind our hooks
/// goes on sending.
pub(super) fn is_done(record: &FlowRecord) -> bool {
    let verdict = Verdict(record.shared.verdict);
    let [low, high] = record.shared.since;
    verdict.is_over() && verdict.close_reason() == CloseReason::Finish && record.last_seen() <= low.max(high)
}

/// The verdict once an end's socket is gone. The other end is as good as closed too, unless its socket is here
/// and says otherwise (`peer_is_ours`).
pub(super) fn without_socket(verdict: Verdict, end: End, peer_is_ours: bool) -> Verdict {
    let mut after = verdict.with_state(end, State::Closed, true);
    if !peer_is_ours && !after.is_over() {
        after = after.with_state(end.other(), State::Closed, false);
    }
    if after.is_over() && !verdict.is_over() {
        after.with_close_reason(CloseReason::SocketGone)
    } else {
        after
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::flow::FlowKey4;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const KEY: FlowKey = FlowKey::V4(FlowKey4 { addr: [1, 2], port: [3, 4], scope: 0 });

    fn wire(state: State) -> Verdict {
        Verdict::default().with_state(End::Low, state, true).with_state(End::High, State::Established, true)
    }

    /// The opinions of four looks, a second apart.
    fn looks(views: &mut Views, verdict: Verdict, kernel: Option<State>) -> Vec<Opinion> {
        (0..4).map(|look| views.judge(&KEY, End::Low, verdict, kernel, look * SECOND)).collect()
    }

    #[test]
    fn a_difference_counts_once_it_lasts() {
        use Opinion::{Agree, Differ, NotYet};
        let mut views = Views::default();
        let estab = wire(State::Established);
        assert_eq!(looks(&mut views, estab, Some(State::Established)), [Agree; 4]);
        assert_eq!(looks(&mut views, estab, Some(State::FinWait1)), [NotYet, NotYet, Differ, Differ]);
        views.judge(&KEY, End::High, estab, Some(State::CloseWait), 0);
        assert_eq!(views.suspects(), HashSet::from([KEY]), "one flow, whichever of its ends");
        views.clear(&KEY, End::High);
        // The kernel moves on: another difference, which has to last too.
        assert_eq!(looks(&mut views, estab, Some(State::FinWait2))[..2], [NotYet; 2]);
        assert_eq!(looks(&mut views, wire(State::FinWait2), Some(State::FinWait2)), [Agree; 4]);
        assert!(views.suspects().is_empty());
    }

    #[test]
    fn many_looks_in_a_moment_are_not_lasting() {
        let mut views = Views::default();
        for look in 0..20 {
            let opinion = views.judge(
                &KEY,
                End::Low,
                wire(State::Established),
                Some(State::CloseWait),
                look * SECOND / 20,
            );
            assert_eq!(opinion, Opinion::NotYet);
        }
    }

    #[test]
    fn only_a_socket_that_was_there_can_be_gone() {
        use Opinion::{Agree, Gone, NotYet};
        let mut views = Views::default();
        let waiting = wire(State::FinWait2);
        assert_eq!(looks(&mut views, waiting, None), [Agree; 4], "translated, not ours");
        assert_eq!(looks(&mut views, waiting, Some(State::FinWait2)), [Agree; 4]);
        views.round_done();
        assert_eq!(looks(&mut views, waiting, None), [NotYet, NotYet, Gone, Gone]);
        views.round_done();
        views.round_done();
        assert_eq!(looks(&mut views, waiting, None)[3], Gone, "a suspect is not forgotten");
        views.clear(&KEY, End::Low);
        assert_eq!(looks(&mut views, waiting, None), [Agree; 4], "forgotten after two rounds");
        assert_eq!(looks(&mut views, waiting.with(Verdict::SEEDED, true), None)[2], Gone, "seeds had one");
    }

    #[test]
    fn time_wait_may_go_without_a_word() {
        let mut views = Views::default();
        assert_eq!(looks(&mut views, wire(State::TimeWait), Some(State::TimeWait)), [Opinion::Agree; 4]);
        assert_eq!(looks(&mut views, wire(State::TimeWait), None), [Opinion::Agree; 4]);
    }

    #[test]
    fn a_seeded_flow_follows_its_socket() {
        let seeded = wire(State::FinWait1).with(Verdict::SEEDED, true);
        let mut views = Views::default();
        let opinions = looks(&mut views, seeded, Some(State::TimeWait));
        assert_eq!(opinions[3], Opinion::Follow(State::TimeWait));
    }

    #[test]
    fn what_the_clock_ended_follows_its_socket() {
        let expired = wire(State::FinWait2).with_state(End::Low, State::Closed, false);
        let mut views = Views::default();
        assert_eq!(looks(&mut views, expired, Some(State::FinWait2))[3], Opinion::Follow(State::FinWait2));
        assert_eq!(looks(&mut views, expired, Some(State::TimeWait))[3], Opinion::Differ);
        assert_eq!(looks(&mut views, expired, None), [Opinion::Agree; 4]);
    }

    #[test]
    fn who_is_held_had_a_socket() {
        let mut views = Views::default();
        let opinions = looks(&mut views, wire(State::FinWait2).with_held(End::Low, true), None);
        assert_eq!(opinions, [Opinion::NotYet, Opinion::NotYet, Opinion::Gone, Opinion::Gone]);
    }

    #[test]
    fn nothing_is_asked_of_what_has_finished_and_is_silent() {
        let finished = wire(State::TimeWait)
            .with_state(End::High, State::Closed, true)
            .with_close_reason(CloseReason::Finish);
        let mut record = FlowRecord::default();
        (record.shared.verdict, record.shared.since) = (finished.0, [3 * SECOND, 2 * SECOND]);
        record.sent[0].stamp = 2 * SECOND;
        assert!(is_done(&record));
        record.sent[1].stamp = 4 * SECOND;
        assert!(!is_done(&record), "its FIN again: the last ACK did not arrive");
        record.sent[1].stamp = 2 * SECOND;
        record.shared.verdict = finished.with_close_reason(CloseReason::ResetByOriginator).0;
        assert!(!is_done(&record), "whether the socket took the reset, it must say");
        record.shared.verdict = wire(State::Established).0;
        assert!(!is_done(&record));
    }

    #[test]
    fn without_its_socket_a_flow_is_over_unless_the_other_end_is_ours() {
        let after = without_socket(wire(State::FinWait2), End::Low, false);
        assert!(after.is_over());
        assert_eq!(after.close_reason(), CloseReason::SocketGone);
        let after = without_socket(wire(State::FinWait2), End::Low, true);
        assert_eq!((after.state(End::Low), after.state(End::High)), (State::Closed, State::Established));
        assert_eq!(after.close_reason(), CloseReason::Open);
    }
}
