//! The full machine on the segment that lies on the desk, and the books that the winner of a verdict keeps.
//!
//! These are global functions: the verifier looks at each once, whoever calls it and with whatever it was
//! called. They take pointers to whole structures, which it holds them to.

use tcpfsm_common::{
    abi::{Counters, Evidence, FlowRecord, HandshakeStep, Health, Verdict},
    fact::Facts,
    flow::FlowKey6,
    fsm::{self, Config, Step, settle},
    packet::walk_options,
    segment::SegmentKind,
};

use crate::{
    atomics::or,
    clock, early, emit, filter,
    flow_table::{self, Insertion, Key, halves},
    maps::CONFIG,
    sample::{is_sampling, is_told_always, tcpfsm_sample},
    services, stats, strays,
    work::Work,
};

/// A one-sided flow is promoted after this many segments.
const ONE_SIDED_PROMOTION: u64 = 16;

/// What came of one attempt at a segment.
type Attempt = u64;
/// The segment is worked.
pub(crate) const DONE: Attempt = 0;
/// The record was on its way to another map, or the other direction changed its verdict meanwhile: look again.
const AGAIN: Attempt = 1;

/// How often the record is looked for: it may leave its map, begin, end, or be changed at each look.
const ATTEMPTS: usize = 8;

/// Works the segment on the desk, which no record in a flow map took; `found` is the record of its flow, null where there is none or it
/// is to be looked for.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_segment(
    work: *mut Work,
    found: *mut FlowRecord,
    counters: *mut Counters,
) -> u64 {
    if work.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: the callers pass this CPU's desk and counters.
    let (work, counters) = unsafe { (&mut *work, &mut *counters) };
    if !found.is_null() {
        if work.is_embryo() && tcpfsm_embryo(work, found, counters) == DONE {
            return 0;
        }
    } else if work.is_new_syn() {
        if tcpfsm_begin(work, counters) == DONE {
            return 0;
        }
        work.missed = 0;
    }
    for _ in 0..ATTEMPTS {
        if tcpfsm_attempt(work, counters) == DONE {
            return 0;
        }
        work.missed = 0;
    }
    stats::health(counters, Health::VerdictLost);
    0
}

/// Reads the options that were put aside.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_options(work: *mut Work) -> u64 {
    if work.is_null() {
        return 0;
    }
    // SAFETY: the caller's desk.
    let work = unsafe { &mut *work };
    work.segment.options = walk_options(&work.options, 0, work.options_len as usize);
    0
}

/// Looks for the flow of the segment on the desk, and works it there.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcpfsm_attempt(work: *mut Work, counters: *mut Counters) -> Attempt {
    if counters.is_null() {
        return DONE;
    }
    // SAFETY: the callers pass this CPU's desk and counters.
    let counters = unsafe { &mut *counters };
    let Some(work) = Work::passed(work) else { return DONE };
    if work.event.family == 4 {
        attempt(&work.key4(), work, counters)
    } else {
        let key: *const FlowKey6 = work.key6();
        // SAFETY: the desk's event holds the key, and nothing writes it until the work is done.
        attempt(unsafe { &*key }, work, counters)
    }
}

/// [`flow_table::carry`] for the flow on the desk.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_carry(
    work: *mut Work,
    embryo: *mut FlowRecord,
    counters: *mut Counters,
) -> u64 {
    if embryo.is_null() || counters.is_null() {
        return 0;
    }
    let Some(work) = Work::passed(work) else { return 0 };
    // SAFETY: as for `tcpfsm_attempt`; the callers' element.
    unsafe {
        let counters = &mut *counters;
        if work.event.family == 4 {
            flow_table::carry(counters, &work.key4(), embryo, work);
        } else {
            let key: *const FlowKey6 = work.key6();
            flow_table::carry(counters, &*key, embryo, work);
        }
    }
    0
}

