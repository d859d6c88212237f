//! Laws of the machine.

use std::cell::Cell;

use proptest::prelude::*;
use tcpfsm_common::{
    abi::{CloseReason, Evidence, FlowRecord, SweepRequest, Verdict},
    fact::Fact,
    flow::End,
    fsm::{
        Config, PlainDesk, State, Step, advance, expire, observe, observe_first_syn, observe_icmp,
        observe_orderly, observe_settled,
    },
    packet::{IcmpError, Unreachable},
    segment::{Segment, SegmentKind, TcpFlags, TcpOptions},
    seq::SeqNum,
};

use super::talk::{Move, Talk};

const LENGTH: usize = 40;

pub(super) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// One segment of a talk on its flow: the record before it, and after it.
struct Stage {
    sender: End,
    segment: Segment,
    before: FlowRecord,
    step: Step,
    after: FlowRecord,
}

/// Plays a talk; `a` says which end is the one that talks first.
fn play(moves: &[Move], a: End, config: Config) -> Vec<Stage> {
    let mut talk = Talk::new();
    let mut record = FlowRecord::default();
    (1_u64..)
        .zip(moves)
        .map(|(number, next)| {
            let segment = talk.segment(next);
            let sender = if next.from_a { a } else { a.other() };
            let before = record;
            let (step, _) = advance(&mut record, sender, &segment, number << 20, config);
            Stage { sender, segment, before, step, after: record }
        })
        .collect()
}

pub(super) fn verdict(record: &FlowRecord) -> Verdict {
    Verdict(record.shared.verdict)
}

fn states(verdict: Verdict) -> [State; 2] {
    [verdict.state(End::Low), verdict.state(End::High)]
}

// ── Anything ───────────────────────────────────────────────────────────────────────────────────────────────

fn any_segment() -> impl Strategy<Value = Segment> {
    let options = (any::<u16>(), any::<u8>(), 0..64_u8, any::<[u32; 3]>()).prop_map(
        |(mss, scale, present, [tsval, tsecr, edge])| TcpOptions {
            mss,
            scale,
            present,
            tsval,
            tsecr,
            sack_edge: SeqNum(edge),
        },
    );
    (any::<[u32; 3]>(), 0..0x200_u16, any::<u16>(), any::<u16>(), options).prop_map(
        |([seq, ack, len], flags, window, ip_id, options)| Segment {
            seq: SeqNum(seq),
            ack: SeqNum(ack),
            len,
            flags: TcpFlags(flags),
            window,
            ip_id,
            to_itself: ip_id < 0x800,
            tap: 0,
            options,
        },
    )
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    (any::<[u32; 9]>(), any::<u16>(), any::<u8>(), any::<u8>(), any::<[u64; 3]>()).prop_map(
        |(
            [iss, nxt, contig, ooo_start, ooo_end, ack, last_ack, edge, tsval],
            flags,
            scale,
            generation,
            rest,
        )| {
            Evidence {
                iss: SeqNum(iss),
                nxt: SeqNum(nxt),
                contig: SeqNum(contig),
                ooo_start: SeqNum(ooo_start),
                ooo_end: SeqNum(ooo_end),
                ack: SeqNum(ack),
                last_ack: SeqNum(last_ack),
                edge: SeqNum(edge),
                tsval,
                flags,
                scale,
                generation,
                stamp: rest[0],
                packets: rest[1],
                bytes: rest[2],
            }
        },
    )
}

pub(super) fn any_record() -> impl Strategy<Value = FlowRecord> {
    (any::<[u64; 5]>(), any_evidence(), any_evidence(), any::<bool>()).prop_map(
        |([word, low, high, opened, facts], a, b, same)| {
            let mut record = FlowRecord { sent: [a, b], ..FlowRecord::default() };
            if same {
                // Else hardly ever are both ends of the verdict's generation.
                let generation = (word >> 32) as u8;
                record.sent.iter_mut().for_each(|sent| sent.generation = generation);
            }
            record.shared.verdict = word;
            record.shared.since = [low, high];
            record.shared.opened = opened;
            record.shared.facts = facts;
            record
        },
    )
}

