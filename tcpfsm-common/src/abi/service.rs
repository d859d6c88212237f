//! What is counted per service: the address and port that somebody answered on.

use core::net::SocketAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Verdict;
use crate::{
    fact::{Fact, Facts},
    flow::{End, FlowKey, FlowKey4, FlowKey6},
    segment::{SegmentKind, TcpFlags},
};

/// Key of `SERVICES`: a responder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceKey {
    /// Address, network order; IPv4 in the first word.
    pub addr: [u32; 4],
    /// Port, host order.
    pub port: u16,
    /// 4 or 6.
    pub family: u16,
    /// Scope of the flows.
    pub scope: u32,
}

impl ServiceKey {
    /// A flow of which only the service is known: its high end.
    #[must_use]
    pub const fn flow(&self) -> FlowKey {
        let &Self { addr, port, family, scope } = self;
        match family {
            4 => FlowKey::V4(FlowKey4 { addr: [0, addr[0]], port: [0, port], scope }),
            _ => FlowKey::V6(FlowKey6 { addr: [[0; 4], addr], port: [0, port], scope }),
        }
    }

    /// Its address and port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.flow().socket_addr(End::High)
    }
}

/// Value of `SERVICES`: handshakes at this service since it first answered one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceRecord {
    /// Connection requests.
    pub opened: u64,
    /// Requests answered with a SYN-ACK.
    pub answered: u64,
    /// Handshakes completed; one that is taken back (see `unaccepted`) counts again when it completes again.
    pub established: u64,
    /// Requests answered with a reset.
    pub refused: u64,
    /// Handshakes ended by a reset.
    pub aborted: u64,
    /// SYNs sent again.
    pub syn_rtx: u64,
    /// SYN-ACKs sent again.
    pub synack_rtx: u64,
    /// SYN-ACKs sent again after the client had completed the handshake: the server does not accept.
    pub unaccepted: u64,
    /// Handshakes under way at the sweep `sweep`.
    pub half_open: u32,
    /// Of these, handshakes that the service had answered.
    pub half_open_answered: u32,
    /// The sweep that counted these.
    pub sweep: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ServiceKey>() == 24 && size_of::<ServiceRecord>() == 80);

/// What one segment of a handshake means to the service: which counters it raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeStep {
    facts: Facts,
    answers: bool,
}

impl HandshakeStep {
    const FACTS: Facts = Facts::of(&[
        Fact::Open,
        Fact::Established,
        Fact::ConnectRefused,
        Fact::HandshakeAborted,
        Fact::SynRtx,
        Fact::SynAckRtx,
    ]);

    /// Of these, those of no ordinary handshake.
    const RARE: Facts =
        Facts::of(&[Fact::ConnectRefused, Fact::HandshakeAborted, Fact::SynRtx, Fact::SynAckRtx]);

    /// Facts that say that a SYN-ACK is none of this handshake, or not the first.
    const NO_ANSWER: Facts = Facts::of(&[Fact::SynAckRtx, Fact::SynAckOdd, Fact::SynAckBadAck]);

    /// Whether a segment is one at all: most are not.
    #[inline(always)]
    #[must_use]
    pub const fn is_one(facts: Facts, flags: u16) -> bool {
        facts.any(Self::FACTS) || matches!(TcpFlags(flags).kind(), SegmentKind::SynAck)
    }

    /// Reads a segment with these facts and flags.
    #[inline(always)]
    #[must_use]
    pub const fn of(facts: Facts, flags: u16) -> Self {
        let syn_ack = matches!(TcpFlags(flags).kind(), SegmentKind::SynAck);
        Self { facts, answers: syn_ack && !facts.any(Self::NO_ANSWER) }
    }

    /// Whether this is the first SYN-ACK: the one that makes a service of an address.
    #[inline(always)]
    #[must_use]
    pub const fn answers(self) -> bool {
        self.answers
    }

    /// Whether this step raises any counter behind the third: none of an ordinary handshake does.
    #[inline(always)]
    #[must_use]
    pub const fn is_rare(self) -> bool {
        self.facts.any(Self::RARE)
    }

    /// The counters in the order of [`ServiceRecord`], and whether this step raises each.
    #[inline(always)]
    #[must_use]
    pub const fn raises(self) -> [bool; 8] {
        let Self { facts, answers } = self;
        let again = facts.has(Fact::SynAckRtx);
        [
            facts.has(Fact::Open),
            answers,
            facts.has(Fact::Established),
            facts.has(Fact::ConnectRefused),
            facts.has(Fact::HandshakeAborted),
            facts.has(Fact::SynRtx),
            again,
            again && facts.has(Fact::StateRollback),
        ]
    }
}

impl ServiceRecord {
    /// Counts one half-open handshake for the sweep `number`.
    #[inline(always)]
    pub const fn count_half_open(&mut self, number: u32, answered: bool) {
        if self.sweep != number {
            self.sweep = number;
            self.half_open = 0;
            self.half_open_answered = 0;
        }
        self.half_open = self.half_open.saturating_add(1);
        if answered {
            self.half_open_answered = self.half_open_answered.saturating_add(1);
        }
    }

    /// The half-open handshakes that the sweep `number` counted: all, and those that were answered.
    #[must_use]
    pub const fn half_open_at(&self, number: u32) -> (u32, u32) {
        if self.sweep == number { (self.half_open, self.half_open_answered) } else { (0, 0) }
    }
}

/// Whether a flow is a handshake under way, and whether the responder has answered it.
#[inline(always)]
#[must_use]
pub const fn half_open(verdict: Verdict) -> Option<bool> {
    let responder = verdict.originator().other();
    if matches!(verdict.state(responder), crate::fsm::State::SynRecv) && !verdict.has(Verdict::CANDIDATE) {
        Some(verdict.is_confirmed(responder))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u16 = TcpFlags::SYN;
    const ACK: u16 = TcpFlags::ACK;

    fn raised(facts: &[Fact], flags: u16) -> [bool; 8] {
        let mut set = Facts::default();
        facts.iter().for_each(|&fact| set.add(fact));
        assert!(HandshakeStep::is_one(set, flags));
        let step = HandshakeStep::of(set, flags);
        assert_eq!(step.is_rare(), step.raises()[3..].contains(&true));
        step.raises()
    }

    #[test]
    fn each_step_raises_its_counters() {
        let only = |at: &[usize]| std::array::from_fn(|i| at.contains(&i));
        assert_eq!(raised(&[Fact::Open], SYN), only(&[0]));
        assert_eq!(raised(&[], SYN | ACK), only(&[1]));
        assert_eq!(raised(&[Fact::Established], ACK), only(&[2]));
        assert_eq!(raised(&[Fact::SynAckRtx], SYN | ACK), only(&[6]));
        assert_eq!(raised(&[Fact::SynAckRtx, Fact::StateRollback], SYN | ACK), only(&[6, 7]));
        assert_eq!(raised(&[Fact::SynAckOdd], SYN | ACK), only(&[]));
        assert!(!HandshakeStep::is_one(Facts::default(), ACK));
    }

    #[test]
    fn a_new_sweep_counts_anew() {
        let mut service = ServiceRecord::default();
        service.count_half_open(1, true);
        service.count_half_open(1, false);
        assert_eq!((service.half_open_at(1), service.half_open_at(2)), ((2, 1), (0, 0)));
        service.count_half_open(2, false);
        assert_eq!(service.half_open_at(2), (1, 0));
    }
}
