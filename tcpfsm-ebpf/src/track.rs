//! One packet: the short path if it is plain and its flow is settled, and otherwise parse, find its flow, and put it on the
//! desk for the [`machine`].
//!
//! What is here knows packet memory, what is there does not: so the verifier follows each of them on its own.

use core::{arch::asm, cell::UnsafeCell, ffi::c_void, mem::MaybeUninit, ptr::null_mut};

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tcpfsm_common::{
    abi::{Counters, FlowRecord, Hook, Outcome},
    flow::{End, Endpoints4, Endpoints6},
    fsm::observe_acknowledgment,
    packet::{
        IcmpError, Ipv4, Network, PacketBytes, Plain, PlainOptions, Skip, Transport, parse_ether,
        parse_icmp4, parse_icmp6, parse_ipv4, parse_ipv6, parse_ports, parse_tcp, plain4, plain6,
    },
    segment::{Acknowledgment, Segment, TcpOptions},
};

use crate::{
    bytes::{Headers, Linear, Source},
    clock, filter,
    flow_table::{self, Key, halves},
    icmp::tcpfsm_icmp,
    machine::{DONE, tcpfsm_advance, tcpfsm_options, tcpfsm_segment},
    maps::scope,
    stats,
    work::Work,
};

/// Where a packet is seen.
pub(crate) struct Meta<I> {
    pub(crate) hook: Hook,
    /// Asked only where the packet does not take the short path.
    pub(crate) ifindex: I,
}

/// What is left to do about a packet: a number below this is an outcome, and nothing is left but to count it.
pub(crate) type Left = usize;
/// A segment is on the desk.
const SEGMENT: Left = 16;
/// An ICMP error is on the desk.
const ICMP: Left = 17;
/// Nothing was done yet.
const UNREAD: Left = 18;
/// It is a plain packet, and its flow was looked for.
const PLAIN: Left = 19;
/// It may be a plain packet with a FIN or a SYN.
const MORE: Left = 20;
/// An IPv6 header begins at so many bytes more than this.
const IPV6: Left = 32;

/// A packet on the long path.
pub(crate) struct Course {
    hook: Hook,
    left: Left,
}

/// A program's context: what it sees of one packet.
pub(crate) trait Sight: EbpfContext + Source + Sized {
    /// The context that [`EbpfContext::as_ptr`] points to.
    fn again(ctx: *mut c_void) -> Self;

    /// The interface.
    fn ifindex(&self) -> u32;

    /// What lies in one piece at the packet's beginning.
    fn beginning(&self) -> Linear;

    /// [`pick_up`] in a function of its own.
    fn pick_up(&self, found: *mut FlowRecord, course: &mut Course, work: &mut Work) -> *mut FlowRecord;

    /// [`behind_tag`] in a function of its own.
    fn behind_tag(&self, hook: Hook) -> bool;

    /// [`look`] in a function of its own: so the short path has the registers for itself.
    fn look(&self, counters: &mut Counters, course: &mut Course, work: &mut Work) -> *mut FlowRecord;

    /// [`look6`] in a function of its own: with IPv6 addresses in it, the stack is too small for packet and machine.
    fn look6(&self, counters: &mut Counters, offset: usize, hook: Hook, work: &mut Work) -> Left;
}

/// Counts one packet, and tracks it if it is TCP.
#[inline(always)]
pub(crate) fn packet<C: Sight>(ctx: &C, hook: Hook) {
    let (context, found) = (Aside::new(), Aside::new());
    context.put(ctx.as_ptr());
    if let Some(left) = short_path(&ctx.beginning(), hook, &found)
        && let Some(counters) = stats::counters()
    {
        // SAFETY: it was put there above.
        long_path(&C::again(unsafe { context.take() }), hook, counters, left, &found);
    }
}

/// A pointer, put on the stack: across the short path it would hold one of the few registers.
struct Aside<T>(UnsafeCell<MaybeUninit<*mut T>>);

impl<T> Aside<T> {
    #[inline(always)]
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    #[inline(always)]
    fn put(&self, pointer: *mut T) {
        // SAFETY: a place on the stack.
        unsafe { self.0.get().write_volatile(MaybeUninit::new(pointer)) };
    }

    /// What was put there.
    ///
    /// # Safety
    /// Something must have been.
    #[inline(always)]
    unsafe fn take(&self) -> *mut T {
        // SAFETY: a place on the stack, and the caller's promise.
        unsafe { self.0.get().read_volatile().assume_init() }
    }
}

