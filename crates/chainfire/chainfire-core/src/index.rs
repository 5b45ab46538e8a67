//! The keys in memory: for each key, every version of it that has not been compacted away.
//!
//! It holds all of a version but its value, so that counts, key lists and most conditions need no storage.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    Event, EventKind, KeyRange, Point,
    planted::{self, Bug},
};

/// One version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// When.
    pub at: Point,
    /// Revision of the creation; 0 in a deletion.
    pub create_revision: i64,
    /// Puts since creation; 0 in a deletion.
    pub version: i64,
    /// Lease; 0: none.
    pub lease: i64,
}

impl Version {
    /// What the index keeps of an event.
    pub fn of(at: Point, event: &Event) -> Version {
        match event.kind {
            EventKind::Delete => Version {
                at,
                create_revision: 0,
                version: 0,
                lease: 0,
            },
            EventKind::Put => Version {
                at,
                create_revision: event.kv.create_revision,
                version: event.kv.version,
                lease: event.kv.lease,
            },
        }
    }

    /// Whether the key does not exist from here on.
    pub fn is_deletion(&self) -> bool {
        self.version == 0
    }
}

/// All keys with their versions.
#[derive(Debug, Default, Clone)]
pub struct KeyIndex {
    /// Versions in order of time, never empty.
    keys: BTreeMap<Bytes, Vec<Version>>,
}

impl KeyIndex {
    /// Adds a key's newest version.
    pub fn push(&mut self, key: &Bytes, version: Version) {
        match self.keys.get_mut(key.as_ref()) {
            Some(versions) => {
                assert!(
                    versions.last().is_none_or(|last| last.at < version.at),
                    "versions are added in order"
                );
                versions.push(version);
            }
            None => {
                // A copy: `key` is a slice of a whole request, which must not stay in memory for it.
                self.keys.insert(Bytes::copy_from_slice(key), vec![version]);
            }
        }
    }

    /// The version of `key` that was current at the end of `revision`, if the key existed then.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<Version> {
        current(self.keys.get(key)?, revision)
    }

    /// The keys of a range that existed at the end of `revision`, in order, with their versions then.
    pub fn range<'a>(
        &'a self,
        keys: &'a KeyRange,
        revision: i64,
    ) -> impl Iterator<Item = (&'a Bytes, Version)> + 'a {
        let bounds = keys.bounds();
        bounds
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .filter_map(move |(key, versions)| Some((key, current(versions, revision)?)))
    }

    /// Forgets what no revision from `revision` on can see; the points that storage may drop. A deletion made exactly
    /// at `revision` stays: a watcher may begin there.
    pub fn compact(&mut self, revision: i64) -> Vec<Point> {
        let mut dropped = Vec::new();
        self.keys.retain(|_, versions| {
            let older = versions.partition_point(|version| version.at.main <= revision);
            let mut keep_from = older.saturating_sub(1);
            if planted::is(Bug::CompactsTooMuch) {
                keep_from = older;
            }
            if versions
                .get(keep_from)
                .is_some_and(|last| last.is_deletion() && last.at.main < revision)
            {
                keep_from += 1;
            }
            dropped.extend(versions.drain(..keep_from).map(|version| version.at));
            !versions.is_empty()
        });
        dropped
    }

    /// Keys known, deleted ones that are not compacted yet included.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it knows no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

fn current(versions: &[Version], revision: i64) -> Option<Version> {
    let until = versions.partition_point(|version| version.at.main <= revision);
    let last = until.checked_sub(1).and_then(|index| versions.get(index))?;
    (!last.is_deletion()).then_some(*last)
}