/// Begins a flow with the segment on the desk. A function of its own, for the sake of the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcpfsm_begin(work: *mut Work, counters: *mut Counters) -> Attempt {
    if counters.is_null() {
        return DONE;
    }
    // SAFETY: as for `tcpfsm_attempt`.
    let counters = unsafe { &mut *counters };
    let Some(work) = Work::passed(work) else { return DONE };
    if work.event.family == 4 {
        begin(&work.key4(), work, counters)
    } else {
        let key: *const FlowKey6 = work.key6();
        // SAFETY: as for `tcpfsm_attempt`.
        begin(unsafe { &*key }, work, counters)
    }
}

#[inline(always)]
fn attempt<K: Key>(key: &K, work: &mut Work, counters: &mut Counters) -> Attempt {
    // SAFETY: the maps gave the elements.
    unsafe {
        if work.missed == 0 {
            if let Some(record) = key.find_flow()
                && !flow_table::verdict(record).has(Verdict::GONE)
            {
                work.map = K::FLOWS as u64;
                return tcpfsm_advance(work, record, counters);
            }
            if let Some(embryo) = key.find_embryo() {
                work.map = K::EMBRYOS as u64;
                return tcpfsm_embryo(work, embryo, counters);
            }
        }
        if let Some(record) = key.find_flow()
            && !flow_table::verdict(record).has(Verdict::GONE)
        {
            // It was on its way from the one map to the other when each was looked at.
            return AGAIN;
        }
        tcpfsm_begin(work, counters)
    }
}

/// Works the segment on the desk on a record of the embryonic map, and promotes that if it has proved itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcpfsm_embryo(work: *mut Work, embryo: *mut FlowRecord, counters: *mut Counters) -> Attempt {
    if work.is_null() || embryo.is_null() || counters.is_null() {
        return DONE;
    }
    // SAFETY: the callers' desk, element and counters.
    unsafe {
        let (work, counters) = (&mut *work, &mut *counters);
        let verdict = flow_table::verdict(embryo);
        if !verdict.has(Verdict::GONE) {
            if tcpfsm_advance(work, embryo, counters) == AGAIN {
                return AGAIN;
            }
            let (own, peer) = halves(embryo, work.sender());
            let heard = (*peer).has(Evidence::SEEN) || (*own).packets >= ONE_SIDED_PROMOTION;
            let verdict = Verdict(work.event.after);
            if heard && !verdict.is_embryonic() && !verdict.has(Verdict::GONE) {
                flow_table::promote(counters, embryo, work, verdict);
            }
            return DONE;
        }
        // One that is closed the sweep is about to remove, and nobody else may.
        if !verdict.is_closed() {
            tcpfsm_carry(work, embryo, counters);
        }
        AGAIN
    }
}

/// A segment of no known flow: a record is kept only if the machine began one.
#[inline(always)]
fn begin<K: Key>(key: &K, work: &mut Work, counters: &mut Counters) -> Attempt {
    work.record = FlowRecord::default();
    work.event.before = Verdict::default().0;
    work.carries = 0;
    let record = &raw mut work.record;
    // SAFETY: the desk is this CPU's.
    unsafe {
        let (own, peer) = halves(record, work.sender());
        let mut map = K::EMBRYOS;
        if work.segment.is_syn() && !work.segment.to_itself {
            let step = fsm::observe_first_syn(work.sender(), &mut *own, &work.segment);
            work.set_step(&step);
            // One that did not find its way there at first does not try again: something of an earlier connection is there.
            if work.missed != 0 {
                map = early::map::<K>(counters);
            }
        } else {
            work.own = Evidence::default();
            step(work, peer);
            if Verdict(work.event.after).generation() == 0 {
                stats::facts(counters, Facts(work.event.facts));
                work.event.since = [0; 2];
                strays::tcpfsm_stray(work, counters);
                return DONE;
            }
            *own = work.own;
        }
        let coarse = clock::coarse(counters);
        (*own).count(work.segment.len, work.segment.ip_id, coarse);
        (*record).shared.verdict = work.event.after;
        // In a flood, of which only a sample is told, the tick's time will do. It is no later.
        if is_sampling(counters, coarse) {
            work.event.time = coarse;
        } else {
            work.tell_time();
        }
        settled(record, work);
        work.map = map as u64;
        match key.insert(map, &*record) {
            Insertion::Done => {
                stats::health(counters, Health::Inserted);
                stats::came(counters, map, Verdict(work.event.after));
                if map == K::EMBRYOS {
                    filter::mark(key);
                }
                report(counters, record, work);
            }
            // Another CPU was first, with a segment of the other direction; or one of an earlier connection is on its way out.
            Insertion::Exists => {
                early::give_back::<K>(counters, map);
                return AGAIN;
            }
            Insertion::NoRoom => {
                early::give_back::<K>(counters, map);
                stats::health(counters, Health::InsertFailed);
                work.not_stored = 1;
            }
        }
        DONE
    }
}

