//! What changed, revision by revision: the material of incremental transfers (RFC 1995).
//!
//! A journal answers "what came after this serial?" only for serials since which it has seen every change in its
//! order; for all others it has nothing, and the zone is sent whole.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    limits::{MAX_JOURNAL_RECORDS, MAX_JOURNAL_STEPS},
    name::DnsName,
    rr::{RrSet, Rtype},
    serial,
};

/// One record with its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rr {
    /// Whose it is.
    pub owner: DnsName,
    /// Its type.
    pub rtype: Rtype,
    /// Time to live in seconds.
    pub ttl_s: u32,
    /// Its data in wire form.
    pub rdata: Box<[u8]>,
}

/// What changed at one revision, in all zones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The revision that it made.
    pub revision: i64,
    /// Records that are no more.
    pub removed: Vec<Rr>,
    /// Records that are new.
    pub added: Vec<Rr>,
}

impl Step {
    /// Adds what changed at one name.
    pub fn change(&mut self, name: &DnsName, before: &[RrSet], after: &[RrSet]) {
        self.removed.extend(without(name, before, after));
        self.added.extend(without(name, after, before));
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    fn weight(&self) -> usize {
        self.removed.len() + self.added.len()
    }
}

/// Records of `sets` that are not in `others` with the same time to live.
fn without<'a>(name: &'a DnsName, sets: &'a [RrSet], others: &'a [RrSet]) -> impl Iterator<Item = Rr> + 'a {
    sets.iter().flat_map(move |set| {
        let same = |other: &&RrSet| other.rtype() == set.rtype() && other.ttl_s() == set.ttl_s();
        let other = others.iter().find(same);
        let is_there = move |rdata: &[u8]| {
            other.is_some_and(|other| {
                other
                    .rdatas()
                    .binary_search_by(|known| (**known).cmp(rdata))
                    .is_ok()
            })
        };
        set.rdatas()
            .iter()
            .filter(move |rdata| !is_there(rdata))
            .map(|rdata| Rr {
                owner: name.clone(),
                rtype: set.rtype(),
                ttl_s: set.ttl_s(),
                rdata: rdata.clone(),
            })
    })
}

/// The last changes, bounded.
#[derive(Debug, Default)]
pub struct Journal {
    /// Every change behind this revision is here; `None`: nothing is known.
    start: Option<i64>,
    /// Revision that the journal has reached.
    reached: i64,
    steps: VecDeque<Arc<Step>>,
    records: usize,
}

impl Journal {
    /// Whether it follows the changes now.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.start.is_some()
    }

    /// Forgets everything; from `revision` on every change will be told. `None`: not yet.
    pub fn restart(&mut self, revision: Option<i64>) {
        *self = Self {
            start: revision,
            reached: revision.unwrap_or(0),
            ..Self::default()
        };
    }

    /// The next change, or that nothing changed up to its revision.
    pub fn push(&mut self, step: Step) {
        if self.start.is_none() {
            return;
        }
        assert!(step.revision >= self.reached, "revisions rise");
        self.reached = step.revision;
        if step.is_empty() {
            return;
        }
        self.records += step.weight();
        self.steps.push_back(Arc::new(step));
        while self.records > MAX_JOURNAL_RECORDS || self.steps.len() > MAX_JOURNAL_STEPS {
            let Some(oldest) = self.steps.pop_front() else {
                return;
            };
            self.records -= oldest.weight();
            self.start = Some(oldest.revision);
        }
    }

    /// The steps that lead from serial `from` to serial `to`; `None`: they are not all known.
    #[must_use]
    pub fn between(&self, from: u32, to: u32) -> Option<Vec<Arc<Step>>> {
        let start = self.start?;
        let reached = serial::from_revision(u64::try_from(self.reached).ok()?);
        // Another snapshot's serial lies at most as far back as the journal does.
        let to = self.reached - i64::from(reached.wrapping_sub(to));
        let from = to - i64::from(serial::from_revision(u64::try_from(to).ok()?).wrapping_sub(from));
        if from < start {
            return None;
        }
        let within = self
            .steps
            .iter()
            .filter(|step| step.revision > from && step.revision <= to);
        Some(within.cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(addresses: &[u8], ttl_s: u32) -> Vec<RrSet> {
        let rdatas = addresses.iter().map(|last| Box::from([192, 0, 2, *last]));
        RrSet::new(Rtype::A, ttl_s, rdatas.collect())
            .into_iter()
            .collect()
    }

    fn step(revision: i64, before: &[RrSet], after: &[RrSet]) -> Step {
        let mut step = Step {
            revision,
            ..Step::default()
        };
        step.change(&"a.b".parse().unwrap(), before, after);
        step
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let counts = |step: &Step| (step.removed.len(), step.added.len());
        assert_eq!(counts(&step(1, &sets(&[1, 2], 5), &sets(&[2, 3], 5))), (1, 1));
        assert_eq!(counts(&step(1, &sets(&[1, 2], 5), &sets(&[1, 2], 6))), (2, 2));
        assert_eq!(counts(&step(1, &[], &sets(&[1], 5))), (0, 1));
        assert!(step(1, &sets(&[1], 5), &sets(&[1], 5)).is_empty());
    }

    #[test]
    fn what_came_between_two_serials() {
        let mut journal = Journal::default();
        assert!(journal.between(1, 1).is_none());
        let base = i64::from(u32::MAX) - 3;
        journal.restart(Some(base));
        for offset in [2, 3, 6] {
            journal.push(step(base + offset, &[], &sets(&[1], 5)));
        }
        journal.push(step(base + 8, &[], &[]));
        let serial = |offset: i64| serial::from_revision(u64::try_from(base + offset).unwrap());
        let found = |from, to| {
            let steps = journal.between(serial(from), serial(to));
            steps.map(|steps| steps.iter().map(|step| step.revision - base).collect::<Vec<_>>())
        };
        assert_eq!(found(0, 8), Some(vec![2, 3, 6]));
        assert_eq!(found(2, 6), Some(vec![3, 6]));
        assert_eq!(found(6, 8), Some(vec![]));
        assert_eq!(found(-1, 8), None);
    }

    #[test]
    fn it_is_bounded() {
        let mut journal = Journal::default();
        journal.restart(Some(0));
        for revision in 1..=20_000 {
            journal.push(step(revision, &[], &sets(&[1], 5)));
        }
        assert_eq!(journal.steps.len(), MAX_JOURNAL_STEPS);
        assert!(journal.between(9_999, 20_000).is_none());
        assert_eq!(journal.between(10_000, 20_000).unwrap().len(), 10_000);
    }
}
