//! What the sweep ends, and what it meets on the way out.

use tcpfsm_common::{
    abi::{CloseReason, EventKind, Health, SweepRequest, Verdict},
    flow::{End, FlowKey},
    fsm::State,
    segment::TcpFlags as F,
};

use crate::support::{self, Kernel, frame, segments::parse};

const SECOND: u64 = 1_000_000_000;

fn key() -> FlowKey {
    parse(&frame(1, true, [0, 0], F::ACK)[14..]).0
}

/// How many ends of connections were told since this was asked last.
fn ends_told(kernel: &mut Kernel) -> usize {
    kernel.events().iter().filter(|told| told.event.kind == EventKind::Closed as u8).count()
}

/// Both ends closed at once, and one acknowledgment was lost: one end is in TIME_WAIT when the other's time runs out.
#[test]
fn a_connection_ends_once_whichever_end_times_out_first() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    kernel.connect(1);
    kernel.say(1, true, [101, 501], F::FIN | F::ACK);
    kernel.say(1, false, [501, 101], F::FIN | F::ACK);
    kernel.say(1, true, [102, 502], F::ACK);
    kernel.events();
    let record = kernel.record(&key()).unwrap().0;
    let mut states = [End::Low, End::High].map(|end| Verdict(record.shared.verdict).state(end));
    states.sort_by_key(|state| *state as u8);
    assert_eq!(states, [State::Closing, State::TimeWait]);

    let mut timeout = [0; 16];
    timeout[State::Closing as usize] = SECOND;
    timeout[State::TimeWait as usize] = 4 * SECOND;
    let now = record.last_seen();
    let mut ended = Vec::new();
    for (number, seconds) in [(1, 2), (2, 9)] {
        kernel.sweep(SweepRequest { now: now + seconds * SECOND, number, timeout, ..Default::default() });
        let events = kernel.events();
        ended.push(events.iter().map(|told| told.event.kind).collect::<Vec<_>>());
        let reasons: Vec<_> = events.iter().map(|told| told.event.verdict_after().close_reason()).collect();
        assert_eq!(reasons, [CloseReason::Timeout], "{seconds} s");
        assert_eq!(kernel.counters().closed[CloseReason::Timeout as usize], 1, "{seconds} s");
    }
    assert_eq!(ended, [[EventKind::Closed as u8], [EventKind::Expired as u8]]);
    assert!(Verdict(kernel.record(&key()).unwrap().0.shared.verdict).is_closed());
}

/// The client's host was started anew, and connects from the same port: its server's answer is of the old connection, and is reset.
#[test]
fn a_connection_whose_client_connects_anew_has_ended() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    kernel.connect(1);
    kernel.say(1, true, [700_000, 0], F::SYN);
    kernel.say(1, false, [501, 101], F::ACK);
    assert_eq!(ends_told(&mut kernel), 0);
    kernel.say(1, true, [101, 0], F::RST);
    let told = kernel.events();
    assert_eq!(told.iter().filter(|told| told.event.kind == EventKind::Closed as u8).count(), 1);
    let reason = told[0].event.verdict_after().close_reason();
    assert_eq!(reason, CloseReason::ResetByOriginator);
    kernel.say(1, true, [700_000, 0], F::SYN);
    kernel.say(1, false, [900_000, 700_001], F::SYN | F::ACK);
    kernel.say(1, true, [700_001, 900_001], F::ACK);
    assert_eq!(ends_told(&mut kernel), 0, "the next one goes on");
    kernel.say(1, true, [700_001, 900_001], F::RST | F::ACK);
    assert_eq!(ends_told(&mut kernel), 1);
    assert_eq!(kernel.counters().closed[CloseReason::ResetByOriginator as usize], 2);
}

/// The same, but both the SYN and the reset were another's: the connection goes on, and ends once more.
#[test]
fn an_end_that_was_forged_does_not_stand_for_the_one_that_comes() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    kernel.connect(1);
    kernel.say(1, true, [700_000, 0], F::SYN);
    kernel.say(1, true, [101, 0], F::RST);
    assert_eq!(ends_told(&mut kernel), 1);
    for _ in 0..3 {
        kernel.say(1, true, [101, 501], F::ACK);
        kernel.say(1, false, [501, 101], F::ACK);
    }
    kernel.say(1, true, [101, 501], F::FIN | F::ACK);
    kernel.say(1, false, [501, 102], F::FIN | F::ACK);
    kernel.say(1, true, [102, 502], F::ACK);
    assert_eq!(ends_told(&mut kernel), 1);
    assert_eq!(kernel.counters().closed[CloseReason::Finish as usize], 1);
}

