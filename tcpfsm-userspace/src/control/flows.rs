//! Flow records to the lines of `list`. Pure but for the owner.

use std::borrow::Cow;

use tcpfsm_common::{
    abi::{FlowRecord, Tap, Verdict},
    fact::Facts,
    flow::{End, FlowKey},
};

use super::protocol::FlowLine;
use crate::{pipeline::orientation, report::Local};

/// A record as a line; `local` says whether an address is this host's, `iface` names an interface.
#[must_use]
pub fn line(
    key: &FlowKey,
    record: &FlowRecord,
    now: u64,
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
        idle_ns: now.saturating_sub(record.last_seen()),
        age_ns: if shared.opened == 0 { 0 } else { now.saturating_sub(shared.opened) },
        orig_pkts: orig_sent.packets,
        resp_pkts: resp_sent.packets,
        orig_bytes: orig_sent.bytes,
        resp_bytes: resp_sent.bytes,
        orig_rtx: shared.rtx[at(orig)],
        resp_rtx: shared.rtx[at(resp)],
        picked_up: verdict.has(Verdict::PICKED_UP),
        facts: Facts(shared.facts).iter().map(|fact| fact.name().into()).collect(),
        proc: None,
        unowned: None,
        kernel_state: None,
    }
}

#[cfg(test)]
mod tests {
    use tcpfsm_common::{fsm::State, segment::TcpFlags};

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
        assert!(!line.picked_up);
    }
}