/// Flags that no conforming stack sends.
fn invalid_flags() -> impl Strategy<Value = u16> {
    let invalid = |&flags: &u16| TcpFlags(flags).kind() == SegmentKind::Invalid;
    prop::sample::select((0..0x200).filter(invalid).collect::<Vec<u16>>())
}

fn any_end() -> impl Strategy<Value = End> {
    any::<bool>().prop_map(|high| if high { End::High } else { End::Low })
}

fn any_config() -> impl Strategy<Value = Config> {
    (any::<bool>(), any::<bool>()).prop_map(|(rfc1337, strict)| Config { rfc1337, strict })
}

proptest! {
    #![proptest_config(config(20_000))]

    /// Total: whatever the map holds and whatever comes, there is an answer.
    #[test]
    fn nothing_makes_the_machine_panic(
        record in any_record(),
        sender in any_end(),
        segment in any_segment(),
        now in any::<u64>(),
        config in any_config(),
        timeouts in any::<[u64; 16]>(),
    ) {
        let mut advanced = record;
        let (step, _) = advance(&mut advanced, sender, &segment, now, config);
        let _ = step.is_news(verdict(&record));
        for reason in [Unreachable::Port, Unreachable::Soft] {
            let error = IcmpError { reason, seq: segment.seq, drops_request: segment.len & 1 == 1 };
            let _ = observe_icmp(&PlainDesk::default(), verdict(&record), sender, record.sent_by(sender), &error);
        }
        let request = SweepRequest { now, timeout: timeouts, ..SweepRequest::default() };
        let _ = expire(&advanced, &request);
    }

    /// The generation goes one up or stays, and evidence that is written is of the generation then.
    #[test]
    fn generations_only_go_up(
        record in any_record(),
        sender in any_end(),
        segment in any_segment(),
        config in any_config(),
    ) {
        let mut after = record;
        let _ = advance(&mut after, sender, &segment, 0, config);
        generation_law(&record, &after, sender)?;
    }

    /// NULL, no ACK, SYN+FIN, SYN+RST and FIN+RST tell of themselves and move nothing, whatever is known.
    #[test]
    fn invalid_flags_never_move_anything(
        record in any_record(),
        sender in any_end(),
        segment in any_segment(),
        flags in invalid_flags(),
        config in any_config(),
    ) {
        // Not a copy of the packet before, which would be told as that.
        let segment = Segment { flags: TcpFlags(flags), ip_id: 0, ..segment };
        // A closed flow has a reason for it and a live one has none: the machine leaves no other verdicts.
        let over = |state: State| state.is_closed() || state == State::TimeWait;
        let is_over = states(verdict(&record)).into_iter().all(over);
        let mut record = record;
        if !is_over {
            record.shared.verdict = verdict(&record).with_close_reason(CloseReason::Open).0;
        }
        let mut after = record;
        let (step, _) = advance(&mut after, sender, &segment, 0, config);
        prop_assert_eq!(step.verdict, verdict(&record));
        prop_assert!(step.facts.has(Fact::BadFlags));
        // It is counted, and what is too old to be compared is forgotten; that is all.
        let mut counted = record;
        counted.sent[sender as usize].forget_stale_timestamp(0);
        counted.sent[sender as usize].count(segment.len, segment.ip_id, 0);
        prop_assert_eq!(after.sent, counted.sent);
    }
}

fn generation_law(before: &FlowRecord, after: &FlowRecord, sender: End) -> Result<(), TestCaseError> {
    let (old, new) = (verdict(before).generation(), verdict(after).generation());
    let up = new.wrapping_sub(old);
    prop_assert!(up <= 1, "from generation {} to {}", old, new);
    let (own, was) = (after.sent_by(sender), before.sent_by(sender));
    prop_assert!(own.generation == was.generation || own.generation == new as u8);
    // The other half has another writer.
    prop_assert_eq!(after.sent_by(sender.other()), before.sent_by(sender.other()));
    Ok(())
}

// ── Talks ──────────────────────────────────────────────────────────────────────────────────────────────────

