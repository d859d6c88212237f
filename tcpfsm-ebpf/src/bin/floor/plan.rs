//! What `vary` makes of the one frame that a test run repeats. Shared with the bench, which includes this file.

/// How many packets a script may have.
pub const STEPS: usize = 16;

/// One packet of a script.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Step {
    /// 0: from the client, 1: from the server.
    pub reverse: u32,
    /// TCP flags.
    pub flags: u32,
    /// Sequence number in the first turn, …
    pub seq: u32,
    /// … and how much it grows with each turn.
    pub seq_turn: u32,
    /// Acknowledgment number in the first turn, …
    pub ack: u32,
    /// … and how much it grows with each turn.
    pub ack_turn: u32,
    /// What the IP header gives as length: IPv4's total length, IPv6's payload length.
    pub len: u32,
    /// Window, unscaled.
    pub window: u32,
}

/// Which packet comes next. Each unit plays the whole script on one flow; a turn is one unit on each flow.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Plan {
    /// Units begun before the present one.
    pub unit: u64,
    /// Flows less one, a power of two less one; all ones: each unit is a flow never seen before.
    pub mask: u64,
    /// Log₂ of the number of flows: how far to shift a unit for its turn.
    pub turn_shift: u32,
    /// Half of that, rounded up: by it the order of the flows is mixed. 0: one after the other.
    pub mix_shift: u32,
    /// The first flow's number.
    pub first: u32,
    /// The next step.
    pub step: u32,
    /// How many steps the script has.
    pub steps: u32,
    /// Nothing.
    pub spare: u32,
    /// The packets of a unit.
    pub script: [Step; STEPS],
}

/// The client of a flow has address `CLIENTS + flow / 16384` (in IPv6 as the last word) …
pub const CLIENTS: u32 = 0x0a00_0000;
/// … and port `CLIENT_PORTS + flow % 16384`.
pub const CLIENT_PORTS: u32 = 1024;
/// Every server's address.
pub const SERVER: u32 = 0xc0a8_0101;
/// Every server's port.
pub const SERVER_PORT: u16 = 443;
