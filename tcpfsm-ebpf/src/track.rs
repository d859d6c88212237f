//! One packet: parse, find its flow, and take the short way if its flow is settled.
//!
//! Everything else is put on the desk for the [`machine`]. What is here knows packet memory, what is there does
//! not: so the verifier follows each of them on its own.

use core::ptr::null_mut;

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tcpfsm_common::{
    abi::{Counters, FlowRecord, Hook, Outcome},
    flow::{End, Endpoints4, Endpoints6},
    fsm::observe_settled,
    packet::{
        IcmpError, Ipv4, Network, PacketBytes, Skip, Transport, parse_ether, parse_icmp4, parse_icmp6,
        parse_ipv4, parse_ipv6, parse_ports, parse_tcp,
    },
    segment::Segment,
};

use crate::{
    bytes::{Linear, Source},
    clock,
    flow_table::{self, Key, halves},
    machine::{tcpfsm_icmp, tcpfsm_segment},
    maps::CONFIG,
    stats,
    work::Work,
};

/// Where a packet is seen.
pub(crate) struct Meta<I> {
    pub(crate) hook: Hook,
    /// Asked only where the packet does not take the short way.
    pub(crate) ifindex: I,
}

/// What is left to do about a packet: a number below this is an outcome, and nothing is left but to count it.
pub(crate) type Left = usize;
/// A segment is on the desk.
const SEGMENT: Left = 16;
/// An ICMP error is on the desk.
const ICMP: Left = 17;

/// A program's context: what it sees of one packet.
pub(crate) trait Sight: EbpfContext + Source + Sized {
    /// The interface.
    fn ifindex(&self) -> u32;

    /// The packet's first bytes.
    fn linear(&self) -> Linear<'_, Self>;

    /// [`packet6`] in a function of its own: with IPv6 addresses in it, the stack is too small for packet and machine.
    fn look6(&self, counters: &mut Counters, offset: usize, hook: Hook) -> Left;
}

/// Counts one packet, and tracks it if it is TCP.
///
/// IPv4 is looked at here: on many machines each return from a function costs a tenth of a look-up.
#[inline(always)]
pub(crate) fn packet<C: Sight>(ctx: &C, hook: Hook) {
    let Some(counters) = stats::counters() else { return };
    let (left, record) = look(ctx, hook, counters);
    let outcome = match left {
        SEGMENT => {
            let Some(work) = Work::desk() else { return };
            tcpfsm_segment(work, record, counters);
            // Off unless asked for when the programs are loaded, and never on the short way.
            debug!(
                ctx,
                "verdict {:x} -> {:x}, facts {:x}", work.event.before, work.event.after, work.event.facts
            );
            work.outcome()
        }
        ICMP => {
            let Some(work) = Work::desk() else { return };
            tcpfsm_icmp(work, counters);
            Outcome::Icmp as usize
        }
        outcome => outcome,
    };
    stats::packet(counters, hook, outcome);
}

/// Looks at a packet; gives the record of its flow too, null where there is none.
#[inline(always)]
fn look<C: Sight>(ctx: &C, hook: Hook, counters: &mut Counters) -> (Left, *mut FlowRecord) {
    let bytes = ctx.linear();
    match parse_ether(&bytes) {
        Ok((Network::Ipv4, offset)) => {
            let meta = Meta { hook, ifindex: || ctx.ifindex() };
            packet4(&bytes, offset, &meta, counters).unwrap_or_else(|skip| (skipped(skip), null_mut()))
        }
        // A record does not come out of a function: it is looked for again.
        Ok((Network::Ipv6, offset)) => (ctx.look6(counters, offset, hook), null_mut()),
        Err(skip) => (skipped(skip), null_mut()),
    }
}

/// Looks at an IPv6 packet.
#[inline(always)]
pub(crate) fn look6<C: Sight>(ctx: &C, counters: &mut Counters, offset: usize, hook: Hook) -> Left {
    let bytes = ctx.linear();
    let offset = bytes.blur(offset, 0x3f);
    let meta = Meta { hook, ifindex: || ctx.ifindex() };
    packet6(&bytes, offset, &meta, counters).map_or_else(skipped, |(left, _)| left)
}