/// What is left to do about a packet, and the record of its flow.
type Looked = (Left, *mut FlowRecord);

/// A plain packet of a settled flow: nearly all are. Gives `None` where that was all there is to do.
///
/// It stands in the entry point: on many machines each return from a function costs a tenth of a look-up.
#[inline(always)]
fn short_path(bytes: &Linear, hook: Hook, found: &Aside<FlowRecord>) -> Option<Left> {
    if let Some(packet) = plain4::<_, false>(bytes) {
        return either(&packet, hook, found);
    }
    match plain6::<_, false>(bytes) {
        Some(packet) => either(&packet, hook, found),
        None => Some(UNREAD),
    }
}

/// The short path for what would be plain but for a VLAN tag; says whether that was all there is to do.
#[inline(always)]
pub(crate) fn behind_tag<C: Sight>(ctx: &C, hook: Hook) -> bool {
    let mut pointer = ctx.as_ptr();
    // LLVM would have the caller hand over the packet's ends, as numbers of 32 bits, which they are not to the verifier.
    // SAFETY: the register is moved to itself.
    unsafe { asm!("{0} = {0}", inout(reg) pointer) };
    let (ctx, found) = (C::again(pointer), Aside::new());
    ctx.beginning().behind_tag().is_some_and(|bytes| short_path(&bytes, hook, &found).is_none())
}

/// [`plain`], with timestamps or without.
#[inline(always)]
fn either<B, S, O>(packet: &PlainOptions<B, S, O>, hook: Hook, found: &Aside<FlowRecord>) -> Option<Left>
where
    B: Plain<Key: Key>,
    S: Plain<Key: Key>,
{
    match packet {
        PlainOptions::Stamped(packet) => plain(packet, hook, found),
        PlainOptions::Bare(packet) => plain(packet, hook, found),
        PlainOptions::Opening(_) | PlainOptions::More => Some(MORE),
    }
}

/// The short path of a plain packet: puts the record of its flow aside, if there is one.
#[inline(always)]
fn plain<P: Plain<Key: Key>>(packet: &P, hook: Hook, found: &Aside<FlowRecord>) -> Option<Left> {
    let (key, sender) = packet.key(scope());
    let record = key.find_flow();
    found.put(record.unwrap_or(null_mut()));
    let Some(record) = record else { return Some(PLAIN) };
    // Two copies of one text, each of which knows when it is compiled where the two halves are.
    let is_settled = match sender {
        End::Low => settle(record, End::Low, packet, hook),
        End::High => settle(record, End::High, packet, hook),
    };
    (!is_settled).then_some(PLAIN)
}

/// Takes a segment of a settled flow and counts it; says whether it is one.
//
// The counters are looked up where they are needed: before that they would hold a register.
#[inline(always)]
fn settle<P: Plain>(record: *mut FlowRecord, sender: End, packet: &P, hook: Hook) -> bool {
    let is_settled = take(record, sender, packet);
    if is_settled && let Some(counters) = stats::counters() {
        count(record, sender, packet, counters);
        stats::packet(counters, hook, Outcome::Tracked as usize);
    }
    is_settled
}

/// Takes a segment of a settled flow; says whether it is one.
#[inline(always)]
fn take<A: Acknowledgment>(record: *mut FlowRecord, sender: End, segment: &A) -> bool {
    // SAFETY: the map gave the element; nobody else writes the sender's half (see flow_table.rs).
    unsafe {
        let (own, peer) = halves(record, sender);
        let verdict = flow_table::verdict(record);
        let prove = |proved| flow_table::install(record, verdict, proved);
        observe_acknowledgment(verdict, sender, &mut *own, &*peer, segment, prove)
    }
}

/// Counts a segment that was taken.
#[inline(always)]
fn count<A: Acknowledgment>(record: *mut FlowRecord, sender: End, segment: &A, counters: &mut Counters) {
    // SAFETY: as above.
    unsafe {
        let (own, _) = halves(record, sender);
        (*own).count(segment.payload_len(), segment.ip_id(), clock::coarse(counters));
    }
}

