//! ICMP errors that quote a segment of a flow.

use tcpfsm_common::{
    abi::{CloseReason, Outcome, Verdict},
    fact::Fact,
    fsm::State,
    segment::TcpFlags as F,
};

use crate::support::{
    self, Kernel, Through, ethernet,
    segments::{ipv4, ipv6, parse, tcp},
};

/// P32, P33: errors that quote an open connection are told, and end nothing (RFC 5927 §4).
#[test]
fn icmp_errors_do_not_end_a_synchronized_connection() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let cases: &[(&str, u8, u8)] = &[
        ("P32: fragmentation needed", 3, 4),
        ("P32: time exceeded", 11, 0),
        ("P33: port unreachable", 3, 3),
        ("P33: host unreachable", 3, 1),
        ("P33: prohibited", 3, 13),
    ];
    for (network, &(what, kind, code)) in (1..).zip(cases) {
        let steps =
            [(true, [100, 0], F::SYN), (false, [500, 101], F::SYN | F::ACK), (true, [101, 501], F::ACK)];
        let mut last = Vec::new();
        for (from_client, numbers, flags) in steps {
            last = segment(network, 1, from_client, numbers, flags);
            kernel.run(if from_client { Through::TcEgress } else { Through::Xdp }, &ethernet(&last));
        }
        let (key, ..) = parse(&last);
        let before = kernel.record(&key).unwrap().0;
        let counters = kernel.counters();
        kernel.run(Through::Xdp, &ethernet(&icmp_error(kind, code, &last)));
        let after = kernel.record(&key).unwrap().0;
        assert_eq!(after.shared.verdict, before.shared.verdict, "{what}");
        assert_eq!(after.sent, before.sent, "{what}");
        let now = kernel.counters();
        let fact = Fact::IcmpSoftError as usize;
        assert_eq!(now.facts[fact], counters.facts[fact] + 1, "{what}");
        let icmp = Outcome::Icmp as usize;
        assert_eq!(now.packets[0][icmp], counters.packets[0][icmp] + 1, "{what}");
    }
}

/// Who was only quoted was not seen at the interface that the error came through.
#[test]
fn an_icmp_error_does_not_show_where_the_quoted_end_is() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let answer = segment(1, 1, false, [500, 101], F::SYN | F::ACK);
    kernel.run(Through::Xdp, &ethernet(&answer));
    let quoted = segment(1, 1, true, [101, 501], F::ACK);
    kernel.run(Through::Xdp, &ethernet(&icmp_error(3, 1, &quoted)));
    let (key, ..) = parse(&answer);
    let record = kernel.record(&key).unwrap().0;
    assert_eq!(kernel.counters().facts[Fact::IcmpSoftError as usize], 1);
    assert_eq!(record.shared.tap.iter().filter(|tap| **tap != 0).count(), 1, "{:?}", record.shared.tap);
}

/// The same errors about a SYN: those that say that it cannot be delivered end the attempt, with their reason.
#[test]
fn icmp_unreachables_end_a_connection_request() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    for (network, (kind, code, hard)) in (1..).zip([
        (3, 1, true),
        (3, 3, true),
        (3, 13, true),
        (11, 0, true),
        (12, 0, true),
        (11, 1, false),
        (3, 4, false),
    ]) {
        let syn = segment(network, 7, true, [1_000, 0], F::SYN);
        kernel.run(Through::TcEgress, &ethernet(&syn));
        kernel.run(Through::Xdp, &ethernet(&icmp_error(kind, code, &syn)));
        let (key, sender, _) = parse(&syn);
        let verdict = Verdict(kernel.record(&key).unwrap().0.shared.verdict);
        let (state, reason) = if hard {
            (State::Closed, CloseReason::Unreachable)
        } else {
            (State::SynSent, CloseReason::Open)
        };
        assert_eq!((verdict.state(sender), verdict.close_reason()), (state, reason), "ICMP {kind}/{code}");
    }
    assert_eq!(kernel.counters().facts[Fact::ConnectUnreachable as usize], 5);
}

