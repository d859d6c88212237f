//! One packet: parse, find its flow, advance the machine.
//!
//! A settled flow's segment takes the short way here; all others are handed to the [`machine`](crate::machine).

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use tcpfsm_common::{
    abi::{Counters, Evidence, FlowRecord, Hook, Outcome, Verdict},
    flow::End,
    fsm::observe_settled,
    packet::{IcmpError, Network, Packet, Skip, parse_ether, parse_packet4, parse_packet6},
    segment::Segment,
};

use crate::{
    bytes::Linear,
    flow_table::{self, Key},
    machine,
    maps::CONFIG,
    stats,
    work::Work,
};

/// A one-sided flow is promoted after this many segments.
const ONE_SIDED_PROMOTION: u64 = 16;

/// Where and how long a packet is.
pub(crate) struct Meta {
    pub(crate) hook: Hook,
    pub(crate) ifindex: u32,
    pub(crate) wire_len: usize,
}

/// Counts one packet, and tracks it if it is TCP.
#[inline(always)]
pub(crate) fn packet(bytes: &Linear, meta: &Meta) {
    let Some(counters) = stats::counters() else { return };
    let outcome = match parse_ether(bytes) {
        Ok((Network::Ipv4, offset)) => packet4(counters, bytes, offset, meta),
        Ok((Network::Ipv6, offset)) => packet6(counters, bytes, offset, meta),
        Err(skip) => skipped(skip),
    };
    stats::packet(counters, meta.hook, outcome);
}

/// The counter of a skip: they come after the outcomes.
#[inline(always)]
fn skipped(skip: Skip) -> usize {
    Outcome::ALL.len() + skip as usize
}

#[inline(always)]
fn packet4(counters: &mut Counters, bytes: &Linear, offset: usize, meta: &Meta) -> usize {
    match parse_packet4(bytes, offset, meta.wire_len) {
        Ok(Packet::Tcp(ends, segment)) => {
            let (key, sender) = ends.key(CONFIG.load().scope);
            segment_of(counters, &key, sender, &segment, meta)
        }
        Ok(Packet::Icmp(ends, error)) => {
            let (key, quoted) = ends.key(CONFIG.load().scope);
            icmp(counters, &key, quoted, &error, meta)
        }
        Err(skip) => skipped(skip),
    }
}

/// Out of line: the stack holds one family's headers at a time.
#[inline(never)]
fn packet6(counters: &mut Counters, bytes: &Linear, offset: usize, meta: &Meta) -> usize {
    match parse_packet6(bytes, offset, meta.wire_len) {
        Ok(Packet::Tcp(ends, segment)) => {
            let (key, sender) = ends.key(CONFIG.load().scope);
            segment_of(counters, &key, sender, &segment, meta)
        }
        Ok(Packet::Icmp(ends, error)) => {
            let (key, quoted) = ends.key(CONFIG.load().scope);
            icmp(counters, &key, quoted, &error, meta)
        }
        Err(skip) => skipped(skip),
    }
}

#[inline(always)]
fn segment_of<K: Key>(
    counters: &mut Counters,
    key: &K,
    sender: End,
    segment: &Segment,
    meta: &Meta,
) -> usize {
    let flow = key.find_flow();
    if let Some(record) = flow {
        // SAFETY: the map gave the element; nobody else writes the sender's half (see flow_table.rs).
        unsafe {
            let (own, peer) = halves(record, sender);
            if observe_settled(flow_table::verdict(record), &mut *own, &*peer, segment) {
                (*own).count(segment, bpf_ktime_get_coarse_ns());
                return Outcome::Tracked as usize;
            }
        }
    }
    let Some(work) = Work::begin(key, sender, segment, meta) else { return Outcome::MapFull as usize };
    if let Some(record) = flow {
        // SAFETY: the map gave the element.
        unsafe {
            if !flow_table::verdict(record).has(Verdict::GONE) {
                machine::advance(counters, record, work);
                return work.outcome();
            }
        }
    }
    let Some(embryo) = key.find_embryo() else { return begin(counters, key, work) };
    // SAFETY: the map gave the element.
    unsafe {
        machine::advance(counters, embryo, work);
        let (own, peer) = halves(embryo, sender);
        let heard = (*peer).has(Evidence::SEEN) || (*own).packets >= ONE_SIDED_PROMOTION;
        let verdict = Verdict(work.event.after);
        if heard && !verdict.is_embryonic() && !verdict.has(Verdict::GONE) {
            flow_table::promote(counters, key, embryo, work, verdict);
        }
    }
    work.outcome()
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

/// A segment of no known flow: a record is kept only if the machine began one.
#[inline(always)]
fn begin<K: Key>(counters: &mut Counters, key: &K, work: &mut Work) -> usize {
    if machine::begin(counters, work) {
        if key.insert_embryo(&work.record) {
            machine::began(counters, work);
        } else {
            machine::not_stored(counters);
            return Outcome::MapFull as usize;
        }
    }
    work.outcome()
}

/// An ICMP error about a segment that `quoted` sent.
#[inline(always)]
fn icmp<K: Key>(
    counters: &mut Counters,
    key: &K,
    quoted: End,
    error: &IcmpError,
    meta: &Meta,
) -> usize {
    let found = match key.find_flow() {
        Some(record) => Some(record),
        None => key.find_embryo(),
    };
    let segment = Segment { seq: error.seq, ..Segment::default() };
    if let Some(record) = found
        && let Some(work) = Work::begin(key, quoted, &segment, meta)
    {
        // SAFETY: the map gave the element.
        unsafe { machine::icmp(counters, record, work, error) };
    }
    Outcome::Icmp as usize
}
