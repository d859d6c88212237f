//! The desk on which one segment is worked: the BPF stack is too small for it.

use core::{arch::asm, cell::UnsafeCell, mem::offset_of};

use tcpfsm_common::{
    abi::{
        EventKey, EventKind, Evidence, FlowEvent, FlowRecord, Outcome, ServiceKey, ServiceRecord, Tap,
        Verdict,
    },
    fact::{Fact, Facts},
    flow::{End, FlowKey4, FlowKey6},
    fsm::{Desk, Step},
    segment::{Segment, TcpFlags},
};

use crate::{bytes::OptionBytes, clock, flow_table::Key, maps::DESK, track::Meta};

/// One segment, what the machine makes of it, and the event that will tell of it.
#[repr(C, align(8))]
pub(crate) struct Work {
    /// Filled as the work goes on; sent if there is something to tell.
    pub(crate) event: FlowEvent,
    /// The sender's evidence, a copy: it is written back whole.
    pub(crate) own: Evidence,
    /// A record that is not in a map yet, or on its way to another.
    pub(crate) record: FlowRecord,
    pub(crate) segment: Segment,
    /// Whose handshake it is a step of, and a record of a service that is not in the map yet.
    pub(crate) service: (ServiceKey, ServiceRecord),
    /// Where the machine keeps the verdict, out of the verifier's sight.
    pub(crate) verdict: OpaqueVerdict,
    /// Options that were put aside, and how many bytes of them; 0 where there are none.
    pub(crate) options: OptionBytes,
    pub(crate) options_len: u64,
    /// Whether both maps were asked for the segment's flow already, and had none: 1 if so.
    pub(crate) missed: u64,
    /// In which map the record is, by its number.
    pub(crate) map: u64,
    /// Whether `carried` is to go with a record into the map where it is found next: 1 if so.
    pub(crate) carries: u64,
    /// The sender's evidence before this segment.
    pub(crate) carried: Evidence,
    /// Whether the sweep has named the flow as stuck: 1 if so.
    pub(crate) named: u64,
    /// Whether that was the end of the flow: 1 if so.
    pub(crate) over: u64,
    /// The flow found no place.
    pub(crate) not_stored: u64,
    /// The `Unreachable` code of an ICMP error.
    pub(crate) unreachable: u64,
    /// Whether it ends a request that its receiver has answered.
    pub(crate) drops_request: u64,
}

impl Work {
    /// Whether that was the end of the flow.
    #[inline(always)]
    pub(crate) fn is_over(&self) -> bool {
        // SAFETY: the desk is this CPU's.
        unsafe { (&raw const self.over).read_volatile() != 0 }
    }

    #[inline(always)]
    pub(crate) fn set_over(&mut self, over: bool) {
        // SAFETY: as above.
        unsafe { (&raw mut self.over).write_volatile(over.into()) };
    }