/// The verdict as it is where Low and High have changed places.
fn mirrored(verdict: Verdict) -> Verdict {
    let word = verdict.0;
    let swap = |mask: u64, shift: u64| (word & mask) << shift | word >> shift & mask;
    let pairs = swap(0xf, 4) | swap(1 << 8, 1) | swap(0xf << 10, 4) | swap(1 << 22, 1);
    let rest = word & !(0xff | 3 << 8 | 0xff << 10 | 3 << 22);
    let mirrored = Verdict(pairs | rest);
    // Nobody is the originator of a tuple never seen.
    if verdict.generation() == 0 { mirrored } else { mirrored.with_originator(verdict.originator().other()) }
}

proptest! {
    #![proptest_config(config(5_000))]

    /// Which end sorts first decides nothing.
    #[test]
    fn both_directions_are_treated_alike(moves in Move::talk(LENGTH), config in any_config()) {
        let one = play(&moves, End::Low, config);
        let other = play(&moves, End::High, config);
        for (number, (one, other)) in one.iter().zip(&other).enumerate() {
            prop_assert_eq!(mirrored(one.step.verdict), other.step.verdict, "#{}: {:?}", number, one.segment);
            prop_assert_eq!(one.step.facts, other.step.facts, "#{}: {:?}", number, one.segment);
            let [low, high] = one.after.sent;
            prop_assert_eq!([high, low], other.after.sent, "#{}: {:?}", number, one.segment);
        }
    }

    /// What comes later changes nothing of what was said earlier: nothing is kept but the record.
    #[test]
    fn a_prefix_gives_a_prefix(moves in Move::talk(LENGTH), config in any_config(), cut in 0..LENGTH) {
        let whole = play(&moves, End::Low, config);
        let cut = cut.min(moves.len());
        let prefix = play(&moves[..cut], End::Low, config);
        prop_assert_eq!(prefix.len(), cut);
        for (whole, prefix) in whole.iter().zip(&prefix) {
            prop_assert_eq!(whole.step, prefix.step);
            prop_assert_eq!(whole.after, prefix.after);
        }
        // Nor does anything survive outside of the record: the rest can be played on from it.
        if let (Some(last), true) = (prefix.last(), cut < whole.len()) {
            let mut record = last.after;
            let next = &whole[cut];
            let (step, _) = advance(&mut record, next.sender, &next.segment, (cut as u64 + 1) << 20, config);
            prop_assert_eq!((step, record), (next.step, next.after));
        }
    }

    #[test]
    fn generations_of_a_talk_only_go_up(moves in Move::talk(LENGTH), config in any_config()) {
        for stage in play(&moves, End::Low, config) {
            generation_law(&stage.before, &stage.after, stage.sender)?;
            let opened = stage.step.facts.has(Fact::Open) || stage.step.facts.has(Fact::MidstreamPickup);
            let up = verdict(&stage.after).generation() != verdict(&stage.before).generation();
            let shown = !verdict(&stage.after).has(Verdict::CANDIDATE) && !verdict(&stage.after).is_closed();
            prop_assert!(!up || !shown || opened, "a new generation that nothing tells of: {:?}", stage.segment);
        }
    }

    /// The same for talks as for anything, and here the whole verdict.
    #[test]
    fn invalid_flags_change_no_talk(moves in Move::talk(LENGTH), bad in Move::strategy(), flags in invalid_flags()) {
        let stages = play(&[&moves[..], &[bad.with_flags(flags)]].concat(), End::Low, Config::default());
        let last = stages.last().unwrap();
        prop_assert_eq!(verdict(&last.after), verdict(&last.before));
        prop_assert!(last.step.facts.has(Fact::BadFlags));
    }

    /// Every state that is left, is left for a reason that `Step` tells.
    #[test]
    fn a_shown_verdict_that_moved_is_news(moves in Move::talk(LENGTH)) {
        for stage in play(&moves, End::Low, Config::default()) {
            let (before, after) = (verdict(&stage.before), verdict(&stage.after));
            let moved = states(before) != states(after);
            prop_assert!(!moved || stage.step.is_news(before), "{:?} -> {:?}", states(before), states(after));
            // A hidden candidate shows no state.
            if after.has(Verdict::CANDIDATE) {
                prop_assert!(after.is_closed());
            }
        }
    }
}