/// Works the segment on the desk on a record that is in a map.
///
/// A record leaves the embryonic map as a copy, made by the CPU that promotes it. What this CPU wrote into its half
/// meanwhile may be in the copy, or not, or in parts. So a step in that map is good only if the verdict, installed
/// anew even where it is the same, shows that nobody was carrying the record away. If somebody was, the half is taken
/// along as it was before, and put into the copy: nobody else writes it there either.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_advance(
    work: *mut Work,
    record: *mut FlowRecord,
    counters: *mut Counters,
) -> Attempt {
    if work.is_null() || record.is_null() || counters.is_null() {
        return DONE;
    }
    // SAFETY: the callers' desk, element and counters; nobody else writes this half (see flow_table.rs).
    unsafe {
        let (work, counters) = (&mut *work, &mut *counters);
        let (own, peer) = halves(record, work.sender());
        if work.carries != 0 {
            *own = work.carried;
            work.carries = 0;
        }
        let coarse = clock::coarse(counters);
        let tap = (*record).shared.tap[work.sender() as usize & 1];
        let before = flow_table::verdict(record);
        // The evidence goes first: whoever sees the new verdict sees what it rests on.
        work.carried = *own;
        if before.has(Verdict::GONE) {
            work.take_along(before);
            return AGAIN;
        }
        work.event.before = before.0;
        (*own).forget_stale_timestamp(coarse);
        if fsm::is_duplicate_view(before, &*own, tap, &work.segment, coarse) {
            work.set_step(&Step::duplicate_view(before));
        } else {
            if tcpfsm_orderly(work, own, peer) == 0 {
                work.own = *own;
                step(work, peer);
                *own = work.own;
            }
            (*own).count(work.segment.len, work.segment.ip_id, coarse);
        }
        let after = Verdict(work.event.after);
        let is_news = after.0 != before.0 || work.event.facts != 0;
        if is_news {
            work.tell_time();
        }
        if after.0 != before.0 || work.is_embryo() {
            if !flow_table::install(record, before, after) {
                // The other direction changed it meanwhile, or carries it away with what was written just now.
                *own = work.carried;
                work.take_along(flow_table::verdict(record));
                stats::health(counters, Health::VerdictRetries);
                return AGAIN;
            }
            stats::moved(counters, work.map as usize, before, after);
        }
        if is_news {
            tcpfsm_books(work, record, counters);
        }
    }
    DONE
}

/// The machine on a segment that comes in order; 0 if it is not one that may be taken as such.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tcpfsm_orderly(work: *mut Work, own: *mut Evidence, peer: *const Evidence) -> u64 {
    if work.is_null() || own.is_null() || peer.is_null() {
        return 0;
    }
    // SAFETY: the callers pass the desk and the halves of a record.
    let (work, own, peer) = unsafe { (&mut *work, &mut *own, &*peer) };
    let (before, sender) = (Verdict(work.event.before), work.sender());
    let Work { segment, verdict, .. } = &*work;
    let Some(step) = fsm::observe_orderly(verdict, before, sender, own, peer, segment) else {
        return 0;
    };
    work.set_step(&step);
    1
}

