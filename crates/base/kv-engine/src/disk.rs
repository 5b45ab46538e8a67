//! The engine on disk: fjall behind our surface.
//!
//! fjall has no range tombstones (a range delete reads its keys) and no way to swap a keyspace's content: every
//! keyspace of ours is a fjall keyspace `NAME.GENERATION`, and a small keyspace says which generation is current.
//! An import fills the next generation and then changes that one record.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use fjall::{Database, KeyspaceCreateOptions, PersistMode, Readable};

use crate::batch::{Batch, Resolved};
use crate::range::Range;
use crate::unfinished;
use crate::{EngineConfig, EngineError, Keyspace};

/// fjall keyspace: our keyspace's name -> its current generation, u64 little-endian.
const GENERATIONS: &str = "#generations";

type Handles = Arc<BTreeMap<Arc<str>, (u64, fjall::Keyspace)>>;

#[derive(Clone)]
pub(crate) struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    db: Database,
    generations: fjall::Keyspace,
    memtable_bytes: u64,
    handles: RwLock<Handles>,
    /// Held while a batch is resolved and written, and while generations change.
    writer: Mutex<()>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

impl Disk {
    pub(crate) fn open(path: &Path, config: &EngineConfig) -> Result<Disk, EngineError> {
        unfinished::clear(path)?;
        let builder = Database::builder(path)
            .cache_size(config.cache_bytes)
            .worker_threads(config.workers);
        // fjall asserts on some kinds of damage; the caller wants a message, not a backtrace.
        let opened = catch_unwind(AssertUnwindSafe(|| builder.open()));
        let db = match opened {
            Ok(result) => result.map_err(|e| engine_error(path, e))?,
            Err(_) => {
                let what = "its files contradict each other".to_owned();
                return Err(EngineError::Damaged {
                    path: path.to_owned(),
                    what,
                });
            }
        };
        let generations = db
            .keyspace(GENERATIONS, KeyspaceCreateOptions::default)
            .map_err(|e| engine_error(path, e))?;
        let inner = Inner {
            path: path.to_owned(),
            db,
            generations,
            memtable_bytes: config.memtable_bytes,
            handles: RwLock::default(),
            writer: Mutex::new(()),
        };
        Ok(Disk {
            inner: Arc::new(inner),
        })
    }

    fn error(&self, error: fjall::Error) -> EngineError {
        engine_error(&self.inner.path, error)
    }