// ── Resets ─────────────────────────────────────────────────────────────────────────────────────────────────

/// Whether the end to which a reset was sent takes it: RFC 9293 §3.10.7, RFC 5961 §3, as Linux does it. Written
/// from the rules of the conformance traces, not from the machine.
fn takes_reset(record: &FlowRecord, sender: End, segment: &Segment, config: Config) -> bool {
    let (own, peer) = (record.sent_by(sender), record.sent_by(sender.other()));
    let same = own.has(Evidence::SEEN) && peer.has(Evidence::SEEN) && own.generation == peer.generation;
    // RCV.NXT: what the receiver acknowledged, or what was sent to it without a hole.
    let acked = peer.has(Evidence::SEEN | Evidence::EDGE);
    let next = if !acked || same && own.contig.after(peer.ack) { own.contig } else { peer.ack };
    let exact = segment.seq == next;
    let has_hole =
        own.ooo_start != own.ooo_end && own.ooo_end.after(own.contig) && !own.has(Evidence::SECOND_SYN);
    let no_sack = |end: &Evidence| end.has(Evidence::SYN) && !end.has(Evidence::SACK);
    let beyond_hole = has_hole && segment.seq == own.ooo_end && !no_sack(own) && !no_sack(peer);
    match verdict(record).state(sender.other()) {
        State::Closed | State::Listen => false,
        State::SynSent => {
            // Either of the two SYNs that it may have sent; the second, if nobody is known to have got the first.
            let verdict = verdict(record);
            let none = verdict.state(sender) == State::SynRecv
                && !verdict.is_confirmed(sender)
                && peer.strikes() > 0;
            let acks = |from: SeqNum, to: SeqNum| segment.ack.after(from) && !segment.ack.after(to);
            segment.flags.any(TcpFlags::ACK)
                && (peer.has(Evidence::SYN) && acks(peer.iss, peer.nxt)
                    || none && peer.has(Evidence::SECOND_SYN) && acks(peer.ooo_start, peer.ooo_end))
        }
        State::SynRecv => exact,
        State::TimeWait => exact && !config.rfc1337,
        State::Established | State::FinWait1 | State::FinWait2 => exact || beyond_hole,
        State::CloseWait | State::Closing | State::LastAck => {
            exact || beyond_hole || segment.seq.plus(1) == next
        }
    }
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn resets_end_what_they_may_and_nothing_else(
        moves in Move::talk(LENGTH),
        last in Move::strategy(),
        with_ack in any::<bool>(),
        at_landmark in prop::option::of((0..6_usize, -1..2_i32)),
        config in any_config(),
    ) {
        let mut stages = play(&moves, End::Low, config);
        let record = stages.pop().map_or_else(FlowRecord::default, |stage| stage.after);
        let sender = if last.from_a { End::Low } else { End::High };
        let (own, peer) = (*record.sent_by(sender), *record.sent_by(sender.other()));
        let flags = TcpFlags::RST | if with_ack { TcpFlags::ACK } else { 0 };
        let mut segment = Talk::new().segment(&last.with_flags(flags));
        // The numbers that mean something, and those next to them.
        if let Some((landmark, distance)) = at_landmark {
            let number = [own.contig, own.nxt, own.ooo_end, peer.ack, peer.last_ack, peer.edge][landmark];
            segment.seq = SeqNum(number.0.wrapping_add_signed(distance));
            segment.ack = peer.nxt;
        }
        let before = verdict(&record);
        let mut after = record;
        let (step, _) = advance(&mut after, sender, &segment, 1 << 40, config);
        let after = verdict(&after);
        let (receiver, was_sender, was_receiver) =
            (sender.other(), before.state(sender), before.state(sender.other()));

        if before.is_closed() {
            prop_assert_eq!(states(after), states(before));
            let told = step.facts.has(Fact::NoSession) || step.facts.has(Fact::RstAfterClose);
            prop_assert!(told, "{:?}", step.facts);
            return Ok(());
        }
        let taken = takes_reset(&record, sender, &segment, config);
        if taken {
            let ended = if was_receiver == State::SynRecv { State::Listen } else { State::Closed };
            prop_assert_eq!(after.state(receiver), ended, "was {:?}", was_receiver);
        } else {
            prop_assert_eq!(after.state(receiver), was_receiver);
        }
        // "No such socket here": a bare reset at the number that was just acknowledged, or one without a number that acknowledges a SYN.
        let answers = !with_ack && peer.has(Evidence::SEEN) && segment.seq == peer.last_ack;
        let refuses = with_ack
            && was_sender == State::FinWait2
            && segment.seq == SeqNum(0)
            && peer.has(Evidence::SYN_ON_LIVE | Evidence::SECOND_SYN)
            && segment.ack.after(peer.ooo_start)
            && !segment.ack.after(peer.ooo_end);
        // An abort: with a number that its sender may send.
        let attached = own.has(Evidence::SEEN) && peer.has(Evidence::SEEN) && own.generation == peer.generation;
        let aborts = with_ack
            && attached
            && !segment.seq.before(peer.ack)
            && !segment.seq.after(own.nxt)
            && (segment.ack == own.last_ack || was_receiver.is_closed());
        let gone = answers || refuses || aborts;
        let ends_request =
            was_sender == State::SynRecv && with_ack && own.has(Evidence::SYN_ACK) && segment.seq == own.nxt;
        let now = after.state(sender);
        if taken && was_receiver == State::SynSent {
            prop_assert_eq!(now, State::Closed, "refused: there never was a socket");
        } else if ends_request && (taken || gone) {
            prop_assert_eq!(now, State::Closed, "aborted before the handshake was complete");
        } else if !was_sender.is_synchronized() {
            // Answering a bad ACK with a reset ends nobody's own attempt.
            prop_assert_eq!(now, was_sender);
        } else if !taken && !gone {
            prop_assert_eq!(now, was_sender);
        } else if own.has(Evidence::SYN_ON_LIVE) && !with_ack {
            prop_assert_eq!(now, State::SynSent, "it goes on trying to connect");
        } else {
            prop_assert_eq!(now, State::Closed);
        }
        // A reset opens nothing.
        prop_assert_eq!(after.generation(), before.generation());
    }
}

