//! Ring-buffer records to typed events: parsed once, here.

use tcpfsm_common::abi::{ABI_VERSION, ClosedEvent, Conditions, EventKind, FlowEvent, StuckEvent};
use zerocopy::FromBytes as _;

/// One thing that the kernel programs report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What it reports.
    pub kind: EventKind,
    /// What was before, what is now, and why.
    pub event: FlowEvent,
    /// The flow's totals, where it ended.
    pub totals: Option<Totals>,
    /// What the sweep found amiss, where it did.
    pub sight: Option<Sight>,
}

/// What the sweep saw of a flow, low end first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// What is amiss.
    pub conditions: Conditions,
    /// When each end was last heard; 0 for never.
    pub seen: [u64; 2],
    /// Segments sent by each end.
    pub packets: [u64; 2],
    /// Of these, sent again.
    pub rtx: [u32; 2],
    /// Sequence numbers that each end sent and the other has not acknowledged.
    pub unacked: [u32; 2],
}

/// The totals of a flow that ended, low end first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Segments sent by each end.
    pub packets: [u64; 2],
    /// Payload bytes sent by each end.
    pub bytes: [u64; 2],
    /// When the flow was opened.
    pub opened: u64,
    /// Every fact of its life.
    pub facts: u64,
}

/// A record that is none of ours: counted, never guessed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Parses one record.
///
/// # Errors
/// The record is of another version, of an unknown kind, or too short.
#[inline]
pub fn parse(record: &[u8]) -> Result<Observation, Malformed> {
    let (event, rest) = FlowEvent::read_from_prefix(record).map_err(|_| Malformed)?;
    if event.version != ABI_VERSION {
        return Err(Malformed);
    }
    let kind = EventKind::try_from(event.kind).map_err(|_| Malformed)?;
    let mut observation = Observation { kind, event, totals: None, sight: None };
    match kind {
        EventKind::Closed => {
            let (closed, _) = ClosedEvent::read_from_prefix(record).map_err(|_| Malformed)?;
            let ClosedEvent { event: _, packets, bytes, opened, facts } = closed;
            observation.totals = Some(Totals { packets, bytes, opened, facts });
        }
        EventKind::Stuck => {
            let (stuck, _) = StuckEvent::read_from_prefix(record).map_err(|_| Malformed)?;
            let StuckEvent { event: _, seen, packets, rtx, unacked, conditions } = stuck;
            let conditions = Conditions(conditions);
            observation.sight = Some(Sight { conditions, seen, packets, rtx, unacked });
        }
        EventKind::Verdict | EventKind::Fact | EventKind::Expired | EventKind::Stray | EventKind::Host => {
            debug_assert!(rest.is_empty(), "the others are shorter");
        }
    }
    Ok(observation)
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    #[test]
    fn every_size_is_read() {
        let event = FlowEvent { time: 7, ..FlowEvent::new(EventKind::Verdict) };
        let seen = parse(event.as_bytes()).unwrap();
        assert_eq!(seen, Observation { kind: EventKind::Verdict, event, totals: None, sight: None });

        let closed = ClosedEvent {
            event: FlowEvent::new(EventKind::Closed),
            packets: [1, 2],
            bytes: [3, 4],
            opened: 5,
            facts: 6,
        };
        let seen = parse(closed.as_bytes()).unwrap();
        assert_eq!(seen.totals, Some(Totals { packets: [1, 2], bytes: [3, 4], opened: 5, facts: 6 }));

        let stuck = StuckEvent {
            event: FlowEvent::new(EventKind::Stuck),
            seen: [1, 2],
            packets: [3, 4],
            rtx: [5, 6],
            unacked: [7, 8],
            conditions: Conditions::IDLE,
        };
        let sight = parse(stuck.as_bytes()).unwrap().sight.unwrap();
        assert_eq!((sight.conditions, sight.seen), (Conditions(Conditions::IDLE), [1, 2]));
        assert_eq!((sight.packets, sight.rtx, sight.unacked), ([3, 4], [5, 6], [7, 8]));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let event = FlowEvent::new(EventKind::Verdict);
        assert_eq!(parse(&event.as_bytes()[..111]), Err(Malformed));
        assert_eq!(parse(FlowEvent { version: ABI_VERSION + 1, ..event }.as_bytes()), Err(Malformed));
        assert_eq!(parse(FlowEvent { kind: 0, ..event }.as_bytes()), Err(Malformed));
        assert_eq!(parse(FlowEvent::new(EventKind::Closed).as_bytes()), Err(Malformed), "no totals");
        assert_eq!(parse(FlowEvent::new(EventKind::Stuck).as_bytes()), Err(Malformed), "no sight");
        assert_eq!(parse(&[]), Err(Malformed));
    }
}
