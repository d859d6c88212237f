//! Whose a flow is.

use serde::{Deserialize, Serialize};
use tcpfsm_common::fsm::State;

use super::cgroup::Placement;

/// How the owner was found: how much to believe it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// This process holds the very socket of the flow.
    #[default]
    Socket,
    /// This process held the socket; by now it is closed.
    Earlier,
    /// This process listens where the flow arrived; it need not be the one that serves it.
    Listener,
}

impl Confidence {
    /// Every value, the surest first.
    pub const ALL: [Self; 3] = [Self::Socket, Self::Earlier, Self::Listener];

    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Earlier => "earlier",
            Self::Listener => "listener",
        }
    }

    /// What that means, for people.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Socket => "it holds the socket",
            Self::Earlier => "it held the socket, which it has closed",
            Self::Listener => "it listens there; it has not accepted this connection, or that is not known",
        }
    }
}

/// Why no process can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyUnowned {
    /// TIME_WAIT: only the kernel keeps it. Normal.
    TimeWait,
    /// The program has closed it; the kernel ends it on its own. Normal, unless it lasts.
    Orphan,
    /// Waiting to be accepted, and who listens cannot be seen.
    NotAccepted,
    /// This host has no such socket: forwarded, translated (NAT), or gone already.
    NoSocket,
    /// Some process holds it that may not be seen: capabilities are missing, or it is in another namespace.
    Hidden,
    /// Opened a moment ago: processes are looked through at a bounded rate.
    TooNew,
}

impl WhyUnowned {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::TimeWait, Self::Orphan, Self::NotAccepted, Self::NoSocket, Self::Hidden, Self::TooNew];

    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TimeWait => "time_wait",
            Self::Orphan => "orphan",
            Self::NotAccepted => "not_accepted",
            Self::NoSocket => "no_socket",
            Self::Hidden => "hidden",
            Self::TooNew => "too_new",
        }
    }

    /// In two words, for a column.
    #[must_use]
    pub const fn short(self) -> &'static str {
        match self {
            Self::TimeWait => "TIME-WAIT: normal",
            Self::Orphan => "closed by its program",
            Self::NotAccepted => "not accepted yet",
            Self::NoSocket => "no socket",
            Self::Hidden => "hidden",
            Self::TooNew => "too new",
        }
    }

    /// What that means, for people.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::TimeWait => {
                "TIME_WAIT has no owner: normal. The program is done with it, the kernel keeps it for a minute"
            }
            Self::Orphan => "the program has closed it; the kernel ends the connection on its own",
            Self::NotAccepted => "no process has accepted it yet, and who listens cannot be seen",
            Self::NoSocket => {
                "this host has no such socket: it is forwarded or translated (NAT), or already gone"
            }
            Self::Hidden => {
                "a process holds it that this daemon may not see: it needs CAP_SYS_PTRACE and \
                 CAP_DAC_READ_SEARCH, and the PID namespace of the host"
            }
            Self::TooNew => "opened a moment ago: processes are looked through once a second at most",
        }
    }
}

/// A process that owns a flow, in the words an operator knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Process id, in the PID namespace of the observer.
    pub pid: u32,
    /// The name of the main thread, at most 15 bytes (`/proc/PID/comm`).
    pub comm: String,
    /// The executable; `None` without the right to read it.
    pub exe: Option<String>,
    /// The systemd unit, from the cgroup path.
    pub unit: Option<String>,
    /// The container id, in full, from the cgroup path.
    pub container: Option<String>,
    /// The Kubernetes pod UID, from the cgroup path.
    pub pod: Option<String>,
    /// How this was found.
    pub confidence: Confidence,
}

/// Whose a flow's end is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This process's.
    Process(Owner),
    /// No process can be named: why, and the unit, container and pod that its socket was made in.
    Nobody(WhyUnowned, Option<Placement>),
}

/// What the host knows of one end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whose it is.
    pub whose: Whose,
    /// The state of the kernel's socket; `None` where there is none, or the kernel did not answer.
    pub state: Option<State>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_ones_in_json() {
        for confidence in Confidence::ALL {
            assert_eq!(serde_json::to_string(&confidence).unwrap(), format!("\"{}\"", confidence.name()));
        }
        for why in WhyUnowned::ALL {
            assert_eq!(serde_json::to_string(&why).unwrap(), format!("\"{}\"", why.name()));
        }
    }
}