// ── The short path ─────────────────────────────────────────────────────────────────────────────────────────

/// Where the short path is taken, the full machine would have done the same.
fn short_path_law(
    before: Verdict,
    sender: End,
    own: &Evidence,
    peer: &Evidence,
    segment: &Segment,
) -> Result<bool, TestCaseError> {
    let mut short = *own;
    let Some(after) = observe_settled(before, sender, &mut short, peer, segment) else {
        prop_assert_eq!(&short, own, "it left its mark without taking the segment");
        return Ok(false);
    };
    let mut full = *own;
    let step = observe(&PlainDesk::default(), before, sender, &mut full, peer, segment, Config::default());
    prop_assert_eq!(step.verdict, after);
    prop_assert!(step.facts.is_empty(), "{:?}", step.facts);
    prop_assert_eq!(short.unknowing(), full.unknowing());
    Ok(true)
}

/// Where a segment is taken as an orderly one, the full machine would have done the same.
fn orderly_law(
    before: Verdict,
    sender: End,
    own: &Evidence,
    peer: &Evidence,
    segment: &Segment,
) -> Result<Option<Step>, TestCaseError> {
    let mut short = *own;
    let Some(step) = observe_orderly(&PlainDesk::default(), before, sender, &mut short, peer, segment) else {
        prop_assert_eq!(&short, own, "it left its mark without taking the segment");
        return Ok(None);
    };
    let mut full = *own;
    let machine = observe(&PlainDesk::default(), before, sender, &mut full, peer, segment, Config::default());
    prop_assert_eq!(step, machine);
    prop_assert_eq!(short.unknowing(), full.unknowing());
    Ok(Some(step))
}

