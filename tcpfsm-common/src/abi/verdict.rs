//! The verdict: both ends' states and what must change together with them, in one 64-bit word.

use super::CloseReason;
use crate::{
    flow::{Direction, End},
    fsm::State,
};

/// Both states, whether each is confirmed, what to roll back to, and the generation.
///
/// ```text
///  bit 0   4   8  9  10  14  18 19 20 21 22 23 25 26 27 28  32      48     56 60
///      low high cl ch pl  ph  o  pk cd tw rl rh os gn sd by  gen     reason hl hh
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Verdict(pub u64);

/// How a move of one end changes the word.
#[derive(Clone, Copy)]
pub(crate) struct Move {
    /// The bits that it changes.
    mask: u32,
    /// What they change to.
    bits: u32,
}

impl Move {
    /// None.
    pub(crate) const STAY: Self = Self { mask: 0, bits: 0 };

    /// An end's from one state to another, which is assumed until it is said to be [proved](Self::proved_by).
    pub(crate) const fn new(end: End, from: State, to: State) -> Self {
        let (at, previous) = (4 * end as u64, Verdict::PREVIOUS_SHIFT + 4 * end as u64);
        let confirmed = 1 << (Verdict::CONFIRMED_SHIFT + end as u64);
        let mask = Verdict::STATE << at | Verdict::STATE << previous | confirmed;
        Self { mask: mask as u32, bits: (to as u32) << at | (from as u32) << previous }
    }

    /// The same, proved by a segment of that end's.
    pub(crate) const fn proved_by(self, end: End) -> Self {
        Self { bits: self.bits | 1 << (Verdict::CONFIRMED_SHIFT + end as u64), ..self }
    }
}

impl Verdict {
    const STATE: u64 = 0xf;
    const CONFIRMED_SHIFT: u64 = 8;
    const PREVIOUS_SHIFT: u64 = 10;
    const ORIGINATOR: u64 = 1 << 18;
    const BOTH_ESTABLISHED: u64 = State::Established as u64 | (State::Established as u64) << 4;
    const REASON_SHIFT: u64 = 48;
    const GENERATION_SHIFT: u64 = 32;
    const HELD_SHIFT: u64 = 56;

    /// The bits whose change is worth an event: both states, and the generation.
    pub const STATES_AND_GENERATION: u64 = 0xff | 0xffff << Self::GENERATION_SHIFT;
    /// The flow was picked up in mid-stream; its originator is a guess.
    pub const PICKED_UP: u64 = 1 << 19;
    /// A stray segment was seen, not enough for a flow: shown as closed until something fits it.
    pub const CANDIDATE: u64 = 1 << 20;
    /// A SYN reopened a TIME-WAIT; the end in it has not agreed yet.
    pub const REOPENING: u64 = 1 << 21;
    /// A reset sent by the low end was accepted; the next bit stands for the high end.
    pub const RESET_BY_LOW: u64 = 1 << 22;
    /// Only one direction is seen.
    pub const ONE_SIDED: u64 = 1 << 25;
    /// The record is leaving its map, for the other one or for good: look again.
    pub const GONE: u64 = 1 << 26;
    /// The states came from the host's own sockets at the start; the wire has not shown all of their past.
    pub const SEEDED: u64 = 1 << 27;
    /// An end acknowledged, three times running, what was not seen to be sent.
    pub const BEYOND: u64 = 1 << 28;

    /// The state of one end.
    #[inline(always)]
    #[must_use]
    pub const fn state(self, end: End) -> State {
        State::from_code(self.slot(end) as u8)
    }

