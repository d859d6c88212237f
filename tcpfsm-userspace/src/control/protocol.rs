//! What goes over the socket.

use std::{borrow::Cow, net::SocketAddr};

use serde::{Deserialize, Serialize};
use tcpfsm_common::fsm::State;

use super::filter::Filter;
use crate::{
    owner::{Proc, Unowned},
    report::{Local, SCHEMA_VERSION, Side, optional_state_name, state_name},
};

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The schema it speaks.
    pub v: u32,
    /// What it wants.
    pub request: What,
    /// What of it.
    #[serde(default)]
    pub filter: Filter,
    /// Which flow, by its two ends in any order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<[SocketAddr; 2]>,
}

impl Request {
    /// In this version's schema.
    #[must_use]
    pub const fn new(request: What, filter: Filter) -> Self {
        Self { v: SCHEMA_VERSION, request, filter, flow: None }
    }

    /// Asks for everything known of one flow.
    #[must_use]
    pub fn explain(flow: [SocketAddr; 2]) -> Self {
        Self { flow: Some(flow), ..Self::new(What::Explain, Filter::default()) }
    }
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Live events from now on.
    Watch,
    /// The flows as they are.
    List,
    /// Counts and losses.
    Stats,
    /// The anomalies that go on.
    Anomalies,
    /// Everything known of one flow.
    Explain,
}

/// A line that is no event: the server's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// The answer is no.
    Error(String),
    /// Something that people should know about the answer.
    Note(String),
    /// So many events were dropped because this watcher is too slow.
    Lost(u64),
    /// The list is complete: so many flows matched.
    End(u64),
}

/// One flow as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowLine {
    /// Who sent the first SYN, or is guessed to have.
    pub orig: SocketAddr,
    /// The other end.
    pub resp: SocketAddr,
    /// The interface on which the originator was first seen, else the responder.
    pub iface: Cow<'static, str>,
    /// Which end is a socket of this host, if any.
    pub local: Option<Local>,
    /// The originator's state.
    #[serde(with = "state_name")]
    pub orig_state: State,
    /// The responder's state.
    #[serde(with = "state_name")]
    pub resp_state: State,
    /// Whether the originator proved its state.
    pub orig_confirmed: bool,
    /// Whether the responder proved its state.
    pub resp_confirmed: bool,
    /// How long the originator has been in its state.
    pub orig_dwell_ns: u64,
    /// How long the responder has been in its state.
    pub resp_dwell_ns: u64,
    /// Whether the originator has been in it for longer than that: it was when it was first known of.
    #[serde(default)]
    pub orig_dwell_at_least: bool,
    /// The same of the responder.
    #[serde(default)]
    pub resp_dwell_at_least: bool,
    /// Since the last segment from either end.
    pub idle_ns: u64,
    /// Since the flow was opened; of one that is picked up, since it was first known of: it is older.
    pub age_ns: u64,
    /// Segments that the originator sent.
    pub orig_pkts: u64,
    /// Segments that the responder sent.
    pub resp_pkts: u64,
    /// Payload bytes that the originator sent.
    pub orig_bytes: u64,
    /// Payload bytes that the responder sent.
    pub resp_bytes: u64,
    /// Segments that the originator sent again.
    pub orig_rtx: u32,
    /// Segments that the responder sent again.
    pub resp_rtx: u32,
    /// Whether it began before tcpfsm did; then who opened it is a guess.
    pub picked_up: bool,
    /// Everything noteworthy so far.
    pub facts: Vec<Cow<'static, str>>,
    /// The owner of this host's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proc: Option<Proc>,
    /// Why it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unowned: Option<Unowned>,
    /// The state of the kernel's own socket at this host's end (the responder's where both are).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_state_name")]
    pub kernel_state: Option<State>,
}

impl FlowLine {
    /// State, and whether it is proved, of one side.
    #[must_use]
    pub const fn state(&self, side: Side) -> (State, bool) {
        match side {
            Side::Orig => (self.orig_state, self.orig_confirmed),
            Side::Resp => (self.resp_state, self.resp_confirmed),
        }
    }

    /// Where the kernel's own socket is in another state than the wire shows: which side, and its state.
    #[must_use]
    pub fn disagreement(&self) -> Option<(Side, State)> {
        let side = match self.local? {
            Local::Orig => Side::Orig,
            Local::Resp | Local::Both => Side::Resp,
        };
        self.kernel_state.filter(|&kernel| kernel != self.state(side).0).map(|kernel| (side, kernel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_short_lines() {
        let request = Request::new(What::Watch, Filter::default());
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"v":1,"request":"watch","filter":{}}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
        let bare: Request = serde_json::from_str(r#"{"v":1,"request":"stats"}"#).unwrap();
        assert_eq!(bare.request, What::Stats);
    }

    #[test]
    fn notices_say_what_they_are() {
        assert_eq!(serde_json::to_string(&Notice::Lost(7)).unwrap(), r#"{"lost":7}"#);
        assert_eq!(serde_json::to_string(&Notice::Error("no".into())).unwrap(), r#"{"error":"no"}"#);
    }
}