/// Evidence of an end that has sent up to `nxt` and acknowledged up to `ack`, as the short path wants it or nearly.
fn settled_evidence(nxt: u32, ack: u32) -> impl Strategy<Value = Evidence> {
    let flags = (0..0x1000_u16, prop::bool::weighted(0.9)).prop_map(|(any, quiet)| {
        // An end that sends on has chosen among its SYNs.
        let any = any & !Evidence::SECOND_SYN;
        let always = Evidence::SEEN | Evidence::EDGE;
        let never = Evidence::FIN | Evidence::SYN_ON_LIVE | Evidence::ZERO_WINDOW;
        if quiet { (any | always) & !never } else { any }
    });
    let hole = prop_oneof![6 => Just(0_u32), 1 => 1..3000_u32];
    (flags, 0..15_u8, 0..3000_u32, hole, 0..100_000_u32, 990..1010_u32, 0..2000_u32).prop_map(
        move |(flags, scale, sent, hole, offered, tsval, back)| {
            let contig = nxt.wrapping_sub(hole);
            Evidence {
                iss: SeqNum(nxt.wrapping_sub(sent).wrapping_sub(1)),
                nxt: SeqNum(nxt),
                contig: SeqNum(contig),
                // A hole was closed, or there never was one.
                ooo_start: SeqNum(nxt.wrapping_sub(hole.min(back))),
                ooo_end: SeqNum(nxt.wrapping_sub(hole.min(back))),
                ack: SeqNum(ack),
                last_ack: SeqNum(ack),
                edge: SeqNum(ack.wrapping_add(offered)),
                tsval,
                flags,
                scale,
                generation: 1,
                ..Evidence::default()
            }
        },
    )
}

/// A flow that knows of each peer what it read last goes the way of one that reads it each time.
#[test]
fn what_is_known_of_a_peer_changes_nothing() {
    let (known, all) = (Cell::new(0_u32), Cell::new(0_u32));
    hold(8_000, &prop_oneof![Move::chat(2 * LENGTH), Move::talk(LENGTH)], |moves| {
        let [by_itself, segments] = knowing_law(&moves)?;
        known.set(known.get() + by_itself);
        all.set(all.get() + segments);
        Ok(())
    });
    println!("{} of {} segments asked nothing of the peer's half", known.get(), all.get());
    assert!(known.get() > all.get() / 25, "hardly any were put to the test");
}

/// Nor does it after 2 GiB, when sequence numbers that are behind seem to be ahead.
#[test]
fn what_is_known_of_a_peer_does_not_come_round() {
    for server in [Some(true), Some(false), None] {
        let [by_itself, segments] = knowing_law(&Move::upload(server)).unwrap();
        println!("{server:?}: {by_itself} of {segments} segments asked nothing of the peer's half");
        assert_eq!(by_itself > 0, server == Some(true));
    }
}

/// Plays a talk on a flow that knows and on one that forgets before each segment. Says how many segments asked nothing of the
/// peer's half, and of how many.
fn knowing_law(moves: &[Move]) -> Result<[u32; 2], TestCaseError> {
    let mut talk = Talk::new();
    let (mut knowing, mut asking) = (FlowRecord::default(), FlowRecord::default());
    let mut by_itself = 0;
    for next in moves {
        let segment = talk.segment(next);
        let sender = if next.from_a { End::Low } else { End::High };
        asking.sent = asking.sent.map(|sent| sent.unknowing());
        by_itself += u32::from(does_without_peer(&knowing, sender, &segment));
        let step = advance(&mut knowing, sender, &segment, 0, Config::default());
        prop_assert_eq!(step, advance(&mut asking, sender, &segment, 0, Config::default()), "{:?}", segment);
        let [knowing, asking] = [&knowing, &asking].map(|record| record.sent.map(|sent| sent.unknowing()));
        prop_assert_eq!(knowing, asking, "{:?}", segment);
    }
    Ok([by_itself, moves.len() as u32])
}

