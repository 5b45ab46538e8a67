//! The core's revision store on kv-engine: what a round of commands writes is staged, readable at once, and committed
//! in one batch together with the applied index.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;
use chainfire_core::{
    Event, KeyRange, Point, Version,
    auth::{Auth, AuthChange},
    storage::{RevisionReader, RevisionStore},
};
use kv_engine::Batch;
use prost::Message;

use crate::{
    auth,
    layout::{history_key, point_key},
    members::table::Write,
    record::{EventRecord, HistoryRecord, KeyRecord, META_KEY, MetaRecord, lease_value},
    tables::{StorageError, Tables},
};

/// What an event counts beside its key and value, bytes: about what its records take.
const EVENT_OVERHEAD: u64 = 100;

/// Logical size of an event: what it counts against the quota.
pub(crate) fn logical_bytes(key_bytes: usize, value_bytes: usize) -> u64 {
    EVENT_OVERHEAD + (key_bytes as u64) + (value_bytes as u64)
}

/// The tables with the changes of the round under way.
#[derive(Debug)]
pub(crate) struct EngineStore {
    tables: Tables,
    staged: BTreeMap<Point, Event>,
    batch: Batch,
    /// Logical bytes of all events ever stored.
    stored_bytes: u64,
}

impl EngineStore {
    pub(crate) fn new(tables: Tables, stored_bytes: u64) -> EngineStore {
        EngineStore {
            tables,
            staged: BTreeMap::new(),
            batch: Batch::new(),
            stored_bytes,
        }
    }

    /// Notes what changed about members.
    pub(crate) fn put_members(&mut self, writes: Vec<Write>) {
        for (key, value) in writes {
            self.batch.put(&self.tables.members, key, value);
        }
    }

    /// Empties the keyspace of members.
    pub(crate) fn forget_members(&mut self) {
        let all = (Bound::Unbounded, Bound::Unbounded);
        self.batch.delete_range(&self.tables.members, all);
    }

    pub(crate) fn put_lease(&mut self, id: i64, ttl_s: i64, remaining_s: i64) {
        self.batch.put(
            &self.tables.leases,
            id.to_be_bytes().to_vec(),
            lease_value(ttl_s, remaining_s),
        );
    }

    pub(crate) fn delete_lease(&mut self, id: i64) {
        self.batch.delete(&self.tables.leases, id.to_be_bytes().to_vec());
    }

    /// Writes what changed of auth.
    pub(crate) fn put_auth(&mut self, auth: &Auth, changes: &[AuthChange]) {
        for (key, record) in changes
            .iter()
            .filter_map(|change| auth::record::stored(auth, change))
        {
            match record {
                Some(record) => self.batch.put(&self.tables.auth, key, record),
                None => self.batch.delete(&self.tables.auth, key),
            }
        }
    }

    /// Logical bytes of all events ever stored, the staged ones included.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Makes the round visible, with where it ends.
    pub(crate) fn commit(&mut self, meta: &MetaRecord) -> Result<(), StorageError> {
        self.batch.put(&self.tables.meta, META_KEY, meta.encode_to_vec());
        self.tables.engine.write(std::mem::take(&mut self.batch))?;
        self.staged.clear();
        Ok(())
    }
}

/// Puts an event into a batch as `revisions` and `history` have it.
pub(crate) fn stage_event(batch: &mut Batch, tables: &Tables, at: Point, event: &Event) {
    let record = EventRecord::of(event).encode_to_vec();
    batch.put(&tables.revisions, point_key(at).to_vec(), record);
    let version = HistoryRecord::of(event).encode_to_vec();
    batch.put(&tables.history, history_key(&event.kv.key, at), version);
}

impl RevisionReader for EngineStore {
    type Error = StorageError;

    fn get(&self, at: Point) -> Result<Option<Event>, StorageError> {
        match self.staged.get(&at) {
            Some(staged) => Ok(Some(staged.clone())),
            None => self.tables.get(at),
        }
    }

    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, StorageError> {
        assert!(self.staged.is_empty(), "nobody scans in the middle of a round");
        self.tables.scan(from, limit)
    }

    /// The store has looked at the compacted revision already, and space is reclaimed only behind the stored one, which
    /// is not ahead of it.
    fn versions_at(
        &self,
        keys: &KeyRange,
        revision: i64,
        show: &mut dyn FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<bool, StorageError> {
        let snapshot = self.tables.engine.snapshot()?;
        let mut staged = self
            .staged
            .iter()
            .filter(|(at, event)| at.main <= revision && keys.contains(&event.kv.key))
            .peekable();
        if staged.peek().is_none() {
            self.tables.versions_at_in(&snapshot, keys, revision, show)?;
            return Ok(true);
        }
        let mut then = BTreeMap::new();
        self.tables
            .versions_at_in(&snapshot, keys, revision, &mut |key, version| {
                then.insert(key.clone(), version);
                ControlFlow::Continue(())
            })?;
        for (at, event) in staged {
            then.insert(event.kv.key.clone(), Version::of(*at, event));
        }
        for (key, version) in &then {
            if !version.is_deletion() && show(key, *version).is_break() {
                break;
            }
        }
        Ok(true)
    }
}

impl RevisionStore for EngineStore {
    #[cfg(feature = "planted-bugs")]
    fn eat(&mut self, at: Point) -> Result<(), StorageError> {
        self.batch.delete(&self.tables.revisions, point_key(at).to_vec());
        self.staged.remove(&at);
        Ok(())
    }

    fn put(&mut self, at: Point, event: &Event) -> Result<(), StorageError> {
        stage_event(&mut self.batch, &self.tables, at, event);
        // A copy: the engine may keep what it is given, and this is a slice of a whole request.
        let key = event.kv.key.to_vec();
        let version = Version::of(at, event);
        // Within a round the last change of a key wins, so a key written often costs one record.
        if version.is_deletion() {
            self.batch.delete(&self.tables.keys, key);
        } else {
            let record = KeyRecord::of(&version).encode_to_vec();
            self.batch.put(&self.tables.keys, key, record);
        }
        self.stored_bytes += logical_bytes(event.kv.key.len(), event.kv.value.len());
        self.staged.insert(at, event.clone());
        Ok(())
    }
}
