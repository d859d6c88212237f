//! One packet: parse, find its flow, advance the machine, do the books.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_ktime_get_coarse_ns};
use tcpfsm_common::{
    abi::{Counters, Evidence, FlowRecord, Health, Hook, Outcome, Verdict},
    fact::{Fact, Facts},
    flow::End,
    fsm::{Change, Config, Step, observe, observe_icmp, observe_settled, settle},
    packet::{IcmpError, PacketBytes, Parsed, Skip, parse_ether, parse_network},
    segment::Segment,
};

use crate::{
    emit,
    flow_table::{self, Key},
    maps::CONFIG,
    stats,
};

/// How often a verdict is worked out again because the other direction changed it meanwhile.
const RETRIES: usize = 3;

/// A one-sided flow is promoted after this many segments.
const ONE_SIDED_PROMOTION: u64 = 16;

/// Where and how long a packet is.
#[derive(Clone, Copy)]
pub(crate) struct Meta {
    pub(crate) hook: Hook,
    pub(crate) ifindex: u32,
    pub(crate) wire_len: usize,
}

/// One segment and what the machine makes of it: everything that the functions out of line need, since they
/// take at most five arguments.
pub(crate) struct Work {
    pub(crate) segment: Segment,
    /// The sender's evidence, a copy: it is written back whole.
    pub(crate) own: Evidence,
    pub(crate) before: Verdict,
    pub(crate) step: Step,
    pub(crate) sender: End,
    pub(crate) hook: Hook,
    pub(crate) ifindex: u32,
    /// Fine clock, read only when something changed.
    pub(crate) now: u64,
    /// When each end had entered the state it was in before.
    pub(crate) since: [u64; 2],
}

impl Work {
    #[inline(always)]
    fn new(segment: Segment, sender: End, meta: &Meta) -> Self {
        let nothing = Step { verdict: Verdict::default(), facts: Facts::default() };
        let Meta { hook, ifindex, .. } = *meta;
        let (before, own) = (Verdict::default(), Evidence::default());
        Self { segment, own, before, step: nothing, sender, hook, ifindex, now: 0, since: [0; 2] }
    }
}

/// Counts one packet, and tracks it if it is TCP.
///
/// # Errors
/// `Truncated` where the packet's linear part ends before its headers do; it is not counted then.
#[inline(always)]
pub(crate) fn packet<B: PacketBytes>(bytes: &B, meta: &Meta) -> Result<(), Skip> {
    let Some(counters) = stats::counters() else { return Ok(()) };
    let parsed = parse_ether(bytes)
        .and_then(|(network, offset)| parse_network(bytes, network, offset, meta.wire_len));
    let outcome = match parsed {
        Ok(Parsed::Tcp4(ends, segment)) => {
            let (key, sender) = ends.key(CONFIG.load().scope);
            track(counters, &key, Work::new(segment, sender, meta))
        }
        Ok(Parsed::Tcp6(ends, segment)) => {
            let (key, sender) = ends.key(CONFIG.load().scope);
            track(counters, &key, Work::new(segment, sender, meta))
        }
        Ok(Parsed::Icmp4(ends, error)) => {
            let (key, quoted) = ends.key(CONFIG.load().scope);
            icmp(counters, &key, &error, Work::new(Segment::default(), quoted, meta))
        }
        Ok(Parsed::Icmp6(ends, error)) => {
            let (key, quoted) = ends.key(CONFIG.load().scope);
            icmp(counters, &key, &error, Work::new(Segment::default(), quoted, meta))
        }
        Err(Skip::Truncated) => return Err(Skip::Truncated),
        Err(skip) => {
            stats::packet(counters, meta.hook, Outcome::ALL.len() + skip as usize);
            return Ok(());
        }
    };
    stats::packet(counters, meta.hook, outcome as usize);
    Ok(())
}

