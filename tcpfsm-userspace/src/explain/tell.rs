//! A flow record and its last events to a story. Pure.

use std::{borrow::Cow, net::SocketAddr};

use tcpfsm_common::{
    abi::{CloseReason, EventKind, Evidence, FlowRecord, Verdict},
    fact::Facts,
    flow::{End, FlowKey},
    segment::TcpFlags,
};

use super::{
    diagnose,
    story::{EndStory, Moment, Origin, Step, Story},
};
use crate::{
    clock::WallClock,
    pipeline::{flag_letters, orientation, side_of, steps, why},
    report::{Local, Side},
    source::live::Observation,
};

/// The story of a flow that is in the maps. `events`: what of it is remembered, in order.
#[must_use]
pub fn flow(key: &FlowKey, record: &FlowRecord, events: &[Observation], now: u64, clock: WallClock) -> Story {
    let verdict = Verdict(record.shared.verdict);
    let [orig, resp] = orientation(verdict);
    let end = |end: End| end_story(record, verdict, end, now);
    let timeline: Vec<Moment> = events.iter().map(|event| moment(event, clock)).collect();
    let opened = record.shared.opened;
    let mut story = Story {
        orig_end: end(orig),
        resp_end: end(resp),
        age_ns: if opened == 0 { 0 } else { now.saturating_sub(opened) },
        idle_ns: now.saturating_sub(record.last_seen()),
        close_reason: closed(verdict),
        origin: origin(verdict),
        facts: Facts(record.shared.facts).iter().map(|fact| fact.name().into()).collect(),
        timeline_whole: is_whole(events),
        ..bare(key.socket_addr(orig), key.socket_addr(resp), timeline)
    };
    story.anomalies = diagnose(&story);
    story
}

/// The story of a flow that is not in the maps any more, but remembered.
#[must_use]
pub fn past(events: &[Observation], now: u64, clock: WallClock) -> Option<Story> {
    let last = events.last()?;
    let verdict = last.event.verdict_after();
    let key = last.event.key();
    let ends = orientation(verdict);
    let mut facts = Facts::default();
    for event in events {
        facts.0 |= event.event.facts | event.totals.map_or(0, |totals| totals.facts);
    }
    let end = |end: End| EndStory {
        state: verdict.state(end),
        confirmed: verdict.is_confirmed(end),
        dwell_ns: now.saturating_sub(last.event.time),
        pkts: last.totals.map_or(0, |totals| totals.packets[end as usize & 1]),
        bytes: last.totals.map_or(0, |totals| totals.bytes[end as usize & 1]),
        ..EndStory::default()
    };
    let opened = last.totals.map_or(0, |totals| totals.opened);
    let [orig, resp] = ends.map(|end| key.socket_addr(end));
    let mut story = Story {
        orig_end: end(ends[0]),
        resp_end: end(ends[1]),
        age_ns: if opened == 0 { 0 } else { last.event.time.saturating_sub(opened) },
        idle_ns: now.saturating_sub(last.event.time),
        close_reason: closed(verdict),
        origin: origin(verdict),
        facts: facts.iter().map(|fact| fact.name().into()).collect(),
        timeline_whole: is_whole(events),
        ..bare(orig, resp, events.iter().map(|event| moment(event, clock)).collect())
    };
    story.anomalies = diagnose(&story);
    Some(story)
}

/// A story of which nothing but the timeline is known yet.
pub(crate) fn bare(orig: SocketAddr, resp: SocketAddr, timeline: Vec<Moment>) -> Story {
    Story {
        orig,
        resp,
        iface: Cow::Borrowed(""),
        local: None,
        orig_end: EndStory::default(),
        resp_end: EndStory::default(),
        age_ns: 0,
        idle_ns: 0,
        close_reason: None,
        origin: Origin::Seen,
        facts: Vec::new(),
        timeline,
        plain_segments: 0,
        left_out: 0,
        left_out_at: 0,
        timeline_whole: true,
        kernel_state: None,
        proc: None,
        unowned: None,
        anomalies: Vec::new(),
    }
}

