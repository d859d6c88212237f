//! One segment, one step: the machine's entrances, and the books of a flow record.

use core::hint::black_box;

use super::{
    Event, State,
    desk::{Desk, PlainDesk},
    evidence::edge,
    orderly::observe_orderly,
    track::Track,
    window::is_past,
};
use crate::{
    abi::{CloseReason, Evidence, FlowRecord, KernelConfig, Shared, Verdict},
    fact::{Fact, Facts},
    flow::End,
    packet::{IcmpError, Unreachable},
    segment::{Acknowledgment, Segment, SegmentKind, TcpFlags, TcpOptions},
};

/// What the host is known to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// TIME-WAIT ignores resets (sysctl `net.ipv4.tcp_rfc1337`).
    pub rfc1337: bool,
    /// Flows begun before the observer are not picked up.
    pub strict: bool,
}

impl From<KernelConfig> for Config {
    #[inline(always)]
    fn from(config: KernelConfig) -> Self {
        Self {
            rfc1337: config.flags & KernelConfig::RFC1337 != 0,
            strict: config.flags & KernelConfig::STRICT != 0,
        }
    }
}

/// What one segment did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The verdict after it.
    pub verdict: Verdict,
    /// What it told.
    pub facts: Facts,
}

impl Step {
    /// What a segment did that was seen before.
    #[inline(always)]
    #[must_use]
    pub const fn duplicate_view(verdict: Verdict) -> Self {
        let mut facts = Facts(0);
        facts.add(Fact::DuplicateView);
        Self { verdict, facts }
    }

    /// Whether this is worth an event: an end is in another state, a connection began, or something was told that
    /// is more than ordinary loss. A stray that is only remembered is no connection yet.
    #[inline(always)]
    #[must_use]
    pub const fn is_news(&self, before: Verdict) -> bool {
        !self.verdict.has(Verdict::CANDIDATE)
            && (self.moved(before) || !self.facts.without(Facts::QUIET).is_empty())
    }

    /// Whether an end is in another state, or a connection began.
    #[inline(always)]
    #[must_use]
    pub const fn moved(&self, before: Verdict) -> bool {
        (before.0 ^ self.verdict.0) & Verdict::STATES_AND_GENERATION != 0
    }
}

/// A segment of a flow whose ends are both in ESTABLISHED, in order, with nothing to tell: the path of nearly every segment.
/// Gives the verdict after it: the same, unless it is what proves its sender's state. Gives `None`, and leaves the evidence
/// alone, where the full machine must look.
///
/// For a segment taken here [`observe`] would say the same, tell no fact, and make the evidence the same. A property test
/// holds it to that.
#[inline(always)]
#[must_use]
pub fn observe_settled(
    verdict: Verdict,
    sender: End,
    own: &mut Evidence,
    peer: &Evidence,
    segment: &Segment,
) -> Option<Verdict> {
    let mut after = verdict;
    let mut prove = |proved| {
        after = proved;
        true
    };
    let is_settled = segment.is_acknowledgment()
        && observe_acknowledgment(verdict, sender, own, peer, segment, &mut prove);
    is_settled.then_some(after)
}

