//! raft-engine keeps the last block it read in a thread-local cache whose key is file number, offset and length, but
//! not the engine. With one engine a thread that is right; here all members share one thread, and one would be
//! handed another's entries. So before a member runs, the cache is filled with a block that nobody else can have.

use std::cell::RefCell;

use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt};

/// Size of the block's one entry: larger than any block that a simulated member writes.
const ODD_BYTES: usize = 20_011;

struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

struct Evictor {
    engine: Engine,
    // Dropped after the engine.
    _dir: tempfile::TempDir,
}

thread_local! {
    static EVICTOR: RefCell<Option<Evictor>> = const { RefCell::new(None) };
}

fn open() -> Result<Evictor, String> {
    let dir = tempfile::Builder::new()
        .prefix("hearth-sim-cache-")
        .tempdir_in(super::scratch())
        .map_err(|e| e.to_string())?;
    let config = Config {
        dir: dir.path().join("log").to_string_lossy().into_owned(),
        batch_compression_threshold: raft_engine::ReadableSize(0),
        ..Config::default()
    };
    let engine = Engine::open(config).map_err(|e| e.to_string())?;
    let entry = Entry {
        index: 1,
        term: 1,
        data: vec![7; ODD_BYTES].into(),
        ..Entry::default()
    };
    let mut batch = LogBatch::default();
    batch
        .add_entries::<EntryExt>(1, &[entry])
        .map_err(|e| e.to_string())?;
    engine.write(&mut batch, false).map_err(|e| e.to_string())?;
    Ok(Evictor { engine, _dir: dir })
}

/// Empties this thread's block cache of everything that members have read.
pub(crate) fn evict() -> Result<(), String> {
    EVICTOR.with_borrow_mut(|slot| {
        let evictor = match slot {
            Some(evictor) => evictor,
            None => slot.insert(open()?),
        };
        evictor
            .engine
            .get_entry::<EntryExt>(1, 1)
            .map(drop)
            .map_err(|e| e.to_string())
    })
}