/// And about a SYN-ACK: which of them end the request is measured on Linux 6.18, by a raw socket's errors and `ss`.
#[test]
fn icmp_errors_about_the_answer_end_the_request() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let cases = [
        (11, 0, true),
        (12, 0, true),
        (3, 0, true),
        (3, 1, true),
        (3, 2, false),
        (3, 3, false),
        (3, 13, false),
    ];
    for (network, (kind, code, drops)) in (1..).zip(cases) {
        let syn = |id| segment(network, id, true, [1_000, 0], F::SYN);
        let answer = segment(network, 1, false, [500, 1_001], F::SYN | F::ACK);
        kernel.run(Through::Xdp, &ethernet(&syn(1)));
        kernel.run(Through::TcEgress, &ethernet(&answer));
        let (key, server, _) = parse(&answer);
        let state = |kernel: &Kernel| Verdict(kernel.record(&key).unwrap().0.shared.verdict).state(server);
        let other = segment(network, 2, false, [501, 1_001], F::ACK);
        kernel.run(Through::Xdp, &ethernet(&icmp_error(kind, code, &other)));
        assert_eq!(state(&kernel), State::SynRecv, "{kind}/{code} about another segment");
        kernel.run(Through::Xdp, &ethernet(&icmp_error(kind, code, &answer)));
        let expected = if drops { State::Closed } else { State::SynRecv };
        assert_eq!(state(&kernel), expected, "{kind}/{code}");
        // The answer never came: its client is where it was, and its time will run out.
        let client = Verdict(kernel.record(&key).unwrap().0.shared.verdict).state(server.other());
        assert_eq!(client == State::SynSent, drops, "{kind}/{code}: {client:?}");
        // Its client knows nothing of it, and asks again.
        kernel.run(Through::Xdp, &ethernet(&syn(2)));
        assert_eq!(state(&kernel), State::SynRecv, "{kind}/{code}, asked again");
    }
}

/// ICMPv6 errors about a SYN and about a SYN-ACK: which of them end the attempt, and which the request, is measured on Linux 6.18, by
/// errors that were sent from a packet socket and by `ss`.
#[test]
fn icmpv6_errors_about_a_handshake() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    let cases = [
        (1, 0, true, false),
        (1, 1, true, true),
        (1, 2, true, false),
        (1, 3, true, false),
        (1, 4, true, true),
        (1, 5, true, true),
        (1, 6, true, true),
        (1, 7, true, true),
        (2, 0, false, false),
        (3, 0, true, false),
        (3, 1, true, false),
        (4, 0, true, true),
        (4, 1, true, true),
        (4, 2, true, true),
    ];
    for (network, (kind, code, ends, drops)) in (1..).zip(cases) {
        let syn = segment6(network, true, [1_000, 0], F::SYN);
        let answer = segment6(network, false, [500, 1_001], F::SYN | F::ACK);
        let (key, client, _) = parse(&syn);
        let verdict = |kernel: &Kernel| Verdict(kernel.record(&key).unwrap().0.shared.verdict);

        kernel.run(Through::TcEgress, &ethernet(&syn));
        kernel.run(Through::Xdp, &ethernet(&icmp6_error(kind, code, &syn)));
        let expected = if ends { State::Closed } else { State::SynSent };
        assert_eq!(verdict(&kernel).state(client), expected, "{kind}/{code} about the SYN");

        kernel.run(Through::TcEgress, &ethernet(&segment6(network, true, [1_000, 0], F::SYN)));
        kernel.run(Through::Xdp, &ethernet(&answer));
        kernel.run(Through::TcEgress, &ethernet(&icmp6_error(kind, code, &answer)));
        let expected = if drops { State::Closed } else { State::SynRecv };
        assert_eq!(verdict(&kernel).state(client.other()), expected, "{kind}/{code} about the SYN-ACK");
    }
}

/// A segment of the client or of its server, with its numbers, and the network and the identification of its packet.
fn segment(network: u32, id: u16, from_client: bool, [seq, ack]: [u32; 2], flags: u16) -> Vec<u8> {
    let (ports, from, to) = ways(from_client);
    ipv4(network, from, to, id, &tcp(ports, seq, ack, flags, 64_240, &[], 0))
}

/// The same with IPv6.
fn segment6(network: u32, from_client: bool, [seq, ack]: [u32; 2], flags: u16) -> Vec<u8> {
    let (ports, from, to) = ways(from_client);
    ipv6(network, from, to, &tcp(ports, seq, ack, flags, 64_240, &[], 0))
}

/// The ports and the hosts of a segment that the client sends, or its server.
const fn ways(from_client: bool) -> ((u16, u16), u8, u8) {
    if from_client { ((40_000, 443), 1, 2) } else { ((443, 40_000), 2, 1) }
}

/// An ICMP error that quotes as much as RFC 792 asks for: the IP header and eight bytes.
fn icmp_error(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut error = vec![0x45, 0, 0, 56, 0, 1, 0, 0, 64, 1, 0, 0, 192, 0, 2, 9];
    error.extend(&quoted[12..16]);
    error.extend([kind, code, 0, 0, 0, 0, 0, 0]);
    error.extend(&quoted[..28]);
    error
}

/// An ICMPv6 error: it quotes all of a segment (RFC 4443 §2.4).
fn icmp6_error(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + quoted.len()).unwrap();
    let mut error = vec![0x60, 0, 0, 0];
    error.extend(len.to_be_bytes());
    error.extend([58, 64]);
    error.extend(&quoted[24..40]);
    error.extend(&quoted[8..24]);
    error.extend([kind, code, 0, 0, 0, 0, 0, 0]);
    error.extend(quoted);
    error
}
