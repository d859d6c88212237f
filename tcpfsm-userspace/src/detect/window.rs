//! Counts within a window of time that moves on.

/// Parts of a window: what falls out of it falls out a sixth at a time.
const SLOTS: usize = 6;

/// A count of what happened within the last while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    slots: [u64; SLOTS],
    /// The number of the newest slot, in slot lengths since the clock began.
    newest: u64,
}

impl Window {
    /// Adds what happened at `time`; `length` is the whole window's.
    pub(super) fn add(&mut self, time: u64, length: u64, count: u64) {
        self.advance(time, length);
        let [newest, ..] = &mut self.slots;
        *newest = newest.saturating_add(count);
    }

    /// The sum over the window that ends at `time`.
    pub(super) fn sum(&mut self, time: u64, length: u64) -> u64 {
        self.advance(time, length);
        self.slots.iter().fold(0, |sum: u64, slot| sum.saturating_add(*slot))
    }

    fn advance(&mut self, time: u64, length: u64) {
        let slot = time / (length / SLOTS as u64).max(1);
        // Events of two CPUs may come in the other order: a late one counts as of now.
        let passed = usize::try_from(slot.saturating_sub(self.newest)).unwrap_or(SLOTS).min(SLOTS);
        if passed > 0 {
            self.slots.rotate_right(passed % SLOTS);
            if let Some(new) = self.slots.get_mut(..passed) {
                new.fill(0);
            }
            self.newest = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = Window::default();
        for second in 0..60 {
            window.add(second, 60, 1);
        }
        assert_eq!(window.sum(59, 60), 60);
        assert_eq!(window.sum(69, 60), 50);
        assert_eq!(window.sum(40, 60), 50, "time does not go back");
        assert_eq!(window.sum(109, 60), 10);
        assert_eq!(window.sum(1_000, 60), 0);
    }
}
