//! The history: a letter for each kind of thing that an end was seen to do, upper case for the originator.

/// The history, and whose letters are being written.
#[derive(Debug, Default)]
pub(super) struct History {
    text: String,
    lower: bool,
}

impl History {
    pub(super) const fn is_originator(&mut self, originator: bool) {
        self.lower = !originator;
    }

    pub(super) fn write(&mut self, code: u8) {
        let code = if self.lower { code.to_ascii_lowercase() } else { code };
        self.text.push(char::from(code));
    }

    /// The originator is another than was thought.
    pub(super) fn flip(&mut self) {
        let swap =
            |c: char| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        self.text = std::iter::once('^').chain(self.text.chars().map(swap)).collect();
        self.lower = !self.lower;
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

/// A letter that is repeated at the 10th, 100th, … time.
#[derive(Debug)]
pub(super) struct Scaled {
    count: u32,
    threshold: u32,
}

impl Default for Scaled {
    fn default() -> Self {
        Self { count: 0, threshold: 1 }
    }
}

impl Scaled {
    /// Counts once more; says whether that is worth a letter.
    pub(super) const fn count(&mut self) -> bool {
        self.count = self.count.wrapping_add(1);
        if self.count != self.threshold {
            return false;
        }
        match self.threshold.checked_mul(10) {
            Some(threshold) => self.threshold = threshold,
            None => self.count = 0,
        }
        true
    }
}
