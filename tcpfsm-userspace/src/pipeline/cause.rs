//! What an event meant to one end: the `why` of a transition.

use std::borrow::Cow;

use tcpfsm_common::{
    abi::{CloseReason, EventKind, FlowEvent, Verdict},
    fact::Fact,
    flow::End,
    fsm::State,
    segment::TcpFlags,
};

/// Every `why`, in the order of a connection's life.
#[cfg(test)]
const NAMES: [&str; 18] = [
    "syn",
    "syn_ack",
    "handshake_ack",
    "own_fin",
    "peer_fin",
    "fin_acked",
    "data",
    "reset",
    "no_socket",
    "refused",
    "unreachable",
    "timeout",
    "socket_gone",
    "own_socket",
    "pickup",
    "rollback",
    "syn_on_live",
    "other",
];

/// What the event meant to `end`, which went from `from` to `to`.
pub(crate) fn why(kind: EventKind, event: &FlowEvent, end: End, from: State, to: State) -> &'static str {
    let facts = event.fact_set();
    let flags = event.tcp_flags();
    let sent_it = event.sender_end() == end;
    match kind {
        EventKind::Expired | EventKind::Stuck => return "timeout",
        EventKind::Stray => return "other",
        // The sweep's last word on a flow comes with its totals: no segment did it.
        EventKind::Closed
            if event.flags == 0 && event.verdict_after().close_reason() == CloseReason::Timeout =>
        {
            return "timeout";
        }
        EventKind::Closed
            if event.flags == 0 && event.verdict_after().close_reason() == CloseReason::SocketGone =>
        {
            return "socket_gone";
        }
        // The host's own socket was asked, and it knows better.
        EventKind::Host => return "own_socket",
        EventKind::Verdict | EventKind::Fact | EventKind::Closed => {}
    }
    if facts.has(Fact::MidstreamPickup) {
        return "pickup";
    }
    if facts.has(Fact::StateRollback) && is_rollback(event.verdict_before(), end, to) {
        return "rollback";
    }
    match to {
        State::Closed | State::Listen => {
            if facts.has(Fact::ConnectRefused) {
                "refused"
            } else if facts.has(Fact::ConnectUnreachable) || facts.has(Fact::IcmpSoftError) {
                "unreachable"
            } else if flags.any(TcpFlags::RST) {
                // A reset that ends its own sender says that there is no socket any more.
                if sent_it && !facts.has(Fact::Reset) { "no_socket" } else { "reset" }
            } else if from == State::LastAck {
                "fin_acked"
            } else {
                "other"
            }
        }
        State::SynSent => "syn",
        State::SynRecv => {
            if flags.any(TcpFlags::ACK) && sent_it {
                "syn_ack"
            } else {
                "syn"
            }
        }
        State::Established => match from {
            State::SynSent => "syn_ack",
            State::SynRecv if flags.any(TcpFlags::SYN) => "syn_ack",
            State::SynRecv if event.len > 0 => "data",
            State::SynRecv => "handshake_ack",
            State::Closed
            | State::Listen
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait => "other",
        },
        State::FinWait1 | State::LastAck => "own_fin",
        State::FinWait2 => "fin_acked",
        State::CloseWait => "peer_fin",
        State::Closing => {
            if sent_it {
                "own_fin"
            } else {
                "peer_fin"
            }
        }
        State::TimeWait => match from {
            State::Closing => "fin_acked",
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynRecv
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::LastAck
            | State::TimeWait => "peer_fin",
        },
    }
}

/// Whether going to `to` takes back the step before, or that and the one before it: a FIN may complete a handshake.
fn is_rollback(before: Verdict, end: End, to: State) -> bool {
    let is_both = before.state(end) == State::CloseWait && to == State::SynRecv;
    !before.is_confirmed(end) && (before.previous(end) == to || is_both)
}

