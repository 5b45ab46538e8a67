//! The core's revision store on kv-engine: what a round of commands writes is staged, readable at once, and committed
//! in one batch together with the applied index.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use chainfire_core::{
    Event, Point,
    auth::{Auth, AuthChange},
    storage::{RevisionReader, RevisionStore},
};
use kv_engine::{Batch, Engine, EngineError, Exported, Keyspace, Snapshot};
use prost::Message;

use crate::{
    auth,
    members::table::{MemberTable, Write},
    record::{EventRecord, META_KEY, MetaRecord, key_point, lease_value, point_key, value_lease},
};

/// Why storage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(
        "the stored record of {what} cannot be read; delete the member's `state` folder and let it be rebuilt"
    )]
    Record { what: String },
}

/// The keyspaces of a member.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) engine: Engine,
    revisions: Keyspace,
    leases: Keyspace,
    auth: Keyspace,
    meta: Keyspace,
    members: Keyspace,
}

impl Tables {
    pub(crate) fn open(engine: Engine) -> Result<Tables, EngineError> {
        let revisions = engine.keyspace("revisions")?;
        let leases = engine.keyspace("leases")?;
        let auth = engine.keyspace("auth")?;
        let meta = engine.keyspace("meta")?;
        let members = engine.keyspace("members")?;
        Ok(Tables {
            engine,
            revisions,
            leases,
            auth,
            meta,
            members,
        })
    }

    /// All of them, for snapshots of the state.
    pub(crate) fn all(&self) -> Vec<Keyspace> {
        [
            &self.revisions,
            &self.leases,
            &self.auth,
            &self.meta,
            &self.members,
        ]
        .map(Keyspace::clone)
        .into()
    }

    pub(crate) fn meta(&self) -> Result<Option<MetaRecord>, StorageError> {
        decode_meta(self.engine.get(&self.meta, META_KEY)?)
    }

    /// The same, as a picture has it.
    pub(crate) fn meta_in(&self, picture: &Snapshot) -> Result<Option<MetaRecord>, StorageError> {
        decode_meta(picture.get(&self.meta, META_KEY)?)
    }

    /// Puts exported pairs where they belong; for states that are being built.
    pub(crate) fn fill(&self, exported: Exported) -> Result<(), String> {
        let name = exported.keyspace;
        let keyspace = self.all().into_iter().find(|known| known.name() == name);
        let keyspace = keyspace.ok_or_else(|| {
            format!("it has a keyspace `{name}`, which this release does not know; use a newer one")
        })?;
        let mut batch = Batch::new();
        for (key, value) in exported.pairs {
            batch.put(&keyspace, key, value);
        }
        self.engine.write(batch).map_err(|error| error.to_string())
    }

    pub(crate) fn members(&self) -> Result<MemberTable, StorageError> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let pairs: Vec<_> = self
            .engine
            .snapshot()?
            .range(&self.members, all)?
            .collect::<Result<_, _>>()?;
        MemberTable::load(pairs.into_iter())
    }

    /// Id, time to live and remaining time of all leases.
    pub(crate) fn leases(&self) -> Result<Vec<(i64, i64, i64)>, StorageError> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        self.engine
            .snapshot()?
            .range(&self.leases, all)?
            .map(|pair| {
                let (id, value) = pair?;
                let id = id.as_ref().try_into().map(i64::from_be_bytes).ok();
                id.zip(value_lease(&value))
                    .map(|(id, (ttl_s, remaining_s))| (id, ttl_s, remaining_s))
                    .ok_or_else(|| StorageError::Record {
                        what: "a lease".into(),
                    })
            })
            .collect()
    }

    pub(crate) fn auth(&self) -> Result<Auth, StorageError> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let snapshot = self.engine.snapshot()?;
        let records: Vec<_> = snapshot.range(&self.auth, all)?.collect::<Result<_, _>>()?;
        auth::record::restore(records).ok_or_else(|| StorageError::Record {
            what: "a user or a role".into(),
        })
    }

    fn decode(at: Point, bytes: Bytes) -> Result<Event, StorageError> {
        let record = EventRecord::decode(bytes).map_err(|_| StorageError::Record {
            what: format!("revision {}", at.main),
        })?;
        Ok(record.event(at))
    }

    /// Changes from `from` to the end of revision `until`, as many as fit into the bounds, at least one if there is one;
    /// and whether there are more.
    pub(crate) fn scan_bounded(
        &self,
        from: Point,
        until: i64,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<(Vec<(Point, Event)>, bool), StorageError> {
        let (first, end) = (
            point_key(from),
            point_key(Point {
                main: until + 1,
                sub: 0,
            }),
        );
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&first), Bound::Excluded(&end));
        let mut found = Vec::new();
        let mut bytes = 0;
        for pair in self.engine.snapshot()?.range(&self.revisions, bounds)? {
            if found.len() >= max_events || bytes >= max_bytes {
                return Ok((found, true));
            }
            let (key, value) = pair?;
            bytes += value.len();
            let at = key_point(&key).ok_or_else(|| StorageError::Record {
                what: "a revision's key".into(),
            })?;
            found.push((at, Tables::decode(at, value)?));
        }
        Ok((found, false))
    }

    fn scan_in(
        &self,
        snapshot: &Snapshot,
        from: Point,
        limit: usize,
    ) -> Result<Vec<(Point, Event)>, StorageError> {
        let first = point_key(from);
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&first), Bound::Unbounded);
        snapshot
            .range(&self.revisions, bounds)?
            .take(limit)
            .map(|pair| {
                let (key, value) = pair?;
                let at = key_point(&key).ok_or_else(|| StorageError::Record {
                    what: "a revision's key".into(),
                })?;
                Ok((at, Tables::decode(at, value)?))
            })
            .collect()
    }
}

