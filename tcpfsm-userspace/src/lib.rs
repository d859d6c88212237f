//! The tcpfsm daemon and command line, as a library that tests and fuzzers use too.
//!
//! ```text
//! kernel/   aya, and nothing else knows aya: load, attach, events, records, sweep
//! source/   what brings segments or events in
//! replay/   capture files through the same machine
//! ```

pub mod community_id;
pub mod replay;

/// The kernel programs' object, empty when this was built without `cargo xtask build`.
pub static BPF_OBJECT: &[u8] = {
    #[repr(C, align(32))]
    struct Aligned<B: ?Sized>(B);
    static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tcpfsm.bpf.o")));
    &OBJECT.0
};
