//! What of a connection is kept for its explanation: the segments that did or told something.

use std::collections::VecDeque;

use tcpfsm_common::{
    abi::{EventKey as _, EventKind, Evidence, FlowEvent, FlowRecord},
    fact::Facts,
    flow::{End, FlowKey},
    segment::{Segment, TcpFlags},
    seq::SeqNum,
};

use crate::{
    clock::WallClock,
    explain::{story::Story, tell},
    source::live::Observation,
};

/// Noteworthy segments kept from the beginning of a connection,
const HEAD: usize = 120;
/// and from its end; what lies between is counted.
const TAIL: usize = 80;

/// A connection's noteworthy segments.
#[derive(Debug, Default)]
pub(super) struct Tale {
    head: Vec<(u64, Observation)>,
    tail: VecDeque<(u64, Observation)>,
    left_out: u64,
    plain: u64,
}

/// The shared part of a flow's record before a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    verdict: u64,
    since: [u64; 2],
}

impl Before {
    pub(super) fn of(record: &FlowRecord) -> Self {
        Self { verdict: record.shared.verdict, since: record.shared.since }
    }
}

impl Tale {
    /// A segment, after the machine has seen it.
    pub(super) fn segment(
        &mut self,
        number: u64,
        key: &FlowKey,
        record: &FlowRecord,
        before: Before,
        (sender, segment, facts, now): (End, &Segment, Facts, u64),
    ) {
        let (own, peer) = (record.sent_by(sender), record.sent_by(sender.other()));
        let event = FlowEvent {
            flags: segment.flags.0,
            seq: relative(segment.seq, own),
            ack: if segment.flags.any(TcpFlags::ACK) { relative(segment.ack, peer) } else { 0 },
            len: segment.len,
            ..event(key, record, before, sender, facts, now)
        };
        self.note(number, event);
    }

    /// An ICMP error about a segment that `quoted` sent.
    pub(super) fn icmp(
        &mut self,
        key: &FlowKey,
        record: &FlowRecord,
        before: Before,
        (quoted, facts, now): (End, Facts, u64),
    ) {
        self.note(0, event(key, record, before, quoted, facts, now));
    }

    fn note(&mut self, number: u64, event: FlowEvent) {
        let moved = event.verdict_before() != event.verdict_after()
            && crate::pipeline::steps(&event).next().is_some();
        if !moved && event.facts == 0 {
            self.plain += 1;
            return;
        }
        let observation = Observation { kind: EventKind::Verdict, event, totals: None, sight: None };
        if self.head.len() < HEAD {
            self.head.push((number, observation));
            return;
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
            self.left_out += 1;
        }
        self.tail.push_back((number, observation));
    }

    /// The connection is over, or the capture is at its end, at `now`.
    pub(super) fn end(self, key: &FlowKey, record: &FlowRecord, now: u64) -> Story {
        let Self { head, tail, left_out, plain } = self;
        let at = head.len();
        let (numbers, events): (Vec<u64>, Vec<Observation>) = head.into_iter().chain(tail).unzip();
        let mut story = tell::flow(key, record, &events, now, WallClock::EPOCH);
        for (moment, number) in story.timeline.iter_mut().zip(numbers) {
            moment.packet = (number != 0).then_some(number);
        }
        story.plain_segments = plain;
        story.left_out = left_out;
        story.left_out_at = at;
        story
    }
}

fn event(
    key: &FlowKey,
    record: &FlowRecord,
    before: Before,
    sender: End,
    facts: Facts,
    now: u64,
) -> FlowEvent {
    let mut event = FlowEvent {
        sender: sender as u8,
        time: now,
        before: before.verdict,
        after: record.shared.verdict,
        since: before.since,
        facts: facts.0,
        ..FlowEvent::new(EventKind::Verdict)
    };
    key.fill(&mut event);
    event
}

/// A number relative to the first of whoever it counts; 0 where that was not seen.
fn relative(number: SeqNum, evidence: &Evidence) -> u32 {
    if evidence.has(Evidence::SEEN) { number.since(evidence.iss).cast_unsigned() } else { 0 }
}
