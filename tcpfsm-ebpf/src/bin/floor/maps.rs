//! The floor's maps. The bench sets their sizes.

use aya_ebpf::{
    btf_maps::{Array, LruHashMap, ProgramArray, RingBuf},
    macros::btf_map,
};

use crate::{
    parse::{Key16, Key40},
    plan::Plan,
};

/// 128 bytes of flow.
#[repr(C)]
pub(crate) struct Flow {
    pub(crate) state: u64,
    pub(crate) last: u64,
    pub(crate) rest: [u64; 14],
}

/// IPv4 flows.
#[btf_map]
pub(crate) static FLOOR16: LruHashMap<Key16, Flow, 1024> = LruHashMap::new();

/// IPv6 flows.
#[btf_map]
pub(crate) static FLOOR40: LruHashMap<Key40, Flow, 1024> = LruHashMap::new();

/// As large as the tracker's.
#[repr(C)]
pub(crate) struct Event(pub(crate) [u64; 14]);

/// Events, without a wake-up each.
#[btf_map]
pub(crate) static FLOOR_EVENTS: RingBuf<Event, { 16 << 20 }> = RingBuf::new();

/// What the floor counted: misses; by the walk: flows, old ones; events, events lost.
#[btf_map]
pub(crate) static SEEN: Array<[u64; 8], 1> = Array::new();

/// What `vary` does next.
#[btf_map]
pub(crate) static PLAN: Array<Plan, 1> = Array::new();

/// The measured program.
#[btf_map]
pub(crate) static NEXT: ProgramArray<1> = ProgramArray::new();
