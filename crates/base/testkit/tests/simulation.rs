//! The quick loop's share of the simulation; `cargo xtask sim --seeds 500` runs the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use testkit::sim::registers::{self as sim, Bug};

#[test]
fn three_members_survive() {
    let summary = sim::run_many(0, 40, 3, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(summary.seeds, 40);
    assert!(summary.operations > 4_000, "{summary:?}");
}

#[test]
fn five_members_survive() {
    let summary = sim::run_many(1_000, 20, 5, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(summary.seeds, 20);
}

#[test]
fn every_planted_bug_is_found_within_its_budget() {
    for (bug, budget) in Bug::ALL {
        let found = sim::find_bug(bug, 0, budget, 3).unwrap();
        let report = found.unwrap_or_else(|| panic!("{} was not found in {budget} seeds", bug.name()));
        eprintln!(
            "{}: seed {}: {}",
            bug.name(),
            report.options.seed,
            report.violation.unwrap()
        );
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    let found = [
        // raft-engine's block cache, shared by all members on one thread (decision 0012).
        (1000, 5),
        // A snapshot described before a membership change, and sent after it.
        (183, 5),
        // A leader that applies its own removal and leads on.
        (10_004, 3),
    ];
    for (seed, members) in found {
        sim::run_many(seed, 1, members, 1, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    }
}