/// [`observe_settled`] for what is known to be an ACK and nothing else. `prove` is asked to install the verdict in which the
/// sender has proved its state, where it had not, and says whether it could: if not, the segment is not taken.
//
// Registers are few: each number is asked for where it is compared. An end's first timestamp is left to the machine, so that all
// that is asked of its flags is one comparison.
#[inline(always)]
#[must_use]
pub fn observe_acknowledgment<A: Acknowledgment>(
    verdict: Verdict,
    sender: End,
    own: &mut Evidence,
    peer: &Evidence,
    segment: &A,
    prove: impl FnOnce(Verdict) -> bool,
) -> bool {
    const NOISY: u16 = Evidence::FIN
        | Evidence::SYN_ON_LIVE
        | Evidence::ZERO_WINDOW
        | Evidence::SECOND_SYN
        | (Evidence::STRIKE * 15);
    let generation = verdict.generation() as u8;
    let tsval = segment.tsval();
    let stamped = Evidence::EDGE | if tsval.is_some() { Evidence::TIMESTAMPS } else { 0 };
    if !verdict.is_established() || !own.is_quiet(generation, stamped, NOISY) {
        return false;
    }
    let seq = segment.seq();
    if seq != own.nxt || own.contig != own.nxt {
        return false;
    }
    let ack = segment.ack();
    let len = segment.payload_len();
    // Data that acknowledges nothing new, and lies in the window as it was: what else the peer's half says is known. Its line, which
    // another CPU may just have written, is not waited for.
    let is_known = len > 0 && ack == own.ack && own.knows(seq) && !verdict.has(Verdict::BEYOND);
    if !is_known {
        if !peer.is_quiet(generation, Evidence::EDGE, Evidence::FIN)
            || seq.after(peer.edge)
            || seq.before(peer.ack)
        {
            return false;
        }
        // What is newly acknowledged, of what there is to acknowledge; nothing, if what was not seen was acknowledged before.
        let acked = ack.since(own.ack).cast_unsigned();
        let unacked = peer.nxt.since(own.ack);
        if unacked < 0 || acked > unacked.cast_unsigned() || (len == 0 && acked == 0 && unacked != 0) {
            return false;
        }
    }
    if segment.window() == 0
        || (segment.ip_id() != 0 && segment.ip_id() == own.last_ip_id())
        || tsval.is_some_and(|tsval| is_past(tsval, own.tsval))
    {
        return false;
    }
    let proved = verdict.proved_by(sender);
    if proved.0 != verdict.0 && !prove(proved) {
        return false;
    }
    if let Some(tsval) = tsval {
        own.tsval = tsval;
    }
    own.go_on(seq, seq.plus(len), ack);
    let scales = is_known || peer.may_scale();
    if !is_known {
        // Of a peer that does not scale nothing is known: that it does not would have to be.
        own.know(if scales { peer.edge } else { own.contig });
    }
    let shift = own.shift_for(scales);
    own.edge = own.edge.latest(edge(ack, segment.window(), shift));
    true
}

/// Advances the machine by one segment from `sender`: brings `own`, the evidence of what `sender` sent, up to
/// date and says what the verdict is now. `peer` is the evidence of what the other end sent.
///
/// Total: any evidence, verdict and segment give an answer.
#[inline(always)]
#[must_use]
pub fn observe<D: Desk>(
    desk: &D,
    verdict: Verdict,
    sender: End,
    own: &mut Evidence,
    peer: &Evidence,
    segment: &Segment,
    config: Config,
) -> Step {
    if segment.to_itself {
        return observe_itself(desk, verdict, sender, own, peer, segment, config);
    }
    match segment.flags.kind() {
        SegmentKind::Invalid => observe_invalid(desk, verdict, sender, own, peer, segment, config),
        SegmentKind::Syn => observe_syn(desk, verdict, sender, own, peer, segment, config),
        SegmentKind::SynAck => observe_syn_ack(desk, verdict, sender, own, peer, segment, config),
        SegmentKind::Ack | SegmentKind::Fin => observe_ack(desk, verdict, sender, own, peer, segment, config),
        SegmentKind::Rst => observe_reset(desk, verdict, sender, own, peer, segment, config),
    }
}

macro_rules! observe_kind {
    ($($(#[$doc:meta])* $name:ident => $method:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name<D: Desk>(
            desk: &D,
            verdict: Verdict,
            sender: End,
            own: &mut Evidence,
            peer: &Evidence,
            segment: &Segment,
            config: Config,
        ) -> Step {
            let mut track = Track::begin(desk, verdict, sender, config);
            if segment.options.has(TcpOptions::MALFORMED) {
                track.facts.add(Fact::BadOption);
            }
            track.$method(own, peer, segment);
            track.conclude(verdict)
        }
    )*};
}

