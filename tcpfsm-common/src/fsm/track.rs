//! Which events a segment is, and for which end.
//!
//! The order is RFC 9293's and Linux's: is the acknowledgment acceptable, is the sequence number, PAWS; then
//! the sender's own step; then at the receiver the acknowledgment before the FIN.

use core::{cell::Cell, hint::black_box};

use super::{
    Event, State, step,
    window::{AckCheck, attached, check_ack, fails_paws, newer_timestamp, rcv_nxt, window_edge},
};
use crate::{
    abi::{CloseReason, Evidence, FlowRecord, KernelConfig, Shared, Verdict},
    fact::{Fact, Facts},
    flow::End,
    packet::{IcmpError, Unreachable},
    segment::{Segment, SegmentKind, TcpFlags, TcpOptions},
};

/// How often running an end must contradict what was seen before it is believed.
const STRIKES: u16 = 3;

/// The same for an end that sends on after "its" reset.
const STRIKES_AFTER_RESET: u16 = 2;

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

/// Where the machine keeps the verdict while it works on a segment.
///
/// In userspace plain cells. In the kernel it is map memory behind volatile accesses: what the verifier knows of
/// a register it must follow along every path, what comes out of a map it knows nothing of.
pub trait Desk {
    /// What was written last.
    fn verdict(&self) -> Verdict;
    /// Writes it.
    fn set_verdict(&self, verdict: Verdict);
    /// The decisions written last, see [`Track::note`].
    fn notes(&self) -> u64;
    /// Writes them.
    fn set_notes(&self, notes: u64);
}

/// The desk in userspace.
#[derive(Default)]
pub struct PlainDesk {
    verdict: Cell<Verdict>,
    notes: Cell<u64>,
}

impl Desk for PlainDesk {
    fn verdict(&self) -> Verdict {
        self.verdict.get()
    }

    fn set_verdict(&self, verdict: Verdict) {
        self.verdict.set(verdict);
    }

    fn notes(&self) -> u64 {
        self.notes.get()
    }