/// Asks the machine.
#[inline(always)]
fn step(work: &mut Work, peer: *const Evidence) {
    if work.segment.to_itself {
        tcpfsm_itself(work, peer);
        return;
    }
    match work.segment.flags.kind() {
        SegmentKind::Invalid => tcpfsm_invalid(work, peer),
        SegmentKind::Syn => tcpfsm_syn(work, peer),
        SegmentKind::SynAck => tcpfsm_syn_ack(work, peer),
        SegmentKind::Ack | SegmentKind::Fin => tcpfsm_ack(work, peer),
        SegmentKind::Rst => tcpfsm_reset(work, peer),
    };
}

macro_rules! machine {
    ($($(#[$doc:meta])* $name:ident => $observe:path;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(work: *mut Work, peer: *const Evidence) -> u64 {
            if work.is_null() || peer.is_null() {
                return 0;
            }
            // SAFETY: the callers pass the desk and a half of a record.
            let (work, peer) = unsafe { (&mut *work, &*peer) };
            let before = Verdict(work.event.before);
            let (sender, config) = (work.sender(), Config::from(CONFIG.load()));
            let Work { own, segment, verdict, .. } = work;
            let step = $observe(verdict, before, sender, own, peer, segment, config);
            work.set_step(&step);
            0
        }
    )*};
}

machine! {
    /// The machine on flags that no conforming stack sends.
    tcpfsm_invalid => fsm::observe_invalid;
    /// The machine on a SYN.
    tcpfsm_syn => fsm::observe_syn;
    /// The machine on a SYN-ACK.
    tcpfsm_syn_ack => fsm::observe_syn_ack;
    /// The machine on data, acknowledgments and FINs.
    tcpfsm_ack => fsm::observe_ack;
    /// The machine on a reset.
    tcpfsm_reset => fsm::observe_reset;
    /// The machine on a segment whose sender is its receiver.
    tcpfsm_itself => fsm::observe_itself;
}

/// What the winner of a verdict does: the shared fields, the counters, the event.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_books(
    work: *mut Work,
    record: *mut FlowRecord,
    counters: *mut Counters,
) -> u64 {
    if work.is_null() || record.is_null() || counters.is_null() {
        return 0;
    }
    // SAFETY: the callers' desk, element and counters.
    unsafe {
        settled(record, &mut *work);
        report(&mut *counters, record, &mut *work);
    }
    0
}

/// Brings the shared part of a record up to date. Whether that was the end of the flow is written down: the verifier would
/// follow both answers through all that comes after.
#[inline(always)]
unsafe fn settled(record: *mut FlowRecord, work: &mut Work) {
    // SAFETY: the caller's record.
    let shared = unsafe { &mut (*record).shared };
    work.event.since = shared.since;
    work.named = (shared.reported != 0).into();
    let before = Verdict(work.event.before);
    let change = settle(shared, work.sender(), before, &work.step(), &work.segment, work.event.time);
    work.set_over(change.over);
    // Two CPUs may add each its own at once.
    if work.event.facts & !shared.facts != 0 {
        // SAFETY: as above.
        unsafe { or(&raw mut shared.facts, work.event.facts) };
    }
}

#[inline(always)]
unsafe fn report(counters: &mut Counters, record: *mut FlowRecord, work: &mut Work) {
    let (before, step) = (Verdict(work.event.before), work.step());
    stats::facts(counters, step.facts);
    if !step.is_news(before) {
        if strays::is_stray(step.facts) {
            strays::tcpfsm_stray(work, counters);
        }
        return;
    }
    if HandshakeStep::is_one(step.facts, work.event.flags) {
        services::tcpfsm_service(work);
    }
    let is_early = early::seen(counters, work, &step);
    let (moved, over) = (step.moved(before), work.is_over());
    // SAFETY: the caller's record.
    unsafe {
        let (own, peer) = halves(record, work.sender());
        work.relate(&*own, &*peer);
        stats::change(counters, &work.event, (*record).shared.opened, over);
        // Who was named as stuck is told of when that ends, and such a handshake in full.
        let is_due = moved && (work.named != 0 || is_early);
        if !is_due && !is_told_always(&work.event) && tcpfsm_sample(&raw mut work.event, counters) == 0 {
            return;
        }
        emit::packet(counters, &mut work.event, record, moved, over);
    }
}
