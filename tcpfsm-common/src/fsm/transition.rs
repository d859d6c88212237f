//! The TCP state diagram (RFC 9293 §3.3.2, figure 5), and nothing else.
//!
//! ```text
//!                               +---------+
//!                               |  CLOSED |
//!                               +---------+
//!               RcvdSyn after     |     |  SentSyn
//!               a passive OPEN    |     |
//!    +--------+  RcvdSyn          V     V          +---------+
//!    | LISTEN | ------------> +---------+  RcvdSyn |   SYN   |
//!    +--------+ <------------ |   SYN   | <------- |   SENT  |
//!               RcvdRst       |   RECV  |          +---------+
//!                             +---------+               | RcvdSynAck
//!            RcvdAckOfSyn /     |     \                 |
//!            RcvdSynAck        |      \ SentFin         V
//!                              +-------\---------> +---------+
//!                                       \          |  ESTAB  |
//!                           SentFin      \         +---------+
//!                   +---------------------\----------  |
//!                   V                      \           | RcvdFin
//!              +---------+                  |          V
//!              |   FIN   | <----------------+     +---------+
//!              |  WAIT-1 |--------------+         |  CLOSE  |
//!              +---------+   RcvdFin    |         |   WAIT  |
//!      FinAcked  |                      V         +---------+
//!                V                 +---------+         | SentFin
//!           +---------+            | CLOSING |         V
//!           |FINWAIT-2|            +---------+    +---------+
//!           +---------+   FinAcked     |          | LAST-ACK|
//!                |  RcvdFin            V          +---------+
//!                |    +--------> +---------+           | FinAcked
//!                +-------------> |TIME WAIT|           V
//!                                +---------+  ---> +---------+
//!                                     Expired      | CLOSED  |
//!                                                  +---------+
//! ```
//!
//! [`next`] is what one end goes through for what it does or has done to it. Which of these events a segment
//! is, and for which end, is decided in [`super::track`] from the [evidence](crate::abi::Evidence).
//! Roll-backs, where the wire disproves an assumption, are not transitions of this diagram; they are in
//! [`super::track`] too.

use super::State;

/// What one end does, or has done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// It sent a SYN.
    SentSyn = 0,
    /// It was sent a SYN.
    RcvdSyn,
    /// It sent a SYN-ACK.
    SentSynAck,
    /// It was sent a SYN-ACK that acknowledges its SYN.
    RcvdSynAck,
    /// It was sent an acknowledgment of its SYN.
    RcvdAckOfSyn,
    /// It sent a FIN, having seen its peer's if there was one.
    SentFin,
    /// It sent a FIN that left before it saw its peer's.
    SentCrossingFin,
    /// It was sent a FIN, and everything before it.
    RcvdFin,
    /// Its FIN was acknowledged.
    FinAcked,
    /// It sent a reset that its peer accepts, or one that says "no such socket here".
    SentRst,
    /// It was sent a reset that it accepts.
    RcvdRst,
    /// Its connection request cannot be delivered (ICMP).
    Unreachable,
    /// It was picked up in mid-stream.
    Pickup,
    /// Its time ran out.
    Expired,
}

impl Event {
    /// Every event, in the order of the codes.
    pub const ALL: [Self; 14] = [
        Self::SentSyn,
        Self::RcvdSyn,
        Self::SentSynAck,
        Self::RcvdSynAck,
        Self::RcvdAckOfSyn,
        Self::SentFin,
        Self::SentCrossingFin,
        Self::RcvdFin,
        Self::FinAcked,
        Self::SentRst,
        Self::RcvdRst,
        Self::Unreachable,
        Self::Pickup,
        Self::Expired,
    ];
}

