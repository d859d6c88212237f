//! The kinds of anomaly: a closed set, whose names are in metrics, JSON, filters and documentation.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Every kind of anomaly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnomalyKind {
    // Stuck in a state.
    /// The peer has closed, the local program does not: a socket leak.
    CloseWaitStuck,
    /// A FIN that nobody acknowledges.
    FinWait1Stuck,
    /// Our FIN is acknowledged, and the peer does not close its side.
    FinWait2Stuck,
    /// The last FIN is not acknowledged.
    LastAckStuck,
    /// Both ends closed at once, and the FIN is not acknowledged.
    ClosingStuck,
    /// Connection requests that nobody answers.
    SynSentStuck,
    /// Handshakes that were answered and not completed.
    HalfOpen,
    /// Connections over which nothing went for longer than a keepalive would allow.
    IdleEstablished,
    /// The receiver's window stays closed: its program does not read.
    ZeroWindowStall,
    /// One end is gone and the other does not know it.
    PeerGone,
    // Too much of something.
    /// More half-open handshakes at a service than its clients can explain.
    SynFlood,
    /// SYN-ACKs that answer no request: reflected off others with our address forged.
    SynackFlood,
    /// Resets that belong to no connection.
    RstFlood,
    /// Segments that belong to no connection.
    AckFlood,
    /// One source tries many addresses or ports.
    PortScan,
    // Handshakes.
    /// Connection requests answered by a reset: nobody listens.
    ConnectRefused,
    /// Connection requests given up without any answer.
    ConnectTimeout,
    /// Connection requests answered by an ICMP unreachable.
    ConnectUnreachable,
    /// Handshakes ended by a reset before they completed.
    HandshakeAborted,
    /// The client is connected, the server does not accept: its accept queue is full.
    AcceptQueueOverflow,
    /// SYNs or SYN-ACKs are sent again: loss, or a server that does not keep up.
    HandshakeRetransmission,
    // Resets.
    /// Connections ended by a reset instead of a FIN.
    ConnectionAborted,
    /// One address sends resets at a high rate.
    RstStorm,
    /// Resets inside the window but not at the exact number: the receiver challenges them.
    RstInexact,
    /// Resets outside the window: ignored by the receiver.
    RstOutOfWindow,
    /// An end goes on sending after "its" reset: somebody else sent that reset.
    RstInjection,
    /// A reset cut TIME-WAIT short.
    TwAssassination,
    /// Segments that no conforming stack sends in that state.
    IllegalSegments,
    // Trends, and the two views.
    /// A service's CLOSE-WAIT rises steadily.
    CloseWaitLeak,
    /// TIME-WAIT takes up the local ports towards one destination.
    TimeWaitPressure,
    /// Much of what is sent is sent again.
    RetransmissionStorm,
    /// The wire and the kernel's socket disagree about a state.
    ViewMismatch,
}

impl AnomalyKind {
    /// Every kind, in the order of the metrics.
    pub const ALL: [Self; 32] = [
        Self::CloseWaitStuck,
        Self::FinWait1Stuck,
        Self::FinWait2Stuck,
        Self::LastAckStuck,
        Self::ClosingStuck,
        Self::SynSentStuck,
        Self::HalfOpen,
        Self::IdleEstablished,
        Self::ZeroWindowStall,
        Self::PeerGone,
        Self::SynFlood,
        Self::SynackFlood,
        Self::RstFlood,
        Self::AckFlood,
        Self::PortScan,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectUnreachable,
        Self::HandshakeAborted,
        Self::AcceptQueueOverflow,
        Self::HandshakeRetransmission,
        Self::ConnectionAborted,
        Self::RstStorm,
        Self::RstInexact,
        Self::RstOutOfWindow,
        Self::RstInjection,
        Self::TwAssassination,
        Self::IllegalSegments,
        Self::CloseWaitLeak,
        Self::TimeWaitPressure,
        Self::RetransmissionStorm,
        Self::ViewMismatch,
    ];

