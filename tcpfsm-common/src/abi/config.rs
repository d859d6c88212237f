//! What the daemon tells the kernel programs when it loads them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Read-only configuration, set before the programs are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KernelConfig {
    /// Written into every flow key: keeps equal tuples on different networks apart.
    pub scope: u32,
    /// [`Self::RFC1337`] and the other bits.
    pub flags: u32,
    /// Events of what moves no connection told one by one in a slot of 2³⁰ ns, handshakes that complete not counted; beyond
    /// these a part is told. 0: all are told. Strays do not count towards it: their quota is fixed.
    pub event_quota: u32,
    /// How many CPUs have a lane for their events: those below this number. The others' go into the ring.
    pub lanes: u32,
    /// Handshakes that a CPU may put straight into the flow map in a slot of 2³³ ns, those that complete not counted. 0: none.
    pub early: u32,
}

impl KernelConfig {
    /// The defaults of the programs, where no daemon has set anything: every event told, through the ring.
    pub const NONE: Self = Self { scope: 0, flags: 0, event_quota: 0, lanes: 0, early: 0 };
    /// The host ignores resets in TIME-WAIT (sysctl `net.ipv4.tcp_rfc1337`).
    pub const RFC1337: u32 = 1;
    /// Do not pick up connections begun before the observer.
    pub const STRICT: u32 = 2;
}

const _: () = assert!(size_of::<KernelConfig>() == 20);
