//! The flow maps: find a record, put a new one in, promote one whose handshake completed.
//!
//! The concurrency rule: a record's two halves of evidence are each written by that direction's segments
//! only, which one CPU handles at a time; the verdict, one word, is changed by compare-and-swap, and whoever
//! wins it does the book-keeping. A record that leaves its map is marked [`Verdict::GONE`] first, so that a
//! CPU which still holds it looks again.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use tcpfsm_common::{
    abi::{Counters, EventKey, Evidence, FlowRecord, Health, Verdict},
    flow::{End, FlowKey4, FlowKey6},
};

use crate::{
    atomics::compare_exchange,
    machine::tcpfsm_carry,
    maps::{EMBRYOS4, EMBRYOS6, FLOWS4, FLOWS6},
    stats,
    work::Work,
};

/// What came of an insertion.
pub(crate) enum Insertion {
    Done,
    /// Another CPU was first.
    Exists,
    NoRoom,
}

impl Insertion {
    #[inline(always)]
    fn of(result: Result<(), i32>) -> Self {
        match result {
            Ok(()) => Self::Done,
            Err(EEXIST) => Self::Exists,
            Err(_) => Self::NoRoom,
        }
    }
}

/// The map has the key.
const EEXIST: i32 = -17;

/// A key, and the two maps of its family.
pub(crate) trait Key: EventKey + Copy + 'static {
    /// The number of its flow map, as the sweep's reports and the books count them.
    const FLOWS: usize;
    /// The number of its embryonic map.
    const EMBRYOS: usize;

    /// That of the flow on the desk.
    fn on(work: &Work) -> Self;
    fn find_flow(&self) -> Option<*mut FlowRecord>;
    fn find_embryo(&self) -> Option<*mut FlowRecord>;
    fn insert_embryo(&self, record: &FlowRecord) -> Insertion;
    fn insert_flow(&self, record: &FlowRecord) -> Insertion;
    fn remove_embryo(&self);
    /// Where it falls in the filter of embryos.
    fn slot(&self) -> usize;

    /// Puts a record into the map with this number, one of its family's two.
    #[inline(always)]
    fn insert(&self, map: usize, record: &FlowRecord) -> Insertion {
        if map == Self::FLOWS { self.insert_flow(record) } else { self.insert_embryo(record) }
    }
}

macro_rules! key {
    ($key:ty, $flows:ident, $embryos:ident, $family:literal, $on:expr) => {
        impl Key for $key {
            const FLOWS: usize = $family;
            const EMBRYOS: usize = 2 + $family;

            #[inline(always)]
            fn on(work: &Work) -> Self {
                $on(work)
            }

            #[inline(always)]
            fn find_flow(&self) -> Option<*mut FlowRecord> {
                $flows.get_ptr_mut(self)
            }

            #[inline(always)]
            fn find_embryo(&self) -> Option<*mut FlowRecord> {
                $embryos.get_ptr_mut(self)
            }

            #[inline(always)]
            fn insert_embryo(&self, record: &FlowRecord) -> Insertion {
                Insertion::of($embryos.insert(self, record, u64::from(BPF_NOEXIST)))
            }

            #[inline(always)]
            fn insert_flow(&self, record: &FlowRecord) -> Insertion {
                Insertion::of($flows.insert(self, record, u64::from(BPF_NOEXIST)))
            }

            #[inline(always)]
            fn remove_embryo(&self) {
                let _ = $embryos.remove(self);
            }

            #[inline(always)]
            fn slot(&self) -> usize {
                <$key>::slot(self)
            }
        }
    };
}

key!(FlowKey4, FLOWS4, EMBRYOS4, 0, Work::key4);
key!(FlowKey6, FLOWS6, EMBRYOS6, 1, |work: &Work| {
    // SAFETY: the desk's event holds the key.
    unsafe { *work.key6() }
});

/// Asks memory for all three cache lines of a record, long before they are used: none is waited for, and all come at once. Of
/// each half the one word that no ordinary segment writes: a load of what was just written in parts would wait for them.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn fetch(record: *const FlowRecord) {
    let (shared, low, high): (u64, u64, u64);
    // SAFETY: the caller's element, which is 192 bytes.
    unsafe {
        asm!(
            "{shared} = *(u64 *)({record} + 0)",
            "{low} = *(u32 *)({record} + 64)",
            "{high} = *(u32 *)({record} + 128)",
            record = in(reg) record,
            shared = out(reg) shared,
            low = out(reg) low,
            high = out(reg) high,
            options(readonly, nostack),
        );
    }
    let _ = (shared, low, high);
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

/// The verdict as it is now, whatever the other direction does meanwhile.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn verdict(record: *const FlowRecord) -> Verdict {
    // SAFETY: the caller gives a valid element; the word is aligned.
    Verdict(unsafe { (&raw const (*record).shared.verdict).read_volatile() })
}

/// Installs a verdict if it is still `before`.
///
/// # Safety
/// `record` must point to a map element.
#[inline(always)]
pub(crate) unsafe fn install(record: *mut FlowRecord, before: Verdict, after: Verdict) -> bool {
    // SAFETY: as above.
    unsafe { compare_exchange(&raw mut (*record).shared.verdict, before.0, after.0) == before.0 }
}

/// Moves a record whose handshake completed from the embryonic map to the flow map.
///
/// # Safety
/// `embryo` must point to an element of the embryonic map of the desk's key.
#[inline(always)]
pub(crate) unsafe fn promote(
    counters: &mut Counters,
    embryo: *mut FlowRecord,
    work: &mut Work,
    verdict: Verdict,
) {
    let gone = verdict.with(Verdict::GONE, true);
    // SAFETY: the caller's promise. The verdict is frozen first: from here on nobody changes this copy.
    unsafe {
        if install(embryo, verdict, gone) {
            stats::went(counters, work.map as usize, verdict);
            tcpfsm_carry(work, embryo, counters);
        }
    }
}

/// Carries a frozen record into the flow map: the CPU that froze it does, and any other that comes upon it, so that
/// nobody waits for anybody. The first one's copy stands. If the flow map takes none, the record stays where it is.
///
/// # Safety
/// As for [`promote`].
#[inline(always)]
pub(crate) unsafe fn carry<K: Key>(
    counters: &mut Counters,
    key: &K,
    embryo: *mut FlowRecord,
    work: &mut Work,
) {
    // SAFETY: the caller's promise.
    work.record = unsafe { *embryo };
    let frozen = Verdict(work.record.shared.verdict);
    let verdict = frozen.with(Verdict::GONE, false);
    work.record.shared.verdict = verdict.0;
    match key.insert_flow(&work.record) {
        Insertion::Done => {
            stats::health(counters, Health::Promoted);
            stats::came(counters, K::FLOWS, verdict);
        }
        Insertion::Exists => {
            // An earlier connection's may be in the way, which the sweep is about to remove, and nobody else may: what is
            // removed by its key may be another by then. The next segment carries.
            // SAFETY: the map gave the element.
            if key.find_flow().is_none_or(|old| unsafe { self::verdict(old) }.has(Verdict::GONE)) {
                return;
            }
        }
        Insertion::NoRoom => {
            stats::health(counters, Health::InsertFailed);
            // Another CPU's copy may have found room, and it is about to remove this one.
            // SAFETY: the map gave the element.
            if key.find_flow().is_none_or(|other| unsafe { self::verdict(other) }.has(Verdict::GONE)) {
                // SAFETY: the caller's promise.
                if unsafe { install(embryo, frozen, verdict) } {
                    stats::came(counters, K::EMBRYOS, verdict);
                }
                return;
            }
        }
    }
    key.remove_embryo();
}
