//! Handshakes counted per service, so that a flood is judged by what completes and not by its rate.
//!
//! A service is an address that answered a SYN: a scan of closed ports, or a host that calls many servers in
//! vain, makes no entries.

use aya_ebpf::bindings::BPF_NOEXIST;
use tcpfsm_common::{
    abi::{EventKey, FlowEvent, HandshakeStep, ServiceKey, ServiceRecord, Verdict},
    fact::Facts,
};

use crate::{atomics::add, maps::SERVICES, work::Work};

/// Counts the segment on the desk, if it is a step of a handshake.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tcpfsm_service(work: *mut Work) -> u64 {
    let Some(Work { event, service: (key, new), .. }) = Work::passed(work) else { return 0 };
    let step = HandshakeStep::of(Facts(event.facts), event.flags);
    // On the desk: the calls that lead here have used the stack up.
    *key = key_of(event, Verdict(event.after));
    let service = match SERVICES.get_ptr_mut(&*key) {
        Some(service) => service,
        None if step.answers() => {
            // The SYN that this answers.
            *new = ServiceRecord { opened: 1, ..ServiceRecord::default() };
            let _ = SERVICES.insert(&*key, &*new, u64::from(BPF_NOEXIST));
            match SERVICES.get_ptr_mut(&*key) {
                Some(service) => service,
                None => return 0,
            }
        }
        None => return 0,
    };
    let counters: *mut u64 = service.cast();
    for (at, raised) in step.raises().into_iter().enumerate() {
        if at == 3 && !step.is_rare() {
            break;
        }
        if raised {
            // SAFETY: the record begins with these eight counters.
            unsafe { add(counters.add(at & 7), 1) };
        }
    }
    0
}

/// Counts a handshake that the sweep found under way.
#[inline(always)]
pub(crate) fn count_half_open<K: EventKey>(key: &K, verdict: Verdict, sweep: u32, answered: bool) {
    if let Some(service) = SERVICES.get_ptr_mut(&key.service(verdict.originator().other())) {
        // SAFETY: the map gave the element; only the sweep writes these fields, and one runs at a time.
        unsafe { (*service).count_half_open(sweep, answered) };
    }
}

#[inline(always)]
fn key_of(event: &FlowEvent, verdict: Verdict) -> ServiceKey {
    let responder = verdict.originator().other() as usize & 1;
    ServiceKey {
        addr: event.addr[responder],
        port: event.port[responder],
        family: u16::from(event.family),
        scope: event.scope,
    }
}