    fn handles(&self) -> Handles {
        self.inner
            .handles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn handle(&self, keyspace: &Keyspace) -> Result<fjall::Keyspace, EngineError> {
        find(&self.handles(), keyspace)
    }

    /// One writer at a time. A writer that panicked left nothing half-done behind: fjall's batch is atomic.
    fn writer(&self) -> MutexGuard<'_, ()> {
        self.inner.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_handle(
        &self,
        name: Arc<str>,
        generation: u64,
        handle: fjall::Keyspace,
    ) -> Option<fjall::Keyspace> {
        let mut handles = self.inner.handles.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = BTreeMap::clone(&handles);
        let old = changed.insert(name, (generation, handle));
        *handles = Arc::new(changed);
        old.map(|(_, handle)| handle)
    }

    fn open_generation(&self, name: &str, generation: u64) -> Result<fjall::Keyspace, EngineError> {
        let bytes = self.inner.memtable_bytes;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(bytes);
        let opened = self.inner.db.keyspace(&format!("{name}.{generation}"), options);
        opened.map_err(|e| self.error(e))
    }

    pub(crate) fn create(&self, name: &str) -> Result<(), EngineError> {
        let _writer = self.writer();
        if self.handles().contains_key(name) {
            return Ok(());
        }
        let stored = self.inner.generations.get(name).map_err(|e| self.error(e))?;
        let generation = match stored {
            None => 0,
            Some(bytes) => <[u8; 8]>::try_from(bytes.as_ref())
                .map(u64::from_le_bytes)
                .map_err(|_| {
                    let what = format!("the generation of keyspace `{name}` is malformed");
                    EngineError::Damaged {
                        path: self.inner.path.clone(),
                        what,
                    }
                })?,
        };
        // What an interrupted import or its clean-up left behind.
        for other in self.inner.db.list_keyspace_names() {
            let Some((owner, found)) = other.rsplit_once('.') else {
                continue;
            };
            if owner == name && found != generation.to_string() {
                let stale = self.inner.db.keyspace(&other, KeyspaceCreateOptions::default);
                let stale = stale.map_err(|e| self.error(e))?;
                self.inner.db.delete_keyspace(stale).map_err(|e| self.error(e))?;
            }
        }
        let handle = self.open_generation(name, generation)?;
        self.set_handle(name.into(), generation, handle);
        Ok(())
    }

    pub(crate) fn write(&self, batch: Batch) -> Result<(), EngineError> {
        let _writer = self.writer();
        let handles = self.handles();
        let resolved = batch.resolve(|keyspace, bounds| {
            let handle = find(&handles, keyspace)?;
            let keys = handle.range::<&[u8], _>(bounds).map(|g| g.key().map(Bytes::from));
            keys.collect::<Result<_, _>>().map_err(|e| self.error(e))
        })?;
        self.write_resolved(&handles, resolved)
    }

    fn write_resolved(&self, handles: &Handles, resolved: Resolved) -> Result<(), EngineError> {
        let mut batch = self.inner.db.batch();
        for (keyspace, keys) in resolved {
            let handle = find(handles, &keyspace)?;
            for (key, value) in keys {
                match value {
                    Some(value) => batch.insert(&handle, key, value),
                    None => batch.remove(&handle, key),
                }
            }
        }
        batch.commit().map_err(|e| self.error(e))
    }

    pub(crate) fn get(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let value = self.handle(keyspace)?.get(key).map_err(|e| self.error(e))?;
        Ok(value.map(Bytes::from))
    }

    pub(crate) fn snapshot(&self) -> Result<DiskSnapshot, EngineError> {
        // The lock keeps generations from changing between the two.
        let handles = self.inner.handles.read().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.inner.db.snapshot();
        Ok(DiskSnapshot {
            disk: self.clone(),
            snapshot: Arc::new(snapshot),
            handles: handles.clone(),
        })
    }

    pub(crate) fn persist(&self) -> Result<(), EngineError> {
        self.inner
            .db
            .persist(PersistMode::SyncAll)
            .map_err(|e| self.error(e))
    }

    pub(crate) fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.inner.db.disk_space().map_err(|e| self.error(e))
    }

    pub(crate) fn begin_replace(&self, keyspaces: &[Keyspace]) -> Result<DiskReplace, EngineError> {
        let _writer = self.writer();
        let handles = self.handles();
        let mut next = BTreeMap::new();
        for keyspace in keyspaces {
            let Some((current, _)) = handles.get(&keyspace.name) else {
                return Err(EngineError::NoKeyspace(keyspace.name().to_owned()));
            };
            let generation = current + 1;
            let handle = self.open_generation(keyspace.name(), generation)?;
            // An earlier import that was dropped half-way may have left something here.
            handle.clear().map_err(|e| self.error(e))?;
            next.insert(keyspace.name.clone(), (generation, handle));
        }
        Ok(DiskReplace {
            disk: self.clone(),
            next,
        })
    }
}

fn find(handles: &Handles, keyspace: &Keyspace) -> Result<fjall::Keyspace, EngineError> {
    let found = handles.get(&keyspace.name).map(|(_, handle)| handle.clone());
    found.ok_or_else(|| EngineError::NoKeyspace(keyspace.name().to_owned()))
}

/// An import under way.
pub(crate) struct DiskReplace {
    disk: Disk,
    next: BTreeMap<Arc<str>, (u64, fjall::Keyspace)>,
}

