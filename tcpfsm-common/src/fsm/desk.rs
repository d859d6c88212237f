//! Where the machine keeps what it works on, so that the verifier of the kernel programs need not follow it.

use core::{cell::Cell, hint::black_box};

use crate::abi::{Evidence, Verdict};

/// Where the machine keeps the verdict while it works on a segment.
///
/// In userspace plain cells. In the kernel it is map memory behind volatile accesses: what the verifier knows of
/// a register it must follow along every path, what comes out of a map it knows nothing of.
pub trait Desk {
    /// What was written last.
    fn verdict(&self) -> Verdict;
    /// Writes it.
    fn set_verdict(&self, verdict: Verdict);
    /// The decisions written last, see `Track::note`.
    fn notes(&self) -> u64;
    /// Writes them.
    fn set_notes(&self, notes: u64);
}

/// The desk in userspace.
#[derive(Default)]
pub struct PlainDesk {
    verdict: Cell<Verdict>,
    notes: Cell<u64>,
}

impl Desk for PlainDesk {
    fn verdict(&self) -> Verdict {
        self.verdict.get()
    }

    fn set_verdict(&self, verdict: Verdict) {
        self.verdict.set(verdict);
    }

    fn notes(&self) -> u64 {
        self.notes.get()
    }

    fn set_notes(&self, notes: u64) {
        self.notes.set(notes);
    }
}

/// A decision that is needed more than once.
#[derive(Clone, Copy)]
pub(super) enum Note {
    /// Both ends' evidence is of the same generation.
    Attached,
    /// And the peer has acknowledged something.
    Acked,
    /// The segment lies wholly before the receiver's left edge.
    Old,
    /// Its sender had sent a FIN before.
    FinAgain,
    /// Its end had been reached before.
    FinLate,
    /// Its sender acknowledges the peer's FIN.
    SawPeerFin,
    /// Its sender had not acknowledged the peer's FIN before.
    FinAnswers,
    /// The data of the peer's SYN was taken: it may be answered before the handshake is complete.
    FastOpen,
    /// It is a keepalive, with a byte or without: its sender repeats itself, though all was acknowledged.
    Keepalive,
    /// It is a SYN that TIME-WAIT takes.
    Reopens,
    /// It has a FIN that cannot be its sender's: of that, and of its data, nothing is taken.
    OtherFin,
}

/// Whether a decision was written down as true.
#[inline(always)]
pub(super) fn is_noted<D: Desk>(desk: &D, note: Note) -> bool {
    desk.notes() >> note as u64 & 1 != 0
}

/// The same evidence, read from memory again from here on: what the compiler keeps in registers, the verifier
/// follows along every path.
#[inline(always)]
pub(super) fn reread(own: &mut Evidence) -> &mut Evidence {
    black_box(own)
}
