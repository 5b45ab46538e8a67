//! The keyspaces of a member, and what is read from them without the store: committed changes only.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use chainfire_core::{Event, KeyRange, Point, Version, auth::Auth, storage::RevisionReader};
use kv_engine::{Batch, Engine, EngineError, Exported, Keyspace, Snapshot};
use prost::Message;

use crate::{
    auth,
    layout::{history_bounds, history_prefix, key_point, point_key, split_history_key, unescape},
    members::table::MemberTable,
    record::{
        EventRecord, HistoryRecord, KeyRecord, META_KEY, MetaRecord, RECLAIM_KEY, ReclaimRecord, value_lease,
    },
};

/// Versions of one key that a walk through history reads one by one before it leaps to the one that it wants.
const LEAP_AFTER: usize = 32;

/// Why storage failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(
        "the stored record of {what} cannot be read; remove this member and add it anew with an empty data folder"
    )]
    Record { what: String },
    #[error(
        "the state was written by a newer release (layout {found}, this one knows {known}); update this one"
    )]
    Layout { found: u32, known: u32 },
}

pub(crate) fn unreadable(what: impl Into<String>) -> StorageError {
    StorageError::Record { what: what.into() }
}

/// The keyspaces of a member; [`crate::layout`] says what lies in each.
#[derive(Debug, Clone)]
pub(crate) struct Tables {
    pub(crate) engine: Engine,
    pub(crate) revisions: Keyspace,
    pub(crate) history: Keyspace,
    pub(crate) keys: Keyspace,
    pub(crate) leases: Keyspace,
    pub(crate) auth: Keyspace,
    pub(crate) meta: Keyspace,
    pub(crate) members: Keyspace,
    all: Vec<Keyspace>,
}

impl Tables {
    pub(crate) fn open(engine: Engine) -> Result<Tables, EngineError> {
        let mut all = Vec::new();
        let mut open = |name| {
            let keyspace = engine.keyspace(name)?;
            all.push(keyspace.clone());
            Ok::<_, EngineError>(keyspace)
        };
        Ok(Tables {
            revisions: open("revisions")?,
            history: open("history")?,
            keys: open("keys")?,
            leases: open("leases")?,
            auth: open("auth")?,
            meta: open("meta")?,
            members: open("members")?,
            all,
            engine,
        })
    }

    /// All of them, for snapshots of the state.
    pub(crate) fn all(&self) -> &[Keyspace] {
        &self.all
    }

    pub(crate) fn meta(&self) -> Result<Option<MetaRecord>, StorageError> {
        decode_meta(self.engine.get(&self.meta, META_KEY)?)
    }

    pub(crate) fn meta_in(&self, snapshot: &Snapshot) -> Result<Option<MetaRecord>, StorageError> {
        decode_meta(snapshot.get(&self.meta, META_KEY)?)
    }

    /// How far the reclaiming of space is.
    pub(crate) fn reclaimed(&self) -> Result<ReclaimRecord, StorageError> {
        match self.engine.get(&self.meta, RECLAIM_KEY)? {
            None => Ok(ReclaimRecord {
                done: -1,
                ..ReclaimRecord::default()
            }),
            Some(bytes) => ReclaimRecord::decode(bytes).map_err(|_| unreadable("the reclaimed revision")),
        }
    }

