//! Bringing a state that an earlier release wrote to the present layout, once, when it is opened or arrives as a
//! snapshot.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;
use chainfire_core::{Digest, Point, Version};
use kv_engine::Batch;
use prost::Message;

use crate::{
    record::{KeyRecord, META_KEY, MetaRecord, RECLAIM_KEY, ReclaimRecord},
    storage::{logical_bytes, stage_event},
    tables::{StorageError, Tables},
};

/// The present layout. 0: `revisions`, `leases` and `meta` only. 1: also `history` and `keys`, and `prev` in events.
pub(crate) const LAYOUT: u32 = 1;
/// Changes written in one batch.
const BATCH: usize = 1024;

/// Brings the tables to the present layout. Killed half-way, it begins again.
pub(crate) fn migrate(tables: &Tables) -> Result<(), StorageError> {
    let Some(meta) = tables.meta()? else {
        return Ok(());
    };
    if meta.layout == LAYOUT {
        return Ok(());
    }
    if meta.layout > LAYOUT {
        return Err(StorageError::Layout {
            found: meta.layout,
            known: LAYOUT,
        });
    }
    tracing::info!(
        revision = meta.revision,
        "the state is of an earlier release: building its index of keys, once"
    );
    let mut batch = Batch::new();
    for keyspace in [&tables.history, &tables.keys] {
        batch.delete_range(keyspace, (Bound::Unbounded, Bound::Unbounded));
    }
    tables.engine.write(batch)?;
    let (live, stored_bytes) = rewrite(tables)?;
    finish(tables, &meta, live, stored_bytes)
}

/// Writes every change anew, with what it replaced, and its version; the live keys and the logical bytes of all.
fn rewrite(tables: &Tables) -> Result<(BTreeMap<Bytes, Version>, u64), StorageError> {
    let snapshot = tables.engine.snapshot()?;
    let mut live: BTreeMap<Bytes, Version> = BTreeMap::new();
    let mut stored_bytes = 0;
    let mut batch = Batch::new();
    for pair in tables.events_in(&snapshot, Point { main: 0, sub: 0 })? {
        let (at, mut event) = pair?;
        let version = Version::of(at, &event);
        let key = Bytes::copy_from_slice(&event.kv.key);
        let old = if version.is_deletion() {
            live.remove(&key)
        } else {
            live.insert(key, version)
        };
        event.prev = old.map(|old| old.at);
        stored_bytes += logical_bytes(event.kv.key.len(), event.kv.value.len());
        stage_event(&mut batch, tables, at, &event);
        if batch.len() >= BATCH {
            tables.engine.write(std::mem::take(&mut batch))?;
        }
    }
    tables.engine.write(batch)?;
    Ok((live, stored_bytes))
}

fn finish(
    tables: &Tables,
    meta: &MetaRecord,
    live: BTreeMap<Bytes, Version>,
    stored_bytes: u64,
) -> Result<(), StorageError> {
    let mut batch = Batch::new();
    for (key, version) in live {
        batch.put(&tables.keys, key, KeyRecord::of(&version).encode_to_vec());
        if batch.len() >= BATCH {
            tables.engine.write(std::mem::take(&mut batch))?;
        }
    }
    let meta = MetaRecord {
        layout: LAYOUT,
        stored_bytes,
        digest: Digest::default().value(),
        digest_since: meta.applied,
        ..meta.clone()
    };
    batch.put(&tables.meta, META_KEY, meta.encode_to_vec());
    // An earlier release reclaimed in the same step as it compacted.
    let reclaimed = ReclaimRecord {
        done: meta.compacted,
        next_main: meta.compacted.max(0),
        ..ReclaimRecord::default()
    };
    batch.put(&tables.meta, RECLAIM_KEY, reclaimed.encode_to_vec());
    tables.engine.write(batch)?;
    tables.engine.persist()?;
    Ok(())
}
