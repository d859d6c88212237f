//! Flow records to the lines of `list`. Pure but for the owner.

use std::borrow::Cow;

use tcpfsm_common::{
    abi::{FlowRecord, Tap, Verdict},
    fact::Facts,
    flow::{End, FlowKey},
    fsm::State,
};

use super::protocol::FlowLine;
use crate::{pipeline::orientation, report::Local};

/// A record as a line; `known_from`: when this host's sockets had been looked at, at the start; `local` says whether an
/// address is this host's, `iface` names an interface.
#[must_use]
pub fn line(
    key: &FlowKey,
    record: &FlowRecord,
    now: u64,
    known_from: u64,
    local: impl Fn(std::net::IpAddr) -> bool,
    iface: impl FnOnce(u32) -> Cow<'static, str>,
) -> FlowLine {
    let verdict = Verdict(record.shared.verdict);
    let [orig, resp] = orientation(verdict);
    let at = |end: End| end as usize & 1;
    let since = |end: End| match record.shared.since[at(end)] {
        0 => 0,
        since => now.saturating_sub(since),
    };
    let shared = &record.shared;
    let picked_up = verdict.has(Verdict::PICKED_UP);
    let known_from = if verdict.has(Verdict::SEEDED) { known_from } else { shared.opened };
    // In what it was when it was first known of, it had been for longer. ESTABLISHED a pickup may assume only later.
    let was_before = |end: End| {
        let since = shared.since[at(end)];
        picked_up && since != 0 && (since <= known_from || verdict.state(end) == State::Established)
    };
    let (orig_sent, resp_sent) = (record.sent_by(orig), record.sent_by(resp));
    let (orig_address, resp_address) = (key.socket_addr(orig), key.socket_addr(resp));
    let index = match Tap(shared.tap[at(orig)]).ifindex() {
        0 => Tap(shared.tap[at(resp)]).ifindex(),
        index => index,
    };
    FlowLine {
        orig: orig_address,
        resp: resp_address,
        iface: iface(index),
        local: Local::of(local(orig_address.ip()), local(resp_address.ip())),
        orig_state: verdict.state(orig),
        resp_state: verdict.state(resp),
        orig_confirmed: verdict.is_confirmed(orig),
        resp_confirmed: verdict.is_confirmed(resp),
        orig_dwell_ns: since(orig),
        resp_dwell_ns: since(resp),
        orig_dwell_at_least: was_before(orig),
        resp_dwell_at_least: was_before(resp),
        idle_ns: now.saturating_sub(record.last_seen()),
        age_ns: if shared.opened == 0 { 0 } else { now.saturating_sub(shared.opened) },
        orig_pkts: orig_sent.packets,
        resp_pkts: resp_sent.packets,
        orig_bytes: orig_sent.bytes,
        resp_bytes: resp_sent.bytes,
        orig_rtx: shared.rtx[at(orig)],
        resp_rtx: shared.rtx[at(resp)],
        picked_up,
        facts: Facts(shared.facts).iter().map(|fact| fact.name().into()).collect(),
        proc: None,
        unowned: None,
        kernel_state: None,
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::segment::TcpFlags;

    use super::*;
    use crate::pipeline::synthetic::{Conversation, ORIG, RESP};

    #[test]
    fn a_record_reads_by_role() {
        let mut talk = Conversation::new();
        talk.handshake();
        talk.segment(End::Low, TcpFlags::ACK | TcpFlags::PSH, 100);
        talk.segment(End::Low, TcpFlags::ACK | TcpFlags::FIN, 0);
        talk.record.shared.tap = [0, Tap::new(7, tcpfsm_common::abi::Hook::TcEgress).0];
        let line = line(
            &talk.key,
            &talk.record,
            talk.now + 5_000_000_000,
            0,
            |ip| ip == RESP.ip(),
            |index| format!("if{index}").into(),
        );
        assert_eq!((line.orig, line.resp, line.local), (ORIG, RESP, Some(Local::Resp)));
        assert_eq!((line.orig_state, line.resp_state), (State::FinWait1, State::CloseWait));
        assert_eq!((line.orig_confirmed, line.resp_confirmed), (true, false));
        assert_eq!((line.orig_pkts, line.orig_bytes, line.resp_pkts), (4, 100, 1));
        assert_eq!(line.orig_dwell_ns, 5_000_000_000);
        assert!(line.idle_ns.abs_diff(5_000_000_000) < 100_000, "the grain of the last segment's time");
        assert_eq!(line.iface, "if7");
        assert!(!line.picked_up && !line.orig_dwell_at_least && !line.resp_dwell_at_least);
    }

    /// What is marked of the originator and of the responder.
    fn marks(talk: &Conversation, known_from: u64) -> (bool, [bool; 2]) {
        let line = line(&talk.key, &talk.record, talk.now, known_from, |_| false, |_| "".into());
        (line.picked_up, [line.orig_dwell_at_least, line.resp_dwell_at_least])
    }

    #[test]
    fn what_began_earlier_has_lasted_at_least_so_long() {
        let mut talk = Conversation::new();
        talk.segment(End::Low, TcpFlags::ACK, 0);
        talk.segment(End::High, TcpFlags::ACK, 0);
        assert_eq!(marks(&talk, 0), (true, [true; 2]), "picked up by its segments");
        talk.segment(End::Low, TcpFlags::ACK | TcpFlags::FIN, 0);
        talk.segment(End::High, TcpFlags::ACK, 0);
        assert_eq!(marks(&talk, 0), (true, [false; 2]), "these steps were seen");

        let mut seeded = Conversation::new();
        seeded.record.shared.verdict = Verdict::default()
            .next_generation()
            .with(Verdict::PICKED_UP | Verdict::SEEDED, true)
            .with_state(End::Low, State::FinWait2, true)
            .with_state(End::High, State::CloseWait, true)
            .0;
        // Two sockets of this host, which were idle for different times.
        (seeded.record.shared.opened, seeded.record.shared.since) = (500, [500, 700]);
        assert_eq!(marks(&seeded, 900), (true, [true; 2]));
        seeded.record.shared.since[1] = 1_000;
        assert_eq!(marks(&seeded, 900), (true, [true, false]), "this step was seen");
    }
}