    /// Puts exported pairs where they belong; for states that are being built.
    pub(crate) fn fill(&self, exported: Exported) -> Result<(), String> {
        let name = exported.keyspace;
        let keyspace = self.all.iter().find(|known| known.name() == name);
        let keyspace = keyspace.ok_or_else(|| {
            format!("it has a keyspace `{name}`, which this release does not know; use a newer one")
        })?;
        let mut batch = Batch::new();
        for (key, value) in exported.pairs {
            batch.put(keyspace, key, value);
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

    pub(crate) fn auth(&self) -> Result<Auth, StorageError> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let snapshot = self.engine.snapshot()?;
        let records: Vec<_> = snapshot.range(&self.auth, all)?.collect::<Result<_, _>>()?;
        auth::record::restore(records).ok_or_else(|| unreadable("a user or a role"))
    }

    /// Id, time to live and remaining time of all leases.
    pub(crate) fn leases(&self) -> Result<Vec<(i64, i64, i64)>, StorageError> {
        self.leases_in(&self.engine.snapshot()?)
    }

    pub(crate) fn leases_in(&self, snapshot: &Snapshot) -> Result<Vec<(i64, i64, i64)>, StorageError> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        snapshot
            .range(&self.leases, all)?
            .map(|pair| {
                let (id, value) = pair?;
                let id = id.as_ref().try_into().map(i64::from_be_bytes).ok();
                id.zip(value_lease(&value))
                    .map(|(id, (ttl_s, remaining_s))| (id, ttl_s, remaining_s))
                    .ok_or_else(|| unreadable("a lease"))
            })
            .collect()
    }

    /// The live keys in order. Each owns its memory: what the engine gives may be a slice of a whole block.
    pub(crate) fn live_keys(
        &self,
    ) -> Result<impl Iterator<Item = Result<(Bytes, Version), StorageError>>, StorageError> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let pairs = self.engine.snapshot()?.range(&self.keys, all)?;
        Ok(pairs.map(|pair| {
            let (key, record) = pair?;
            let record = KeyRecord::decode(record).map_err(|_| unreadable("a key"))?;
            Ok((Bytes::copy_from_slice(&key), record.version()))
        }))
    }

    /// The changes from a point on, as a snapshot has them.
    pub(crate) fn events_in(
        &self,
        snapshot: &Snapshot,
        from: Point,
    ) -> Result<impl Iterator<Item = Result<(Point, Event), StorageError>> + use<>, StorageError> {
        let first = point_key(from);
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(&first), Bound::Unbounded);
        Ok(snapshot.range(&self.revisions, bounds)?.map(|pair| {
            let (key, value) = pair?;
            let at = key_point(&key).ok_or_else(|| unreadable("a revision's key"))?;
            Ok((at, decode_event(at, value)?))
        }))
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
        let mut found = Vec::new();
        let mut bytes = 0;
        for pair in self.events_in(&self.engine.snapshot()?, from)? {
            let (at, event) = pair?;
            if at.main > until {
                break;
            }
            if found.len() >= max_events || bytes >= max_bytes {
                return Ok((found, true));
            }
            bytes += event.weight();
            found.push((at, event));
        }
        Ok((found, false))
    }

    /// Shows every stored version of a range's keys: by key, then by time.
    pub(crate) fn versions_in(
        &self,
        snapshot: &Snapshot,
        keys: &KeyRange,
        show: &mut dyn FnMut(&[u8], Point, HistoryRecord),
    ) -> Result<(), StorageError> {
        let Some((start, end)) = history_bounds(keys) else {
            return Ok(());
        };
        let bounds = (as_slice(&start), as_slice(&end));
        for pair in snapshot.range(&self.history, bounds)? {
            let (key, record) = pair?;
            let (prefix, at) = split_history_key(&key).ok_or_else(|| unreadable("a version's key"))?;
            show(prefix, at, decode_history(record)?);
        }
        Ok(())
    }

    /// The version of one key at the end of a revision, its deletion included.
    fn last_version(
        &self,
        snapshot: &Snapshot,
        prefix: &[u8],
        revision: i64,
    ) -> Result<Option<Version>, StorageError> {
        let last = Point {
            main: revision,
            sub: u32::MAX,
        };
        let to = [prefix, &point_key(last)].concat();
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Included(prefix), Bound::Included(&to));
        let Some(pair) = snapshot.range(&self.history, bounds)?.next_back() else {
            return Ok(None);
        };
        let (key, record) = pair?;
        let (_, at) = split_history_key(&key).ok_or_else(|| unreadable("a version's key"))?;
        Ok(Some(decode_history(record)?.version(at)))
    }

    /// Shows the keys of a range that existed at the end of a revision.
    pub(crate) fn versions_at_in(
        &self,
        snapshot: &Snapshot,
        keys: &KeyRange,
        revision: i64,
        show: &mut dyn FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        if keys.is_single() {
            let version = self.last_version(snapshot, &history_prefix(keys.start()), revision)?;
            if let Some(version) = version.filter(|version| !version.is_deletion()) {
                let _ = show(keys.start(), version);
            }
            return Ok(());
        }
        let Some((mut start, end)) = history_bounds(keys) else {
            return Ok(());
        };
        loop {
            let mut walk = Walk::default();
            let mut leap = false;
            for pair in snapshot.range(&self.history, (as_slice(&start), as_slice(&end)))? {
                let (key, record) = pair?;
                let (prefix, at) = split_history_key(&key).ok_or_else(|| unreadable("a version's key"))?;
                if prefix != walk.prefix {
                    if walk.emit(show)?.is_break() {
                        return Ok(());
                    }
                    walk = Walk::of(key.slice(..prefix.len()));
                }
                walk.seen += 1;
                if at.main <= revision {
                    walk.best = Some(decode_history(record)?.version(at));
                }
                if walk.seen > LEAP_AFTER {
                    leap = true;
                    break;
                }
            }
            if leap {
                walk.best = self.last_version(snapshot, &walk.prefix, revision)?;
                start = Bound::Excluded([&walk.prefix[..], &[0xFF; 12]].concat());
            }
            if walk.emit(show)?.is_break() || !leap {
                return Ok(());
            }
        }
    }
}