/// Counts a packet that ends before its headers do.
#[inline(always)]
pub(crate) fn truncated(meta: &Meta) {
    if let Some(counters) = stats::counters() {
        stats::packet(counters, meta.hook, Outcome::ALL.len() + Skip::Truncated as usize);
    }
}

#[inline(always)]
fn track<K: Key>(counters: &mut Counters, key: &K, mut work: Work) -> Outcome {
    if let Some(record) = key.find_flow() {
        // SAFETY: the map gave the element.
        unsafe {
            let verdict = flow_table::verdict(record);
            let (own, peer) = halves(record, work.sender);
            if observe_settled(verdict, &mut *own, &*peer, &work.segment) {
                (*own).count(&work.segment, bpf_ktime_get_coarse_ns());
                return Outcome::Tracked;
            }
            if !verdict.has(Verdict::GONE) {
                return advance(counters, key, record, &mut work);
            }
        }
    }
    track_embryo(counters, key, work)
}

#[inline(always)]
fn track_embryo<K: Key>(counters: &mut Counters, key: &K, mut work: Work) -> Outcome {
    let Some(record) = key.find_embryo() else { return begin(counters, key, work) };
    // SAFETY: the map gave the element.
    unsafe {
        let outcome = advance(counters, key, record, &mut work);
        let (own, peer) = halves(record, work.sender);
        if is_proved(work.step.verdict, own, peer) {
            flow_table::promote(counters, key, record, work.step.verdict);
        }
        outcome
    }
}

/// The sender's evidence and the receiver's.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn halves(record: *mut FlowRecord, sender: End) -> (*mut Evidence, *const Evidence) {
    let at = sender as usize & 1;
    // SAFETY: both indices are 0 or 1.
    unsafe {
        let sent = (&raw mut (*record).sent).cast::<Evidence>();
        (sent.add(at), sent.add(at ^ 1).cast_const())
    }
}

/// The full machine on a record that is in a map.
///
/// # Safety
/// `record` must point to an element of one of the key's maps.
#[inline(always)]
unsafe fn advance<K: Key>(
    counters: &mut Counters,
    key: &K,
    record: *mut FlowRecord,
    work: &mut Work,
) -> Outcome {
    // SAFETY: the caller's promise; nobody else writes this half (see flow_table.rs).
    unsafe {
        let (own, peer) = halves(record, work.sender);
        let coarse = bpf_ktime_get_coarse_ns();
        for _ in 0..RETRIES {
            work.own = *own;
            work.before = flow_table::verdict(record);
            step(work, peer);
            work.own.count(&work.segment, coarse);
            let (before, after) = (work.before, work.step.verdict);
            // The evidence goes first: whoever sees the new verdict sees what it rests on.
            let original = *own;
            *own = work.own;
            if after.0 != before.0 && !flow_table::install(record, before, after) {
                *own = original;
                stats::health(counters, Health::VerdictRetries);
                continue;
            }
            if after.0 != before.0 || !work.step.facts.is_empty() {
                books(counters, key, record, work);
            }
            return outcome(&work.step);
        }
        stats::health(counters, Health::VerdictLost);
        Outcome::Tracked
    }
}

/// The machine, out of line: one copy for both families and all maps.
#[inline(never)]
fn step(work: &mut Work, peer: *const Evidence) {
    // SAFETY: every caller passes a half of a record.
    let peer = unsafe { &*peer };
    let config = Config::from(CONFIG.load());
    work.step = observe(work.before, work.sender, &mut work.own, peer, &work.segment, config);
}

#[inline(always)]
unsafe fn is_proved(verdict: Verdict, own: *const Evidence, peer: *const Evidence) -> bool {
    // SAFETY: both point into a record.
    let heard = unsafe { (*peer).has(Evidence::SEEN) || (*own).packets >= ONE_SIDED_PROMOTION };
    !verdict.is_embryonic() && heard && !verdict.has(Verdict::GONE)
}