/// Flags as letters, in the order S F R P A U E C.
#[must_use]
pub(crate) fn flag_letters(flags: TcpFlags) -> Cow<'static, str> {
    const LETTERS: [(u16, char); 8] = [
        (TcpFlags::SYN, 'S'),
        (TcpFlags::FIN, 'F'),
        (TcpFlags::RST, 'R'),
        (TcpFlags::PSH, 'P'),
        (TcpFlags::ACK, 'A'),
        (TcpFlags::URG, 'U'),
        (TcpFlags::ECE, 'E'),
        (TcpFlags::CWR, 'C'),
    ];
    // Nearly every event has one of these: no allocation.
    const USUAL: [(u16, &str); 8] = [
        (0, ""),
        (TcpFlags::SYN, "S"),
        (TcpFlags::SYN | TcpFlags::ACK, "SA"),
        (TcpFlags::ACK, "A"),
        (TcpFlags::PSH | TcpFlags::ACK, "PA"),
        (TcpFlags::FIN | TcpFlags::ACK, "FA"),
        (TcpFlags::RST, "R"),
        (TcpFlags::RST | TcpFlags::ACK, "RA"),
    ];
    if let Some((_, letters)) = USUAL.into_iter().find(|&(bits, _)| bits == flags.0) {
        return Cow::Borrowed(letters);
    }
    LETTERS.into_iter().filter(|&(bit, _)| flags.any(bit)).map(|(_, letter)| letter).collect()
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::fact::Facts;

    use super::*;

    const ACK: u16 = TcpFlags::ACK;
    const SYN: u16 = TcpFlags::SYN;
    const FIN: u16 = TcpFlags::FIN;
    const RST: u16 = TcpFlags::RST;

    fn facts(list: &[Fact]) -> u64 {
        let mut facts = Facts::default();
        list.iter().for_each(|&fact| facts.add(fact));
        facts.0
    }

    #[test]
    fn every_step_of_a_life_has_its_reason() {
        use State::*;
        // The sender is the low end; `end` says whose step it is.
        type Case = (u16, &'static [Fact], End, State, State, &'static str);
        let cases: &[Case] = &[
            (SYN, &[Fact::Open], End::Low, Closed, SynSent, "syn"),
            (SYN, &[Fact::Open], End::High, Listen, SynRecv, "syn"),
            (SYN | ACK, &[], End::Low, SynSent, SynRecv, "syn_ack"),
            (SYN | ACK, &[], End::High, SynSent, Established, "syn_ack"),
            (ACK, &[Fact::Established], End::High, SynRecv, Established, "handshake_ack"),
            (SYN | ACK, &[], End::High, SynRecv, Established, "syn_ack"),
            (FIN | ACK, &[], End::Low, Established, FinWait1, "own_fin"),
            (FIN | ACK, &[], End::High, Established, CloseWait, "peer_fin"),
            (ACK, &[], End::High, FinWait1, FinWait2, "fin_acked"),
            (FIN | ACK, &[], End::Low, CloseWait, LastAck, "own_fin"),
            (FIN | ACK, &[], End::Low, CloseWait, Closing, "own_fin"),
            (FIN | ACK, &[], End::High, FinWait1, Closing, "peer_fin"),
            (FIN | ACK, &[], End::High, FinWait2, TimeWait, "peer_fin"),
            (ACK, &[], End::High, Closing, TimeWait, "fin_acked"),
            (ACK, &[Fact::Closed], End::High, LastAck, Closed, "fin_acked"),
            (RST | ACK, &[Fact::ConnectRefused], End::High, SynSent, Closed, "refused"),
            (RST, &[Fact::Reset], End::High, Established, Closed, "reset"),
            (RST, &[Fact::Reset], End::Low, Established, Closed, "reset"),
            (RST, &[], End::Low, Established, Closed, "no_socket"),
            (0, &[Fact::ConnectUnreachable], End::Low, SynSent, Closed, "unreachable"),
            (0, &[Fact::IcmpSoftError], End::Low, SynRecv, Closed, "unreachable"),
            (ACK, &[Fact::MidstreamPickup], End::Low, Closed, Established, "pickup"),
        ];
        for &(flags, told, end, from, to, expected) in cases {
            let event = FlowEvent { flags, facts: facts(told), ..FlowEvent::new(EventKind::Verdict) };
            let why = why(EventKind::Verdict, &event, end, from, to);
            assert_eq!(why, expected, "{from:?} -> {to:?}");
            assert!(NAMES.contains(&why));
        }
    }

    #[test]
    fn a_step_taken_back_is_a_rollback() {
        let before = Verdict::default().with_state(End::High, State::SynSent, true).with_state(
            End::High,
            State::Established,
            false,
        );
        let event = FlowEvent {
            flags: SYN,
            sender: End::High as u8,
            before: before.0,
            facts: facts(&[Fact::StateRollback]),
            ..FlowEvent::new(EventKind::Verdict)
        };
        let why_of = |event, from, to| why(EventKind::Verdict, event, End::High, from, to);
        assert_eq!(why_of(&event, State::Established, State::SynSent), "rollback");

        let before = Verdict::default().with_state(End::High, State::CloseWait, false);
        let event = FlowEvent { flags: SYN | ACK, before: before.0, ..event };
        assert_eq!(why_of(&event, State::CloseWait, State::SynRecv), "rollback");
    }

    #[test]
    fn the_clock_needs_no_segment() {
        let event = FlowEvent::new(EventKind::Expired);
        assert_eq!(why(EventKind::Expired, &event, End::Low, State::TimeWait, State::Closed), "timeout");
    }

    #[test]
    fn letters_come_in_their_order() {
        assert_eq!(flag_letters(TcpFlags(0xff)), "SFRPAUEC");
        assert_eq!(flag_letters(TcpFlags(FIN | TcpFlags::PSH | ACK)), "FPA");
        assert_eq!(flag_letters(TcpFlags(SYN | ACK)), "SA");
    }
}