    /// This CPU's desk.
    #[inline(always)]
    pub(crate) fn desk() -> Option<&'static mut Self> {
        let desk = DESK.get_ptr_mut(0)?;
        // SAFETY: this CPU's own element; programs on these hooks run with softirqs off and do not nest.
        Some(unsafe { &mut *desk })
    }

    /// The desk that a function was passed, as its map gives it: before Linux 6.2 the verifier lets no helper read a key or a
    /// record through a pointer that a function was passed.
    #[inline(always)]
    pub(crate) fn passed(desk: *mut Self) -> Option<&'static mut Self> {
        // LLVM must not think that nothing is done through it.
        // SAFETY: nothing is changed.
        unsafe { asm!("{0} = {0}", inout(reg) desk => _) };
        Self::desk()
    }

    /// Clears the desk for a segment.
    #[inline(always)]
    pub(crate) fn begin<K: EventKey, I: Fn() -> u32>(
        &mut self,
        key: &K,
        sender: End,
        segment: &Segment,
        meta: &Meta<I>,
    ) {
        let ifindex = (meta.ifindex)();
        let event = &mut self.event;
        // What whoever tells of it fills in is left as it is.
        event.begin(EventKind::Verdict);
        (event.after, event.facts) = (0, 0);
        key.fill(event);
        event.hook = meta.hook as u8;
        event.sender = sender as u8;
        event.ifindex = ifindex;
        event.flags = segment.flags.0;
        event.len = segment.len;
        // Asked for here, not where it is parsed: the short path has no use for it.
        let to_itself = key.is_self_connected();
        self.segment = Segment { tap: Tap::new(ifindex, meta.hook).0, to_itself, ..*segment };
        self.carries = 0;
        self.not_stored = 0;
    }

    #[inline(always)]
    pub(crate) fn key4(&self) -> FlowKey4 {
        let FlowEvent { addr, port, scope, .. } = self.event;
        FlowKey4 { addr: [addr[0][0], addr[1][0]], port, scope }
    }

    /// The event's own address fields, which are laid out like the key.
    #[inline(always)]
    pub(crate) fn key6(&self) -> *const FlowKey6 {
        const _: () = assert!(
            offset_of!(FlowEvent, port) - offset_of!(FlowEvent, addr) == offset_of!(FlowKey6, port)
                && offset_of!(FlowEvent, scope) - offset_of!(FlowEvent, addr) == offset_of!(FlowKey6, scope)
        );
        (&raw const self.event.addr).cast()
    }

    #[inline(always)]
    pub(crate) fn sender(&self) -> End {
        self.event.sender_end()
    }

    /// Whether the record is in an embryonic map.
    #[inline(always)]
    pub(crate) fn is_embryo(&self) -> bool {
        self.map >= <FlowKey4 as Key>::EMBRYOS as u64
    }

    /// Takes `carried` along to where the record is found next, if it may be on its way from the embryonic map, now that its
    /// verdict is this one. What is closed goes nowhere.
    #[inline(always)]
    pub(crate) fn take_along(&mut self, verdict: Verdict) {
        self.carries = (self.is_embryo() && !verdict.is_closed()).into();
    }

    /// Whether the segment is a SYN whose flow was in neither map. No SYN comes in the moment in which a handshake's last ACK
    /// carries a record from the one map to the other.
    #[inline(always)]
    pub(crate) fn is_new_syn(&self) -> bool {
        self.missed != 0 && self.segment.is_syn()
    }

    /// The time of what is told. Read before a verdict is installed: whoever goes on from there is later.
    #[inline(always)]
    pub(crate) fn tell_time(&mut self) {
        self.event.time = clock::fine();
    }

    /// What the machine said last.
    #[inline(always)]
    pub(crate) fn step(&self) -> Step {
        Step { verdict: Verdict(self.event.after), facts: Facts(self.event.facts) }
    }

    #[inline(always)]
    pub(crate) fn set_step(&mut self, step: &Step) {
        self.event.after = step.verdict.0;
        self.event.facts = step.facts.0;
    }

    /// Makes the numbers of the event relative to each end's initial one.
    #[inline(always)]
    pub(crate) fn relate(&mut self, own: &Evidence, peer: &Evidence) {
        self.event.seq = self.segment.seq.0.wrapping_sub(own.iss.0);
        self.event.ack = if self.segment.flags.any(TcpFlags::ACK) {
            self.segment.ack.0.wrapping_sub(peer.iss.0)
        } else {
            0
        };
    }

    #[inline(always)]
    pub(crate) fn outcome(&self) -> usize {
        let facts = Facts(self.event.facts);
        let outcome = if self.not_stored != 0 {
            Outcome::MapFull
        } else if facts.has(Fact::BadFlags) {
            Outcome::BadFlags
        } else if facts.has(Fact::NoSession) {
            Outcome::NoSession
        } else {
            Outcome::Tracked
        };
        outcome as usize
    }
}

/// A verdict in map memory, and the machine's notes, read and written in the open every time: what comes out of it, the verifier
/// knows nothing of, and so it need not follow it along every path.
#[repr(C)]
pub(crate) struct OpaqueVerdict(UnsafeCell<u64>, UnsafeCell<u64>);

impl Desk for OpaqueVerdict {
    #[inline(always)]
    fn verdict(&self) -> Verdict {
        // SAFETY: the desk is this CPU's.
        Verdict(unsafe { self.0.get().read_volatile() })
    }

    #[inline(always)]
    fn set_verdict(&self, verdict: Verdict) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(verdict.0) }
    }

    #[inline(always)]
    fn notes(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.1.get().read_volatile() }
    }

    #[inline(always)]
    fn set_notes(&self, notes: u64) {
        // SAFETY: as above.
        unsafe { self.1.get().write_volatile(notes) }
    }
}