/// C07: the last ACK was seen and lost, so the FIN comes again. The connection ends once, and TIME-WAIT waits as long again.
#[test]
fn a_connection_whose_last_ack_is_lost_ends_once() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    kernel.connect(1);
    kernel.say(1, true, [101, 501], F::FIN | F::ACK);
    let (_, client, _) = parse(&frame(1, true, [0, 0], F::ACK)[14..]);
    let mut entered = Vec::new();
    for _ in 0..2 {
        kernel.say(1, false, [501, 102], F::FIN | F::ACK);
        let waits = kernel.record(&key()).unwrap().0;
        assert_eq!(Verdict(waits.shared.verdict).state(client), State::TimeWait);
        entered.push(waits.shared.since[client as usize]);
        kernel.say(1, true, [102, 502], F::ACK);
        let over = kernel.record(&key()).unwrap().0;
        assert!(Verdict(over.shared.verdict).is_over());
    }
    assert!(entered[1] > entered[0], "{entered:?}");
    assert_eq!((ends_told(&mut kernel), kernel.counters().closed[CloseReason::Finish as usize]), (1, 1));
}

/// What was no end, a reset of somebody else's, does not stand for the end that comes.
#[test]
fn a_connection_that_was_not_over_ends_all_the_same() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    kernel.connect(1);
    kernel.say(1, false, [501, 101], F::RST);
    // Its "sender" goes on, and so does the other.
    kernel.say(1, false, [501, 101], F::PSH | F::ACK);
    kernel.say(1, false, [501, 101], F::ACK);
    kernel.say(1, false, [501, 101], F::FIN | F::ACK);
    assert_eq!(kernel.counters().closed[CloseReason::ResetByResponder as usize], 1);
    assert!(!Verdict(kernel.record(&key()).unwrap().0.shared.verdict).is_over());
    kernel.say(1, true, [101, 502], F::RST | F::ACK);
    assert!(Verdict(kernel.record(&key()).unwrap().0.shared.verdict).is_over());
    assert_eq!(ends_told(&mut kernel), 2);
}

/// Between the sweep's mark and its removal, which goes by the key, nobody may put another record under that key.
#[test]
fn what_the_sweep_is_about_to_remove_nobody_replaces() {
    crate::needs_kernel!();
    let mut kernel = Kernel::load();
    kernel.say(1, true, [100, 0], F::SYN);
    kernel.say(1, false, [0, 101], F::RST | F::ACK);
    let (mut record, embryonic) = kernel.record(&key()).unwrap();
    assert!(embryonic && Verdict(record.shared.verdict).is_closed());
    record.shared.verdict = Verdict(record.shared.verdict).with(Verdict::GONE, true).0;
    kernel.put("EMBRYOS4", &key(), &record);
    kernel.say(1, true, [7_000, 0], F::SYN);
    assert_eq!(kernel.record(&key()).unwrap().0.shared.verdict, record.shared.verdict);
    assert_eq!(kernel.counters().health[Health::VerdictLost as usize], 1, "and it is counted");

    // One whose removal failed goes with the next sweep.
    kernel.sweep(SweepRequest { number: 1, ..SweepRequest::default() });
    assert_eq!(kernel.record(&key()), None);
    // The same of an earlier connection's record in the flow map, while a handshake completes.
    kernel.put("FLOWS4", &key(), &record);
    kernel.connect(1);
    let both = |kernel: &Kernel| ["FLOWS4", "EMBRYOS4"].map(|map| kernel.flows4(map).len());
    assert_eq!(both(&kernel), [1, 1]);
    assert_eq!(kernel.record(&key()).unwrap().0.shared.verdict, record.shared.verdict);
    kernel.sweep(SweepRequest { number: 2, ..SweepRequest::default() });
    assert_eq!(both(&kernel), [0, 1], "and one on its way is let be");
    kernel.say(1, true, [101, 501], F::ACK);
    assert_eq!(both(&kernel), [1, 0]);
    let (record, embryonic) = kernel.record(&key()).unwrap();
    let verdict = Verdict(record.shared.verdict);
    assert!(!embryonic && !verdict.has(Verdict::GONE));
    assert_eq!([End::Low, End::High].map(|end| verdict.state(end)), [State::Established; 2]);
    assert_eq!(kernel.counters().health[Health::Promoted as usize], 1);
}
