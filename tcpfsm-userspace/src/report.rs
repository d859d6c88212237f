//! What leaves the pipeline: the live event, schema version 1.
//!
//! Serialised, these types are the schema; `watch` reads it back with the same types. A field may be added
//! within a version; consumers ignore what they do not know.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use tcpfsm_common::{flow::Direction, fsm::State};

use crate::{
    clock::Wall,
    detect::AnomalyKind,
    owner::{Proc, Unowned},
};

/// The version of the schema.
pub const SCHEMA_VERSION: u32 = 1;

/// One live event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub v: u32,
    /// Counts the reports of this daemon from 1: a gap is a loss.
    pub seq: u64,
    /// When it happened.
    pub ts: Wall,
    /// The host that saw it.
    pub host: Cow<'static, str>,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// One end went from one state to another.
    Transition(Transition),
    /// Something is wrong, still wrong, or right again.
    Anomaly(Anomaly),
    /// Neither end can send any more.
    ConnClosed(ConnClosed),
}

impl Body {
    /// The name of the kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Transition(_) => "transition",
            Self::Anomaly(_) => "anomaly",
            Self::ConnClosed(_) => "conn_closed",
        }
    }

    /// Whose flow it is about.
    #[must_use]
    pub const fn flow(&self) -> &Flow {
        match self {
            Self::Transition(Transition { flow, .. })
            | Self::Anomaly(Anomaly { flow, .. })
            | Self::ConnClosed(ConnClosed { flow, .. }) => flow,
        }
    }

    /// The process concerned.
    #[must_use]
    pub const fn proc(&self) -> Option<&Proc> {
        match self {
            Self::Transition(Transition { proc, .. })
            | Self::Anomaly(Anomaly { proc, .. })
            | Self::ConnClosed(ConnClosed { proc, .. }) => proc.as_ref(),
        }
    }
}

/// The flow that a report is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Who sent the first SYN.
    pub orig: SocketAddr,
    /// The other end.
    pub resp: SocketAddr,
    /// The interface on which it was seen.
    pub iface: Cow<'static, str>,
    /// Which end is a socket of this host, if any.
    pub local: Option<Local>,
}

impl Flow {
    /// Address and port of one side.
    #[must_use]
    pub const fn address(&self, side: Side) -> SocketAddr {
        match side {
            Side::Orig => self.orig,
            Side::Resp => self.resp,
        }
    }
}

/// One end of a flow by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The originator.
    Orig,
    /// The responder.
    Resp,
}

impl Side {
    /// Both, in the order of the counters.
    pub const ALL: [Self; 2] = [Self::Orig, Self::Resp];

    /// The name in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Orig => "orig",
            Self::Resp => "resp",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Orig => Self::Resp,
            Self::Resp => Self::Orig,
        }
    }
}

/// Which end is a socket of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Local {
    /// The originator.
    Orig,
    /// The responder.
    Resp,
    /// Both: the host talks to itself.
    Both,
}

impl Local {
    /// From what is known of each end.
    #[must_use]
    pub const fn of(orig: bool, resp: bool) -> Option<Self> {
        match (orig, resp) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::Orig),
            (false, true) => Some(Self::Resp),
            (false, false) => None,
        }
    }

    /// Whether that side is a socket of this host.
    #[must_use]
    pub const fn includes(self, side: Side) -> bool {
        match self {
            Self::Both => true,
            Self::Orig => matches!(side, Side::Orig),
            Self::Resp => matches!(side, Side::Resp),
        }
    }

    /// The side of this host, the responder where both are.
    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::Orig => Side::Orig,
            Self::Resp | Self::Both => Side::Resp,
        }
    }
}

/// One end went from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The flow.
    #[serde(flatten)]
    pub flow: Flow,
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
    /// How long it was in the earlier state; 0 where the beginning was not seen.
    pub dwell_ns: u64,
    /// The segment that did it.
    pub cause: Cause,
    /// The owner of this host's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proc: Option<Proc>,
    /// Why it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unowned: Option<Unowned>,
    /// How many like it this one stands for: more than 1 for handshakes under a flood.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub sample: u8,
}

const fn one() -> u8 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
const fn is_one(sample: &u8) -> bool {
    *sample == 1
}

/// The segment, or the clock, that did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Which way the segment went; none where no segment did it.
    #[serde(with = "direction_name")]
    pub dir: Option<Direction>,
    /// Its flags, in the order S F R P A U E C.
    pub flags: Cow<'static, str>,
    /// What it meant to that end.
    pub why: Cow<'static, str>,
}

