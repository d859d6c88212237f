//! The eleven states.

use core::str::FromStr;

/// A state of one end of a connection (RFC 9293 §3.3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// No connection.
    #[default]
    Closed = 0,
    /// Waiting for a connection request. Seen from the wire: an end that was sent a SYN, before it.
    Listen = 1,
    /// Waiting for a matching connection request after having sent one.
    SynSent = 2,
    /// Waiting for the acknowledgment of its SYN after both received and sent a connection request.
    SynRecv = 3,
    /// Open: data can be exchanged.
    Established = 4,
    /// Waiting for a FIN, or for the acknowledgment of the FIN sent.
    FinWait1 = 5,
    /// Waiting for a FIN; its own was acknowledged.
    FinWait2 = 6,
    /// The peer has closed; the local program has not.
    CloseWait = 7,
    /// Both closed at once; waiting for the acknowledgment of its FIN.
    Closing = 8,
    /// Waiting for the acknowledgment of its FIN, the peer's having come before.
    LastAck = 9,
    /// Waiting long enough for old segments to die.
    TimeWait = 10,
}

/// A byte or a word that names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownState;

impl State {
    /// Every state, in the order of the codes.
    pub const ALL: [Self; 11] = [
        Self::Closed,
        Self::Listen,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait1,
        Self::FinWait2,
        Self::CloseWait,
        Self::Closing,
        Self::LastAck,
        Self::TimeWait,
    ];

    /// The state with this code, `Closed` for codes that have none.
    #[inline(always)]
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Listen,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::Established,
            5 => Self::FinWait1,
            6 => Self::FinWait2,
            7 => Self::CloseWait,
            8 => Self::Closing,
            9 => Self::LastAck,
            10 => Self::TimeWait,
            _ => Self::Closed,
        }
    }

    /// The name in metrics, JSON and configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Listen => "listen",
            Self::SynSent => "syn_sent",
            Self::SynRecv => "syn_recv",
            Self::Established => "established",
            Self::FinWait1 => "fin_wait1",
            Self::FinWait2 => "fin_wait2",
            Self::CloseWait => "close_wait",
            Self::Closing => "closing",
            Self::LastAck => "last_ack",
            Self::TimeWait => "time_wait",
        }
    }

    /// The name as `ss` spells it, for people.
    #[must_use]
    pub const fn ss_name(self) -> &'static str {
        match self {
            Self::Closed => "CLOSED",
            Self::Listen => "LISTEN",
            Self::SynSent => "SYN-SENT",
            Self::SynRecv => "SYN-RECV",
            Self::Established => "ESTAB",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
        }
    }

    /// Whether there is no state for this flow at this end (conformance treats CLOSED and LISTEN alike).
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::Listen)
    }

    /// Whether the handshake is under way.
    #[inline(always)]
    #[must_use]
    pub const fn is_embryonic(self) -> bool {
        matches!(self, Self::SynSent | Self::SynRecv)
    }

    /// Whether this end has reached ESTABLISHED or a state after it.
    #[inline(always)]
    #[must_use]
    pub const fn is_synchronized(self) -> bool {
        self as u8 >= Self::Established as u8
    }
}

impl TryFrom<u8> for State {
    type Error = UnknownState;

    fn try_from(code: u8) -> Result<Self, UnknownState> {
        Self::ALL.get(usize::from(code)).copied().ok_or(UnknownState)
    }
}

impl FromStr for State {
    type Err = UnknownState;

    /// Accepts every spelling in use: `close_wait`, `CLOSE-WAIT`, `CloseWait`, `ESTAB`, `FIN-WAIT-1`, `SYN_RECEIVED`.
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let letters = || text.bytes().filter(u8::is_ascii_alphanumeric).map(|b| b.to_ascii_lowercase());
        let is = |name: &str| letters().eq(name.bytes());
        Self::ALL
            .into_iter()
            .find(|state| {
                let name = state.name().bytes().filter(|&b| b != b'_');
                letters().eq(name)
            })
            .or_else(|| match () {
                () if is("estab") => Some(Self::Established),
                () if is("synreceived") || is("synrcvd") => Some(Self::SynRecv),
                () if is("timewait") => Some(Self::TimeWait),
                () if is("close") || is("unconn") => Some(Self::Closed),
                () => None,
            })
            .ok_or(UnknownState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_round_trip() {
        for (code, state) in (0_u8..).zip(State::ALL) {
            assert_eq!(State::try_from(code), Ok(state));
            assert_eq!(State::from_code(code), state);
            assert_eq!(state.name().parse(), Ok(state));
            assert_eq!(state.ss_name().parse(), Ok(state));
        }
        assert_eq!(State::try_from(11), Err(UnknownState));
        assert_eq!("established-ish".parse::<State>(), Err(UnknownState));
        assert_eq!("SYN_RECEIVED".parse(), Ok(State::SynRecv));
    }
}
