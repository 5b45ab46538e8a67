//! Checksums over the stored state, for comparing members: equal where the state is, however far each of them is with
//! reclaiming space.

use std::ops::Bound;

use bytes::Bytes;
use chainfire_core::{Digest, Effect, KeyRange, Point};
use kv_engine::Snapshot;

use crate::{
    record::{HistoryRecord, MetaRecord},
    tables::{StorageError, Tables},
};

/// A checksum and what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hashed {
    pub(crate) hash: u32,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
}

/// Why there is no checksum of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoHash {
    Future,
    Compacted,
}

/// Of all versions that can be read at the compacted revision or between it and `revision` (0: the newest).
pub(crate) fn hash_kv(tables: &Tables, revision: i64) -> Result<Result<Hashed, NoHash>, StorageError> {
    let snapshot = tables.engine.snapshot()?;
    let meta = meta(tables, &snapshot)?;
    let revision = if revision <= 0 { meta.revision } else { revision };
    if revision > meta.revision {
        return Ok(Err(NoHash::Future));
    }
    if revision < meta.compacted {
        return Ok(Err(NoHash::Compacted));
    }
    let mut digest = Digest::default();
    add_versions(tables, &snapshot, revision, meta.compacted, &mut digest)?;
    Ok(Ok(Hashed {
        hash: digest.folded(),
        revision,
        compacted: meta.compacted,
    }))
}

/// Of everything that is replicated.
pub(crate) fn hash_all(tables: &Tables) -> Result<Hashed, StorageError> {
    let snapshot = tables.engine.snapshot()?;
    let meta = meta(tables, &snapshot)?;
    let mut digest = Digest::default();
    add_versions(tables, &snapshot, meta.revision, meta.compacted, &mut digest)?;
    for (id, ttl_s, remaining_s) in tables.leases_in(&snapshot)? {
        digest.add(Effect::LeaseGranted, &[id, ttl_s, remaining_s], &[]);
    }
    for pair in snapshot.range(&tables.auth, (Bound::Unbounded, Bound::Unbounded))? {
        let (key, record) = pair?;
        digest.add(Effect::Auth, &[], &[&key, &record]);
    }
    for alarm in &meta.alarms {
        let numbers = [i64::from(alarm.kind), alarm.member.cast_signed()];
        digest.add(Effect::Alarms, &numbers, &[]);
    }
    Ok(Hashed {
        hash: digest.folded(),
        revision: meta.revision,
        compacted: meta.compacted,
    })
}

fn meta(tables: &Tables, snapshot: &Snapshot) -> Result<MetaRecord, StorageError> {
    Ok(tables.meta_in(snapshot)?.unwrap_or(MetaRecord {
        revision: 1,
        compacted: -1,
        ..MetaRecord::default()
    }))
}

/// The newest version of a key at the compacted revision counts unless it is a deletion; of those after it, all do.
/// What lies behind may or may not be reclaimed yet.
fn add_versions(
    tables: &Tables,
    snapshot: &Snapshot,
    revision: i64,
    compacted: i64,
    digest: &mut Digest,
) -> Result<(), StorageError> {
    let everything = KeyRange::new(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    let mut key = Vec::new();
    let mut current: Option<(Point, HistoryRecord)> = None;
    let add = |digest: &mut Digest, key: &[u8], (at, record): (Point, HistoryRecord)| {
        digest.add_version(key, &record.version(at), record.value_crc);
    };
    let alive = |(_, record): &(Point, HistoryRecord)| record.version != 0;
    tables.versions_in(snapshot, &everything, &mut |prefix, at, record| {
        if key != prefix {
            if let Some(last) = current.take().filter(alive) {
                add(digest, &key, last);
            }
            key.clear();
            key.extend_from_slice(prefix);
        }
        if at.main <= compacted {
            current = Some((at, record));
        } else if at.main <= revision {
            if let Some(last) = current.take().filter(alive) {
                add(digest, &key, last);
            }
            add(digest, &key, (at, record));
        }
    })?;
    if let Some(last) = current.filter(alive) {
        add(digest, &key, last);
    }
    Ok(())
}
