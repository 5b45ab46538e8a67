//! The quick loop's share of the simulation of fencing; `cargo xtask sim fence` runs the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use plasmavmc_sim::{Bug, find_bug, run_many};

#[test]
fn no_disk_is_open_twice_and_nobody_is_touched_for_nothing() {
    let summary = run_many(0, 60, 2, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((summary.seeds, summary.repeated), (60, 1));
}

#[test]
fn guards_that_forget_are_found() {
    for bug in [Bug::NeverKills, Bug::QuorumLossIsPartition, Bug::KillsLocal] {
        let (_, budget) = Bug::ALL.into_iter().find(|(other, _)| *other == bug).unwrap();
        let found = find_bug(bug, 0, budget).unwrap();
        assert!(found.is_some(), "{} was not found in {budget} seeds", bug.name());
    }
}
