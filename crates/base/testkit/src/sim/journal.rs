//! What all members together have applied, for checks that a real cluster could not make.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The members' common record.
#[derive(Debug, Default)]
pub struct Journal {
    /// Index -> (term, checksum of the content).
    entries: BTreeMap<u64, (u64, u32)>,
    /// Operation -> index.
    ops: BTreeMap<u64, u64>,
    /// Index -> rolling checksum of the state after it.
    states: BTreeMap<u64, u64>,
    /// The first contradiction.
    pub(crate) violation: Option<String>,
}

impl Journal {
    /// `node` applies an entry: whoever else applies `index` must apply the same.
    pub fn entry(&mut self, node: u64, index: u64, term: u64, content: u32) {
        let first = *self.entries.entry(index).or_insert((term, content));
        if first != (term, content) {
            self.fail(format!(
                "node {node} applied another entry at {index} than the others: {first:?}"
            ));
        }
    }

    /// `node` applies operation `op`: it must stand at one index only.
    pub fn op(&mut self, node: u64, op: u64, index: u64) {
        let first = *self.ops.entry(op).or_insert(index);
        if first != index {
            self.fail(format!(
                "node {node} applied operation {op} at {index}, but it stands at {first} too"
            ));
        }
    }

    /// The state (or the answer) of `node` after entry `index`, as a checksum: everybody's must be the same.
    pub fn state(&mut self, node: u64, index: u64, state: u64) {
        let first = *self.states.entry(index).or_insert(state);
        if first != state {
            self.fail(format!(
                "node {node} has another state after entry {index} than the others"
            ));
        }
    }

    /// Something is wrong; the first such remark counts.
    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Whether anybody has applied operation `op`.
    pub fn applied(&self, op: u64) -> bool {
        self.ops.contains_key(&op)
    }

    /// The highest index that anybody has applied.
    pub fn last(&self) -> u64 {
        self.entries.last_key_value().map_or(0, |(index, _)| *index)
    }
}

/// The journal as members share it.
#[derive(Clone, Debug, Default)]
pub struct SharedJournal(Arc<Mutex<Journal>>);

impl SharedJournal {
    /// The journal; one thread runs everything, so nobody waits.
    pub fn lock(&self) -> MutexGuard<'_, Journal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
