//! Segments that come in order and move the connection on: the first SYN, and from the handshake's last ACK to the last
//! FIN's.
//!
//! A connection of a few packets is nearly all handshake and close. What the machine looks at for the sake of the
//! worst, these few comparisons rule out, and what is left of the diagram are two small tables. A property test
//! holds them to the machine.

use super::{Event, State, desk::Desk, next, step::Step, window::fails_paws};
use crate::{
    abi::{CloseReason, Evidence, Move, Verdict},
    fact::{Fact, Facts},
    flow::End,
    segment::{Segment, SegmentKind, TcpFlags, TcpOptions},
};

/// A segment that comes in order, acknowledges what was sent, and brings its flow from one state to the next, or leaves
/// it there. Gives `None`, and leaves the evidence alone, where the full machine must look.
///
/// For a segment taken here [`observe`](super::observe) would do the same.
#[inline(always)]
#[must_use]
pub fn observe_orderly<D: Desk>(
    desk: &D,
    verdict: Verdict,
    sender: End,
    own: &mut Evidence,
    peer: &Evidence,
    segment: &Segment,
) -> Option<Step> {
    const NOISY: u16 =
        Evidence::SYN_ON_LIVE | Evidence::ZERO_WINDOW | Evidence::SECOND_SYN | (Evidence::STRIKE * 15);
    let [from, at] = verdict.slots(sender);
    let generation = verdict.generation() as u8;
    let fin = match segment.flags.kind() {
        SegmentKind::Ack => false,
        SegmentKind::Fin => true,
        SegmentKind::Syn | SegmentKind::SynAck | SegmentKind::Rst | SegmentKind::Invalid => return None,
    };
    let acked = segment.ack.since(own.ack).cast_unsigned();
    let unacked = peer.nxt.since(own.ack);
    let acks_all = segment.ack == peer.nxt;
    let is_first_ack = !own.has(Evidence::EDGE);
    if segment.to_itself
        || verdict.is_pending()
        || from < State::Established as usize
        || at < State::SynRecv as usize
        || verdict.are_both(State::TimeWait)
        || !own.is_quiet(generation, 0, NOISY)
        || !peer.is_quiet(generation, Evidence::EDGE, 0)
        || segment.seq != own.nxt
        || own.contig != own.nxt
        || (own.has(Evidence::FIN) && (fin || segment.len > 0))
        || segment.seq.after(peer.edge)
        || segment.seq.before(peer.ack)
        || segment.window == 0
        || fails_paws(own, segment)
        || segment.options.has(TcpOptions::MALFORMED | TcpOptions::UNREAD)
    {
        return None;
    }
    if is_first_ack {
        if !acks_all || segment.ack.before(peer.iss) {
            return None;
        }
    } else if unacked < 0
        || acked > unacked.cast_unsigned()
        || (segment.len == 0 && acked == 0 && unacked != 0)
    {
        return None;
    }
    if at == State::SynRecv as usize && !(peer.has(Evidence::SYN) && segment.ack.after(peer.iss)) {
        return None;
    }
    // Whether it acknowledges its peer's FIN: nothing comes after that.
    let closes = peer.has(Evidence::FIN) && acks_all;
    if fin && !closes && from == State::CloseWait as usize {
        // They crossed.
        return None;
    }
    // Written down for the verifier's sake, as the machine's notes are.
    desk.set_notes(closes as u64 | (fin as u64) << 1 | ((at == State::LastAck as usize) as u64) << 2);

    own.accept_orderly(segment, peer);
    own.flags |= segment.flags.bit(TcpFlags::FIN) * Evidence::FIN;

    let notes = desk.notes() as usize;
    let whose = sender as usize & 1;
    let sent = SENDER[whose][from & 15 | (notes & 7) << 4];
    let has_sent_fin = own.bit(Evidence::FIN);
    let received = RECEIVER[whose][at & 15 | (notes & 1) << 4 | (has_sent_fin as usize) << 5];
    let after = verdict.moved([sent, received]);
    let mut facts = Facts((notes >> 1 & !notes & 1) as u64 * Facts::of(&[Fact::HalfClosed]).0);
    if at == State::SynRecv as usize {
        facts.add(Fact::Established);
    }
    if after.is_over() {
        facts.add(Fact::Closed);
        return Some(Step { verdict: after.with_close_reason(CloseReason::Finish), facts });
    }
    Some(Step { verdict: after, facts })
}