fn decode_meta(bytes: Option<Bytes>) -> Result<Option<MetaRecord>, StorageError> {
    bytes
        .map(|bytes| {
            MetaRecord::decode(bytes).map_err(|_| StorageError::Record {
                what: "the applied index".into(),
            })
        })
        .transpose()
}

/// Checks exported records one by one: that each can be read, and that they fit together.
#[derive(Debug, Default)]
pub(crate) struct RecordCheck {
    newest: i64,
    meta: Option<MetaRecord>,
}

impl RecordCheck {
    pub(crate) fn pair(&mut self, keyspace: &str, key: &[u8], value: &[u8]) -> Result<(), String> {
        match keyspace {
            "revisions" => {
                let at = key_point(key).ok_or("the key of a revision is malformed")?;
                EventRecord::decode(value).map_err(|_| format!("revision {} cannot be read", at.main))?;
                self.newest = self.newest.max(at.main);
            }
            "leases" => {
                if key.len() != 8 || value_lease(value).is_none() {
                    return Err("a lease is malformed".to_owned());
                }
            }
            "meta" if key == META_KEY => {
                self.meta = Some(MetaRecord::decode(value).map_err(|_| "the applied index cannot be read")?);
            }
            "meta" => {}
            "members" => {
                let pair = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                MemberTable::load(std::iter::once(pair)).map_err(|error| error.to_string())?;
            }
            other => {
                return Err(format!(
                    "it has a keyspace `{other}`, which this release does not know; use a newer one"
                ));
            }
        }
        Ok(())
    }

    /// Whether what was seen is the state at `revision` and `applied`.
    pub(crate) fn agrees_with(&self, revision: i64, applied: u64) -> Result<(), String> {
        let meta = self.meta.clone().unwrap_or(MetaRecord {
            applied: 0,
            revision: 1,
            compacted: -1,
        });
        if meta.revision == revision && meta.applied == applied && self.newest <= revision {
            Ok(())
        } else {
            Err(format!(
                "its header tells of revision {revision} and entry {applied}, its content of revision {} (newest change \
                 {}) and entry {}",
                meta.revision, self.newest, meta.applied
            ))
        }
    }
}

/// Committed changes only: what readers use outside the lock.
impl RevisionReader for Tables {
    type Error = StorageError;

    fn get(&self, at: Point) -> Result<Option<Event>, StorageError> {
        let Some(bytes) = self.engine.get(&self.revisions, &point_key(at))? else {
            return Ok(None);
        };
        Tables::decode(at, bytes).map(Some)
    }

    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, StorageError> {
        self.scan_in(&self.engine.snapshot()?, from, limit)
    }
}

/// The tables with the changes of the round under way.
#[derive(Debug)]
pub(crate) struct EngineStore {
    tables: Tables,
    staged: BTreeMap<Point, Option<Event>>,
    batch: Batch,
}

impl EngineStore {
    pub(crate) fn new(tables: Tables) -> EngineStore {
        EngineStore {
            tables,
            staged: BTreeMap::new(),
            batch: Batch::new(),
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

    /// Makes the round visible, with where it ends.
    pub(crate) fn commit(&mut self, meta: &MetaRecord) -> Result<(), StorageError> {
        self.batch.put(&self.tables.meta, META_KEY, meta.encode_to_vec());
        self.tables.engine.write(std::mem::take(&mut self.batch))?;
        self.staged.clear();
        Ok(())
    }
}

impl RevisionReader for EngineStore {
    type Error = StorageError;

    fn get(&self, at: Point) -> Result<Option<Event>, StorageError> {
        match self.staged.get(&at) {
            Some(staged) => Ok(staged.clone()),
            None => self.tables.get(at),
        }
    }

    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, StorageError> {
        assert!(self.staged.is_empty(), "nobody scans in the middle of a round");
        self.tables.scan(from, limit)
    }
}

impl RevisionStore for EngineStore {
    fn put(&mut self, at: Point, event: &Event) -> Result<(), StorageError> {
        self.batch.put(
            &self.tables.revisions,
            point_key(at).to_vec(),
            EventRecord::of(event).encode_to_vec(),
        );
        self.staged.insert(at, Some(event.clone()));
        Ok(())
    }

    fn delete(&mut self, at: Point) -> Result<(), StorageError> {
        self.batch.delete(&self.tables.revisions, point_key(at).to_vec());
        self.staged.insert(at, None);
        Ok(())
    }
}
