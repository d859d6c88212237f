//! Which events and flows a client wants.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tcpfsm_common::fsm::State;

use super::protocol::FlowLine;
use crate::{
    owner::Proc,
    report::{Anomaly, Body, ConnClosed, Local, Transition},
};

/// Conditions that must all hold; an empty one always does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// One of these states: of a transition, where it leads or where it comes from; of a flow, of either end.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "state_names")]
    pub states: Vec<State>,
    /// One of these kinds of event, or of anomaly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// One of these ports at this host's end; the responder's where neither is this host's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub local_ports: Vec<u16>,
    /// One of these ports at the other end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remote_ports: Vec<u16>,
    /// Owned by this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Only IPv4 or only IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
}

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Filter {
    /// Whether a client wants this event.
    #[must_use]
    pub fn wants_event(&self, body: &Body) -> bool {
        let flow = body.flow();
        let state = || match body {
            Body::Transition(Transition { from, to, .. }) => self.has_state(&[*from, *to]),
            Body::ConnClosed(ConnClosed { orig_state, resp_state, .. }) => {
                self.has_state(&[*orig_state, *resp_state])
            }
            Body::Anomaly(Anomaly { state, .. }) => self.has_state(&[*state]),
        };
        self.wants_kind(body)
            && self.wants_ends(flow.orig, flow.resp, flow.local)
            && self.wants_owner(body.proc())
            && state()
    }

    /// Whether a client wants this flow, as far as it is known before its owner is.
    #[must_use]
    pub fn wants_flow(&self, flow: &FlowLine) -> bool {
        let states = [flow.orig_state, flow.resp_state];
        // A flow that is over lingers for stragglers; it is shown to those who ask for its state.
        let alive = !states.into_iter().all(State::is_closed) || !self.states.is_empty();
        alive && self.has_state(&states) && self.wants_ends(flow.orig, flow.resp, flow.local)
    }

    /// Whether a client wants what this process owns.
    #[must_use]
    pub fn wants_owner(&self, owner: Option<&Proc>) -> bool {
        self.pid.is_none_or(|pid| owner.is_some_and(|owner| owner.pid == pid))
    }

    fn has_state(&self, states: &[State]) -> bool {
        self.states.is_empty() || self.states.iter().any(|wanted| states.contains(wanted))
    }

    fn wants_kind(&self, body: &Body) -> bool {
        let anomaly = match body {
            Body::Anomaly(anomaly) => Some(anomaly.anomaly.name()),
            Body::Transition(_) | Body::ConnClosed(_) => None,
        };
        self.kinds.is_empty()
            || self.kinds.iter().any(|kind| kind == body.kind() || Some(kind.as_str()) == anomaly)
    }

    fn wants_ends(&self, orig: SocketAddr, resp: SocketAddr, local: Option<Local>) -> bool {
        let family = match self.family {
            None => true,
            Some(Family::V4) => orig.is_ipv4(),
            Some(Family::V6) => orig.is_ipv6(),
        };
        let ports = |local: SocketAddr, remote: SocketAddr| {
            (self.local_ports.is_empty() || self.local_ports.contains(&local.port()))
                && (self.remote_ports.is_empty() || self.remote_ports.contains(&remote.port()))
        };
        family
            && match local {
                Some(Local::Orig) => ports(orig, resp),
                Some(Local::Resp) | None => ports(resp, orig),
                Some(Local::Both) => ports(orig, resp) || ports(resp, orig),
            }
    }
}

mod state_names {
    use super::{Deserialize as _, Deserializer, Serializer, State, de};

    pub(super) fn serialize<S: Serializer>(states: &[State], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(states.iter().map(|state| state.name()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<State>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        names
            .iter()
            .map(|name| name.parse().map_err(|_| de::Error::custom(format!("{name:?} is no TCP state"))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cause, Flow, Side};

    fn transition(local: Option<Local>, proc: Option<Proc>) -> Body {
        Body::Transition(Transition {
            flow: Flow {
                orig: "10.0.0.1:40001".parse().unwrap(),
                resp: "10.0.0.2:80".parse().unwrap(),
                iface: "eth0".into(),
                local,
            },
            side: Side::Resp,
            from: State::Established,
            to: State::CloseWait,
            confirmed: true,
            dwell_ns: 1,
            cause: Cause { dir: None, flags: "".into(), why: "timeout".into() },
            proc,
            unowned: None,
            sample: 1,
        })
    }

    #[test]
    fn all_conditions_must_hold() {
        let event =
            transition(Some(Local::Resp), Some(Proc { pid: 7, comm: "nginx".into(), ..Proc::default() }));
        let wants = |filter: Filter| filter.wants_event(&event);
        assert!(wants(Filter::default()));
        assert!(wants(Filter { states: vec![State::CloseWait], ..Filter::default() }));
        assert!(!wants(Filter { states: vec![State::TimeWait], ..Filter::default() }));
        assert!(wants(Filter { kinds: vec!["transition".into()], ..Filter::default() }));
        assert!(!wants(Filter { kinds: vec!["anomaly".into()], ..Filter::default() }));
        assert!(wants(Filter { local_ports: vec![443, 80], ..Filter::default() }));
        assert!(!wants(Filter { remote_ports: vec![80], ..Filter::default() }));
        assert!(wants(Filter { remote_ports: vec![40_001], pid: Some(7), ..Filter::default() }));
        assert!(!wants(Filter { pid: Some(8), ..Filter::default() }));
        assert!(!wants(Filter { family: Some(Family::V6), ..Filter::default() }));
    }

    #[test]
    fn local_is_where_this_host_is() {
        let on = |local, port| {
            Filter { local_ports: vec![port], ..Filter::default() }.wants_event(&transition(local, None))
        };
        assert!(on(Some(Local::Orig), 40_001) && !on(Some(Local::Orig), 80));
        assert!(on(Some(Local::Both), 40_001) && on(Some(Local::Both), 80));
        assert!(on(None, 80) && !on(None, 40_001), "a gateway sees services at the responder");
    }

    #[test]
    fn filters_travel_as_they_are() {
        let filter = Filter {
            states: vec![State::CloseWait],
            kinds: vec!["anomaly".into()],
            local_ports: vec![80],
            remote_ports: vec![],
            pid: Some(1),
            family: Some(Family::V4),
        };
        let json = serde_json::to_string(&filter).unwrap();
        assert_eq!(
            json,
            r#"{"states":["close_wait"],"kinds":["anomaly"],"local_ports":[80],"pid":1,"family":"ipv4"}"#
        );
        assert_eq!(serde_json::from_str::<Filter>(&json).unwrap(), filter);
    }
}
