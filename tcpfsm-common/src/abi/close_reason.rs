//! How flows end.

/// How a flow ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// It has not.
    #[default]
    Open = 0,
    /// By FIN from both ends.
    Finish = 1,
    /// By a reset from the originator.
    ResetByOriginator = 2,
    /// By a reset from the responder.
    ResetByResponder = 3,
    /// Its time ran out.
    Timeout = 4,
    /// The connection request was refused.
    Refused = 5,
    /// The connection request could not be delivered.
    Unreachable = 6,
    /// The map needed the room.
    Evicted = 7,
    /// The host's own socket is gone, and no segment told so.
    SocketGone = 8,
}

impl CloseReason {
    /// Every reason, in the order of the codes.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Finish,
        Self::ResetByOriginator,
        Self::ResetByResponder,
        Self::Timeout,
        Self::Refused,
        Self::Unreachable,
        Self::Evicted,
        Self::SocketGone,
    ];

    /// The reason with this code.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Finish,
            2 => Self::ResetByOriginator,
            3 => Self::ResetByResponder,
            4 => Self::Timeout,
            5 => Self::Refused,
            6 => Self::Unreachable,
            7 => Self::Evicted,
            8 => Self::SocketGone,
            _ => Self::Open,
        }
    }

    /// The name used in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Finish => "finish",
            Self::ResetByOriginator => "reset_by_originator",
            Self::ResetByResponder => "reset_by_responder",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Evicted => "evicted",
            Self::SocketGone => "socket_gone",
        }
    }
}