/// Whether the short path takes a segment without its peer's half: with nothing in it, it is taken all the same.
fn does_without_peer(record: &FlowRecord, sender: End, segment: &Segment) -> bool {
    let mut own = *record.sent_by(sender);
    observe_settled(verdict(record), sender, &mut own, &Evidence::default(), segment).is_some()
}

proptest! {
    #![proptest_config(config(20_000))]

    #[test]
    fn the_short_path_is_the_machine_on_talks(moves in prop_oneof![Move::talk(LENGTH), Move::chat(LENGTH)]) {
        let mut talk = Talk::new();
        let mut record = FlowRecord::default();
        for next in &moves {
            let segment = talk.segment(next);
            let sender = if next.from_a { End::Low } else { End::High };
            let (own, peer) = (record.sent_by(sender), record.sent_by(sender.other()));
            short_path_law(verdict(&record), sender, own, peer, &segment)?;
            orderly_law(verdict(&record), sender, own, peer, &segment)?;
            let _ = advance(&mut record, sender, &segment, 0, Config::default());
        }
    }
}

/// A segment of an end that has sent up to `nxt`, to one that has sent up to `peer_nxt`: the next in order, or nearly.
fn next_segment(nxt: u32, peer_nxt: u32, unacked: u32) -> impl Strategy<Value = Segment> {
    const FIN: u16 = TcpFlags::ACK | TcpFlags::FIN;
    (
        prop_oneof![5 => Just(0_i32), 1 => -3000..3000_i32],
        prop_oneof![5 => 0..=unacked, 3 => Just(unacked), 1 => any::<u32>()],
        prop_oneof![Just(0_u32), Just(1), 0..100_000_u32],
        prop_oneof![Just(TcpFlags::ACK), Just(TcpFlags::ACK | TcpFlags::PSH), Just(FIN), 0..0x200_u16],
        prop_oneof![Just(0_u16), Just(63), any::<u16>()],
        prop_oneof![Just(0_u8), Just(TcpOptions::HAS_TIMESTAMPS), 0..64_u8],
        990..1020_u32,
    )
        .prop_map(move |(from_due, acked, len, flags, window, present, tsval)| Segment {
            seq: SeqNum(nxt.wrapping_add_signed(from_due)),
            ack: SeqNum(peer_nxt.wrapping_sub(unacked).wrapping_add(acked)),
            len,
            flags: TcpFlags(flags),
            window,
            ip_id: 0,
            to_itself: false,
            tap: 0,
            options: TcpOptions { present, tsval, ..TcpOptions::default() },
        })
}

/// Evidence of both ends, made for the short paths, and a segment between them.
fn nearly_orderly() -> impl Strategy<Value = (Evidence, Evidence, Segment, End)> {
    (any::<u32>(), any::<u32>(), 0..2000_u32, 0..2000_u32).prop_flat_map(
        |(nxt, peer_nxt, unacked, peer_unacked)| {
            (
                settled_evidence(nxt, peer_nxt.wrapping_sub(unacked)),
                settled_evidence(peer_nxt, nxt.wrapping_sub(peer_unacked)),
                next_segment(nxt, peer_nxt, unacked),
                any_end(),
            )
        },
    )
}

/// Runs a law on so many cases.
fn hold<S: Strategy>(cases: u32, strategy: &S, law: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    use proptest::test_runner::{Config as RunnerConfig, TestRunner};

    let config = RunnerConfig { failure_persistence: None, ..RunnerConfig::with_cases(cases) };
    if let Err(error) = TestRunner::new(config).run(strategy, law) {
        panic!("{error}");
    }
}