/// The counter of a skip: they come after the outcomes.
#[inline(always)]
fn skipped(skip: Skip) -> Left {
    Outcome::ALL.len() + skip as usize
}

/// The endpoints first, and the segment once its flow is looked up: registers are few, and what is read before the
/// look-up must be kept across it.
macro_rules! packet {
    ($name:ident, $ip:path, $icmp:path, $ends:ident, $first_fragment:expr, $id:expr) => {
        #[inline(always)]
        fn $name<C: Source, I: Fn() -> u32>(
            bytes: &Linear<C>,
            offset: usize,
            meta: &Meta<I>,
            counters: &mut Counters,
        ) -> Result<(Left, *mut FlowRecord), Skip> {
            let ip = $ip(bytes, offset, || bytes.len())?;
            match ip.transport {
                Transport::Tcp => {
                    let (src_port, dst_port) = parse_ports(bytes, ip.payload)?;
                    let ends = $ends { src: ip.src, dst: ip.dst, src_port, dst_port };
                    let (key, sender) = ends.key(CONFIG.load().scope);
                    let found = key.find_flow();
                    if let Some(record) = found {
                        // SAFETY: the map gave the element.
                        unsafe { flow_table::fetch(record) };
                    }
                    let (_, segment) = parse_tcp(bytes, ip.payload, ip.payload_len, $first_fragment(&ip))?;
                    let segment = Segment { ip_id: $id(&ip), ..segment };
                    Ok(segment_of(&key, sender, found, &segment, meta, counters))
                }
                Transport::Icmp => {
                    let (ends, error) = $icmp(bytes, ip.payload)?;
                    let (key, quoted) = ends.key(CONFIG.load().scope);
                    Ok((icmp(&key, quoted, &error, meta), null_mut()))
                }
            }
        }
    };
}

packet!(packet4, parse_ipv4, parse_icmp4, Endpoints4, |ip: &Ipv4| ip.first_fragment, |ip: &Ipv4| ip.id);
packet!(packet6, parse_ipv6, parse_icmp6, Endpoints6, |_| false, |_| 0);

#[inline(always)]
fn segment_of<K: Key, I: Fn() -> u32>(
    key: &K,
    sender: End,
    found: Option<*mut FlowRecord>,
    segment: &Segment,
    meta: &Meta<I>,
    counters: &mut Counters,
) -> (Left, *mut FlowRecord) {
    if let Some(record) = found {
        // SAFETY: the map gave the element; nobody else writes the sender's half (see flow_table.rs).
        unsafe {
            let (own, peer) = halves(record, sender);
            if observe_settled(flow_table::verdict(record), sender, &mut *own, &*peer, segment) {
                (*own).count(segment, clock::coarse(counters));
                return (Outcome::Tracked as usize, null_mut());
            }
        }
    }
    // So soon after the other map's look-up both wait for memory at the same time.
    let (record, map) = match found {
        Some(record) => (record, K::FLOWS),
        None => (key.find_embryo().unwrap_or(null_mut()), K::EMBRYOS),
    };
    let Some(work) = Work::desk() else { return (Outcome::MapFull as usize, null_mut()) };
    work.begin(key, sender, segment, meta);
    work.map = map as u64;
    work.missed = record.is_null().into();
    (SEGMENT, record)
}

/// An ICMP error about a segment that `quoted` sent.
#[inline(always)]
fn icmp<K: Key, I: Fn() -> u32>(key: &K, quoted: End, error: &IcmpError, meta: &Meta<I>) -> Left {
    let Some(work) = Work::desk() else { return Outcome::Icmp as usize };
    work.begin(key, quoted, &Segment { seq: error.seq, ..Segment::default() }, meta);
    // The quoted end was not seen here: the router was.
    work.segment.tap = 0;
    work.unreachable = error.reason as u64;
    ICMP
}
