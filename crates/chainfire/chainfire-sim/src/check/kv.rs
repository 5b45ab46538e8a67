//! The key-value history: acknowledged writes in the order of the log and of real time, reads equal to the model at
//! their revision and not older than what was acknowledged before.

use std::collections::BTreeMap;

use chainfire_core::OpError;

use super::Replay;
use crate::clients::{Clients, Outcome, Record, revision_of};
use crate::ops::Asked;

pub(super) fn check(clients: &Clients, replay: &Replay) -> Result<(), String> {
    dropped(clients, replay)?;
    for record in &clients.records {
        one(record, replay).map_err(|why| format!("{why}: {record:?}"))?;
    }
    real_time(&clients.records)?;
    monotonic(&clients.records)
}

/// What a client was told would never happen is not in the log.
fn dropped(clients: &Clients, replay: &Replay) -> Result<(), String> {
    for (index, entry) in &replay.log {
        if entry
            .command
            .as_ref()
            .is_some_and(|command| clients.dropped.contains(command))
        {
            return Err(format!(
                "entry {index} was applied although its client was told that it never would be"
            ));
        }
    }
    Ok(())
}

fn require(holds: bool, why: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why.to_owned()) }
}

/// An answer by itself.
fn one(record: &Record, replay: &Replay) -> Result<(), String> {
    match (&record.asked, &record.outcome) {
        (Asked::Write(_), Outcome::Wrote(answer)) => {
            let told = replay.answers.get(&record.index) == Some(&Ok(answer.clone()));
            require(told, "the log does not say what its client was told")?;
        }
        (Asked::Write(_), Outcome::Refused(error)) if record.index > 0 => {
            let told = replay.answers.get(&record.index) == Some(&Err(*error));
            require(told, "the log does not say what its client was told")?;
        }
        (Asked::Range(range), Outcome::Range(reply)) => {
            let now = known_revision(record, replay)?;
            if range.revision > 0
                && range.revision < replay.compacted_at(record.called)
                && !range.serializable
            {
                return Err("it was answered although its revision was compacted".to_owned());
            }
            let expected = replay.model.range_at(range, now);
            if expected.as_ref() != Some(reply) {
                return Err(format!("the model's state at revision {now} says {expected:?}"));
            }
        }
        (Asked::Read(txn), Outcome::Read(reply)) => {
            let now = known_revision(record, replay)?;
            let expected = replay.model.read_txn_at(txn, now);
            if expected.as_ref() != Some(reply) {
                return Err(format!("the model's state at revision {now} says {expected:?}"));
            }
        }
        (Asked::Range(range), Outcome::Refused(OpError::Compacted)) => {
            let gone = range.revision < replay.compacted_at(record.returned);
            require(gone, "a readable revision was hidden")?;
        }
        // Judged in the order of real time.
        (Asked::Range(_), Outcome::Refused(OpError::FutureRevision)) => {}
        (Asked::Range(_) | Asked::Read(_), Outcome::Refused(error)) => {
            return Err(format!("a read was refused with {error}"));
        }
        _ => {}
    }
    Ok(())
}

/// The revision that a read names; it must have been made before the answer.
fn known_revision(record: &Record, replay: &Replay) -> Result<i64, String> {
    let revision = revision_of(&record.outcome).unwrap_or(0);
    let made = usize::try_from(revision)
        .ok()
        .and_then(|place| replay.made_at.get(place));
    match made {
        Some(at) if *at <= record.returned => Ok(revision),
        Some(_) => Err(format!("revision {revision} was made only later")),
        None => Err(format!("there never was a revision {revision}")),
    }
}

/// Whether an operation must see everything that was acknowledged before it.
fn is_linearizable(record: &Record) -> bool {
    !matches!(&record.asked, Asked::Range(range) if range.serializable)
}

/// In the order of real time, revisions of linearizable operations and indices of writes do not go back; and a
/// revision that was acknowledged is no future one.
fn real_time(records: &[Record]) -> Result<(), String> {
    let mut returns: Vec<&Record> = records
        .iter()
        .filter(|r| revision_of(&r.outcome).is_some())
        .collect();
    returns.sort_by_key(|record| record.returned);
    let mut calls: Vec<&Record> = records.iter().filter(|record| is_linearizable(record)).collect();
    calls.sort_by_key(|record| record.called);
    let mut before = returns.into_iter().peekable();
    let (mut revision, mut index) = (0, 0);
    for record in calls {
        while let Some(earlier) = before.next_if(|earlier| earlier.returned < record.called) {
            // A serializable answer too tells a revision that was committed.
            revision = revision.max(revision_of(&earlier.outcome).unwrap_or(0));
            index = index.max(earlier.index);
        }
        let seen = revision_of(&record.outcome).unwrap_or(i64::MAX);
        if seen < revision {
            return Err(format!(
                "revision {revision} was known before this began, which saw {seen}: {record:?}"
            ));
        }
        if record.index > 0 && record.index < index {
            return Err(format!(
                "entry {index} was acknowledged before this began: {record:?}"
            ));
        }
        if let (Asked::Range(range), Outcome::Refused(OpError::FutureRevision)) =
            (&record.asked, &record.outcome)
            && range.revision <= revision
        {
            return Err(format!(
                "revision {revision} was known before this called it a future one: {record:?}"
            ));
        }
    }
    Ok(())
}

/// Serializable reads of one process of a member do not go back.
fn monotonic(records: &[Record]) -> Result<(), String> {
    let mut newest: BTreeMap<(u64, u64), i64> = BTreeMap::new();
    let mut reads: Vec<&Record> = records
        .iter()
        .filter(|record| matches!(record.outcome, Outcome::Range(_) | Outcome::Read(_)))
        .collect();
    reads.sort_by_key(|record| record.returned);
    for record in reads {
        let revision = revision_of(&record.outcome).unwrap_or(0);
        let newest = newest.entry((record.node, record.life)).or_default();
        // Both are answered at once when they are answered: the order of answers is the order of looking.
        if revision < *newest {
            return Err(format!(
                "the member had answered with revision {newest} before: {record:?}"
            ));
        }
        *newest = revision;
    }
    Ok(())
}
