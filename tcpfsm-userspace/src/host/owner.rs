//! Whose a flow is.

/// How the owner was found: how much to believe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Confidence {
    /// This process holds the very socket of the flow.
    Socket,
    /// This process listens where the flow arrived; it need not be the one that serves it.
    Listener,
}

impl Confidence {
    /// Every value, the surest first.
    pub const ALL: [Self; 2] = [Self::Socket, Self::Listener];

    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Listener => "listener",
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