    fn set_notes(&self, notes: u64) {
        self.notes.set(notes);
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

/// A segment of a flow whose ends are both settled in ESTABLISHED, in order, with nothing to tell: the path
/// of nearly every segment. Gives `false`, and leaves the evidence alone, where the full machine must look.
///
/// For a segment taken here [`observe`] would leave the verdict as it is, tell no fact, and make the
/// evidence the same; a property test holds it to that.
#[inline(always)]
#[must_use]
pub fn observe_settled(verdict: Verdict, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
    const QUIET: u16 = Evidence::SEEN | Evidence::SYN | Evidence::EDGE;
    const NOISY: u16 = Evidence::FIN | Evidence::SYN_ON_LIVE | Evidence::ZERO_WINDOW | Evidence::STRIKE * 15;
    let end = segment.end_seq();
    let ack = segment.ack;
    if !verdict.is_settled()
        || !matches!(segment.flags.kind(), SegmentKind::Ack)
        || own.flags & (QUIET | NOISY) != QUIET
        || own.generation != peer.generation
        || segment.seq != own.nxt
        || own.contig != own.nxt
        || ack.before(own.ack)
        || ack.after(peer.nxt)
        || peer.flags & (Evidence::SEEN | Evidence::SYN | Evidence::EDGE | Evidence::FIN) != QUIET
        || segment.seq.after(peer.edge)
        || segment.seq.before(peer.ack)
        || segment.window == 0
        || fails_paws(own, segment)
        || segment.options.has(TcpOptions::MALFORMED)
        || (segment.len == 0 && ack == own.ack && peer.nxt != ack)
    {
        return false;
    }
    let mut nothing = Facts::default();
    own.nxt = end;
    own.contig = end;
    own.ooo_start = own.ooo_end;
    own.take_window(segment, peer, &mut nothing);
    if segment.options.has(TcpOptions::HAS_TIMESTAMPS)
        && (!own.has(Evidence::TIMESTAMPS) || !segment.seq.after(peer.ack))
    {
        own.tsval = segment.options.tsval;
        own.flags |= Evidence::TIMESTAMPS;
    }
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
    if hard && matches!(track.state_of_sender(), State::SynSent) && own.iss == error.seq {
        track.facts.add(Fact::ConnectUnreachable);
        track.receive_at(track.sender, Event::Unreachable);
        track.receive_at(track.receiver, Event::Unreachable);
        track.set_verdict(track.verdict().with_close_reason(CloseReason::Unreachable));
    } else {
        track.facts.add(Fact::IcmpSoftError);
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
    let step = if observe_settled(before, own, peer, segment) {
        Step { verdict: before, facts: Facts::default() }
    } else {
        observe(&PlainDesk::default(), before, sender, own, peer, segment, config)
    };
    own.count(segment, now);
    shared.verdict = step.verdict.0;
    let change = if step.verdict.0 == before.0 && step.facts.is_empty() {
        Change { opened: false, over: false }
    } else {
        settle(shared, sender, before, &step, segment, now)
    };
    (step, change)
}

/// What changed between two verdicts, beside the words themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// A new generation began.
    pub opened: bool,
    /// Neither end can send any more: each is closed or in TIME_WAIT, and before that was not so.
    pub over: bool,
}

/// Writes down a change of verdict in the part of the record that both directions share: when each end
/// entered its state, and every fact.
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
    if before.state(End::Low) as u8 != after.state(End::Low) as u8 {
        shared.since[0] = now;
        shared.reported = 0;
    }
    if before.state(End::High) as u8 != after.state(End::High) as u8 {
        shared.since[1] = now;
        shared.reported = 0;
    }
    let own = sender as usize & 1;
    if facts.has(Fact::Rtx) {
        shared.rtx[own] = shared.rtx[own].wrapping_add(1);
    }
    if segment.flags.any(TcpFlags::SYN) && segment.options.has(TcpOptions::HAS_MSS) {
        shared.mss[own] = segment.options.mss;
    }
    shared.facts |= facts.0;
    Change { opened, over: is_over(after) && !is_over(before) }
}

const fn is_over(verdict: Verdict) -> bool {
    const fn quiet(state: State) -> bool {
        state.is_closed() || matches!(state, State::TimeWait)
    }
    quiet(verdict.state(End::Low)) && quiet(verdict.state(End::High))
}

/// A decision that is needed more than once.
#[derive(Clone, Copy)]
enum Note {
    /// Both ends' evidence is of the same generation.
    Attached,
    /// And the peer has acknowledged something.
    Acked,
    /// The segment lies wholly before the receiver's left edge.
    Old,
    /// Its sender had sent a FIN before.
    FinAgain,
    /// Its end had been reached before.
    FinLate,
    /// Its sender acknowledges the peer's FIN.
    SawPeerFin,
}

#[inline(always)]
fn is_noted<D: Desk>(desk: &D, note: Note) -> bool {
    desk.notes() >> note as u64 & 1 != 0
}

/// The same evidence, read from memory again from here on: what the compiler keeps in registers, the verifier
/// follows along every path.
#[inline(always)]
fn reread(own: &mut Evidence) -> &mut Evidence {
    black_box(own)
}

/// The work on one segment.
pub(super) struct Track<'a, D> {
    verdict: &'a D,
    pub(super) sender: End,
    pub(super) receiver: End,
    pub(super) facts: Facts,
    pub(super) config: Config,
}

impl<'a, D: Desk> Track<'a, D> {
    #[inline(always)]
    fn begin(desk: &'a D, verdict: Verdict, sender: End, config: Config) -> Self {
        let mut track =
            Self { verdict: desk, sender, receiver: sender.other(), facts: Facts::default(), config };
        track.set_verdict(verdict);
        track
    }

