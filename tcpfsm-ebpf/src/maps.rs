//! Every map: what is in it, who writes it, who reads it.
//!
//! The sizes here are small defaults for tests; the daemon sets them when it loads the programs.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use tcpfsm_common::{
    abi::{
        Correction, Counters, EmbryoFilter, FlowEvent, FlowRecord, KernelConfig, LANE_PLACES, LanePlace,
        LaneRead, ServiceKey, ServiceRecord, SweepReport, SweepRequest,
    },
    flow::{FlowKey4, FlowKey6},
};

use crate::{bytes::HeaderBytes, work::Work};

const FLOWS: usize = 65_536;
const EMBRYOS: usize = 16_384;
const SERVICE_ENTRIES: usize = 8_192;
const RING_BYTES: usize = 16 << 20;
/// The daemon reads the lanes in its own memory.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// IPv4 flows whose handshake completed. Written by the packet path; removed by the sweep, or by the map
/// itself when it is full (least recently used first).
#[btf_map]
pub(crate) static FLOWS4: LruHashMap<FlowKey4, FlowRecord, FLOWS> = LruHashMap::new();

/// IPv6 flows whose handshake completed.
#[btf_map]
pub(crate) static FLOWS6: LruHashMap<FlowKey6, FlowRecord, FLOWS> = LruHashMap::new();

/// IPv4 flows that have not proved themselves: handshakes under way, strays, one-sided views. In a map of
/// their own, so that a flood of them evicts only others of their kind.
#[btf_map]
pub(crate) static EMBRYOS4: LruHashMap<FlowKey4, FlowRecord, EMBRYOS> = LruHashMap::new();

/// IPv6 flows that have not proved themselves.
#[btf_map]
pub(crate) static EMBRYOS6: LruHashMap<FlowKey6, FlowRecord, EMBRYOS> = LruHashMap::new();

/// Which flows cannot be in an embryonic map; written by packets, the sweep and the daemon.
#[btf_map]
pub(crate) static EMBRYO_FILTER: Array<EmbryoFilter, 1, MMAPABLE> = Array::new();

/// Events of packets for the daemon: [`LANE_PLACES`] for each CPU, written by it alone and read where they lie.
#[btf_map]
pub(crate) static LANES: Array<LanePlace, { LANE_PLACES as usize }, MMAPABLE> = Array::new();

/// How far the daemon has read each lane.
#[btf_map]
pub(crate) static LANES_READ: Array<LaneRead, 1, MMAPABLE> = Array::new();

/// Events for the daemon that are not a packet's, or found no room in their CPU's lane. It naps and drains, and is woken only
/// where either fills faster than that.
#[btf_map]
pub(crate) static EVENTS: RingBuf<FlowEvent, RING_BYTES> = RingBuf::new();

/// Counters of each CPU, those of packets and those of what packets may interrupt; the daemon adds them up.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counters, 2> = PerCpuArray::new();

/// Handshakes by service. Written on each step of a handshake, and by the sweep.
#[btf_map]
pub(crate) static SERVICES: LruHashMap<ServiceKey, ServiceRecord, SERVICE_ENTRIES> = LruHashMap::new();

/// How many strays this CPU has told in the present slot of time: the slot, and the number.
#[btf_map]
pub(crate) static STRAYS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// How much of the quota of events was spent in the present slot of time, by all CPUs: the slot, and the number.
#[btf_map]
pub(crate) static SPENT: Array<[u64; 2], 1> = Array::new();

/// Where a segment is worked that does not take the short path.
#[btf_map]
pub(crate) static DESK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// Where the headers of a packet are copied to that does not take the short path, and is none of the plain ones.
#[btf_map]
pub(crate) static HEADERS: PerCpuArray<HeaderBytes, 1> = PerCpuArray::new();

/// The change of verdict that the daemon asks for, and whether it was made.
#[btf_map]
pub(crate) static CORRECTION: Array<Correction, 1> = Array::new();

/// What the next sweep looks for; written by the daemon.
#[btf_map]
pub(crate) static SWEEP_REQUEST: Array<SweepRequest, 1> = Array::new();

/// What the sweep found in FLOWS4, FLOWS6, EMBRYOS4 and EMBRYOS6; zeroed and read by the daemon.
#[btf_map]
pub(crate) static SWEEP_REPORT: Array<SweepReport, 4> = Array::new();

/// Set by the daemon before the programs are loaded.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Global<KernelConfig> = Global::new(KernelConfig::NONE);

/// [`KernelConfig::scope`] alone: the whole of it is four loads, and the short path needs one.
#[inline(always)]
pub(crate) fn scope() -> u32 {
    // SAFETY: the configuration is the static's whole content; the loader may have written it.
    unsafe { (&raw const (*(&raw const CONFIG).cast::<KernelConfig>()).scope).read_volatile() }
}

/// [`KernelConfig::early`] alone.
#[inline(always)]
pub(crate) fn early() -> u32 {
    // SAFETY: as above.
    unsafe { (&raw const (*(&raw const CONFIG).cast::<KernelConfig>()).early).read_volatile() }
}

/// [`KernelConfig::lanes`] alone.
#[inline(always)]
pub(crate) fn lanes() -> u32 {
    // SAFETY: as above.
    unsafe { (&raw const (*(&raw const CONFIG).cast::<KernelConfig>()).lanes).read_volatile() }
}