    /// The name in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::CloseWaitStuck => "close_wait_stuck",
            Self::FinWait1Stuck => "fin_wait1_stuck",
            Self::FinWait2Stuck => "fin_wait2_stuck",
            Self::LastAckStuck => "last_ack_stuck",
            Self::ClosingStuck => "closing_stuck",
            Self::SynSentStuck => "syn_sent_stuck",
            Self::HalfOpen => "half_open",
            Self::IdleEstablished => "idle_established",
            Self::ZeroWindowStall => "zero_window_stall",
            Self::PeerGone => "peer_gone",
            Self::SynFlood => "syn_flood",
            Self::SynackFlood => "synack_flood",
            Self::RstFlood => "rst_flood",
            Self::AckFlood => "ack_flood",
            Self::PortScan => "port_scan",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::HandshakeAborted => "handshake_aborted",
            Self::AcceptQueueOverflow => "accept_queue_overflow",
            Self::HandshakeRetransmission => "handshake_retransmission",
            Self::ConnectionAborted => "connection_aborted",
            Self::RstStorm => "rst_storm",
            Self::RstInexact => "rst_inexact",
            Self::RstOutOfWindow => "rst_out_of_window",
            Self::RstInjection => "rst_injection",
            Self::TwAssassination => "tw_assassination",
            Self::IllegalSegments => "illegal_segments",
            Self::CloseWaitLeak => "close_wait_leak",
            Self::TimeWaitPressure => "time_wait_pressure",
            Self::RetransmissionStorm => "retransmission_storm",
            Self::ViewMismatch => "view_mismatch",
        }
    }

    /// What the count of an anomaly of this kind counts, in words for so many.
    #[must_use]
    pub const fn counts(self, count: u64) -> &'static str {
        let [one, many] = match self {
            Self::CloseWaitStuck
            | Self::FinWait1Stuck
            | Self::FinWait2Stuck
            | Self::LastAckStuck
            | Self::ClosingStuck
            | Self::SynSentStuck
            | Self::HalfOpen
            | Self::ViewMismatch => ["connection", "connections"],
            Self::IdleEstablished => ["idle connection", "idle connections"],
            Self::ZeroWindowStall => {
                ["connection whose window stays closed", "connections whose window stays closed"]
            }
            Self::PeerGone => ["connection whose peer is gone", "connections whose peer is gone"],
            Self::SynFlood => ["half-open handshake", "half-open handshakes"],
            Self::SynackFlood => ["SYN-ACK that nobody asked for", "SYN-ACKs that nobody asked for"],
            Self::RstFlood => ["reset of no connection", "resets of no connection"],
            Self::AckFlood => ["ACK of no connection", "ACKs of no connection"],
            Self::PortScan => ["target", "targets"],
            Self::ConnectRefused => ["refused connection request", "refused connection requests"],
            Self::ConnectTimeout => {
                ["connection request without an answer", "connection requests without an answer"]
            }
            Self::ConnectUnreachable => ["unreachable connection request", "unreachable connection requests"],
            Self::HandshakeAborted => ["aborted handshake", "aborted handshakes"],
            Self::AcceptQueueOverflow => [
                "SYN or SYN-ACK sent again for want of room in the accept queue",
                "SYNs and SYN-ACKs sent again for want of room in the accept queue",
            ],
            Self::HandshakeRetransmission => ["SYN or SYN-ACK sent again", "SYNs and SYN-ACKs sent again"],
            Self::ConnectionAborted => ["aborted connection", "aborted connections"],
            Self::RstStorm => ["reset", "resets"],
            Self::RstInexact => ["inexact reset", "inexact resets"],
            Self::RstOutOfWindow => ["reset outside the window", "resets outside the window"],
            Self::RstInjection => {
                ["reset that its sender did not send", "resets that their sender did not send"]
            }
            Self::TwAssassination => ["TIME-WAIT cut short", "TIME-WAITs cut short"],
            Self::IllegalSegments => ["illegal segment", "illegal segments"],
            Self::CloseWaitLeak => {
                ["connection in CLOSE-WAIT and rising", "connections in CLOSE-WAIT and rising"]
            }
            Self::TimeWaitPressure => ["port in TIME-WAIT", "ports in TIME-WAIT"],
            Self::RetransmissionStorm => ["retransmission", "retransmissions"],
        };
        if count == 1 { one } else { many }
    }

    /// Whether the flow that is named is in a state for long, rather than an example of what happens.
    #[must_use]
    pub const fn is_dwelling(self) -> bool {
        matches!(
            self,
            Self::CloseWaitStuck
                | Self::FinWait1Stuck
                | Self::FinWait2Stuck
                | Self::LastAckStuck
                | Self::ClosingStuck
                | Self::SynSentStuck
                | Self::HalfOpen
                | Self::ViewMismatch
        )
    }
}

/// There is no such kind of anomaly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownKind;

impl FromStr for AnomalyKind {
    type Err = UnknownKind;

    /// Accepts `close_wait_stuck`, `close-wait-stuck`, `CloseWaitStuck`.
    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let letters = || text.bytes().filter(u8::is_ascii_alphanumeric).map(|b| b.to_ascii_lowercase());
        Self::ALL
            .into_iter()
            .find(|kind| letters().eq(kind.name().bytes().filter(|&b| b != b'_')))
            .ok_or(UnknownKind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_are_the_ones_in_json() {
        for (at, kind) in AnomalyKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{}\"", kind.name()));
        }
        assert_eq!("FIN-WAIT2-stuck".parse(), Ok(AnomalyKind::FinWait2Stuck));
        assert_eq!("stuck".parse::<AnomalyKind>(), Err(UnknownKind));
    }
}