    /// The code of one end's state, as an index into tables of [`STATE_SLOTS`](super::STATE_SLOTS).
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, end: End) -> usize {
        (self.0 >> (4 * end as u64) & Self::STATE) as usize
    }

    /// The same for the state to return to.
    #[inline(always)]
    #[must_use]
    pub const fn previous_slot(self, end: End) -> usize {
        (self.0 >> (Self::PREVIOUS_SHIFT + 4 * end as u64) & Self::STATE) as usize
    }

    /// The code of the state that stands for the flow where it is counted once: the earlier one of its two ends', in the
    /// order of the codes, where ends that are closed count only if both are. So a half-open handshake is in
    /// `syn_recv`, whatever its client assumes, and a flow that left TIME-WAIT at one end is in `time_wait`.
    #[inline(always)]
    #[must_use]
    pub const fn flow_slot(self) -> usize {
        (FLOW_SLOTS[(self.0 & 0xff) as usize] & 15) as usize
    }

    /// Whether that end itself sent a segment that proves its state.
    #[inline(always)]
    #[must_use]
    pub const fn is_confirmed(self, end: End) -> bool {
        self.0 >> (Self::CONFIRMED_SHIFT + end as u64) & 1 != 0
    }

    /// The state to return to when the wire disproves the present one.
    #[inline(always)]
    #[must_use]
    pub const fn previous(self, end: End) -> State {
        State::from_code((self.0 >> (Self::PREVIOUS_SHIFT + 4 * end as u64) & Self::STATE) as u8)
    }

    /// Puts one end into a state, remembering the one it was in.
    #[inline(always)]
    #[must_use]
    pub const fn with_state(self, end: End, state: State, confirmed: bool) -> Self {
        let at = 4 * end as u64;
        let old = self.0 >> at & Self::STATE;
        let mut word = self.0;
        if old != state as u64 {
            let previous = Self::PREVIOUS_SHIFT + at;
            word = word & !(Self::STATE << previous) | old << previous;
            word = word & !(Self::STATE << at) | (state as u64) << at;
        }
        let bit = Self::CONFIRMED_SHIFT + end as u64;
        Self(word & !(1 << bit) | (confirmed as u64) << bit)
    }

    /// The codes of both ends' states, the sender's first.
    #[inline(always)]
    pub(crate) const fn slots(self, sender: End) -> [usize; 2] {
        let states = self.0 & 0xff;
        // The sender's moved down, and the other's behind it.
        let turned = (states | states << 8) >> (4 * sender as u64);
        [(turned & Self::STATE) as usize, (turned >> 4 & Self::STATE) as usize]
    }

    /// Moves both ends, each by one of its own moves.
    #[inline(always)]
    pub(crate) const fn moved(self, by: [Move; 2]) -> Self {
        let [Move { mask, bits }, other] = by;
        Self(self.0 & !((mask | other.mask) as u64) | (bits | other.bits) as u64)
    }

    /// Sets or clears a bit of the word.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, bits: u64, set: bool) -> Self {
        Self(if set { self.0 | bits } else { self.0 & !bits })
    }

    /// Whether any of `bits` is set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// The originator: who sent the first SYN, or is guessed to have.
    #[inline(always)]
    #[must_use]
    pub const fn originator(self) -> End {
        End::from_bit(self.0 >> 18)
    }

    /// Names the originator.
    #[inline(always)]
    #[must_use]
    pub const fn with_originator(self, end: End) -> Self {
        self.with(Self::ORIGINATOR, matches!(end, End::High))
    }

    /// Which way a segment from `sender` goes.
    #[inline(always)]
    #[must_use]
    pub const fn direction(self, sender: End) -> Direction {
        if self.originator() as u8 == sender as u8 { Direction::Original } else { Direction::Reply }
    }

    /// How many times this four-tuple has been opened, modulo 2¹⁶.
    #[inline(always)]
    #[must_use]
    pub const fn generation(self) -> u16 {
        (self.0 >> Self::GENERATION_SHIFT) as u16
    }

    /// The next generation: everything forgotten but the states, the originator and the count.
    #[inline(always)]
    #[must_use]
    pub const fn next_generation(self) -> Self {
        let generation = self.generation().wrapping_add(1) as u64;
        Self(self.0 & 0x7_ffff | generation << Self::GENERATION_SHIFT)
    }

    /// How the flow ended.
    #[inline(always)]
    #[must_use]
    pub const fn close_reason(self) -> CloseReason {
        CloseReason::from_code((self.0 >> Self::REASON_SHIFT) as u8)
    }

    /// Says how the flow ended.
    #[inline(always)]
    #[must_use]
    pub const fn with_close_reason(self, reason: CloseReason) -> Self {
        Self(self.0 & !(0xff << Self::REASON_SHIFT) | (reason as u64) << Self::REASON_SHIFT)
    }

    /// Whether this end's socket, one of this host's, was found in the state that the end is in: then the clock does not end it.
    ///
    /// The state is what was noted, so that a step into another one leaves a note that says nothing any more: the machine
    /// need not take it away. CLOSED cannot be noted.
    #[inline(always)]
    #[must_use]
    pub const fn is_held(self, end: End) -> bool {
        let held = (self.0 >> (Self::HELD_SHIFT + 4 * end as u64) & Self::STATE) as usize;
        held != 0 && held == self.slot(end)
    }

    /// Notes that this end's socket is in the end's present state, or takes the note away.
    #[must_use]
    pub const fn with_held(self, end: End, held: bool) -> Self {
        let at = Self::HELD_SHIFT + 4 * end as u64;
        let state = if held { self.slot(end) as u64 } else { 0 };
        Self(self.0 & !(Self::STATE << at) | state << at)
    }

    /// Whether an accepted reset was sent in the name of `end`.
    #[inline(always)]
    #[must_use]
    pub const fn was_reset_by(self, end: End) -> bool {
        self.has(Self::RESET_BY_LOW << end as u64)
    }

    /// Marks that an accepted reset was, or was not, sent in the name of `end`.
    #[inline(always)]
    #[must_use]
    pub const fn with_reset_by(self, end: End, set: bool) -> Self {
        self.with(Self::RESET_BY_LOW << end as u64, set)
    }

    /// The states that changed since `before`: end, state left, state entered. Where a new generation began,
    /// the state left is the new connection's own beginning, not the old one's end.
    #[inline(always)]
    #[must_use]
    pub const fn transition(self, before: Self, end: End) -> Option<(State, State)> {
        let (from, to) = (before.state(end), self.state(end));
        if from as u8 == to as u8 {
            None
        } else if before.generation() != self.generation() {
            Some((self.previous(end), to))
        } else {
            Some((from, to))
        }
    }

    /// Whether both ends have no state for this flow.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        const CLOSED: u16 = set_of(&[State::Closed, State::Listen]);
        self.are_both_in(CLOSED)
    }

    /// Whether neither end can send any more: each is closed, or in TIME_WAIT.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        const OVER: u16 = set_of(&[State::Closed, State::Listen, State::TimeWait]);
        self.are_both_in(OVER)
    }

    /// Whether the handshake is under way, or nothing but a stray was seen.
    #[inline(always)]
    #[must_use]
    pub const fn is_embryonic(self) -> bool {
        const EMBRYONIC: u16 = set_of(&[State::Closed, State::Listen, State::SynSent, State::SynRecv]);
        !self.are_both_in(!EMBRYONIC)
    }

    /// Whether this is no more than a handshake, under way or failed: neither end got further than ESTABLISHED, and
    /// not both got so far.
    #[inline(always)]
    #[must_use]
    pub const fn is_handshake(self) -> bool {
        const UP_TO_ESTABLISHED: u16 =
            set_of(&[State::Closed, State::Listen, State::SynSent, State::SynRecv, State::Established]);
        self.are_both_in(UP_TO_ESTABLISHED) && !self.are_both(State::Established)
    }

    /// Whether both ends are in states of a set, without a branch: the kernel programs ask often.
    #[inline(always)]
    const fn are_both_in(self, states: u16) -> bool {
        let states = states as u64;
        states >> self.slot(End::Low) & states >> self.slot(End::High) & 1 != 0
    }

    /// Whether anything is pending beside the states, or a reason to have ended is given.
    #[inline(always)]
    #[must_use]
    pub const fn is_pending(self) -> bool {
        self.0 & (0xff << 20 | 0xff << Self::REASON_SHIFT) != 0
    }

    /// Whether both ends are in ESTABLISHED and have proved it, and nothing else is pending.
    #[inline(always)]
    #[must_use]
    pub const fn is_settled(self) -> bool {
        self.is_established() && self.is_confirmed(End::Low) && self.is_confirmed(End::High)
    }

    /// Whether both ends are in this state, whatever else is pending.
    #[inline(always)]
    pub(crate) const fn are_both(self, state: State) -> bool {
        self.0 & 0xff == state as u64 * 0x11
    }

    /// Whether both ends are in ESTABLISHED, and nothing else is pending: nearly every segment of nearly every flow finds
    /// this.
    #[inline(always)]
    #[must_use]
    pub const fn is_established(self) -> bool {
        const MASK: u64 = 0xff | 0xff << 19;
        self.0 & MASK & !Self::PICKED_UP == Self::BOTH_ESTABLISHED
    }

    /// The same where that end has sent a segment that proves its state.
    #[inline(always)]
    #[must_use]
    pub const fn proved_by(self, end: End) -> Self {
        Self(self.0 | 1 << (Self::CONFIRMED_SHIFT + end as u64))
    }
}