/// The state after `event`, or `None` where the event moves nothing in that state.
#[must_use]
pub const fn next(state: State, event: Event) -> Option<State> {
    match event {
        Event::SentSyn => match state {
            // §3.10.1: an active OPEN sends a SYN and enters SYN-SENT; from TIME-WAIT it may reopen (§3.6.1).
            State::Closed | State::Listen | State::TimeWait => Some(State::SynSent),
            State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => None,
        },
        Event::RcvdSyn => match state {
            // §3.10.7.2: a SYN to a listener; seen from the wire the listener shows itself only by this.
            State::Closed | State::Listen => Some(State::SynRecv),
            // §3.10.7.3: a SYN without ACK in SYN-SENT is a simultaneous open.
            State::SynSent => Some(State::SynRecv),
            // §3.6.1 and RFC 6191: an acceptable SYN reopens a connection in TIME-WAIT.
            State::TimeWait => Some(State::SynRecv),
            // RFC 5961 §4: in the synchronised states a SYN is answered by a challenge ACK.
            State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => None,
        },
        Event::SentSynAck => match state {
            // RFC 4987 §3.6: with SYN cookies a listener answers without keeping state; from the wire it is SYN-RECEIVED.
            State::Closed | State::Listen | State::TimeWait => Some(State::SynRecv),
            // §3.5 figure 8: the answer to a SYN that crossed its own.
            State::SynSent => Some(State::SynRecv),
            State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => None,
        },
        Event::RcvdSynAck => match state {
            // §3.10.7.3: our SYN has been acknowledged, change to ESTABLISHED.
            State::SynSent => Some(State::Established),
            // §3.5 figure 8: the SYN-ACK of a simultaneous open acknowledges our SYN as well.
            State::SynRecv => Some(State::Established),
            State::Closed
            | State::Listen
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::RcvdAckOfSyn => match state {
            // §3.10.7.4: SND.UNA < SEG.ACK =< SND.NXT in SYN-RECEIVED enters ESTABLISHED.
            State::SynRecv => Some(State::Established),
            State::Closed
            | State::Listen
            | State::SynSent
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::SentFin => match state {
            // §3.10.4: CLOSE in SYN-RECEIVED or ESTABLISHED sends a FIN and enters FIN-WAIT-1.
            State::SynRecv | State::Established => Some(State::FinWait1),
            // §3.10.4: CLOSE in CLOSE-WAIT sends a FIN and enters LAST-ACK.
            State::CloseWait => Some(State::LastAck),
            State::Closed
            | State::Listen
            | State::SynSent
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::SentCrossingFin => match state {
            State::SynRecv | State::Established => Some(State::FinWait1),
            // §3.6 figure 13: both sent a FIN before they saw the other's, a simultaneous close.
            State::CloseWait => Some(State::Closing),
            State::Closed
            | State::Listen
            | State::SynSent
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::RcvdFin => match state {
            // §3.10.7.4, eighth: a FIN in SYN-RECEIVED or ESTABLISHED enters CLOSE-WAIT.
            State::SynRecv | State::Established => Some(State::CloseWait),
            // Its own FIN has not been acknowledged: CLOSING. (Had it been, FinAcked came first.)
            State::FinWait1 => Some(State::Closing),
            // FIN-WAIT-2 enters TIME-WAIT.
            State::FinWait2 => Some(State::TimeWait),
            // The others remain where they are; TIME-WAIT restarts its clock.
            State::Closed
            | State::Listen
            | State::SynSent
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::FinAcked => match state {
            // §3.10.7.4, fifth: our FIN is now acknowledged.
            State::FinWait1 => Some(State::FinWait2),
            State::Closing => Some(State::TimeWait),
            State::LastAck => Some(State::Closed),
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait2
            | State::CloseWait
            | State::TimeWait => None,
        },
        Event::SentRst => match state {
            // §3.10.5: ABORT, or the answer of an end that has no such connection any more.
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => Some(State::Closed),
            // Answering a bad ACK does not end an embryonic connection (§3.5.2 group 2).
            State::SynSent | State::SynRecv | State::Closed | State::Listen => None,
        },
        Event::RcvdRst => match state {
            // §3.10.7.4, second: a passive OPEN returns to LISTEN.
            State::SynRecv => Some(State::Listen),
            // The connection is refused, aborted, or an old TIME-WAIT is cut short (RFC 1337).
            State::SynSent
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => Some(State::Closed),
            State::Closed | State::Listen => None,
        },
        Event::Unreachable => match state {
            // §3.9.2.2: a hard error ends an attempt; in the synchronised states it is soft (RFC 5927 §4).
            State::SynSent | State::SynRecv => Some(State::Closed),
            State::Closed
            | State::Listen
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::Pickup => match state {
            // Not in the RFC: the connection was open before the observer was.
            State::Closed | State::Listen | State::SynSent | State::SynRecv => Some(State::Established),
            State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => None,
        },
        Event::Expired => match state {
            // §3.4.2 for TIME-WAIT; §3.8.3 and the user timeout for the others.
            State::Listen
            | State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => Some(State::Closed),
            State::Closed => None,
        },
    }
}

/// [`next`] as a table: 21 verified instructions in the kernel against 132 for the inlined matches.
static TABLE: [u8; 256] = {
    let mut table = [STAY; 256];
    let mut state = 0;
    while state < State::ALL.len() {
        let mut event = 0;
        while event < Event::ALL.len() {
            if let Some(to) = next(State::ALL[state], Event::ALL[event]) {
                table[state << 4 | event] = to as u8;
            }
            event += 1;
        }
        state += 1;
    }
    table
};

const STAY: u8 = 0xff;

/// [`next`], looked up; `state` itself where the event moves nothing.
#[inline(always)]
#[must_use]
pub fn after(state: State, event: Event) -> State {
    let to = TABLE[((state as usize) << 4 | event as usize) & 0xff];
    if to == STAY { state } else { State::from_code(to) }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    #[test]
    fn the_table_is_the_diagram() {
        for state in State::ALL {
            for event in Event::ALL {
                assert_eq!(after(state, event), next(state, event).unwrap_or(state), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn every_state_is_reachable_from_closed() {
        let mut seen = vec![State::Closed];
        let mut at = 0;
        while let Some(&state) = seen.get(at) {
            at += 1;
            for event in Event::ALL {
                if let Some(to) = next(state, event) {
                    assert_ne!(to, state, "{event:?} would be no transition");
                    if !seen.contains(&to) {
                        seen.push(to);
                    }
                }
            }
        }
        assert_eq!(seen.len(), State::ALL.len());
    }
}
