//! The engine in memory, for the simulator: deterministic, and it forgets like a disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::batch::{Batch, Resolved};
use crate::range::Range;
use crate::{EngineError, Keyspace};

type Map = BTreeMap<Bytes, Bytes>;
type State = BTreeMap<Arc<str>, Arc<Map>>;

/// A simulated disk: what engines on it have synced survives [`MemoryDisk::crash`], of the rest a prefix does.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Counts crashes; engines of an earlier count are dead.
    generation: u64,
    durable: State,
    current: State,
    /// What was written since the last sync, oldest first.
    unsynced: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Create(Arc<str>),
    Write(Resolved),
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> MemoryDisk {
        MemoryDisk::default()
    }

    /// Number of writes since the last sync.
    pub fn unsynced(&self) -> usize {
        lock(&self.shared).unsynced.len()
    }

    /// Power is cut: of the writes since the last sync the first `keep` are on the disk, the others are gone. Every
    /// engine that was open fails from now on.
    pub fn crash(&self, keep: usize) {
        let mut shared = lock(&self.shared);
        let shared = &mut *shared;
        shared.generation += 1;
        let mut state = std::mem::take(&mut shared.durable);
        for change in shared.unsynced.drain(..).take(keep) {
            apply(&mut state, change);
        }
        shared.durable = state.clone();
        shared.current = state;
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn apply(state: &mut State, change: Change) {
    match change {
        Change::Create(name) => {
            state.entry(name).or_default();
        }
        Change::Write(resolved) => {
            for (keyspace, keys) in resolved {
                let map = Arc::make_mut(state.entry(keyspace.name).or_default());
                for (key, value) in keys {
                    match value {
                        Some(value) => map.insert(key, value),
                        None => map.remove(&key),
                    };
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Memory {
    disk: MemoryDisk,
    generation: u64,
}

impl Memory {
    pub(crate) fn open(disk: &MemoryDisk) -> Memory {
        Memory {
            disk: disk.clone(),
            generation: lock(&disk.shared).generation,
        }
    }

    fn shared(&self) -> Result<MutexGuard<'_, Shared>, EngineError> {
        let shared = lock(&self.disk.shared);
        if shared.generation == self.generation {
            Ok(shared)
        } else {
            Err(EngineError::Crashed)
        }
    }

    pub(crate) fn create(&self, name: &str) -> Result<(), EngineError> {
        let mut shared = self.shared()?;
        if !shared.current.contains_key(name) {
            let name: Arc<str> = name.into();
            apply(&mut shared.current, Change::Create(name.clone()));
            shared.unsynced.push(Change::Create(name));
        }
        Ok(())
    }

    pub(crate) fn write(&self, batch: Batch) -> Result<(), EngineError> {
        let mut shared = self.shared()?;
        let resolved = batch.resolve(|keyspace, bounds| {
            let map = find(&shared.current, keyspace)?;
            Ok(map.range::<[u8], _>(bounds).map(|(key, _)| key.clone()).collect())
        })?;
        for keyspace in resolved.keys() {
            find(&shared.current, keyspace)?;
        }
        apply(&mut shared.current, Change::Write(resolved.clone()));
        shared.unsynced.push(Change::Write(resolved));
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> Result<MemorySnapshot, EngineError> {
        Ok(MemorySnapshot {
            state: self.shared()?.current.clone(),
        })
    }

    pub(crate) fn persist(&self) -> Result<(), EngineError> {
        let mut shared = self.shared()?;
        shared.durable = shared.current.clone();
        shared.unsynced.clear();
        Ok(())
    }

    pub(crate) fn disk_bytes(&self) -> Result<u64, EngineError> {
        let shared = self.shared()?;
        let pairs = shared.current.values().flat_map(|map| map.iter());
        Ok(pairs.map(|(k, v)| (k.len() + v.len()) as u64).sum())
    }

    pub(crate) fn begin_replace(&self, keyspaces: &[Keyspace]) -> Result<MemoryReplace, EngineError> {
        let shared = self.shared()?;
        let mut next = BTreeMap::new();
        for keyspace in keyspaces {
            find(&shared.current, keyspace)?;
            next.insert(keyspace.name.clone(), Map::new());
        }
        Ok(MemoryReplace {
            memory: self.clone(),
            next,
        })
    }
}

fn find<'a>(state: &'a State, keyspace: &Keyspace) -> Result<&'a Arc<Map>, EngineError> {
    state
        .get(&keyspace.name)
        .ok_or_else(|| EngineError::NoKeyspace(keyspace.name().to_owned()))
}

/// An import under way.
#[derive(Debug)]
pub(crate) struct MemoryReplace {
    memory: Memory,
    next: BTreeMap<Arc<str>, Map>,
}

impl MemoryReplace {
    pub(crate) fn put(&mut self, name: &str, pairs: Vec<(Bytes, Bytes)>) -> Result<(), EngineError> {
        let Some(map) = self.next.get_mut(name) else {
            return Err(EngineError::Import(
                "it has a keyspace that is not being replaced",
            ));
        };
        map.extend(pairs);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<(), EngineError> {
        let mut shared = self.memory.shared()?;
        for (name, map) in self.next {
            shared.current.insert(name, Arc::new(map));
        }
        shared.durable = shared.current.clone();
        shared.unsynced.clear();
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct MemorySnapshot {
    state: State,
}

impl MemorySnapshot {
    pub(crate) fn get(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(find(&self.state, keyspace)?.get(key).cloned())
    }

    pub(crate) fn range(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<Range, EngineError> {
        let own = |b: Bound<&[u8]>| b.map(Bytes::copy_from_slice);
        let map = find(&self.state, keyspace)?.clone();
        Ok(Range::memory(MemoryRange {
            map,
            from: own(bounds.0),
            to: own(bounds.1),
            done: false,
        }))
    }
}

/// Remembers where it is by key, so that it can own the map it walks.
#[derive(Debug)]
pub(crate) struct MemoryRange {
    map: Arc<Map>,
    from: Bound<Bytes>,
    to: Bound<Bytes>,
    done: bool,
}

impl MemoryRange {
    fn step(&mut self, back: bool) -> Option<(Bytes, Bytes)> {
        let bounds = (
            self.from.as_ref().map(|b| b.as_ref()),
            self.to.as_ref().map(|b| b.as_ref()),
        );
        if self.done || crate::range::is_empty(bounds) {
            return None;
        }
        let mut range = self.map.range::<[u8], _>(bounds);
        let found = if back { range.next_back() } else { range.next() };
        let found = found.map(|(k, v)| (k.clone(), v.clone()));
        match &found {
            None => self.done = true,
            Some((key, _)) if back => self.to = Bound::Excluded(key.clone()),
            Some((key, _)) => self.from = Bound::Excluded(key.clone()),
        }
        found
    }

    pub(crate) fn next(&mut self) -> Option<(Bytes, Bytes)> {
        self.step(false)
    }

    pub(crate) fn next_back(&mut self) -> Option<(Bytes, Bytes)> {
        self.step(true)
    }
}
