//! Everything known of one connection: what `explain` shows, and its JSON.

use std::{borrow::Cow, net::SocketAddr};

use serde::{Deserialize, Serialize};
use tcpfsm_common::{flow::Direction, fsm::State};

use crate::{
    clock::Wall,
    detect::AnomalyKind,
    owner::{Proc, Unowned},
    report::{Local, Side, direction_name, optional_state_name, state_name},
};

/// One connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Story {
    /// Who sent the first SYN, or is guessed to have.
    pub orig: SocketAddr,
    /// The other end.
    pub resp: SocketAddr,
    /// The interface on which it was seen; empty in a capture.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub iface: Cow<'static, str>,
    /// Which end is a socket of this host, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Local>,
    /// The originator.
    pub orig_end: EndStory,
    /// The responder.
    pub resp_end: EndStory,
    /// How long it has lasted, as far as that is known.
    pub age_ns: u64,
    /// Since the last segment from either end.
    pub idle_ns: u64,
    /// How it ended, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<Cow<'static, str>>,
    /// What of its past was not seen.
    pub origin: Origin,
    /// Everything noteworthy of its life.
    pub facts: Vec<Cow<'static, str>>,
    /// What happened, in order.
    pub timeline: Vec<Moment>,
    /// Further segments, without anything noteworthy in them.
    pub plain_segments: u64,
    /// Noteworthy segments left out of the timeline, for length,
    #[serde(default)]
    pub left_out: u64,
    /// after so many of its moments.
    #[serde(default)]
    pub left_out_at: usize,
    /// Whether the timeline has every noteworthy segment; the daemon remembers only so many events.
    pub timeline_whole: bool,
    /// The state of the kernel's own socket at this host's end.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_state_name")]
    pub kernel_state: Option<State>,
    /// The owner of this host's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proc: Option<Proc>,
    /// Why it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unowned: Option<Unowned>,
    /// The anomalies that it shows, or is part of.
    pub anomalies: Vec<AnomalyKind>,
}

/// One end of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndStory {
    /// Its state.
    #[serde(with = "state_name")]
    pub state: State,
    /// Whether it proved that itself.
    pub confirmed: bool,
    /// For how long it has been in it.
    pub dwell_ns: u64,
    /// Segments that it sent.
    pub pkts: u64,
    /// Payload bytes that it sent.
    pub bytes: u64,
    /// Segments that it sent again.
    pub rtx: u32,
    /// How far its sequence numbers went, from its first; none where it was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_to: Option<u32>,
    /// How far the other end acknowledged them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_to: Option<u32>,
    /// Whether its FIN was seen.
    pub fin: bool,
    /// Whether its window is closed.
    pub zero_window: bool,
}

/// What of a connection's past was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// All of it.
    #[default]
    Seen,
    /// It began before; the wire showed it in mid-stream.
    PickedUp,
    /// It began before; its sockets were there when the daemon started.
    Socket,
}

/// One segment, or the clock, and what it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// When.
    pub ts: Wall,
    /// The packet's number in the capture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<u64>,
    /// Which way the segment went; none where no segment did it.
    #[serde(with = "direction_name")]
    pub dir: Option<Direction>,
    /// Its flags, in the order S F R P A U E C.
    pub flags: Cow<'static, str>,
    /// Its sequence number, relative to its sender's first.
    pub seq: u32,
    /// What it acknowledged, relative to the other end's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<u32>,
    /// Its payload in bytes.
    pub len: u32,
    /// The steps that the ends took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// What it told.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Cow<'static, str>>,
}

/// One end's step from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which end.
    pub side: Side,
    /// Where it was.
    #[serde(with = "state_name")]
    pub from: State,
    /// Where it is.
    #[serde(with = "state_name")]
    pub to: State,
    /// Whether that end itself proved it.
    pub confirmed: bool,
    /// How long it was in the earlier state; 0 where that is not known.
    pub dwell_ns: u64,
    /// What it meant to that end.
    pub why: Cow<'static, str>,
}

impl Story {
    /// One end.
    #[must_use]
    pub const fn end(&self, side: Side) -> &EndStory {
        match side {
            Side::Orig => &self.orig_end,
            Side::Resp => &self.resp_end,
        }
    }

    /// Address and port of one end.
    #[must_use]
    pub const fn address(&self, side: Side) -> SocketAddr {
        match side {
            Side::Orig => self.orig,
            Side::Resp => self.resp,
        }
    }

    /// Whether a fact of this name was told.
    #[must_use]
    pub fn has(&self, fact: &str) -> bool {
        self.facts.iter().any(|known| known == fact)
    }
}