/// One key on the way through history.
#[derive(Default)]
struct Walk {
    prefix: Bytes,
    seen: usize,
    best: Option<Version>,
}

impl Walk {
    fn of(prefix: Bytes) -> Walk {
        Walk {
            prefix,
            ..Walk::default()
        }
    }

    fn emit(
        &self,
        show: &mut dyn FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StorageError> {
        let Some(version) = self.best.filter(|version| !version.is_deletion()) else {
            return Ok(ControlFlow::Continue(()));
        };
        let key = unescape(&self.prefix).ok_or_else(|| unreadable("a version's key"))?;
        Ok(show(&Bytes::from(key), version))
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

fn decode_meta(bytes: Option<Bytes>) -> Result<Option<MetaRecord>, StorageError> {
    bytes
        .map(|bytes| MetaRecord::decode(bytes).map_err(|_| unreadable("the applied index")))
        .transpose()
}

fn decode_event(at: Point, bytes: Bytes) -> Result<Event, StorageError> {
    let record = EventRecord::decode(bytes).map_err(|_| unreadable(format!("revision {}", at.main)))?;
    Ok(record.event(at))
}

pub(crate) fn decode_history(bytes: Bytes) -> Result<HistoryRecord, StorageError> {
    HistoryRecord::decode(bytes).map_err(|_| unreadable("a version"))
}

/// Committed changes only: what readers use outside the lock.
impl RevisionReader for Tables {
    type Error = StorageError;

    fn get(&self, at: Point) -> Result<Option<Event>, StorageError> {
        let Some(bytes) = self.engine.get(&self.revisions, &point_key(at))? else {
            return Ok(None);
        };
        decode_event(at, bytes).map(Some)
    }

    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, StorageError> {
        self.events_in(&self.engine.snapshot()?, from)?
            .take(limit)
            .collect()
    }

    fn versions_at(
        &self,
        keys: &KeyRange,
        revision: i64,
        show: &mut dyn FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<bool, StorageError> {
        let snapshot = self.engine.snapshot()?;
        // Space is reclaimed only behind the mark that is stored: what the snapshot says of it, holds for all of it.
        let compacted = self.meta_in(&snapshot)?.map_or(-1, |meta| meta.compacted);
        if revision < compacted {
            return Ok(false);
        }
        self.versions_at_in(&snapshot, keys, revision, show)?;
        Ok(true)
    }
}
