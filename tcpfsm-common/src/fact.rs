//! What a segment told the observer, beside the states: a closed set of facts, at most 64 so that one
//! segment's are one word.

/// One fact about one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fact {
    /// A connection request: the first SYN of a flow or of a new generation of it.
    Open = 0,
    /// The handshake completed: both ends reached ESTABLISHED, or a FIN took one of them beyond it at once.
    Established,
    /// Both ends sent a SYN before they saw the other's (RFC 9293 §3.5 figure 8).
    SimultaneousOpen,
    /// One end sent its FIN; the other may go on sending.
    HalfClosed,
    /// Both ends sent a FIN before they saw the other's (RFC 9293 §3.6 figure 13).
    SimultaneousClose,
    /// Both ends are closed; the close reason says how.
    Closed,
    /// The same four-tuple opened again after its earlier connection had ended.
    PortReuse,
    /// A SYN reopened a connection in TIME-WAIT (RFC 9293 §3.6.1, RFC 6191).
    TwReuse,
    /// A connection begun before the observer, picked up in mid-stream.
    MidstreamPickup,
    /// Data in the SYN was acknowledged (TCP Fast Open, RFC 7413).
    TfoAccepted,
    /// Data in the SYN was not acknowledged by the SYN-ACK.
    TfoIgnored,
    /// A SYN carried data.
    SynData,
    /// The connection request was answered by a reset.
    ConnectRefused,
    /// The connection request was answered by an ICMP error that ends it: unreachable, lost on the way.
    ConnectUnreachable,
    /// The handshake was ended by a reset before it completed.
    HandshakeAborted,
    /// A SYN was sent again.
    SynRtx,
    /// A SYN-ACK was sent again.
    SynAckRtx,
    /// A SYN-ACK acknowledged something that was not sent.
    SynAckBadAck,
    /// An ACK in SYN-RECEIVED acknowledged something that was not sent.
    BadAckInHandshake,
    /// A SYN with another initial sequence number, inside the window of a handshake under way.
    SynDiffIsn,
    /// A SYN-ACK that fits no handshake.
    SynAckOdd,
    /// Data from an end that has not completed the handshake.
    DataBeforeHandshake,
    /// A reset that ended a connection.
    Reset,
    /// A reset inside the window but not at the exact number: answered by a challenge ACK (RFC 5961 §3).
    RstInexact,
    /// A reset outside the window: ignored.
    RstOutOfWindow,
    /// A reset that the state does not accept: ignored.
    RstIgnored,
    /// A reset after the end it was sent to had closed.
    RstAfterClose,
    /// A reset with payload.
    RstWithData,
    /// An end went on sending after "its" reset: somebody else sent that reset.
    RstInjectionSuspected,
    /// A reset cut TIME-WAIT short (RFC 1337).
    TwAssassination,
    /// A SYN in a synchronised state: an old duplicate, a forgery, or a peer that lost its state (RFC 5961 §4).
    SynInEstablished,
    /// A SYN to a connection that is alive, from an end that has none any more.
    SynOnLiveFlow,
    /// A SYN that TIME-WAIT does not accept.
    TwSynOld,
    /// An acknowledgment of data that was not seen.
    AckUnseen,
    /// An acknowledgment older than any window (RFC 5961 §5).
    AckTooOld,
    /// A segment outside the receiver's window.
    OutOfWindow,
    /// A segment whose timestamp is older than the last one's (RFC 7323 §5).
    Paws,
    /// Data from an end that had sent its FIN.
    DataAfterFin,
    /// A second FIN with another sequence number.
    FinSeqChanged,
    /// A FIN was sent again.
    FinRtx,
    /// Data was sent again.
    Rtx,
    /// Data was sent again that the receiver had acknowledged.
    SpuriousRtx,
    /// Data beyond a hole, or into one.
    OutOfOrder,
    /// The same acknowledgment again while data is outstanding (RFC 5681 §2).
    DupAck,
    /// A keepalive probe: one before the next sequence number (RFC 9293 §3.8.4).
    Keepalive,
    /// The receiver's window closed.
    ZeroWindow,
    /// A probe of a closed window (RFC 9293 §3.8.6.1).
    ZeroWindowProbe,
    /// Flags that no conforming stack sends: NULL, no ACK, SYN+FIN, SYN+RST, FIN+RST.
    BadFlags,
    /// A segment of no known connection.
    NoSession,
    /// A malformed option; what stood before it counts.
    BadOption,
    /// The same packet seen on a second interface: not a retransmission.
    DuplicateView,
    /// An assumed state was taken back because the wire disproved it.
    StateRollback,
    /// Only one direction of the connection is seen.
    OneSided,
    /// A socket connected to itself.
    SelfConnect,
    /// An end's FIN was not seen, only its acknowledgment.
    FinUnseen,
    /// Sequence numbers moved past data that was never seen.
    CaptureGap,
    /// An ICMP error that ends no connection (RFC 5927 §4). About a SYN-ACK it may end what that answered.
    IcmpSoftError,
}