/// Any packet: reads it whatever it is, if that is still to be done, and has it worked.
#[inline(always)]
fn long_path<C: Sight>(ctx: &C, hook: Hook, counters: &mut Counters, left: Left, found: &Aside<FlowRecord>) {
    if left == UNREAD && ctx.beginning().behind_tag().is_some() && ctx.behind_tag(hook) {
        return;
    }
    let mut course = Course { hook, left };
    let mut record = null_mut();
    let Some(work) = Work::desk() else { return };
    if left != UNREAD {
        // SAFETY: that of a plain packet was put there when it was looked for.
        let found = if left == PLAIN { unsafe { found.take() } } else { null_mut() };
        record = ctx.pick_up(found, &mut course, work);
    }
    if course.left == UNREAD {
        record = ctx.look(counters, &mut course, work);
        if course.left >= IPV6 {
            // A record does not come out of this function: it is looked for again.
            course.left = ctx.look6(counters, course.left - IPV6, hook, work);
            record = null_mut();
        }
    }
    let outcome = match course.left {
        SEGMENT => {
            if work.segment.options.has(TcpOptions::UNREAD) {
                tcpfsm_options(work);
            }
            if record.is_null() || work.is_embryo() || tcpfsm_advance(work, record, counters) != DONE {
                tcpfsm_segment(work, record, counters);
            }
            // Off unless asked for when the programs are loaded, and never on the short path.
            debug!(
                ctx,
                "verdict {:x} -> {:x}, facts {:x}", work.event.before, work.event.after, work.event.facts
            );
            work.outcome()
        }
        ICMP => {
            tcpfsm_icmp(work, counters);
            Outcome::Icmp as usize
        }
        outcome => outcome,
    };
    stats::packet(counters, hook, outcome);
}

/// Puts a plain packet on the desk, one with a FIN or a SYN too; gives the record of its flow, null where there is none. `found` is that
/// record if it was looked for.
#[inline(always)]
pub(crate) fn pick_up<C: Sight>(
    ctx: &C,
    found: *mut FlowRecord,
    course: &mut Course,
    work: &mut Work,
) -> *mut FlowRecord {
    let bytes = ctx.beginning();
    let meta = Meta { hook: course.hook, ifindex: || ctx.ifindex() };
    let sought = (course.left == PLAIN).then_some(found);
    let record = if let Some(packet) = plain4::<_, true>(&bytes) {
        either_put_down(&packet, sought, work, &meta)
    } else if let Some(packet) = plain6::<_, true>(&bytes) {
        either_put_down(&packet, sought, work, &meta)
    } else {
        None
    };
    course.left = if record.is_some() { SEGMENT } else { UNREAD };
    record.unwrap_or(null_mut())
}

/// Puts a plain packet on the desk: each kind field by field from where it lies, since what is carried in registers to a common
/// place goes by way of the stack.
#[inline(always)]
fn either_put_down<B, S, O, I: Fn() -> u32>(
    packet: &PlainOptions<B, S, O>,
    sought: Option<*mut FlowRecord>,
    work: &mut Work,
    meta: &Meta<I>,
) -> Option<*mut FlowRecord>
where
    B: Plain<Key: Key>,
    S: Plain<Key = B::Key>,
    O: Plain<Key = B::Key>,
{
    match packet {
        PlainOptions::Stamped(packet) => lay(packet, work, meta),
        PlainOptions::Bare(packet) => lay(packet, work, meta),
        PlainOptions::Opening(packet) => lay(packet, work, meta),
        PlainOptions::More => return None,
    }
    let key = B::Key::on(work);
    let found = match sought {
        Some(record) => (!record.is_null()).then_some(record),
        None => find(&key),
    };
    Some(seek(&key, found, work))
}

/// Puts a plain packet's segment on the desk.
#[inline(always)]
fn lay<P: Plain<Key: Key>, I: Fn() -> u32>(packet: &P, work: &mut Work, meta: &Meta<I>) {
    let (key, sender) = packet.key(scope());
    work.begin(&key, sender, &packet.segment(), meta);
    // LLVM merges the ends of copies of a text, but not assembly.
    // SAFETY: nothing is changed.
    unsafe { asm!("{0} = {0}", inout(reg) &raw mut *work => _) };
}

/// Looks at a packet; gives the record of its flow, null where there is none.
#[inline(always)]
pub(crate) fn look<C: Sight>(
    ctx: &C,
    counters: &mut Counters,
    course: &mut Course,
    work: &mut Work,
) -> *mut FlowRecord {
    let Some(bytes) = Headers::take(ctx) else { return null_mut() };
    let meta = Meta { hook: course.hook, ifindex: || ctx.ifindex() };
    let looked = match parse_ether(&bytes) {
        Ok((Network::Ipv4, offset)) => packet4(&bytes, offset, &meta, counters, work),
        Ok((Network::Ipv6, offset)) => Ok((IPV6 + offset, null_mut())),
        Err(skip) => Err(skip),
    };
    let (left, record) = looked.unwrap_or_else(|skip| (skipped(skip), null_mut()));
    course.left = left;
    record
}