/// The same on evidence that is made for it: here nearly every segment takes the short path, and the test fails
/// if none does.
#[test]
fn the_short_path_is_the_machine_on_settled_flows() {
    let taken = Cell::new(0_u32);
    let unproved = Cell::new(0_u32);
    let proving = Cell::new(0_u32);
    let verdicts =
        (any::<bool>(), any::<[bool; 2]>(), prop_oneof![Just(State::SynRecv), Just(State::SynSent)]);
    hold(200_000, &(nearly_orderly(), verdicts), |(talk, (picked_up, [proved, confirmed], came_from))| {
        let (own, peer, segment, sender) = talk;
        let settled = Verdict::default()
            .next_generation()
            .with_state(sender, State::Established, proved)
            .with_state(sender.other(), came_from, true)
            .with_state(sender.other(), State::Established, confirmed)
            .with(Verdict::PICKED_UP, picked_up);
        let short = short_path_law(settled, sender, &own, &peer, &segment)?;
        taken.set(taken.get() + u32::from(short));
        unproved.set(unproved.get() + u32::from(short && !confirmed));
        proving.set(proving.get() + u32::from(short && !proved));
        Ok(())
    });
    let [taken, unproved, proving] = [&taken, &unproved, &proving].map(Cell::get);
    println!(
        "{taken} of 200000 segments took the short path, {unproved} to an unproved end, {proving} from one"
    );
    assert!(taken > 10_000 && unproved > 5_000 && proving > 5_000);
}

proptest! {
    #[test]
    fn a_first_syn_is_the_machines(segment in next_segment(7, 0, 0), sender in any_end()) {
        let segment = Segment { flags: TcpFlags(TcpFlags::SYN), ..segment };
        let (mut short, mut full) = (Evidence::default(), Evidence::default());
        let step = observe_first_syn(sender, &mut short, &segment);
        let machine = observe(
            &PlainDesk::default(),
            Verdict::default(),
            sender,
            &mut full,
            &Evidence::default(),
            &segment,
            Config::default(),
        );
        prop_assert_eq!(step, machine);
        prop_assert_eq!(short, full);
    }
}

/// Any verdict, in which nothing is pending mostly.
fn any_verdict() -> impl Strategy<Value = Verdict> {
    let state = || prop_oneof![5 => 3..11_u8, 1 => 0..11_u8].prop_map(State::from_code);
    let pending = prop_oneof![9 => Just(0_u64), 1 => (0..28_u64).prop_map(|bit| 1 << bit)];
    (state(), state(), state(), any::<[bool; 2]>(), pending).prop_map(
        |(low, before, high, [low_confirmed, high_confirmed], pending)| {
            let verdict = Verdict::default()
                .next_generation()
                .with_state(End::Low, low, low_confirmed)
                .with_state(End::High, before, true)
                .with_state(End::High, high, high_confirmed);
            Verdict(verdict.0 | pending & !0xff)
        },
    )
}

/// Orderly segments are the machine's in every state of both ends, and each state of a connection's life is come to by
/// them.
#[test]
fn an_orderly_segment_is_the_machines_in_every_state() {
    let reached = Cell::new([0_u32; 11]);
    let facts = Cell::new(0_u64);
    hold(
        100_000,
        &(nearly_orderly(), any_verdict(), any::<[bool; 3]>()),
        |(talk, verdict, [closed, first, fin])| {
            let (mut own, mut peer, segment, sender) = talk;
            if closed {
                peer.flags |= Evidence::FIN;
            }
            if first {
                own.flags &= !Evidence::EDGE;
            }
            if fin {
                own.flags |= Evidence::FIN;
            }
            if let Some(step) = orderly_law(verdict, sender, &own, &peer, &segment)? {
                let mut all = reached.get();
                for end in [End::Low, End::High] {
                    if step.verdict.transition(verdict, end).is_some() {
                        all[step.verdict.slot(end)] += 1;
                    }
                }
                reached.set(all);
                facts.set(facts.get() | step.facts.0);
            }
            Ok(())
        },
    );
    println!("states come to: {:?}", reached.get());
    for state in State::ALL {
        let comes = reached.get()[state as usize] > 0;
        // A handshake's beginnings are the machine's alone.
        let expected = !matches!(state, State::Listen | State::SynSent | State::SynRecv);
        assert_eq!(comes, expected, "{state:?}");
    }
    for fact in [Fact::Established, Fact::HalfClosed, Fact::Closed] {
        assert!(facts.get() >> fact as u64 & 1 != 0, "{fact:?} was never told");
    }
}
