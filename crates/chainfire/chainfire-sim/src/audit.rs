//! Around each member's machine: notes what it applied and answered, for everybody to compare.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use chainfire_server::simulation::Member;
use raft_host::{Committed, MachineError, Payload, SnapshotSink, SnapshotSource, StateMachine};
use testkit::sim::SharedJournal;

/// An entry of the log, and what the first member that applied it answered.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    /// `None`: no command.
    pub(crate) command: Option<Bytes>,
    pub(crate) answer: Bytes,
    /// True time of the first application, microseconds.
    pub(crate) at: u64,
}

/// The group's log as applied, by index.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<BTreeMap<u64, Entry>>>);

impl Log {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// States at the indices at which somebody made a snapshot.
type Digests = Arc<Mutex<BTreeMap<u64, u64>>>;

/// What all members' machines share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub(crate) log: Log,
    digests: Digests,
    /// True time, microseconds.
    pub(crate) now: Arc<AtomicU64>,
}

/// Entries between two steps of giving space back.
const RECLAIM_EVERY: u64 = 3;

/// A machine that is listened to.
pub(crate) struct Audited {
    pub(crate) node: u64,
    pub(crate) inner: Box<dyn StateMachine>,
    pub(crate) member: Member,
    pub(crate) journal: SharedJournal,
    pub(crate) notes: Notes,
    pub(crate) applied: u64,
}

impl StateMachine for Audited {
    fn applied_index(&self) -> u64 {
        self.inner.applied_index()
    }

    fn apply(&mut self, entries: &[Committed<'_>]) -> Result<Vec<Bytes>, MachineError> {
        let before = self.member.revision();
        let answers = self.inner.apply(entries)?;
        // Space is given back by each member at its own pace: nothing that clients see may depend on it.
        if entries
            .last()
            .is_some_and(|entry| (entry.index + self.node).is_multiple_of(RECLAIM_EVERY))
        {
            self.member.reclaim()?;
        }
        let mut journal = self.journal.lock();
        let mut log = self.notes.log.lock();
        if self.member.revision() < before {
            journal.fail(format!(
                "the revision of node {} went back from {before}",
                self.node
            ));
        }
        for (entry, answer) in entries.iter().zip(&answers) {
            let (content, command) = match entry.payload {
                Payload::Command(bytes) => (crc32fast::hash(bytes), Some(bytes)),
                Payload::Noop => (1, None),
                Payload::Membership(_) => (2, None),
            };
            journal.entry(self.node, entry.index, entry.term, content);
            // The running hash must be the same everywhere, or members would stop for nothing.
            let hash = self.member.state_hash(entry.index).unwrap_or_default();
            journal.state(self.node, entry.index, u64::from(crc32fast::hash(answer)) ^ hash);
            log.entry(entry.index).or_insert_with(|| Entry {
                term: entry.term,
                command: command.map(Bytes::copy_from_slice),
                answer: answer.clone(),
                at: self.notes.now.load(Ordering::Relaxed),
            });
            self.applied = entry.index;
        }
        Ok(answers)
    }

    fn persist(&mut self) -> Result<u64, MachineError> {
        self.inner.persist()
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let digest = self.member.digest()?;
        let mut digests = self.notes.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if *digests.entry(self.applied).or_insert(digest) != digest {
            let what = format!(
                "the state of node {} at {} is another than the others'",
                self.node, self.applied
            );
            self.journal.lock().fail(what);
        }
        drop(digests);
        self.inner.snapshot()
    }

    fn receive(&mut self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        self.inner.receive()
    }

    fn restore(&mut self, index: u64, sink: Box<dyn SnapshotSink>) -> Result<(), MachineError> {
        let before = self.member.revision();
        self.inner.restore(index, sink)?;
        self.applied = index;
        let digest = self.member.digest()?;
        let digests = self.notes.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests.get(&index).is_some_and(|of_sender| *of_sender != digest) {
            let what = format!(
                "node {} restored another state of {index} than was sent",
                self.node
            );
            self.journal.lock().fail(what);
        }
        if self.member.revision() < before {
            let what = format!(
                "the revision of node {} went back from {before} in a restore",
                self.node
            );
            self.journal.lock().fail(what);
        }
        Ok(())
    }
}
