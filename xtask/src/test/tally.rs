//! Reads what the test harness prints, as the harness has no stable machine-readable form.

/// Sums over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    /// `test: reason` of tests that passed without having tested.
    pub(crate) skipped: Vec<String>,
    pub(crate) failures: Vec<String>,
    /// Test programs that began.
    begun: u32,
    /// Those that said how they ended: one may have crashed.
    pub(crate) finished: u32,
    section: Section,
    test: String,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Section {
    #[default]
    Results,
    /// The captured output of tests that passed.
    Successes,
    Failures,
}

impl Tally {
    /// Takes one line in; false when a person need not see it.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        if line == "successes:" {
            self.section = Section::Successes;
            return false;
        }
        if line == "failures:" {
            self.section = Section::Failures;
            return true;
        }
        if line.strip_prefix("running ").is_some_and(|rest| rest.ends_with(" tests") || rest == "1 test") {
            self.begun += 1;
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.finished += 1;
            self.section = Section::Results;
            self.take(result);
            // A filter leaves nothing to run in most programs; that is not worth a line each.
            return !result.starts_with("ok. 0 passed; 0 failed; 0 ignored");
        }
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = test.to_owned();
        }
        if let Some(reason) = line.trim_start().strip_prefix("skipped: ") {
            self.skipped.push(format!("{}: {reason}", self.test));
        }
        if line.starts_with("measured: ") {
            return true;
        }
        match self.section {
            Section::Results => {
                if let Some(name) =
                    line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
                {
                    self.failures.push(name.to_owned());
                }
                !line.is_empty() && line != "running 0 tests"
            }
            Section::Successes => false,
            Section::Failures => true,
        }
    }

    /// The same, each test's name behind that of the place where it ran.
    pub(crate) fn of(mut self, place: &str) -> Self {
        for name in self.skipped.iter_mut().chain(&mut self.failures) {
            *name = format!("{place}: {name}");
        }
        self
    }

    /// Adds what ran elsewhere, and is finished.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
    }

    /// Whether these failures are all that went wrong.
    pub(crate) fn is_nothing_but(&self, failures: &[String]) -> bool {
        self.finished == self.begun
            && !failures.is_empty()
            && self.failed as usize == self.failures.len()
            && self.failures.iter().all(|name| failures.contains(name))
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
    fn take(&mut self, result: &str) {
        for part in result.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) =
                (words.next().and_then(|word| word.parse::<u32>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_collects() {
        let output = "\
running 3 tests
test a ... ok
test b ... FAILED
test c ... ok

successes:

---- c stdout ----
chatter
skipped: needs root
measured: 2 s

successes:
    a
    c

failures:

---- b stdout ----
assertion failed

failures:
    b

test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0.01s
";
        let mut tally = Tally::default();
        let shown: Vec<&str> = output.lines().filter(|line| tally.read(line)).collect();
        assert_eq!((tally.passed, tally.failed, tally.ignored), (2, 1, 4));
        assert_eq!(tally.skipped, ["c: needs root"]);
        assert_eq!(tally.failures, ["b"]);
        assert!(tally.is_nothing_but(&["b".into()]) && !tally.is_nothing_but(&["a".into()]));
        assert!(shown.contains(&"assertion failed"));
        assert!(shown.contains(&"measured: 2 s") && !shown.contains(&"chatter"));
    }
    #[test]
    fn a_program_that_crashes_is_no_failure_of_a_test() {
        let mut tally = Tally::default();
        for line in ["running 2 tests", "test a ... ok", "running 1 test", "test late ... FAILED"] {
            tally.read(line);
        }
        tally.read("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        assert!(!tally.is_nothing_but(&["late".into()]), "the first program did not come to its end");
    }
}