impl std::fmt::Debug for DiskReplace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskReplace")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl DiskReplace {
    pub(crate) fn put(&mut self, name: &str, pairs: Vec<(Bytes, Bytes)>) -> Result<(), EngineError> {
        let Some((_, handle)) = self.next.get(name) else {
            return Err(EngineError::Import(
                "it has a keyspace that is not being replaced",
            ));
        };
        let mut batch = self.disk.inner.db.batch();
        for (key, value) in pairs {
            batch.insert(handle, key, value);
        }
        batch.commit().map_err(|e| self.disk.error(e))
    }

    pub(crate) fn finish(mut self) -> Result<(), EngineError> {
        let next = std::mem::take(&mut self.next);
        let disk = &self.disk;
        let _writer = disk.writer();
        let mut batch = disk.inner.db.batch();
        for (name, (generation, _)) in &next {
            batch.insert(&disk.inner.generations, name.as_bytes(), generation.to_le_bytes());
        }
        // One journal holds all keyspaces in order: when the switch is durable, so is everything before it.
        batch.commit().map_err(|e| disk.error(e))?;
        disk.persist()?;
        for (name, (generation, handle)) in next {
            if let Some(old) = disk.set_handle(name, generation, handle) {
                disk.inner.db.delete_keyspace(old).map_err(|e| disk.error(e))?;
            }
        }
        Ok(())
    }
}

impl Drop for DiskReplace {
    /// Gives back the space of an import that came to nothing. What cannot be cleared now is at the next import, or
    /// when the engine is opened.
    fn drop(&mut self) {
        for (_, handle) in self.next.values() {
            let _ = handle.clear();
        }
    }
}

#[derive(Clone)]
pub(crate) struct DiskSnapshot {
    disk: Disk,
    snapshot: Arc<fjall::Snapshot>,
    handles: Handles,
}

impl std::fmt::Debug for DiskSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskSnapshot")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}

impl DiskSnapshot {
    pub(crate) fn get(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let handle = find(&self.handles, keyspace)?;
        let value = self.snapshot.get(&handle, key).map_err(|e| self.disk.error(e))?;
        Ok(value.map(Bytes::from))
    }

    pub(crate) fn range(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<Range, EngineError> {
        let handle = find(&self.handles, keyspace)?;
        let iter = self.snapshot.range::<&[u8], _>(&handle, bounds);
        Ok(Range::disk(DiskRange {
            iter,
            disk: self.disk.clone(),
        }))
    }
}

pub(crate) struct DiskRange {
    iter: fjall::Iter,
    disk: Disk,
}

impl std::fmt::Debug for DiskRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskRange").finish_non_exhaustive()
    }
}

impl DiskRange {
    fn pair(&self, guard: fjall::Guard) -> Result<(Bytes, Bytes), EngineError> {
        let (key, value) = guard.into_inner().map_err(|e| self.disk.error(e))?;
        Ok((key.into(), value.into()))
    }

    pub(crate) fn next(&mut self) -> Option<Result<(Bytes, Bytes), EngineError>> {
        let guard = self.iter.next()?;
        Some(self.pair(guard))
    }

    pub(crate) fn next_back(&mut self) -> Option<Result<(Bytes, Bytes), EngineError>> {
        let guard = self.iter.next_back()?;
        Some(self.pair(guard))
    }
}

fn engine_error(path: &Path, error: fjall::Error) -> EngineError {
    let path = path.to_owned();
    match error {
        fjall::Error::Locked => EngineError::Locked { path },
        fjall::Error::Io(e) if is_structural(&e) => EngineError::Damaged {
            path,
            what: e.to_string(),
        },
        fjall::Error::Io(e) => EngineError::Io {
            path,
            what: e.to_string(),
        },
        fjall::Error::InvalidVersion(found) => EngineError::Version {
            path,
            what: format!("{found:?}"),
        },
        fjall::Error::Poisoned => EngineError::Io {
            path,
            what: "an earlier write or sync failed".to_owned(),
        },
        fjall::Error::Storage(fjall::LsmError::Io(e)) if !is_structural(&e) => EngineError::Io {
            path,
            what: e.to_string(),
        },
        other => EngineError::Damaged {
            path,
            what: format!("{other:?}"),
        },
    }
}

/// Errors that the content of files causes, not the system.
fn is_structural(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    matches!(error.kind(), K::UnexpectedEof | K::InvalidData | K::NotFound)
}
