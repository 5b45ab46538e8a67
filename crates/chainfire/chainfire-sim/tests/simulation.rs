//! The quick loop's share of the simulation of members; `cargo xtask sim chainfire` runs the rest, planted bugs included.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use chainfire_sim::Bug;

#[test]
fn members_survive() {
    for members in [3, 5] {
        let summary = chainfire_sim::run_many(0, 3, members, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((summary.seeds, summary.repeated), (3, 1));
        assert!(summary.operations > 500, "{summary:?}");
    }
}

#[test]
fn lost_watch_events_and_stale_reads_are_found() {
    for bug in [Bug::LostWatchEvent, Bug::StaleRead, Bug::ReusedReadContext] {
        let (_, budget) = Bug::ALL.into_iter().find(|(other, _)| *other == bug).unwrap();
        let found = chainfire_sim::find_bug(bug, 0, budget, 3).unwrap();
        assert!(found.is_some(), "{} was not found in {budget} seeds", bug.name());
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    // The outcome of a proposal of an earlier term reached the lease timers of a later one (in the simulation only).
    chainfire_sim::run_many(100_154, 1, 3, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    // The run ended between the creation of a watcher and its enrolment (a gap of the check, not of the members).
    chainfire_sim::run_many(1147, 1, 3, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    // A new leader had first to bring the only other member up to date by a long snapshot (the check did not know).
    chainfire_sim::run_many(1930, 1, 3, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    // After a power cut a member had an older membership than it had acted upon, and needed the votes of removed ones.
    chainfire_sim::run_many(4338, 1, 3, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    // After a power cut the mark of the log was far behind; a bit that flipped in its last record was taken for its end.
    chainfire_sim::run_many(4584, 1, 3, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
}