impl Fact {
    /// Every fact, in the order of the codes.
    pub const ALL: [Self; 57] = [
        Self::Open,
        Self::Established,
        Self::SimultaneousOpen,
        Self::HalfClosed,
        Self::SimultaneousClose,
        Self::Closed,
        Self::PortReuse,
        Self::TwReuse,
        Self::MidstreamPickup,
        Self::TfoAccepted,
        Self::TfoIgnored,
        Self::SynData,
        Self::ConnectRefused,
        Self::ConnectUnreachable,
        Self::HandshakeAborted,
        Self::SynRtx,
        Self::SynAckRtx,
        Self::SynAckBadAck,
        Self::BadAckInHandshake,
        Self::SynDiffIsn,
        Self::SynAckOdd,
        Self::DataBeforeHandshake,
        Self::Reset,
        Self::RstInexact,
        Self::RstOutOfWindow,
        Self::RstIgnored,
        Self::RstAfterClose,
        Self::RstWithData,
        Self::RstInjectionSuspected,
        Self::TwAssassination,
        Self::SynInEstablished,
        Self::SynOnLiveFlow,
        Self::TwSynOld,
        Self::AckUnseen,
        Self::AckTooOld,
        Self::OutOfWindow,
        Self::Paws,
        Self::DataAfterFin,
        Self::FinSeqChanged,
        Self::FinRtx,
        Self::Rtx,
        Self::SpuriousRtx,
        Self::OutOfOrder,
        Self::DupAck,
        Self::Keepalive,
        Self::ZeroWindow,
        Self::ZeroWindowProbe,
        Self::BadFlags,
        Self::NoSession,
        Self::BadOption,
        Self::DuplicateView,
        Self::StateRollback,
        Self::OneSided,
        Self::SelfConnect,
        Self::FinUnseen,
        Self::CaptureGap,
        Self::IcmpSoftError,
    ];

    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Established => "established",
            Self::SimultaneousOpen => "simultaneous_open",
            Self::HalfClosed => "half_closed",
            Self::SimultaneousClose => "simultaneous_close",
            Self::Closed => "closed",
            Self::PortReuse => "port_reuse",
            Self::TwReuse => "tw_reuse",
            Self::MidstreamPickup => "midstream_pickup",
            Self::TfoAccepted => "tfo_accepted",
            Self::TfoIgnored => "tfo_ignored",
            Self::SynData => "syn_data",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::HandshakeAborted => "handshake_aborted",
            Self::SynRtx => "syn_rtx",
            Self::SynAckRtx => "synack_rtx",
            Self::SynAckBadAck => "synack_bad_ack",
            Self::BadAckInHandshake => "bad_ack_in_handshake",
            Self::SynDiffIsn => "syn_diff_isn",
            Self::SynAckOdd => "synack_odd",
            Self::DataBeforeHandshake => "data_before_handshake",
            Self::Reset => "reset",
            Self::RstInexact => "rst_inexact",
            Self::RstOutOfWindow => "rst_out_of_window",
            Self::RstIgnored => "rst_ignored",
            Self::RstAfterClose => "rst_after_close",
            Self::RstWithData => "rst_with_data",
            Self::RstInjectionSuspected => "rst_injection_suspected",
            Self::TwAssassination => "tw_assassination",
            Self::SynInEstablished => "syn_in_established",
            Self::SynOnLiveFlow => "syn_on_live_flow",
            Self::TwSynOld => "tw_syn_old",
            Self::AckUnseen => "ack_unseen",
            Self::AckTooOld => "ack_too_old",
            Self::OutOfWindow => "out_of_window",
            Self::Paws => "paws",
            Self::DataAfterFin => "data_after_fin",
            Self::FinSeqChanged => "fin_seq_changed",
            Self::FinRtx => "fin_rtx",
            Self::Rtx => "rtx",
            Self::SpuriousRtx => "spurious_rtx",
            Self::OutOfOrder => "ooo",
            Self::DupAck => "dup_ack",
            Self::Keepalive => "keepalive",
            Self::ZeroWindow => "zero_window",
            Self::ZeroWindowProbe => "zero_window_probe",
            Self::BadFlags => "bad_flags",
            Self::NoSession => "no_session",
            Self::BadOption => "bad_option",
            Self::DuplicateView => "duplicate_view",
            Self::StateRollback => "state_rollback",
            Self::OneSided => "one_sided",
            Self::SelfConnect => "self_connect",
            Self::FinUnseen => "fin_unseen",
            Self::CaptureGap => "capture_gap",
            Self::IcmpSoftError => "icmp_soft_error",
        }
    }
}

/// A set of [`Fact`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Facts(pub u64);

impl Facts {
    /// Facts that are counted but not worth an event of their own: ordinary loss, and what the verdict says.
    pub const QUIET: Self = Self::of(&[
        Fact::Rtx,
        Fact::SpuriousRtx,
        Fact::OutOfOrder,
        Fact::DupAck,
        Fact::Keepalive,
        Fact::ZeroWindowProbe,
        Fact::NoSession,
        Fact::BadFlags,
        Fact::BadOption,
        Fact::DuplicateView,
        Fact::CaptureGap,
    ]);

    /// The set of these.
    #[must_use]
    pub const fn of(facts: &[Fact]) -> Self {
        let mut set = Self(0);
        let mut at = 0;
        while at < facts.len() {
            set.add(facts[at]);
            at += 1;
        }
        set
    }

    /// Adds a fact.
    #[inline(always)]
    pub const fn add(&mut self, fact: Fact) {
        self.0 |= 1 << fact as u64;
    }

    /// Whether a fact is in the set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, fact: Fact) -> bool {
        self.0 >> fact as u64 & 1 != 0
    }

    /// Whether any of `other` is in the set.
    #[inline(always)]
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether the set is empty.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those not in `other`.
    #[inline(always)]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The facts, in the order of their codes.
    pub fn iter(self) -> impl Iterator<Item = Fact> {
        Fact::ALL.into_iter().filter(move |&fact| self.has(fact))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_list_and_fit_a_word() {
        for (code, fact) in Fact::ALL.into_iter().enumerate() {
            assert_eq!(fact as usize, code);
        }
        assert!(Fact::ALL.len() <= 64);
    }

    #[test]
    fn names_are_distinct() {
        for (i, a) in Fact::ALL.iter().enumerate() {
            assert!(Fact::ALL[..i].iter().all(|b| a.name() != b.name()), "{a:?}");
        }
    }
}