    #[inline(always)]
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict.verdict()
    }

    /// Writes down a decision that is needed more than once: kept in a register, every use of it would double
    /// the paths that the verifier follows.
    #[inline(always)]
    fn note(&self, note: Note, decision: bool) {
        let bit = 1 << note as u64;
        let notes = self.verdict.notes();
        self.verdict.set_notes(if decision { notes | bit } else { notes & !bit });
    }

    /// A decision written down with [`Self::note`].
    #[inline(always)]
    fn is(&self, note: Note) -> bool {
        is_noted(self.verdict, note)
    }

    #[inline(always)]
    pub(super) fn set_verdict(&mut self, verdict: Verdict) {
        self.verdict.set_verdict(verdict);
    }

    #[inline(always)]
    pub(super) fn state_of_sender(&self) -> State {
        self.verdict().state(self.sender)
    }

    #[inline(always)]
    pub(super) fn state_of_receiver(&self) -> State {
        self.verdict().state(self.receiver)
    }

    /// The sender did this: its new state is proved by the segment itself.
    #[inline(always)]
    pub(super) fn send(&mut self, event: Event) {
        let from = self.state_of_sender();
        let to = step(from, event);
        if to as u8 != from as u8 {
            self.set_verdict(self.verdict().with_state(self.sender, to, true));
        }
    }

    /// This was done to the receiver: its new state is assumed until it sends something that proves it.
    #[inline(always)]
    pub(super) fn receive(&mut self, event: Event) {
        self.receive_at(self.receiver, event);
    }

    #[inline(always)]
    fn receive_at(&mut self, end: End, event: Event) {
        let from = self.verdict().state(end);
        let to = step(from, event);
        if to as u8 != from as u8 {
            self.set_verdict(self.verdict().with_state(end, to, false));
        }
    }

    /// The wire disproved an assumption about `end`.
    #[inline(always)]
    fn roll_back(&mut self, end: End, to: State, confirmed: bool) {
        self.facts.add(Fact::StateRollback);
        self.set_verdict(self.verdict().with_state(end, to, confirmed));
    }

    #[inline(always)]
    pub(super) fn confirm_sender(&mut self) {
        self.set_verdict(self.verdict().with_state(self.sender, self.state_of_sender(), true));
    }

    /// Whether evidence is of the flow's present generation.
    #[inline(always)]
    fn is_current(&self, evidence: &Evidence) -> bool {
        evidence.has(Evidence::SEEN) && evidence.generation == self.verdict().generation() as u8
    }

    #[inline(always)]
    fn next_generation(&mut self) {
        self.set_verdict(self.verdict().next_generation());
    }

    /// Closes the books: facts that follow from the verdict before and after.
    #[inline(always)]
    fn conclude(mut self, before: Verdict) -> Step {
        let both = |v: Verdict, state: State| {
            v.state(End::Low) as u8 == state as u8 && v.state(End::High) as u8 == state as u8
        };
        if both(self.verdict(), State::Established)
            && (before.state(End::Low).is_embryonic() || before.state(End::High).is_embryonic())
        {
            self.facts.add(Fact::Established);
        }
        if is_over(self.verdict()) && !is_over(before) {
            self.facts.add(Fact::Closed);
            if matches!(self.verdict().close_reason(), CloseReason::Open) {
                self.set_verdict(self.verdict().with_close_reason(CloseReason::Finish));
            }
        } else if !is_over(self.verdict()) {
            self.set_verdict(self.verdict().with_close_reason(CloseReason::Open));
        }
        Step { verdict: self.verdict(), facts: self.facts }
    }

    #[inline(always)]
    fn invalid(&mut self, _own: &mut Evidence, _peer: &Evidence, _segment: &Segment) {
        self.facts.add(Fact::BadFlags);
    }

    // ── SYN ────────────────────────────────────────────────────────────────────────────────────────────

    #[inline(always)]
    fn syn(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if segment.len > 0 {
            self.facts.add(Fact::SynData);
        }
        let known = self.is_current(own) && own.has(Evidence::SYN);
        let again = known && own.iss == segment.seq;
        match self.state_of_sender() {
            State::Closed | State::Listen | State::TimeWait => self.open(own, peer, segment),
            State::SynSent => {
                if again {
                    self.facts.add(Fact::SynRtx);
                    self.syn_arrives(own, segment);
                } else {
                    match self.state_of_receiver() {
                        State::SynRecv => self.syn_into_handshake(own, peer, segment),
                        State::Closed
                        | State::Listen
                        | State::SynSent
                        | State::Established
                        | State::FinWait1
                        | State::FinWait2
                        | State::CloseWait
                        | State::Closing
                        | State::LastAck
                        | State::TimeWait => self.open(own, peer, segment),
                    }
                }
            }
            State::SynRecv => {
                if again {
                    self.facts.add(Fact::SynRtx);
                } else if known {
                    self.facts.add(Fact::SynDiffIsn);
                } else {
                    // §3.5 figure 8: it sent a SYN of its own where a SYN-ACK was expected.
                    self.facts.add(Fact::SimultaneousOpen);
                    own.start(segment, self.verdict().generation() as u8);
                    self.confirm_sender();
                    self.receive(Event::RcvdSyn);
                }
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {
                if again
                    && matches!(self.state_of_sender(), State::Established)
                    && !self.verdict().is_confirmed(self.sender)
                {
                    // It never got the SYN-ACK that was seen.
                    self.facts.add(Fact::SynRtx);
                    self.roll_back(self.sender, State::SynSent, true);
                } else {
                    self.facts.add(Fact::SynInEstablished);
                    own.flags |= Evidence::SYN_ON_LIVE;
                }
            }
        }
    }

    /// A SYN from an end that has no connection.
    #[inline(always)]
    fn open(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if self.verdict().has(Verdict::CANDIDATE)
            && self.is_current(peer)
            && peer.has(Evidence::SYN_ACK)
            && peer.last_ack == segment.seq.plus(1)
        {
            // The SYN-ACK was seen before the SYN that it answers.
            self.facts.add(Fact::Open);
            self.set_verdict(self.verdict().with(Verdict::CANDIDATE, false).with_originator(self.sender));
            own.start(segment, self.verdict().generation() as u8);
            self.set_verdict(self.verdict().with_state(self.receiver, State::SynRecv, true));
            self.send(Event::SentSyn);
            self.receive_at(self.sender, Event::RcvdSynAck);
            return;
        }
        let receiver = self.state_of_receiver();
        let reopens = self.reopens_time_wait(own, peer, segment);
        let (had_timestamp, recent) = (own.has(Evidence::TIMESTAMPS), own.tsval);
        if self.is_current(own) || self.is_current(peer) {
            if !self.verdict().has(Verdict::CANDIDATE) {
                self.facts.add(Fact::PortReuse);
            }
        }
        self.facts.add(Fact::Open);
        self.next_generation();
        self.set_verdict(self.verdict().with_originator(self.sender));
        own.start(segment, self.verdict().generation() as u8);
        self.set_verdict(self.verdict().with_state(self.sender, State::SynSent, true));
        match receiver {
            State::Closed | State::Listen => {
                self.set_verdict(self.verdict().with_state(self.receiver, State::Listen, false));
                self.receive(Event::RcvdSyn);
            }
            State::TimeWait => {
                if reopens {
                    self.facts.add(Fact::TwReuse);
                    self.receive(Event::RcvdSyn);
                    self.set_verdict(self.verdict().with(Verdict::REOPENING, true));
                } else {
                    self.facts.add(Fact::TwSynOld);
                    // TIME-WAIT goes on; its last timestamp is what a later SYN must beat.
                    if had_timestamp && recent.wrapping_sub(own.tsval).cast_signed() > 0 {
                        own.tsval = recent;
                        own.flags |= Evidence::TIMESTAMPS;
                    }
                }
            }
            State::SynSent => {
                self.facts.add(Fact::SimultaneousOpen);
                self.receive(Event::RcvdSyn);
            }
            State::SynRecv => self.facts.add(Fact::SynDiffIsn),
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => self.facts.add(Fact::SynOnLiveFlow),
        }
    }

    /// §3.6.1, RFC 6191: TIME-WAIT takes a SYN beyond everything received, or with a newer timestamp.
    #[inline(always)]
    fn reopens_time_wait(&self, own: &Evidence, peer: &Evidence, segment: &Segment) -> bool {
        segment.seq.after(rcv_nxt(own, peer)) || newer_timestamp(own, segment)
    }

    /// The same SYN again.
    #[inline(always)]
    fn syn_arrives(&mut self, own: &mut Evidence, segment: &Segment) {
        match self.state_of_receiver() {
            State::Closed | State::Listen => {
                self.set_verdict(self.verdict().with_state(self.receiver, State::Listen, false));
                self.receive(Event::RcvdSyn);
            }
            State::TimeWait => {
                if newer_timestamp(own, segment) {
                    self.facts.add(Fact::TwReuse);
                    own.tsval = segment.options.tsval;
                    self.receive(Event::RcvdSyn);
                    self.set_verdict(self.verdict().with(Verdict::REOPENING, true));
                }
            }
            State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => {}
        }
    }

    /// Another SYN to an end in SYN-RECEIVED (§3.10.7.4): in the window it ends the handshake.
    #[inline(always)]
    fn syn_into_handshake(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        let rcv = rcv_nxt(own, peer);
        if !segment.seq.before(rcv) && segment.seq.before(window_edge(peer, rcv)) {
            self.facts.add(Fact::SynDiffIsn);
            self.receive(Event::RcvdRst);
        } else {
            self.facts.add(Fact::OutOfWindow);
        }
    }

    // ── SYN-ACK ────────────────────────────────────────────────────────────────────────────────────────

    #[inline(always)]
    fn syn_ack(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        let acks_syn = self.is_current(peer)
            && peer.has(Evidence::SYN)
            && segment.ack.after(peer.iss)
            && !segment.ack.after(peer.nxt);
        let again = self.is_current(own) && own.has(Evidence::SYN) && own.iss == segment.seq;
        match self.state_of_receiver() {
            State::SynSent | State::SynRecv => {
                if acks_syn {
                    self.syn_ack_arrives(own, peer, segment, again);
                } else {
                    self.facts.add(Fact::SynAckBadAck);
                }
            }
            State::Closed | State::Listen => {
                if again {
                    self.facts.add(Fact::SynAckRtx);
                } else if self.verdict().is_closed() {
                    // Its SYN was missed or comes late, or it is backscatter: remember, but show nothing.
                    self.facts.add(Fact::NoSession);
                    self.next_generation();
                    self.set_verdict(
                        self.verdict().with(Verdict::CANDIDATE, true).with_originator(self.receiver),
                    );
                    own.start(segment, self.verdict().generation() as u8);
                    own.flags |= Evidence::SYN_ACK;
                } else {
                    self.facts.add(Fact::SynAckOdd);
                }
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => {
                if again && own.has(Evidence::SYN_ACK) {
                    self.facts.add(Fact::SynAckRtx);
                    if matches!(self.state_of_sender(), State::Established)
                        && !self.verdict().is_confirmed(self.sender)
                    {
                        // The ACK that was seen to complete the handshake never arrived.
                        self.roll_back(self.sender, State::SynRecv, true);
                    }
                } else if again {
                    // The answer to a crossing SYN (§3.5 figure 8).
                    own.flags |= Evidence::SYN_ACK;
                } else {
                    self.facts.add(Fact::SynAckOdd);
                }
            }
        }
        own.last_ack = segment.ack;
    }

    /// A SYN-ACK that acknowledges its receiver's SYN.
    #[inline(always)]
    fn syn_ack_arrives(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment, again: bool) {
        match self.state_of_sender() {
            State::SynRecv | State::SynSent | State::Closed | State::Listen | State::TimeWait => {
                if again && own.has(Evidence::SYN_ACK) {
                    self.facts.add(Fact::SynAckRtx);
                } else if !again {
                    if self.is_current(own) {
                        self.facts.add(Fact::SynAckOdd);
                    }
                    own.start(segment, self.verdict().generation() as u8);
                }
                self.send(Event::SentSynAck);
                self.confirm_sender();
            }
            State::Established => {
                if again && own.has(Evidence::SYN_ACK) && !self.verdict().is_confirmed(self.sender) {
                    self.facts.add(Fact::SynAckRtx);
                    self.roll_back(self.sender, State::SynRecv, true);
                } else if !again {
                    self.facts.add(Fact::SynAckOdd);
                    return;
                }
            }
            State::FinWait1 | State::FinWait2 | State::CloseWait | State::Closing | State::LastAck => {
                self.facts.add(Fact::SynAckOdd);
                return;
            }
        }
        own.flags |= Evidence::SYN_ACK;
        own.take_window(segment, peer, &mut self.facts);
        self.set_verdict(self.verdict().with(Verdict::REOPENING, false));
        if peer.has(Evidence::SYN_DATA) && matches!(self.state_of_receiver(), State::SynSent) {
            let accepted = segment.ack.after(peer.iss.plus(1));
            self.facts.add(if accepted { Fact::TfoAccepted } else { Fact::TfoIgnored });
        }
        self.receive(Event::RcvdSynAck);
    }

    // ── ACK, data, FIN ─────────────────────────────────────────────────────────────────────────────────

    #[inline(always)]
    fn ack(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if self.verdict().is_closed() && !self.picks_up(own, peer, segment) {
            own.last_ack = segment.ack;
            return;
        }
        let own = reread(own);
        if !self.is_current(own) && !self.joins(own, peer, segment) {
            own.last_ack = segment.ack;
            return;
        }
        let own = reread(own);
        self.note(Note::Attached, attached(own, peer));
        if !self.is(Note::Attached)
            && matches!(self.state_of_sender(), State::SynSent)
            && !self.goes_on_alone(own, segment)
        {
            return;
        }
        let own = reread(own);
        if self.is(Note::Attached) && !self.is_acceptable(own, peer, segment) {
            own.last_ack = segment.ack;
            return;
        }
        if self.is_silent_sender(own, segment) {
            own.last_ack = segment.ack;
            return;
        }
        let own = reread(own);
        own.flags &= !Evidence::SYN_ON_LIVE;
        own.clear_strikes();
        self.note(Note::Acked, self.is(Note::Attached) && peer.has(Evidence::EDGE));
        // Linux drops what lies wholly before the left edge, acknowledgment and all.
        self.note(Note::Old, self.is(Note::Acked) && segment.end_seq().before(peer.ack));
        self.note_probes(own, peer, segment);
        let own = reread(own);
        if segment.flags.any(TcpFlags::FIN) && own.has(Evidence::FIN) && segment.end_seq() != own.nxt {
            self.facts.add(Fact::FinSeqChanged);
            return;
        }
        self.unseen_fin(own, peer, segment);
        let own = reread(own);
        self.note(Note::FinAgain, own.has(Evidence::FIN));
        // Sequence numbers that went past the FIN before it was seen: its first copy was lost, and left
        // before the peer's FIN, whatever this copy acknowledges.
        self.note(Note::FinLate, !segment.end_seq().after(own.nxt));
        let desk = self.verdict;
        own.accept(segment, peer, || is_noted(desk, Note::Acked), &mut self.facts);
        let own = reread(own);
        self.note(
            Note::SawPeerFin,
            self.is(Note::Attached) && peer.has(Evidence::FIN) && !own.ack.before(peer.nxt),
        );
        self.sender_step(segment);
        if !self.is(Note::Old) {
            self.receiver_step(own, peer, segment);
        }
    }

    /// A segment of an end in SYN-SENT whose peer was not heard in this generation: it may acknowledge a SYN-ACK
    /// that was not seen, or be forged; that the observer cannot tell until it goes on (the other direction then
    /// takes another way). Says whether it has gone on for long enough.
    #[inline(always)]
    fn goes_on_alone(&mut self, own: &mut Evidence, segment: &Segment) -> bool {
        own.strike();
        own.last_ack = segment.ack;
        self.facts.add(Fact::AckUnseen);
        if own.strikes() < STRIKES {
            return false;
        }
        own.clear_strikes();
        self.facts.add(Fact::OneSided);
        self.set_verdict(self.verdict().with(Verdict::ONE_SIDED, true));
        self.send(Event::Pickup);
        self.receive(Event::Pickup);
        true
    }

    /// Keepalives, window probes and duplicate acknowledgments: they tell something, and move nothing.
    #[inline(always)]
    fn note_probes(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        if segment.flags.any(TcpFlags::FIN) || own.has(Evidence::FIN) {
            return;
        }
        if segment.len <= 1 && segment.seq == own.nxt.minus(1) {
            let probe = peer.has(Evidence::ZERO_WINDOW);
            self.facts.add(if probe { Fact::ZeroWindowProbe } else { Fact::Keepalive });
        } else if self.is(Note::Acked)
            && segment.len == 0
            && segment.seq == own.nxt
            && segment.ack == own.ack
            && peer.nxt.after(segment.ack)
        {
            self.facts.add(Fact::DupAck);
        }
    }

    /// A FIN that was not seen, but its sender counts it, and so does its peer.
    #[inline(always)]
    fn unseen_fin(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) {
        if self.is(Note::Attached)
            && segment.len == 0
            && !own.has(Evidence::FIN)
            && segment.seq == own.nxt.plus(1)
            && peer.last_ack == segment.seq
        {
            self.facts.add(Fact::FinUnseen);
            own.flags |= Evidence::FIN;
            own.nxt = segment.seq;
            own.contig = own.contig.latest(segment.seq);
            self.send(Event::SentFin);
            self.send(Event::FinAcked);
        }
    }

    /// What the segment says of its sender.
    #[inline(always)]
    fn sender_step(&mut self, segment: &Segment) {
        let fin = segment.flags.any(TcpFlags::FIN);
        match self.state_of_sender() {
            State::SynRecv => {
                // A bare ACK from here is a challenge; data or a FIN mean that the handshake was completed.
                if segment.len > 0 || fin {
                    self.send(Event::RcvdAckOfSyn);
                }
            }
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => self.confirm_sender(),
            State::Closed | State::Listen | State::SynSent => {}
        }
        if self.is(Note::SawPeerFin) {
            self.send(Event::RcvdFin);
        }
        if !fin {
            return;
        }
        if self.is(Note::FinAgain) {
            self.facts.add(Fact::FinRtx);
            self.fin_again();
        } else if self.is(Note::SawPeerFin) && !self.is(Note::FinLate) {
            self.send(Event::SentFin);
        } else {
            // It left before the peer's FIN had come.
            self.facts.add(match self.state_of_sender() {
                State::CloseWait => Fact::SimultaneousClose,
                State::Closed
                | State::Listen
                | State::SynSent
                | State::SynRecv
                | State::Established
                | State::FinWait1
                | State::FinWait2
                | State::Closing
                | State::LastAck
                | State::TimeWait => Fact::HalfClosed,
            });
            self.send(Event::SentCrossingFin);
        }
    }

    /// A FIN sent again proves that its acknowledgment, though seen, has not arrived.
    #[inline(always)]
    fn fin_again(&mut self) {
        match self.state_of_sender() {
            State::FinWait2 => self.roll_back(self.sender, State::FinWait1, true),
            State::TimeWait => {
                let to = if self.is(Note::SawPeerFin) { State::Closing } else { State::FinWait1 };
                self.roll_back(self.sender, to, true);
            }
            State::Closed => {
                if matches!(self.verdict().previous(self.sender), State::LastAck) {
                    self.roll_back(self.sender, State::LastAck, true);
                }
            }
            State::Listen
            | State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::CloseWait
            | State::Closing
            | State::LastAck => {}
        }
    }

    /// What an acceptable segment does to its receiver: acknowledgment before FIN.
    #[inline(always)]
    fn receiver_step(&mut self, own: &Evidence, peer: &Evidence, segment: &Segment) {
        if self.is(Note::Attached) {
            if peer.has(Evidence::SYN) && segment.ack.after(peer.iss) {
                self.receive(Event::RcvdAckOfSyn);
            }
            if peer.has(Evidence::FIN) && !segment.ack.before(peer.nxt) {
                self.receive(Event::FinAcked);
            }
        }
        if own.has(Evidence::FIN) && !rcv_nxt(own, peer).before(own.nxt) {
            self.receive(Event::RcvdFin);
        }
    }

    /// RFC 9293 §3.10.7.4, first to fifth check, as Linux does them.
    #[inline(always)]
    fn is_acceptable(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
        match check_ack(own, peer, segment.ack) {
            AckCheck::Acceptable => {}
            AckCheck::Unseen => {
                let handshake = matches!(self.state_of_receiver(), State::SynRecv);
                self.facts.add(if handshake { Fact::BadAckInHandshake } else { Fact::AckUnseen });
                own.strike();
                if own.strikes() < STRIKES {
                    return false;
                }
                self.facts.add(Fact::CaptureGap);
            }
            AckCheck::TooOld => {
                self.facts.add(Fact::AckTooOld);
                return false;
            }
        }
        if segment.seq.after(window_edge(peer, rcv_nxt(own, peer))) {
            self.facts.add(Fact::OutOfWindow);
            return false;
        }
        if fails_paws(own, segment) {
            self.facts.add(Fact::Paws);
            return false;
        }
        true
    }

    /// An end without a connection that sends: a straggler, a FIN again, or proof that it is alive after all.
    /// Says whether the segment is to be left alone.
    #[inline(always)]
    fn is_silent_sender(&mut self, own: &mut Evidence, segment: &Segment) -> bool {
        if !self.state_of_sender().is_closed() {
            return false;
        }
        let previous = self.verdict().previous(self.sender);
        if self.verdict().was_reset_by(self.sender) {
            own.strike();
            if own.strikes() < STRIKES_AFTER_RESET {
                return true;
            }
            self.facts.add(Fact::RstInjectionSuspected);
            self.set_verdict(self.verdict().with_reset_by(self.sender, false));
            self.roll_back(self.sender, previous, true);
            return false;
        }
        match previous {
            State::LastAck => {
                let fin_again = segment.flags.any(TcpFlags::FIN) && own.has(Evidence::FIN);
                if !fin_again && segment.len > 0 {
                    self.facts.add(Fact::DataAfterFin);
                }
                !fin_again
            }
            // Its time ran out here, but not there.
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::TimeWait
                if matches!(self.verdict().close_reason(), CloseReason::Timeout | CloseReason::Open)
                    && !self.verdict().was_reset_by(self.receiver) =>
            {
                self.roll_back(self.sender, previous, true);
                false
            }
            _ => true,
        }
    }

    // ── Beginnings that were not seen ──────────────────────────────────────────────────────────────────

    /// Both ends are closed, or nothing is known: does this segment begin a flow in mid-stream?
    #[inline(always)]
    fn picks_up(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
        let candidate = self.verdict().has(Verdict::CANDIDATE);
        if !candidate && (own.has(Evidence::SEEN) || peer.has(Evidence::SEEN)) {
            // An earlier connection that ended: is one of its ends still alive?
            return self.is_current(own);
        }
        if self.config.strict {
            self.facts.add(Fact::NoSession);
            return false;
        }
        if !candidate {
            self.next_generation();
            self.set_verdict(self.verdict().with(Verdict::CANDIDATE, true).with_originator(self.sender));
        }
        if !self.is_current(own) {
            own.start(segment, self.verdict().generation() as u8);
            if segment.flags.any(TcpFlags::FIN) {
                own.flags |= Evidence::FIN;
                own.nxt = segment.end_seq();
            }
        } else {
            own.strike();
        }
        let answered = self.is_current(peer) && !segment.ack.before(peer.iss) && !segment.ack.after(peer.nxt);
        if segment.len == 0 && !answered && own.strikes() < STRIKES_AFTER_RESET {
            self.facts.add(Fact::NoSession);
            return false;
        }
        self.facts.add(Fact::MidstreamPickup);
        own.clear_strikes();
        if own.has(Evidence::FIN) {
            own.flags &= !Evidence::FIN;
            own.nxt = own.nxt.minus(1);
        }
        self.set_verdict(self.verdict().with(Verdict::CANDIDATE, false).with(Verdict::PICKED_UP, true));
        if peer.has(Evidence::SYN_ACK) && self.is_current(peer) {
            self.set_verdict(self.verdict().with_state(self.receiver, State::SynRecv, true));
        } else {
            self.receive(Event::Pickup);
            if self.is_current(peer) && peer.has(Evidence::FIN) {
                self.receive(Event::SentFin);
            }
        }
        self.send(Event::Pickup);
        true
    }

    /// The first ACK from an end in this generation. Says whether its evidence may be used from here on.
    #[inline(always)]
    fn joins(&mut self, own: &mut Evidence, peer: &Evidence, segment: &Segment) -> bool {
        if own.has(Evidence::SEEN) && !self.verdict().has(Verdict::PICKED_UP) {
            // It still speaks of the connection before.
            if self.verdict().has(Verdict::REOPENING) {
                // A bare ACK in answer to a SYN: TIME-WAIT did not take it.
                self.facts.add(Fact::TwSynOld);
                self.set_verdict(self.verdict().with(Verdict::REOPENING, false));
                self.roll_back(self.sender, State::TimeWait, true);
            }
            return false;
        }
        let fits = self.is_current(peer) && segment.ack.after(peer.iss) && !segment.ack.after(peer.nxt)
            || self.verdict().has(Verdict::PICKED_UP);
        if !fits {
            self.facts.add(Fact::AckUnseen);
            return false;
        }
        own.start(segment, self.verdict().generation() as u8);
        if self.state_of_sender().is_embryonic() || self.state_of_receiver().is_embryonic() {
            // The SYN-ACK was missed.
            self.facts.add(Fact::CaptureGap);
            self.send(Event::Pickup);
            self.receive(Event::Pickup);
        }
        true
    }
}
