//! What clients saw, judged against the log replayed on the model.

mod kv;
mod lease;
mod registers;
mod watch;

use std::collections::BTreeMap;

use chainfire_core::OpError;
use chainfire_server::simulation::{Answer, Command};
use testkit::sim::{Mode, World};

use crate::Chainfire;
use crate::audit::Entry;
use crate::model::Model;

/// The log, replayed.
pub(crate) struct Replay {
    pub(crate) model: Model,
    pub(crate) log: BTreeMap<u64, Entry>,
    /// What the model answered to each command.
    pub(crate) answers: BTreeMap<u64, Result<Answer, OpError>>,
    /// True time at which each revision was first applied anywhere; the place is the revision.
    pub(crate) made_at: Vec<u64>,
    /// Compactions: index, time, revision.
    pub(crate) compactions: Vec<(u64, i64)>,
    /// Ends of leases: id, time, by expiry in this term (else by revocation).
    pub(crate) ended: Vec<(i64, u64, Option<u64>)>,
    /// Grants: id, time.
    pub(crate) granted: Vec<(i64, u64)>,
}

/// Replays the log on the model; every answer of the members must be the model's.
fn replay(log: BTreeMap<u64, Entry>) -> Result<Replay, String> {
    let mut replay = Replay {
        model: Model::new(),
        answers: BTreeMap::new(),
        made_at: vec![0, 0],
        compactions: Vec::new(),
        ended: Vec::new(),
        granted: Vec::new(),
        log: BTreeMap::new(),
    };
    let mut last = log.keys().next().map_or(0, |first| first - 1);
    for (index, entry) in &log {
        if *index != last + 1 {
            return Err(format!("nobody applied the entries between {last} and {index}"));
        }
        last = *index;
        if let Some(bytes) = &entry.command {
            let command =
                Command::decode(bytes).ok_or_else(|| format!("entry {index} is of no known kind"))?;
            replay.step(*index, entry, &command)?;
        }
    }
    replay.log = log;
    Ok(replay)
}

impl Replay {
    fn step(&mut self, index: u64, entry: &Entry, command: &Command) -> Result<(), String> {
        let leases: Vec<i64> = self.model.leases.keys().copied().collect();
        let void = matches!(
            command,
            Command::Expire(_, term) | Command::Checkpoint(_, _, term) if *term != entry.term
        );
        let expected = if void {
            // By the clock of a leader of another term: nothing happens, and the answer is nobody's.
            Ok(Answer::Done(0))
        } else {
            self.model.apply(command)
        };
        while self.made_at.len() <= usize::try_from(self.model.revision()).unwrap_or(0) {
            self.made_at.push(entry.at);
        }
        if void && !entry.answer.is_empty() {
            return Err(format!(
                "entry {index}, {command:?}, of term {} had an effect",
                entry.term
            ));
        }
        if !void {
            let got = Answer::decode(&entry.answer);
            if got != expected {
                return Err(format!(
                    "entry {index}, {command:?}, was answered\n  {got:?}\nbut the model says\n  {expected:?}"
                ));
            }
        }
        match (command, &expected) {
            (Command::Compact(compact), Ok(_)) => self.compactions.push((entry.at, compact.revision)),
            (Command::Grant(grant), Ok(_)) => self.granted.push((grant.id, entry.at)),
            _ => {}
        }
        let by = matches!(command, Command::Expire(..)).then_some(entry.term);
        for id in leases
            .into_iter()
            .filter(|id| !self.model.leases.contains_key(id))
        {
            self.ended.push((id, entry.at, by));
        }
        self.answers.insert(index, expected);
        Ok(())
    }

    /// What the log says of a lease, for whoever reads a finding.
    pub(crate) fn story(&self, id: i64) -> Vec<String> {
        let entries = self.log.iter().filter_map(|(index, entry)| {
            let what = match Command::decode(entry.command.as_ref()?)? {
                Command::Grant(grant) if grant.id == id => "granted".to_owned(),
                Command::Revoke(revoke) if revoke.id == id => "revoked".to_owned(),
                Command::Checkpoint(ids, left, term) if ids.contains(&id) => {
                    format!("of {ids:?} there is left {left:?} s by the clock of term {term}")
                }
                Command::Expire(ids, term) if ids.contains(&id) => {
                    format!("run out by the clock of term {term}")
                }
                _ => return None,
            };
            let (at, term) = (entry.at, entry.term);
            Some(format!("{what} at {at} us (entry {index} of term {term})"))
        });
        entries.collect()
    }

    /// Oldest readable revision for sure at a time, and at most: compactions that were applied by somebody then.
    pub(crate) fn compacted_at(&self, time: u64) -> i64 {
        let before = self.compactions.iter().filter(|(at, _)| *at <= time);
        before.map(|(_, revision)| *revision).max().unwrap_or(-1)
    }
}

/// Judges a whole run.
pub(crate) fn all(world: &mut World<'_, Chainfire>) -> Result<(), String> {
    let log = world.service.notes.log.lock().clone();
    let replay = replay(log)?;
    let expired = replay.ended.iter().filter(|(_, _, by)| by.is_some()).count();
    world.faults.note("LeaseExpired", expired as u64);
    kv::check(&world.service.clients, &replay)?;
    registers::check(&world.service.clients.records)?;
    watch::check(world, &replay)?;
    lease::never_early(world, &replay)?;
    if world.options().mode == Mode::Safety {
        lease::gone_in_time(world, &replay)?;
    }
    Ok(())
}
