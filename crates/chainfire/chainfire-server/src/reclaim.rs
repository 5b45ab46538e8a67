//! Giving space back after a compaction, in small steps, while everything else goes on.
//!
//! A compaction moves a mark (see [`chainfire_core::reclaim`]). The worker here walks the changes up to the stored mark
//! and deletes what they made superfluous. How far it is lies in the same batch as what it deleted, so it may be killed
//! anywhere. It never holds the store's lock. It is of this member alone: members may be at different places.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chainfire_core::{Point, reclaim::superfluous};
use kv_engine::Batch;
use prost::Message;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use crate::{
    layout::{history_key, point_key},
    node::Node,
    record::{RECLAIM_KEY, ReclaimRecord},
    storage::logical_bytes,
    tables::{StorageError, Tables, decode_history},
};

/// Changes looked at in one step.
const STEP_EVENTS: usize = 256;
/// Bytes of changes looked at in one step (the last one may go beyond).
const STEP_BYTES: usize = 1 << 20;
/// Pause between steps: writers come first.
const PAUSE: Duration = Duration::from_millis(1);

/// The worker of one member, and what others may know of it.
#[derive(Debug)]
pub(crate) struct Reclaimer {
    tables: Tables,
    /// Held during a step, and while the tables are replaced.
    gate: Mutex<()>,
    /// Something was compacted, or the tables were replaced.
    pub(crate) wake: Notify,
    /// Compacted revision whose space is completely given back.
    done: watch::Sender<i64>,
    freed_bytes: AtomicU64,
}

impl Reclaimer {
    pub(crate) fn new(tables: Tables) -> Result<Reclaimer, StorageError> {
        let record = tables.reclaimed()?;
        Ok(Reclaimer {
            tables,
            gate: Mutex::new(()),
            wake: Notify::new(),
            done: watch::Sender::new(record.done),
            freed_bytes: AtomicU64::new(record.freed_bytes),
        })
    }

    /// No step runs while this lives: for whoever replaces the tables. Call [`Reclaimer::reload`] afterwards.
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the tables anew after they were replaced.
    pub(crate) fn reload(&self) -> Result<(), StorageError> {
        self.publish(&self.tables.reclaimed()?);
        self.wake.notify_one();
        Ok(())
    }

    fn publish(&self, record: &ReclaimRecord) {
        self.freed_bytes.store(record.freed_bytes, Ordering::Relaxed);
        self.done.send_replace(record.done);
    }

    /// Logical bytes given back ever.
    pub(crate) fn freed_bytes(&self) -> u64 {
        self.freed_bytes.load(Ordering::Relaxed)
    }

    /// The compacted revision whose space is completely given back, and its changes.
    pub(crate) fn done(&self) -> watch::Receiver<i64> {
        self.done.subscribe()
    }

    /// Takes one step; false when there is nothing to do until the next compaction.
    pub(crate) fn step(&self) -> Result<bool, StorageError> {
        let _gate = self.pause();
        let compacted = self.tables.meta()?.map_or(-1, |meta| meta.compacted);
        let mut record = self.tables.reclaimed()?;
        if record.done >= compacted {
            return Ok(false);
        }
        if record.target <= record.done {
            record.target = compacted;
        }
        let target = record.target;
        let mut batch = Batch::new();
        if self.walk(&mut record, target, &mut batch)? {
            // The events of the mark itself are walked again next time: a deletion among them is still wanted.
            record.done = target;
            (record.next_main, record.next_sub) = (target, 0);
        }
        batch.put(&self.tables.meta, RECLAIM_KEY, record.encode_to_vec());
        self.tables.engine.write(batch)?;
        self.publish(&record);
        Ok(record.done < compacted)
    }

    /// Puts into the batch what some changes made superfluous; whether those were the last ones.
    fn walk(
        &self,
        record: &mut ReclaimRecord,
        compacted: i64,
        batch: &mut Batch,
    ) -> Result<bool, StorageError> {
        let tables = &self.tables;
        let snapshot = tables.engine.snapshot()?;
        let from = Point {
            main: record.next_main,
            sub: record.next_sub,
        };
        let mut bytes = 0;
        for (walked, pair) in tables.events_in(&snapshot, from)?.enumerate() {
            let (at, event) = pair?;
            if at.main > compacted {
                return Ok(true);
            }
            if walked >= STEP_EVENTS || bytes >= STEP_BYTES {
                return Ok(false);
            }
            bytes += event.weight();
            for gone in superfluous(at, &event, compacted) {
                let key = history_key(&event.kv.key, gone);
                // Not there: an earlier walk over the same change took it.
                let Some(version) = snapshot.get(&tables.history, &key)? else {
                    continue;
                };
                let value_bytes = decode_history(version)?.value_bytes as usize;
                record.freed_bytes += logical_bytes(event.kv.key.len(), value_bytes);
                batch.delete(&tables.history, key);
                batch.delete(&tables.revisions, point_key(gone).to_vec());
            }
            let next = at.next();
            (record.next_main, record.next_sub) = (next.main, next.sub);
        }
        Ok(true)
    }
}

/// Reclaims whenever there is something to reclaim; returns only with an error.
pub(crate) async fn run(node: &Node) -> Result<(), StorageError> {
    loop {
        let shared = node.shared.clone();
        // A blocking thread: a step reads from the disk.
        let Ok(step) = tokio::task::spawn_blocking(move || shared.reclaimer.step()).await else {
            // The runtime ends.
            return std::future::pending().await;
        };
        if step? {
            sleep(PAUSE).await;
        } else {
            node.shared.reclaimer.wake.notified().await;
        }
    }
}