#[inline(always)]
fn outcome(step: &Step) -> Outcome {
    if step.facts.has(Fact::BadFlags) {
        Outcome::BadFlags
    } else if step.facts.has(Fact::NoSession) {
        Outcome::NoSession
    } else {
        Outcome::Tracked
    }
}

/// A segment of no known flow: a record is kept only if the machine began one.
#[inline(always)]
fn begin<K: Key>(counters: &mut Counters, key: &K, mut work: Work) -> Outcome {
    let Some(record) = flow_table::scratch() else { return Outcome::MapFull };
    let record: *mut FlowRecord = record;
    // SAFETY: the scratch record is this CPU's.
    unsafe {
        let (own, peer) = halves(record, work.sender);
        step(&mut work, peer);
        if work.step.verdict.generation() == 0 {
            stats::facts(counters, work.step.facts);
            return outcome(&work.step);
        }
        work.own.count(&work.segment, bpf_ktime_get_coarse_ns());
        *own = work.own;
        (*record).shared.verdict = work.step.verdict.0;
        let change = settled(record, &mut work);
        if !key.insert_embryo(&*record) {
            stats::health(counters, Health::InsertFailed);
            return Outcome::MapFull;
        }
        stats::health(counters, Health::Inserted);
        report(counters, key, record, &work, &change);
    }
    outcome(&work.step)
}

/// The winner's book-keeping: shared fields, counters, event.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
unsafe fn books<K: Key>(counters: &mut Counters, key: &K, record: *mut FlowRecord, work: &mut Work) {
    // SAFETY: the caller's record; only the winner of the verdict comes here, and facts alone are idempotent.
    unsafe {
        let change = settled(record, work);
        report(counters, key, record, work, &change);
    }
}

/// Brings the shared part of a record up to date.
#[inline(always)]
unsafe fn settled(record: *mut FlowRecord, work: &mut Work) -> Change {
    // SAFETY: the caller's record.
    let shared = unsafe { &mut (*record).shared };
    work.since = shared.since;
    // SAFETY: a helper without arguments.
    work.now = unsafe { bpf_ktime_get_ns() };
    let seen_on = &mut shared.ifindex[work.sender as usize & 1];
    if *seen_on == 0 {
        *seen_on = work.ifindex;
    }
    settle(shared, work.sender, work.before, &work.step, &work.segment, work.now)
}

#[inline(always)]
unsafe fn report<K: Key>(
    counters: &mut Counters,
    key: &K,
    record: *const FlowRecord,
    work: &Work,
    change: &Change,
) {
    stats::facts(counters, work.step.facts);
    let moved = (work.before.0 ^ work.step.verdict.0) & Verdict::STATES_AND_GENERATION != 0;
    // A stray that is only remembered is no connection yet.
    if work.step.verdict.has(Verdict::CANDIDATE) || !moved && work.step.facts.without(Facts::QUIET).is_empty() {
        return;
    }
    // SAFETY: the caller's record.
    unsafe {
        stats::change(counters, work, (*record).shared.opened, change.over);
        emit::segment(counters, key, record, work, moved, change.over);
    }
}

/// An ICMP error about a segment that `work.sender` sent.
#[inline(always)]
fn icmp<K: Key>(counters: &mut Counters, key: &K, error: &IcmpError, mut work: Work) -> Outcome {
    let found = match key.find_flow() {
        Some(record) => Some(record),
        None => key.find_embryo(),
    };
    if let Some(record) = found {
        // SAFETY: the map gave the element.
        unsafe {
            let (own, _) = halves(record, work.sender);
            work.before = flow_table::verdict(record);
            work.step = observe_icmp(work.before, work.sender, &*own, error);
            work.segment.seq = error.seq;
            let (before, after) = (work.before, work.step.verdict);
            if after.0 == before.0 || flow_table::install(record, before, after) {
                books(counters, key, record, &mut work);
            }
        }
    }
    Outcome::Icmp
}
