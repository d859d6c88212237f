//! How long the engine naps between two drains of the ring.
//!
//! What gathers in a nap is worked off at one go, and as long as that takes, whoever else wants the CPU waits: on a busy
//! host the naps are as short as keeps that unnoticed. On one where nothing happens they are as long as a person may wait.

use std::time::Duration;

/// Where something happens now and then.
const USUAL: Duration = Duration::from_millis(20);

/// Where events come without end.
const SHORTEST: Duration = Duration::from_millis(2);

/// An idle host is woken 12 times a second instead of 50.
const LONGEST: Duration = Duration::from_millis(80);

/// After a nap in which fewer events than this came the next is longer …
const FEW: usize = 128;

/// … and after one in which as many as this came it is shorter: a few tenths of a millisecond's work.
const MANY: usize = 512;

/// The length of the next nap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nap(Duration);

impl Nap {
    pub(super) const fn new() -> Self {
        Self(USUAL)
    }

    pub(super) const fn length(self) -> Duration {
        self.0
    }

    /// The one after a drain of so many events. Where somebody wants to read them, each makes more work.
    #[must_use]
    pub(super) fn after(self, events: usize, wanted: bool) -> Self {
        let Self(nap) = self;
        Self(match events << u32::from(wanted) {
            0 => (nap * 2).min(LONGEST),
            1..FEW => (nap * 2).min(USUAL),
            FEW..MANY => nap.min(USUAL),
            MANY.. => (nap / 2).clamp(SHORTEST, USUAL),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the nap in milliseconds that a steady rate of so many events a millisecond leads to.
    fn settled(mut nap: Nap, rate: f64, wanted: bool) -> f64 {
        for _ in 0..20 {
            nap = nap.after((nap.length().as_secs_f64() * 1e3 * rate) as usize, wanted);
        }
        nap.length().as_secs_f64() * 1e3
    }

    #[test]
    fn naps_are_long_where_nothing_happens_and_short_where_much_does() {
        let idle = Nap::new().after(0, true).after(0, true).after(0, true);
        for before in [Nap::new(), idle, Nap(SHORTEST)] {
            assert_eq!(settled(before, 0.0, true), 80.0);
            assert_eq!(settled(before, 0.1, true), 20.0, "100 events a second");
            assert_eq!(settled(before, 10_000.0, false), 2.0, "ten million");
        }
    }

    #[test]
    fn a_nap_gathers_what_is_soon_worked_off() {
        for rate in [13, 20, 50, 100, 120] {
            for (wanted, work) in [(false, 1.0), (true, 2.0)] {
                let nap = settled(Nap::new(), f64::from(rate), wanted);
                let work = nap * f64::from(rate) * work;
                assert!(
                    (FEW as f64..MANY as f64).contains(&work),
                    "{nap} ms at {rate} in a millisecond: {work}"
                );
            }
        }
    }

    #[test]
    fn the_first_event_ends_a_long_nap() {
        assert_eq!(Nap(LONGEST).after(1, false).length(), USUAL);
    }
}