/// One end as the record has it.
pub(crate) fn end_story(record: &FlowRecord, verdict: Verdict, end: End, now: u64) -> EndStory {
    let at = end as usize & 1;
    let (own, peer) = (record.sent_by(end), record.sent_by(end.other()));
    let since = record.shared.since[at];
    let seen = own.has(Evidence::SEEN);
    let acked = seen && peer.has(Evidence::SEEN | Evidence::EDGE) && own.generation == peer.generation;
    EndStory {
        state: verdict.state(end),
        confirmed: verdict.is_confirmed(end),
        dwell_ns: if since == 0 { 0 } else { now.saturating_sub(since) },
        pkts: own.packets,
        bytes: own.bytes,
        rtx: record.shared.rtx[at],
        sent_to: seen.then(|| own.nxt.since(own.iss).cast_unsigned()),
        acked_to: acked.then(|| peer.ack.since(own.iss).cast_unsigned()),
        fin: own.has(Evidence::FIN),
        zero_window: own.has(Evidence::ZERO_WINDOW),
    }
}

pub(crate) fn origin(verdict: Verdict) -> Origin {
    if verdict.has(Verdict::SEEDED) {
        Origin::Socket
    } else if verdict.has(Verdict::PICKED_UP) {
        Origin::PickedUp
    } else {
        Origin::Seen
    }
}

pub(crate) fn closed(verdict: Verdict) -> Option<Cow<'static, str>> {
    let reason = verdict.close_reason();
    (verdict.is_over() && reason != CloseReason::Open).then(|| reason.name().into())
}

/// Whether the first event is the beginning, and each goes on where the one before it ended: nothing was forgotten,
/// lost, or left out of a sample.
fn is_whole(events: &[Observation]) -> bool {
    let follows = |pair: &[Observation]| pair[1].event.follows(&pair[0].event);
    events.first().is_some_and(|first| first.event.opens()) && events.windows(2).all(follows)
}

fn moment(observation: &Observation, clock: WallClock) -> Moment {
    let event = &observation.event;
    let after = event.verdict_after();
    // The sweep's events, and those of ICMP errors, have no flags.
    let by_segment = event.flags != 0;
    let steps = steps(event)
        .map(|step| Step {
            side: side_of(after, step.end),
            from: step.from,
            to: step.to,
            confirmed: step.confirmed,
            dwell_ns: step.dwell_ns,
            why: why(observation.kind, event, step.end, step.from, step.to).into(),
        })
        .collect();
    let repeats = observation.kind == EventKind::Stuck;
    let facts = if repeats { Facts::default() } else { event.fact_set() };
    Moment {
        ts: clock.at(event.time),
        packet: None,
        dir: by_segment.then(|| after.direction(event.sender_end())),
        flags: flag_letters(event.tcp_flags()),
        seq: event.seq,
        ack: event.tcp_flags().any(TcpFlags::ACK).then_some(event.ack),
        len: event.len,
        steps,
        facts: facts.iter().map(|fact| fact.name().into()).collect(),
    }
}

/// The side of this host in a story, the responder where both are.
#[must_use]
pub fn own_side(story: &Story) -> Option<Side> {
    story.local.map(Local::side)
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{fact::Fact, fsm::State};

    use super::*;
    use crate::pipeline::synthetic::{Conversation, ORIG, RESP};

    #[test]
    fn a_story_has_every_step_with_its_segment() {
        let mut talk = Conversation::new();
        let events = talk.ordinary_life();
        let story = flow(&talk.key, &talk.record, &events, talk.now + 1_000_000_000, WallClock::now());
        assert_eq!((story.orig, story.resp), (ORIG, RESP));
        assert!(story.timeline_whole);
        assert_eq!(story.close_reason.as_deref(), Some("finish"));
        assert_eq!(story.orig_end.state, State::TimeWait);
        assert!(story.orig_end.fin && story.orig_end.sent_to == Some(2), "{:?}", story.orig_end);
        assert_eq!(story.orig_end.acked_to, Some(2));
        assert_eq!(story.timeline[0].flags, "S");
        assert_eq!(story.timeline[0].steps.len(), 2);
        assert!(story.has(Fact::Established.name()));
        assert_eq!(story.anomalies, []);
    }

    #[test]
    fn with_something_left_out_the_timeline_is_not_whole() {
        let mut talk = Conversation::new();
        let mut events = talk.ordinary_life();
        let story = past(&events[2..], talk.now, WallClock::now()).unwrap();
        assert!(!story.timeline_whole);
        assert_eq!(story.close_reason.as_deref(), Some("finish"));
        assert_eq!(story.orig_end.pkts, 4);
        assert_eq!(past(&[], 0, WallClock::now()), None);
        // The SYN was one of a sample, the SYN-ACK was not.
        events.remove(1);
        assert!(!past(&events, talk.now, WallClock::now()).unwrap().timeline_whole);
    }
}
