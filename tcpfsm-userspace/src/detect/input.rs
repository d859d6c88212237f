//! What goes into a detector: one observation with what every detector asks of it, and the end of a sweep.

use std::net::{IpAddr, SocketAddr};

use tcpfsm_common::{
    abi::{Conditions, Counters, EventKind, FlowEvent, ServiceKey, ServiceRecord, Verdict},
    fact::{Fact, Facts},
    flow::{End, FlowKey},
    fsm::State,
};

use super::Dwelling;
use crate::{
    report::Side,
    source::live::{Observation, Sight},
};

/// One observation.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The event itself.
    pub observation: &'a Observation,
    /// The sweep under way, or the last one.
    pub sweep: u32,
}

impl<'a> Seen<'a> {
    /// What kind of event it is.
    #[must_use]
    pub const fn kind(&self) -> EventKind {
        self.observation.kind
    }

    /// The event.
    #[must_use]
    pub const fn event(&self) -> &'a FlowEvent {
        &self.observation.event
    }

    /// What the segment told. What a sweep repeats of a flow's past is no news.
    #[must_use]
    pub const fn facts(&self) -> Facts {
        match self.kind() {
            EventKind::Stuck => Facts(0),
            _ => self.event().fact_set(),
        }
    }

    /// Whether the segment told this.
    #[must_use]
    pub const fn has(&self, fact: Fact) -> bool {
        self.facts().has(fact)
    }

    /// Whether it is a step of a connection's ordinary life, which shows nothing that is wrong: what nearly every event is.
    #[must_use]
    pub const fn is_ordinary(&self) -> bool {
        const ORDINARY: Facts = Facts::of(&[
            Fact::Open,
            Fact::Established,
            Fact::HalfClosed,
            Fact::SimultaneousClose,
            Fact::Closed,
            Fact::PortReuse,
            Fact::TwReuse,
        ]);
        let by_segment =
            matches!(self.kind(), EventKind::Verdict | EventKind::Closed) && self.event().flags != 0;
        by_segment && self.event().fact_set().without(ORDINARY).is_empty()
    }

    /// What the sweep saw, if this is of a sweep.
    #[must_use]
    pub const fn sight(&self) -> Option<&'a Sight> {
        self.observation.sight.as_ref()
    }

    /// Whether the sweep found a condition at an end.
    #[must_use]
    pub fn is_in(&self, condition: u64, end: End) -> bool {
        self.sight().is_some_and(|sight| sight.conditions.has(condition, end))
    }

    /// Whether the flow is idle.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_in(Conditions::IDLE, End::Low)
    }

    /// The flow.
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        self.event().key()
    }

    /// The verdict after it.
    #[must_use]
    pub const fn after(&self) -> Verdict {
        self.event().verdict_after()
    }

    /// The verdict before it.
    #[must_use]
    pub const fn before(&self) -> Verdict {
        self.event().verdict_before()
    }

    /// Who sent the segment.
    #[must_use]
    pub const fn sender(&self) -> End {
        self.event().sender_end()
    }

    /// Address and port of an end.
    #[must_use]
    pub fn address(&self, end: End) -> SocketAddr {
        self.key().socket_addr(end)
    }

    /// Who sent the segment, by address.
    #[must_use]
    pub fn source(&self) -> IpAddr {
        self.address(self.sender()).ip()
    }

    /// Whom it was sent to.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.address(self.sender().other())
    }

    /// The originator; of a stray, its sender.
    #[must_use]
    pub const fn originator(&self) -> End {
        match self.kind() {
            EventKind::Stray => self.sender(),
            _ => self.after().originator(),
        }
    }

    /// The responder's address.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        self.address(self.originator().other())
    }

    /// The role of an end.
    #[must_use]
    pub fn side(&self, end: End) -> Side {
        if self.originator() == end { Side::Orig } else { Side::Resp }
    }

    /// Whether the end is in another state than before, and which it left.
    #[must_use]
    pub const fn left(&self, end: End) -> Option<State> {
        match self.after().transition(self.before(), end) {
            Some((from, _)) => Some(from),
            None => None,
        }
    }

    /// An end as it is after this, in its state since `since`.
    #[must_use]
    pub fn dwelling(&self, end: End, state: State, since: u64) -> Dwelling {
        Dwelling {
            key: self.key(),
            end,
            side: self.side(end),
            state,
            confirmed: self.after().is_confirmed(end),
            since,
            service: self.service(),
            ifindex: self.event().ifindex,
        }
    }

    /// The same with the state it was in before this, as an example of something that happened now.
    #[must_use]
    pub fn example(&self, end: End) -> Dwelling {
        self.dwelling(end, self.before().state(end), self.event().time)
    }
}

/// The end of a sweep.
#[derive(Clone, Copy, Debug)]
pub struct SweepEnd<'a> {
    /// When it began.
    pub now: u64,
    /// Its number.
    pub number: u32,
    /// The kernel's counters since they began.
    pub counters: &'a Counters,
    /// What the kernel counted per service since each first answered.
    pub services: &'a [(ServiceKey, ServiceRecord)],
    /// Of these, whose SYNs were sent again because the accept queue is full, as the listener itself says.
    pub full_queues: &'a [ServiceKey],
}