observe_kind! {
    /// [`observe`] for flags that no conforming stack sends.
    observe_invalid => invalid;
    /// [`observe`] for a SYN.
    observe_syn => syn;
    /// [`observe`] for a SYN-ACK.
    observe_syn_ack => syn_ack;
    /// [`observe`] for data, acknowledgments and FINs.
    observe_ack => ack;
    /// [`observe`] for a reset.
    observe_reset => reset;
    /// [`observe`] for a segment whose sender is its receiver.
    observe_itself => itself;
}

/// A copy of a segment seen a moment ago comes no later than this: a tick of the coarse clock, which may lie between
/// the two, and a bit. Few retransmissions are as quick, and they have an IP identification of their own.
const COPY_NS: u64 = 5_000_000;

/// Whether this is a segment that was seen before, on another interface or on its way through this one, and not
/// one that was sent again: it tells nothing new, and it either has the same IP identification or was seen at
/// another tap. `tap` is where this direction was first seen.
#[inline(always)]
#[must_use]
pub fn is_duplicate_view(verdict: Verdict, own: &Evidence, tap: u32, segment: &Segment, now: u64) -> bool {
    let elsewhere = segment.tap != 0 && tap != 0 && segment.tap != tap;
    let same_packet = segment.ip_id != 0 && segment.ip_id == own.last_ip_id();
    (elsewhere || same_packet)
        && own.has(Evidence::SEEN)
        && !segment.end_seq().after(own.nxt)
        && (!segment.flags.any(TcpFlags::ACK) || !segment.ack.after(own.last_ack))
        && (!segment.flags.any(TcpFlags::SYN) || segment.seq == own.iss)
        && (!segment.flags.any(TcpFlags::FIN) || own.has(Evidence::FIN))
        // As long as there is somebody to reset, a reset tells something.
        && (!segment.flags.any(TcpFlags::RST) || verdict.is_closed())
        && now.saturating_sub(own.last_seen()) < COPY_NS
}

/// Advances the machine by an ICMP error about a segment that `quoted` sent; `own` is that end's evidence.
#[inline(always)]
#[must_use]
pub fn observe_icmp<D: Desk>(
    desk: &D,
    verdict: Verdict,
    quoted: End,
    own: &Evidence,
    error: &IcmpError,
) -> Step {
    let mut track = Track::begin(desk, verdict, quoted, Config::default());
    let hard = !matches!(error.reason, Unreachable::Soft);
    let of_syn = own.iss == error.seq || own.insists_on_second_syn() && own.is_second_syn(error.seq);
    if hard && matches!(track.state_of_sender(), State::SynSent) && of_syn {
        track.facts.add(Fact::ConnectUnreachable);
        track.receive_at(track.sender, Event::Unreachable);
        track.receive_at(track.receiver, Event::Unreachable);
        track.set_verdict(track.verdict().with_close_reason(CloseReason::Unreachable));
    } else {
        track.facts.add(Fact::IcmpSoftError);
        if error.drops_request && matches!(track.state_of_sender(), State::SynRecv) && own.iss == error.seq {
            track.receive_at(track.sender, Event::Unreachable);
            if matches!(track.state_of_receiver(), State::Established)
                && !track.verdict().is_confirmed(track.receiver)
            {
                // It never got the SYN-ACK that was seen.
                track.roll_back(track.receiver, State::SynSent, true);
            }
            track.set_verdict(track.verdict().with_close_reason(CloseReason::Unreachable));
        }
    }
    track.conclude(verdict)
}