/// A SYN of a flow of which nothing was seen before. Brings the evidence of its sender, which must be new, up to date.
///
/// For a SYN whose sender is not its receiver [`observe`](super::observe) would do the same.
#[inline(always)]
#[must_use]
pub fn observe_first_syn(sender: End, own: &mut Evidence, segment: &Segment) -> Step {
    const OPENED: [Verdict; 2] = [opened_by(End::Low), opened_by(End::High)];
    let verdict = OPENED[sender as usize & 1];
    own.start(segment, verdict.generation() as u8);
    let mut facts = Facts::default();
    facts.add(Fact::Open);
    if segment.len > 0 {
        facts.add(Fact::SynData);
    }
    if segment.options.has(TcpOptions::MALFORMED) {
        facts.add(Fact::BadOption);
    }
    Step { verdict, facts }
}

const fn opened_by(sender: End) -> Verdict {
    Verdict(0)
        .next_generation()
        .with_originator(sender)
        .with_state(sender, State::SynSent, true)
        .with_state(sender.other(), State::Listen, false)
        .with_state(sender.other(), State::SynRecv, false)
}

/// Where an end comes to, and from where, one event after the other.
#[derive(Clone, Copy)]
struct Way {
    to: State,
    previous: State,
}

impl Way {
    const fn begin(state: State) -> Self {
        Self { to: state, previous: state }
    }

    const fn then(self, event: Event) -> Self {
        match next(self.to, event) {
            Some(to) => Self { to, previous: self.to },
            None => self,
        }
    }

    const fn then_if(self, condition: bool, event: Event) -> Self {
        if condition { self.then(event) } else { self }
    }

    const fn as_move(self, end: End) -> Move {
        if self.to as u8 == self.previous as u8 { Move::STAY } else { Move::new(end, self.previous, self.to) }
    }
}

/// What the sender has done: by which end it is, by its state, whether it acknowledges its peer's FIN, whether it sends one, and
/// whether its peer is in LAST-ACK.
static SENDER: [[Move; 128]; 2] = [sent_by(End::Low), sent_by(End::High)];

const fn sent_by(sender: End) -> [Move; 128] {
    let mut table = [Move::STAY; 128];
    let mut at = 0;
    while at < table.len() {
        let (closes, fin, answered) = (at >> 4 & 1 != 0, at >> 5 & 1 != 0, at >> 6 & 1 != 0);
        let from = State::from_code(at as u8 & 15);
        let moved = Way::begin(from)
            .then_if(closes && answered, Event::FinAcked)
            .then_if(closes, Event::RcvdFin)
            .then_if(fin, if closes { Event::SentFin } else { Event::SentCrossingFin })
            .as_move(sender);
        // What does not acknowledge the peer's FIN does not show that it arrived.
        let is_behind_fin =
            matches!(from, State::CloseWait | State::Closing | State::LastAck | State::TimeWait);
        table[at] = if is_behind_fin && !closes { moved } else { moved.proved_by(sender) };
        at += 1;
    }
    table
}

/// What was done to the receiver: by which end the sender is, by the receiver's state, whether its FIN was acknowledged, and
/// whether the sender has sent one.
static RECEIVER: [[Move; 64]; 2] = [received_from(End::Low), received_from(End::High)];

const fn received_from(sender: End) -> [Move; 64] {
    let mut table = [Move::STAY; 64];
    let mut at = 0;
    while at < table.len() {
        let (closes, fin) = (at >> 4 & 1 != 0, at >> 5 & 1 != 0);
        table[at] = Way::begin(State::from_code(at as u8 & 15))
            .then(Event::RcvdAckOfSyn)
            .then_if(closes, Event::FinAcked)
            .then_if(fin, Event::RcvdFin)
            .as_move(sender.other());
        at += 1;
    }
    table
}