/// Looks at an IPv6 packet.
#[inline(always)]
pub(crate) fn look6<C: Sight>(
    ctx: &C,
    counters: &mut Counters,
    offset: usize,
    hook: Hook,
    work: &mut Work,
) -> Left {
    let Some(bytes) = Headers::again(ctx) else { return Outcome::Tracked as usize };
    let offset = bytes.blur(offset, 0x3f);
    let meta = Meta { hook, ifindex: || ctx.ifindex() };
    packet6(&bytes, offset, &meta, counters, work).map_or_else(skipped, |(left, _)| left)
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
            bytes: &Headers<C>,
            offset: usize,
            meta: &Meta<I>,
            counters: &mut Counters,
            work: &mut Work,
        ) -> Result<Looked, Skip> {
            let ip = $ip(bytes, offset, || bytes.len())?;
            match ip.transport {
                Transport::Tcp => {
                    let (src_port, dst_port) = parse_ports(bytes, ip.payload)?;
                    let ends = $ends { src: ip.src, dst: ip.dst, src_port, dst_port };
                    let (key, sender) = ends.key(scope());
                    let found = find(&key);
                    let (_, segment) = parse_tcp(bytes, ip.payload, ip.payload_len, $first_fragment(&ip))?;
                    let segment = Segment { ip_id: $id(&ip), ..segment };
                    if let Some(record) = found
                        && segment.is_acknowledgment()
                        && take(record, sender, &segment)
                    {
                        count(record, sender, &segment, counters);
                        return Ok((Outcome::Tracked as usize, null_mut()));
                    }
                    Ok((SEGMENT, put_down(&key, sender, found, &segment, work, meta)))
                }
                Transport::Icmp => {
                    let (ends, error) = $icmp(bytes, ip.payload)?;
                    let (key, quoted) = ends.key(scope());
                    icmp(&key, quoted, &error, work, meta);
                    Ok((ICMP, null_mut()))
                }
            }
        }
    };
}

packet!(packet4, parse_ipv4, parse_icmp4, Endpoints4, |ip: &Ipv4| ip.first_fragment, |ip: &Ipv4| ip.id);
packet!(packet6, parse_ipv6, parse_icmp6, Endpoints6, |_| false, |_| 0);

/// The record of a flow in the flow map, which is asked of memory at once.
#[inline(always)]
fn find<K: Key>(key: &K) -> Option<*mut FlowRecord> {
    let record = key.find_flow()?;
    // SAFETY: the map gave the element.
    unsafe { flow_table::fetch(record) };
    Some(record)
}

/// Puts a segment on the desk; gives the record of its flow, null where there is none.
#[inline(always)]
fn put_down<K: Key, I: Fn() -> u32>(
    key: &K,
    sender: End,
    found: Option<*mut FlowRecord>,
    segment: &Segment,
    work: &mut Work,
    meta: &Meta<I>,
) -> *mut FlowRecord {
    work.begin(key, sender, segment, meta);
    seek(key, found, work)
}

/// The record of the flow of the segment on the desk, null where there is none; `found` is that of the flow map.
#[inline(always)]
fn seek<K: Key>(key: &K, found: Option<*mut FlowRecord>, work: &mut Work) -> *mut FlowRecord {
    let (record, map) = match found {
        Some(record) => (record, K::FLOWS),
        None if work.segment.is_syn() && !filter::may_hold(key) => (null_mut(), K::EMBRYOS),
        None => (key.find_embryo().unwrap_or(null_mut()), K::EMBRYOS),
    };
    work.map = map as u64;
    work.missed = record.is_null().into();
    record
}

/// Puts an ICMP error about a segment that `quoted` sent on the desk.
#[inline(always)]
fn icmp<K: Key, I: Fn() -> u32>(key: &K, quoted: End, error: &IcmpError, work: &mut Work, meta: &Meta<I>) {
    work.begin(key, quoted, &Segment { seq: error.seq, ..Segment::default() }, meta);
    // The quoted end was not seen here: the router was.
    work.segment.tap = 0;
    work.unreachable = error.reason as u64;
    work.drops_request = error.drops_request.into();
}