/// One segment from `sender` applied to a whole record, as the kernel programs do it: the short path if it
/// will do, else the machine; then the books. Gives what changed and what was told.
#[inline(always)]
pub fn advance(
    record: &mut FlowRecord,
    sender: End,
    segment: &Segment,
    now: u64,
    config: Config,
) -> (Step, Change) {
    let FlowRecord { shared, sent: [low, high] } = record;
    let (own, peer) = match sender {
        End::Low => (low, &*high),
        End::High => (high, &*low),
    };
    let before = Verdict(shared.verdict);
    if let Some(verdict) = observe_settled(before, sender, own, peer, segment) {
        own.count(segment.len, segment.ip_id, now);
        shared.verdict = verdict.0;
        return (Step { verdict, facts: Facts::default() }, Change { opened: false, over: false });
    }
    own.forget_stale_timestamp(now);
    let step = if is_duplicate_view(before, own, shared.tap[sender as usize & 1], segment, now) {
        Step::duplicate_view(before)
    } else if let Some(step) = observe_orderly(&PlainDesk::default(), before, sender, own, peer, segment) {
        step
    } else {
        observe(&PlainDesk::default(), before, sender, own, peer, segment, config)
    };
    if !step.facts.has(Fact::DuplicateView) {
        own.count(segment.len, segment.ip_id, now);
    }
    shared.verdict = step.verdict.0;
    let change = if step.verdict.0 == before.0 && step.facts.is_empty() {
        Change { opened: false, over: false }
    } else {
        let change = settle(shared, sender, before, &step, segment, now);
        shared.facts |= step.facts.0;
        change
    };
    (step, change)
}

/// What changed between two verdicts, beside the words themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// A new generation began.
    pub opened: bool,
    /// Neither end can send any more: each is closed or in TIME_WAIT, or is trying to connect anew; and that was not told before.
    pub over: bool,
}

/// Writes down a change of verdict in the part of the record that both directions share: when each end
/// entered its state. The step's facts the caller adds.
#[inline(always)]
pub fn settle(
    shared: &mut Shared,
    sender: End,
    before: Verdict,
    step: &Step,
    segment: &Segment,
    now: u64,
) -> Change {
    let Step { verdict: after, facts } = *step;
    let opened = before.generation() != after.generation();
    if opened {
        shared.opened = now;
        shared.facts = 0;
        shared.rtx = [0; 2];
        shared.since = [now; 2];
        shared.reported = 0;
    }
    if before.slot(End::Low) != after.slot(End::Low) {
        shared.since[0] = now;
        shared.reported = 0;
    }
    if before.slot(End::High) != after.slot(End::High) {
        shared.since[1] = now;
        shared.reported = 0;
    }
    let (own, peer) = (sender as usize & 1, sender.other() as usize & 1);
    const RARE: u64 = Facts::of(&[Fact::FinRtx, Fact::StateRollback]).0;
    // Of a number that is asked nothing else: what the verifier learns from the answer it would carry through all that comes after.
    if black_box(facts.0 & RARE) != 0 {
        if facts.has(Fact::FinRtx) && before.slot(sender.other()) == State::TimeWait as usize {
            // A FIN sent again to TIME_WAIT: it answers, and waits as long again.
            shared.since[peer] = now;
        }
        // An end that was to connect anew is not over by its state.
        let was_over = if before.is_over() {
            !matches!(before.close_reason(), CloseReason::Finish)
        } else {
            facts.has(Fact::StateRollback)
        };
        if was_over && !after.is_over() {
            // It was not its end: its time ran out here only, or the reset was another's.
            shared.facts &= !Facts::of(&[Fact::Closed]).0;
        }
    }
    if shared.tap[own] == 0 {
        shared.tap[own] = segment.tap;
    }
    if facts.has(Fact::Rtx) {
        shared.rtx[own] = shared.rtx[own].wrapping_add(1);
    }
    if segment.flags.any(TcpFlags::SYN) && segment.options.has(TcpOptions::HAS_MSS) {
        shared.mss[own] = segment.options.mss;
    }
    // A last ACK that was lost is seen again: that is no second end.
    let first = !Facts(shared.facts).has(Fact::Closed);
    Change { opened, over: first && facts.has(Fact::Closed) }
}
