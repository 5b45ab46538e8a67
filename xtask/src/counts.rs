//! Counts passed, failed and skipped checks out of what the test programs print.

/// What one step, or all of them, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn one(ok: bool) -> Counts {
        Counts {
            passed: u64::from(ok),
            failed: u64::from(!ok),
            skipped: 0,
        }
    }

    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads libtest's `test result:` lines and our own `SKIPPED: reason` lines.
    ///
    /// A test that skips itself is reported as passed by libtest, so each of our lines moves one
    /// from passed to skipped. `ok` is the exit status: a run that failed without counting a
    /// failure (it did not compile, or was killed) is one failure.
    pub(crate) fn of_tests(output: &str, ok: bool) -> Counts {
        let mut sum = Counts::default();
        for line in output.lines() {
            if let Some(rest) = line.trim_start().strip_prefix("test result:") {
                sum.passed += number_before(rest, "passed");
                sum.failed += number_before(rest, "failed");
                sum.skipped += number_before(rest, "ignored");
            } else if line.trim_start().starts_with("SKIPPED: ") {
                sum.skipped += 1;
                sum.passed = sum.passed.saturating_sub(1);
            }
        }
        if !ok && sum.failed == 0 {
            sum.failed = 1;
        }
        sum
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// The number that stands before `word`, as in `12 passed; 0 failed`; 0 when it is not there.
fn number_before(text: &str, word: &str) -> u64 {
    let mut last = 0;
    for part in text.split([' ', ';', '.', ',']) {
        if part == word {
            return last;
        }
        if let Ok(n) = part.parse() {
            last = n;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_libtest_lines_and_own_skips() {
        let output = "\
running 3 tests
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
SKIPPED: no /dev/kvm
test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s
";
        assert_eq!(
            Counts::of_tests(output, false),
            Counts {
                passed: 7,
                failed: 2,
                skipped: 2
            }
        );
    }

    #[test]
    fn a_run_that_counted_nothing_but_failed_is_a_failure() {
        assert_eq!(
            Counts::of_tests("error[E0308]: mismatched types", false),
            Counts::one(false)
        );
    }

    #[test]
    fn prints_the_closing_line() {
        let sum = Counts {
            passed: 12,
            failed: 0,
            skipped: 3,
        };
        assert_eq!(sum.to_string(), "12 passed, 0 failed, 3 skipped");
    }
}
