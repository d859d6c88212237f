//! The table of what happens on the demo network.

use anyhow::Result;

use super::{Stage, ordinary, scripted};
use crate::lab::Family;

/// Where half-open handshakes end up; its listener lives as long as the stage.
pub const PORT_HALF_OPEN: u16 = 8006;
/// Where the leaky server listens.
pub const PORT_LEAKY: u16 = 8007;

/// One thing that happens to connections.
pub struct Scenario {
    /// Short name.
    pub name: &'static str,
    /// What a person is told.
    pub description: &'static str,
    /// Played once for each of these.
    pub families: &'static [Family],
    pub(super) play: fn(&Stage, Family) -> Result<()>,
}

const BOTH: &[Family] = &[Family::V4, Family::V6];
const V4: &[Family] = &[Family::V4];

/// Everything, in the order of a wave: what lasts longest first.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "silent peer",
        description: "a SYN that nobody answers: SYN-SENT, then the client gives up",
        families: V4,
        play: scripted::silent_peer,
    },
    Scenario {
        name: "half-open",
        description: "SYN, SYN+ACK, and the last ACK never comes: SYN-RECV",
        families: BOTH,
        play: scripted::half_open,
    },
    Scenario {
        name: "leaky server",
        description: "the client closes, the server forgets to: CLOSE-WAIT for good",
        families: BOTH,
        play: ordinary::leak,
    },
    Scenario {
        name: "client closes",
        description: "request, answer, the client closes first: FIN-WAIT-2, CLOSE-WAIT, TIME-WAIT at the client",
        families: BOTH,
        play: ordinary::client_closes,
    },
    Scenario {
        name: "server closes",
        description: "request, answer, the server closes first: TIME-WAIT at the server",
        families: BOTH,
        play: ordinary::server_closes,
    },
    Scenario {
        name: "half-close",
        description: "the client ends its half, the server goes on sending, then closes",
        families: BOTH,
        play: ordinary::half_close,
    },
    Scenario {
        name: "refused",
        description: "a connect to a closed port: answered by RST",
        families: BOTH,
        play: ordinary::refused,
    },
    Scenario {
        name: "reset",
        description: "the client aborts an established connection: RST instead of FIN",
        families: BOTH,
        play: ordinary::reset,
    },
    Scenario {
        name: "late last ACK",
        description: "the last ACK is late: the server's end waits in LAST-ACK",
        families: V4,
        play: scripted::late_last_ack,
    },
    Scenario {
        name: "simultaneous open",
        description: "two SYNs cross: SYN-SENT, SYN-RECV, ESTAB at both ends",
        families: BOTH,
        play: scripted::simultaneous_open,
    },
    Scenario {
        name: "simultaneous close",
        description: "two FINs cross: FIN-WAIT-1, CLOSING, TIME-WAIT",
        families: BOTH,
        play: scripted::simultaneous_close,
    },
];