/// A bit for the code of each of these states; codes that have none stand for CLOSED.
const fn set_of(states: &[State]) -> u16 {
    let mut set = 0;
    let mut code = 0;
    while code < 16 {
        let mut at = 0;
        while at < states.len() {
            if State::from_code(code) as u8 == states[at] as u8 {
                set |= 1 << code;
            }
            at += 1;
        }
        code += 1;
    }
    set
}

/// [`Verdict::flow_slot`] by both states: the lowest byte of a verdict. A table, since the kernel programs ask often.
static FLOW_SLOTS: [u8; 256] = {
    let mut slots = [0; 256];
    let mut states = 0;
    while states < 256 {
        let (low, high) = ((states & 15) as u8, (states >> 4) as u8);
        let (low_closed, high_closed) =
            (State::from_code(low).is_closed(), State::from_code(high).is_closed());
        slots[states] = match (low_closed, high_closed) {
            (true, true) => State::Closed as u8,
            (true, false) => high,
            (false, true) => low,
            (false, false) if low < high => low,
            (false, false) => high,
        };
        states += 1;
    }
    slots
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_counted_in_the_earlier_state() {
        let of = |low, high| {
            Verdict::default().with_state(End::Low, low, true).with_state(End::High, high, false).flow_slot()
        };
        for (states, one) in [
            ([State::Closed, State::Closed], State::Closed),
            ([State::Listen, State::Closed], State::Closed),
            ([State::SynSent, State::Listen], State::SynSent),
            ([State::SynSent, State::SynRecv], State::SynSent),
            ([State::Established, State::SynRecv], State::SynRecv),
            ([State::Established, State::Established], State::Established),
            ([State::Closed, State::Established], State::Established),
            ([State::FinWait2, State::CloseWait], State::FinWait2),
            ([State::TimeWait, State::LastAck], State::LastAck),
            ([State::TimeWait, State::Closed], State::TimeWait),
        ] {
            let [low, high] = states;
            assert_eq!((of(low, high), of(high, low)), (one as usize, one as usize), "{states:?}");
        }
    }

    #[test]
    fn a_state_remembers_the_one_before() {
        let v = Verdict::default()
            .with_state(End::Low, State::SynSent, true)
            .with_state(End::High, State::SynRecv, false)
            .with_state(End::Low, State::Established, false);
        assert_eq!(v.state(End::Low), State::Established);
        assert_eq!(v.previous(End::Low), State::SynSent);
        assert_eq!(v.state(End::High), State::SynRecv);
        assert!(!v.is_confirmed(End::Low) && !v.is_confirmed(End::High));
        assert_eq!(v.with_state(End::Low, State::Established, true).previous(End::Low), State::SynSent);
    }

    #[test]
    fn generation_and_reason_do_not_touch_the_states() {
        let mut v =
            Verdict::default().with_state(End::High, State::TimeWait, true).with_originator(End::High);
        for expected in 1..=3 {
            v = v.with_close_reason(CloseReason::Finish).with_reset_by(End::Low, true).next_generation();
            assert_eq!(v.generation(), expected);
            assert_eq!(v.state(End::High), State::TimeWait);
            assert_eq!(v.close_reason(), CloseReason::Open);
            assert!(!v.was_reset_by(End::Low));
        }
        assert_eq!(Verdict(0xffff << 32).next_generation().generation(), 0);
    }

    #[test]
    fn an_end_is_held_in_the_state_that_was_noted() {
        let half_closed = Verdict::default()
            .with_state(End::Low, State::FinWait2, true)
            .with_state(End::High, State::CloseWait, true)
            .with_close_reason(CloseReason::Timeout);
        let held = half_closed.with_held(End::Low, true);
        assert!(held.is_held(End::Low) && !held.is_held(End::High) && !half_closed.is_held(End::Low));
        assert_eq!(held.with_held(End::Low, false), half_closed);
        assert_eq!((held.close_reason(), held.generation()), (CloseReason::Timeout, 0));
        let both = held.with_held(End::High, true);
        assert!(both.is_held(End::Low) && both.is_held(End::High));
        assert!(!both.with_held(End::High, false).is_held(End::High));
        for state in [State::Closed, State::TimeWait] {
            assert!(!held.with_state(End::Low, state, true).is_held(End::Low), "it moved on");
        }
        assert!(!held.with_state(End::Low, State::Closed, true).with_held(End::Low, true).is_held(End::Low));
        assert!(!held.next_generation().is_held(End::Low), "another connection");
    }

    #[test]
    fn a_handshake_ends_where_both_are_connected() {
        let of = |low, high| {
            Verdict::default()
                .with_state(End::Low, low, true)
                .with_state(End::High, high, false)
                .is_handshake()
        };
        for (states, expected) in [
            ([State::Closed, State::Closed], true),
            ([State::SynSent, State::SynRecv], true),
            ([State::Established, State::SynRecv], true),
            ([State::Established, State::Established], false),
            ([State::CloseWait, State::SynRecv], false),
            ([State::TimeWait, State::Closed], false),
        ] {
            let [low, high] = states;
            assert_eq!([of(low, high), of(high, low)], [expected; 2], "{states:?}");
        }
    }

    #[test]
    fn settled_means_both_established_and_confirmed() {
        let both = |confirmed| {
            Verdict::default().with_state(End::Low, State::Established, confirmed).with_state(
                End::High,
                State::Established,
                true,
            )
        };
        assert!(both(true).is_settled());
        assert!(both(true).with(Verdict::PICKED_UP, true).with_originator(End::High).is_settled());
        assert!(!both(false).is_settled());
        assert!(both(false).is_established() && both(false).proved_by(End::Low).is_settled());
        assert!(!both(true).with_state(End::Low, State::FinWait1, true).is_settled());
        assert!(!both(true).with_reset_by(End::High, true).is_settled());
    }
}
