//! Ring-buffer records to typed events: parsed once, here.

use tcpfsm_common::abi::{ABI_VERSION, ClosedEvent, EventKind, FlowEvent};
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
pub fn parse(record: &[u8]) -> Result<Observation, Malformed> {
    let (event, rest) = FlowEvent::read_from_prefix(record).map_err(|_| Malformed)?;
    if event.version != ABI_VERSION {
        return Err(Malformed);
    }
    let kind = EventKind::try_from(event.kind).map_err(|_| Malformed)?;
    let totals = match kind {
        EventKind::Closed => {
            let (closed, _) = ClosedEvent::read_from_prefix(record).map_err(|_| Malformed)?;
            let ClosedEvent { event: _, packets, bytes, opened, facts } = closed;
            Some(Totals { packets, bytes, opened, facts })
        }
        EventKind::Verdict | EventKind::Fact | EventKind::Expired | EventKind::Stuck | EventKind::Host => {
            debug_assert!(rest.is_empty(), "only closed events are longer");
            None
        }
    };
    Ok(Observation { kind, event, totals })
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes as _;

    use super::*;

    #[test]
    fn both_sizes_are_read() {
        let event = FlowEvent { time: 7, ..FlowEvent::new(EventKind::Verdict) };
        let seen = parse(event.as_bytes()).unwrap();
        assert_eq!((seen.kind, seen.event, seen.totals), (EventKind::Verdict, event, None));

        let closed = ClosedEvent {
            event: FlowEvent::new(EventKind::Closed),
            packets: [1, 2],
            bytes: [3, 4],
            opened: 5,
            facts: 6,
        };
        let seen = parse(closed.as_bytes()).unwrap();
        assert_eq!(seen.totals, Some(Totals { packets: [1, 2], bytes: [3, 4], opened: 5, facts: 6 }));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let event = FlowEvent::new(EventKind::Verdict);
        assert_eq!(parse(&event.as_bytes()[..111]), Err(Malformed));
        assert_eq!(parse(FlowEvent { version: ABI_VERSION + 1, ..event }.as_bytes()), Err(Malformed));
        assert_eq!(parse(FlowEvent { kind: 0, ..event }.as_bytes()), Err(Malformed));
        assert_eq!(parse(FlowEvent::new(EventKind::Closed).as_bytes()), Err(Malformed), "no totals");
        assert_eq!(parse(&[]), Err(Malformed));
    }
}
