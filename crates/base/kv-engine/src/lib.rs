//! Keeps a service's state on this machine: ordered bytes to bytes, in named keyspaces.
//!
//! # What it is
//! A narrow, synchronous surface over an LSM tree (`fjall`; this is the only crate that names it), and over a
//! memory twin for the simulator ([`MemoryDisk`]) that forgets unsynced writes the way a power cut does.
//!
//! # What it deliberately does not know
//! Raft, revisions, record formats. It does not sync by itself: a replicated state is replayed from its log.
//!
//! # Entry points
//! [`Engine::open`], [`Engine::keyspace`], [`Engine::write`] of a [`Batch`], [`Engine::snapshot`],
//! [`Engine::persist`], [`Snapshot::export`] and [`Engine::import`] ([`ExportReader`] checks an export by itself).
//!
//! # Invariants
//! 1. A batch is seen whole or not at all, by readers and after a crash, across keyspaces.
//! 2. After a crash the state is that of some moment at or after the last [`Engine::persist`]: batches are lost
//!    from the newest backwards, never from the middle.
//! 3. A [`Snapshot`] does not change, also while an import replaces the keyspaces under it.
//! 4. An import replaces its keyspaces in one step, or (error, crash, dropped half-way) not at all.

mod batch;
mod disk;
mod error;
mod export;
mod memory;
mod range;
mod unfinished;

use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;

pub use batch::Batch;
pub use error::EngineError;
pub use export::{Export, ExportReader, Exported, Import};
pub use memory::MemoryDisk;
pub use range::Range;

/// Longest key, bytes.
pub const MAX_KEY_BYTES: usize = 65_535;

/// Settings of an engine on disk.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Cache of blocks read, bytes.
    pub cache_bytes: u64,
    /// Writes of one keyspace held in memory before they are sorted into a file, bytes.
    pub memtable_bytes: u64,
    /// Threads that flush and compact. With two or more, flushes never wait for a compaction to end.
    pub workers: usize,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            cache_bytes: 32 << 20,
            memtable_bytes: 16 << 20,
            workers: 2,
        }
    }
}

/// A named part of an engine. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keyspace {
    pub(crate) name: std::sync::Arc<str>,
}

impl Keyspace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// An open engine. Cheap to clone; all clones are one engine.
#[derive(Clone, Debug)]
pub struct Engine {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Disk(disk::Disk),
    Memory(memory::Memory),
}

impl Engine {
    /// Opens or creates an engine in the folder `path`. One process at a time.
    pub fn open(path: &Path, config: &EngineConfig) -> Result<Engine, EngineError> {
        Ok(Engine {
            kind: Kind::Disk(disk::Disk::open(path, config)?),
        })
    }

    /// Opens an engine on a simulated disk. Engines that were open before its last crash fail from then on.
    pub fn memory(disk: &MemoryDisk) -> Engine {
        Engine {
            kind: Kind::Memory(memory::Memory::open(disk)),
        }
    }

    /// The keyspace `name`, created when it does not exist. Names are 1 to 64 of `[a-z0-9_-]`.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace, EngineError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
            return Err(EngineError::Name(name.to_owned()));
        }
        match &self.kind {
            Kind::Disk(disk) => disk.create(name)?,
            Kind::Memory(memory) => memory.create(name)?,
        }
        Ok(Keyspace { name: name.into() })
    }

    /// Makes a batch visible, atomically. It is not durable before [`Engine::persist`].
    pub fn write(&self, batch: Batch) -> Result<(), EngineError> {
        batch.check()?;
        match &self.kind {
            Kind::Disk(disk) => disk.write(batch),
            Kind::Memory(memory) => memory.write(batch),
        }
    }

    /// The newest value of `key`.
    pub fn get(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match &self.kind {
            Kind::Disk(disk) => disk.get(keyspace, key),
            Kind::Memory(memory) => memory.snapshot()?.get(keyspace, key),
        }
    }

    /// A picture of all keyspaces as they are now. It costs little, but the space of what is overwritten meanwhile
    /// is not given back while it lives.
    pub fn snapshot(&self) -> Result<Snapshot, EngineError> {
        let kind = match &self.kind {
            Kind::Disk(disk) => SnapshotKind::Disk(disk.snapshot()?),
            Kind::Memory(memory) => SnapshotKind::Memory(memory.snapshot()?),
        };
        Ok(Snapshot { kind })
    }

    /// Makes everything written so far durable (fsync).
    pub fn persist(&self) -> Result<(), EngineError> {
        match &self.kind {
            Kind::Disk(disk) => disk.persist(),
            Kind::Memory(memory) => memory.persist(),
        }
    }

    /// Bytes used on disk, about.
    pub fn disk_bytes(&self) -> Result<u64, EngineError> {
        match &self.kind {
            Kind::Disk(disk) => disk.disk_bytes(),
            Kind::Memory(memory) => memory.disk_bytes(),
        }
    }

    /// Begins to replace the whole content of `keyspaces` by what [`Snapshot::export`] gave; see [`Import`].
    pub fn import(&self, keyspaces: &[Keyspace]) -> Result<Import, EngineError> {
        let target = match &self.kind {
            Kind::Disk(disk) => export::Target::Disk(disk.begin_replace(keyspaces)?),
            Kind::Memory(memory) => export::Target::Memory(memory.begin_replace(keyspaces)?),
        };
        Ok(Import::new(target))
    }
}

/// A picture of an engine at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    kind: SnapshotKind,
}

#[derive(Clone, Debug)]
enum SnapshotKind {
    Disk(disk::DiskSnapshot),
    Memory(memory::MemorySnapshot),
}

impl Snapshot {
    /// The value of `key`.
    pub fn get(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        match &self.kind {
            SnapshotKind::Disk(snapshot) => snapshot.get(keyspace, key),
            SnapshotKind::Memory(snapshot) => snapshot.get(keyspace, key),
        }
    }

    /// Keys and values in `bounds`, ascending; `.rev()` gives them descending. Empty when the start lies behind the
    /// end.
    pub fn range<'a>(
        &self,
        keyspace: &Keyspace,
        bounds: (Bound<&'a [u8]>, Bound<&'a [u8]>),
    ) -> Result<Range, EngineError> {
        if range::is_empty(bounds) {
            return Ok(Range::nothing());
        }
        match &self.kind {
            SnapshotKind::Disk(snapshot) => snapshot.range(keyspace, bounds),
            SnapshotKind::Memory(snapshot) => snapshot.range(keyspace, bounds),
        }
    }

    /// Keys that begin with `prefix`, ascending.
    pub fn prefix(&self, keyspace: &Keyspace, prefix: &[u8]) -> Result<Range, EngineError> {
        let end = range::prefix_end(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.range(keyspace, (Bound::Included(prefix), end))
    }

    /// All of `keyspaces`, as a stream of bytes with checksums.
    pub fn export(&self, keyspaces: &[Keyspace]) -> Export {
        Export::new(self.clone(), keyspaces)
    }
}
