//! Changes that belong together.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::range::{contains, is_empty};
use crate::{EngineError, Keyspace, MAX_KEY_BYTES};

/// Changes that become visible together, in any number of keyspaces. Later changes of a key win over earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) ops: Vec<Op>,
}

pub(crate) type OwnedBounds = (Bound<Bytes>, Bound<Bytes>);

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Put(Keyspace, Bytes, Bytes),
    Delete(Keyspace, Bytes),
    DeleteRange(Keyspace, OwnedBounds),
}

/// The final state of every key that a batch touches: `None` deletes.
pub(crate) type Resolved = BTreeMap<Keyspace, BTreeMap<Bytes, Option<Bytes>>>;

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, keyspace: &Keyspace, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.ops.push(Op::Put(keyspace.clone(), key.into(), value.into()));
    }

    /// Removes `key`; nothing happens when it is not there.
    pub fn delete(&mut self, keyspace: &Keyspace, key: impl Into<Bytes>) {
        self.ops.push(Op::Delete(keyspace.clone(), key.into()));
    }

    /// Removes all keys in `bounds`, those put earlier in this batch included. It costs a read of the range.
    pub fn delete_range(&mut self, keyspace: &Keyspace, bounds: (Bound<&[u8]>, Bound<&[u8]>)) {
        let own = |b: Bound<&[u8]>| b.map(Bytes::copy_from_slice);
        self.ops
            .push(Op::DeleteRange(keyspace.clone(), (own(bounds.0), own(bounds.1))));
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        for op in &self.ops {
            if let Op::Put(_, key, _) | Op::Delete(_, key) = op
                && (key.is_empty() || key.len() > MAX_KEY_BYTES)
            {
                return Err(EngineError::Key(key.len()));
            }
        }
        Ok(())
    }

    /// What the batch comes to; `existing` lists the keys that are there in a range.
    pub(crate) fn resolve(
        self,
        mut existing: impl FnMut(&Keyspace, (Bound<&[u8]>, Bound<&[u8]>)) -> Result<Vec<Bytes>, EngineError>,
    ) -> Result<Resolved, EngineError> {
        let mut resolved = Resolved::new();
        for op in self.ops {
            match op {
                Op::Put(keyspace, key, value) => {
                    resolved.entry(keyspace).or_default().insert(key, Some(value));
                }
                Op::Delete(keyspace, key) => {
                    resolved.entry(keyspace).or_default().insert(key, None);
                }
                Op::DeleteRange(keyspace, owned) => {
                    let bounds = (borrow(&owned.0), borrow(&owned.1));
                    if is_empty(bounds) {
                        continue;
                    }
                    let gone = existing(&keyspace, bounds)?;
                    let keys = resolved.entry(keyspace).or_default();
                    for (key, value) in keys.iter_mut() {
                        if contains(bounds, key) {
                            *value = None;
                        }
                    }
                    keys.extend(gone.into_iter().map(|key| (key, None)));
                }
            }
        }
        Ok(resolved)
    }
}

fn borrow(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    bound.as_ref().map(|b| b.as_ref())
}