/// A connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnClosed {
    /// The flow.
    #[serde(flatten)]
    pub flow: Flow,
    /// How it ended.
    pub reason: Cow<'static, str>,
    /// The originator's state.
    #[serde(with = "state_name")]
    pub orig_state: State,
    /// The responder's state.
    #[serde(with = "state_name")]
    pub resp_state: State,
    /// How long it lasted.
    pub duration_ns: u64,
    /// Segments that the originator sent.
    pub orig_pkts: u64,
    /// Segments that the responder sent.
    pub resp_pkts: u64,
    /// Payload bytes that the originator sent.
    pub orig_bytes: u64,
    /// Payload bytes that the responder sent.
    pub resp_bytes: u64,
    /// Everything noteworthy of its life.
    pub facts: Vec<Cow<'static, str>>,
    /// The owner of this host's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proc: Option<Proc>,
    /// Why it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unowned: Option<Unowned>,
    /// How many like it this one stands for: more than 1 for handshakes under a flood.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub sample: u8,
}

/// Something is wrong with a group of flows; the flow named is the one longest concerned, or an example. Where only a
/// service is known, the other end is address and port 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anomaly {
    /// The flow longest concerned.
    #[serde(flatten)]
    pub flow: Flow,
    /// Which end of it.
    pub side: Side,
    /// What is wrong.
    pub anomaly: AnomalyKind,
    /// Whether it begins, goes on, or is over.
    pub phase: Phase,
    /// How much it matters.
    pub severity: Severity,
    /// The address that all flows concerned have in common: the responder's. A scan's example.
    pub service: SocketAddr,
    /// Who does it, where it is about one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// How it is done, or how it was noticed, where there are several ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub technique: Option<Cow<'static, str>>,
    /// The share that is judged: of handshakes that complete, of requests that fail, of segments sent again, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// How many there are, of what the kind counts: flows, segments, targets; at the end, 0.
    pub count: u64,
    /// How many were at most.
    pub peak: u64,
    /// When the anomaly began.
    pub first_seen: Wall,
    /// How long the flow longest concerned has been in its state, or since the example.
    pub oldest_ns: u64,
    /// The state it is stuck in; of an example, the state it was in.
    #[serde(with = "state_name")]
    pub state: State,
    /// The state of the kernel's own socket, where it is this host's.
    pub kernel_state: Option<Cow<'static, str>>,
    /// The owner of this host's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proc: Option<Proc>,
    /// Why it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unowned: Option<Unowned>,
}

/// A share in thousandths; in JSON a number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(pub u16);

impl Serialize for Ratio {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1_000.0)
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let share = f64::deserialize(deserializer)?.clamp(0.0, 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most 1000, and not negative"
        )]
        Ok(Self((share * 1_000.0).round() as u16))
    }
}

/// Where an anomaly is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It began.
    Start,
    /// It goes on.
    Update,
    /// It is over.
    End,
}

/// How much an anomaly matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Needs a look.
    Warning,
    /// Needs one now.
    Critical,
}

impl Severity {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// A state by its machine name.
pub mod state_name {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use tcpfsm_common::fsm::State;

    /// Writes the name.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(state: &State, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(state.name())
    }

    /// Reads any spelling.
    ///
    /// # Errors
    /// There is no such state.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<State, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(|_| de::Error::custom(format!("{name:?} is no TCP state")))
    }
}

/// The same for a state that may not be known.
pub mod optional_state_name {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de};
    use tcpfsm_common::fsm::State;

    /// Writes the name, or null.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(state: &Option<State>, serializer: S) -> Result<S::Ok, S::Error> {
        state.map(State::name).serialize(serializer)
    }

    /// Reads any spelling, or null.
    ///
    /// # Errors
    /// There is no such state.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<State>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|name| name.parse().map_err(|_| de::Error::custom(format!("{name:?} is no TCP state"))))
            .transpose()
    }
}

/// A direction by its name, or null.
pub(crate) mod direction_name {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de};
    use tcpfsm_common::flow::Direction;

    pub(crate) fn serialize<S: Serializer>(
        direction: &Option<Direction>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        direction.map(Direction::name).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Direction>, D::Error> {
        match Option::<String>::deserialize(deserializer)?.as_deref() {
            None => Ok(None),
            Some("original") => Ok(Some(Direction::Original)),
            Some("reply") => Ok(Some(Direction::Reply)),
            Some(other) => Err(de::Error::custom(format!("{other:?} is no direction"))),
        }
    }
}
