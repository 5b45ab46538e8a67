//! The live keys in memory: for each one its current version.
//!
//! It holds all of a version but its value, so that counts, key lists and most conditions need no storage. Versions of
//! the past lie in storage only (see [`crate::storage::RevisionReader::versions_at`]).

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{Event, EventKind, KeyRange, Point};

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
    /// All of an event but its key and value.
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

/// The live keys with their versions.
#[derive(Debug, Default, Clone)]
pub struct KeyIndex {
    keys: BTreeMap<Bytes, Version>,
}

impl KeyIndex {
    /// Builds it from live keys; quickest when they come in order. The keys must own their memory, not share a block
    /// of something larger.
    pub(crate) fn load<E>(keys: impl Iterator<Item = Result<(Bytes, Version), E>>) -> Result<KeyIndex, E> {
        Ok(KeyIndex {
            keys: keys.collect::<Result<_, E>>()?,
        })
    }

    /// Makes a version the newest of its key; the one before, if the key existed.
    pub(crate) fn record(&mut self, key: &Bytes, version: Version) -> Option<Version> {
        if version.is_deletion() {
            return self.keys.remove(key.as_ref());
        }
        match self.keys.get_mut(key.as_ref()) {
            Some(current) => {
                assert!(current.at < version.at, "versions are recorded in order");
                Some(std::mem::replace(current, version))
            }
            // A copy: `key` is a slice of a whole request, which must not stay in memory for it.
            None => self.keys.insert(Bytes::copy_from_slice(key), version),
        }
    }

    /// The current version of `key`, if it exists.
    pub fn get(&self, key: &[u8]) -> Option<Version> {
        self.keys.get(key).copied()
    }

    /// The keys of a range, in order, with their current versions.
    pub fn range<'a>(&'a self, keys: &'a KeyRange) -> impl Iterator<Item = (&'a Bytes, Version)> + 'a {
        keys.bounds()
            .into_iter()
            .flat_map(|bounds| self.keys.range::<[u8], _>(bounds))
            .map(|(key, version)| (key, *version))
    }

    /// Live keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no live key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
