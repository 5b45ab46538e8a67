//! The log on disk: entries and hard states of all groups, in one `raft-engine` log, one append and one fsync a
//! round.
//!
//! raft-engine checks every record's checksum, but it cannot tell a torn last record (normal after a crash: it was
//! never synced, nobody was promised anything) from a damaged one (which was promised): it cuts both off. The mark file
//! (`mark.rs`) tells them apart. Every batch carries a number; after each fsync the number is written, without another fsync,
//! into a small file. A log that ends before its mark has lost durable records, and is refused.
//!
//! Old records that are still needed move to a second queue of files, whose tail raft-engine would cut off just the
//! same. So every batch also carries a digest over the records of all groups; it must fit what was found.

mod group;
mod mark;
mod times;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use prost::Message as _;
use raft_engine::env::FileSystem;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

pub(crate) use group::{GroupLog, Snapshotted};
use mark::Mark;
pub use times::SYNC_CLASSES_US;
use times::SyncTimes;

use crate::config::LogConfig;
use crate::{Fatal, OpenError};

/// The log's own records are kept under this group.
const META_GROUP: u64 = u64::MAX;
/// Key of the last batch's [`MetaRecord`].
const KEY_META: &[u8] = b"meta";

/// Written with every batch.
#[derive(Clone, PartialEq, prost::Message)]
struct MetaRecord {
    /// Number of the batch.
    #[prost(uint64, tag = "1")]
    seq: u64,
    /// XOR of [`digest`] over the records of all groups.
    #[prost(fixed32, tag = "2")]
    digest: u32,
}

struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = raft::eraftpb::Entry;

    fn index(entry: &Self::Entry) -> u64 {
        entry.index
    }
}

/// The log of all groups of a host.
pub(crate) struct Log<F: FileSystem> {
    engine: Arc<Engine<F>>,
    mark: Mark<F>,
    seq: u64,
    digest: u32,
    dir: PathBuf,
    times: SyncTimes,
}

/// What one round writes.
pub(crate) struct Batch {
    records: LogBatch,
    /// How the batch changes the digest of all groups' records.
    digest: u32,
}

/// A record's share in the digest of all.
fn digest(group: u64, key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&group.to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize()
}

impl<F: FileSystem> Log<F> {
    pub(crate) fn open(dir: &Path, config: &LogConfig, file_system: Arc<F>) -> Result<Log<F>, OpenError> {
        // raft-engine creates its folder without syncing the one above; that is the caller's set-up to do.
        let engine_config = Config {
            dir: dir.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 1,
            target_file_size: ReadableSize(config.file_bytes),
            purge_threshold: ReadableSize(config.purge_bytes),
            enable_log_recycle: true,
            prefill_for_recycle: config.prefill_bytes > 0,
            prefill_limit: (config.prefill_bytes > 0).then_some(ReadableSize(config.prefill_bytes)),
            ..Config::default()
        };
        let damaged = |what: String| OpenError::Damaged {
            dir: dir.to_owned(),
            what,
        };
        // raft-engine asserts on some kinds of damage; the operator wants a message, not a backtrace.
        let opening = AssertUnwindSafe(|| Engine::open_with_file_system(engine_config, file_system.clone()));
        let engine = catch_unwind(opening)
            .map_err(|panic| damaged(crate::shell::panic_text(&*panic)))?
            .map_err(|e| open_error(dir, e))?;
        let meta = engine.get(META_GROUP, KEY_META).unwrap_or_default();
        let MetaRecord { seq, digest: told } =
            MetaRecord::decode(meta.as_slice()).map_err(|e| damaged(format!("its own record: {e}")))?;
        let found = engine
            .raft_groups()
            .into_iter()
            .filter(|g| *g != META_GROUP)
            .fold(0, |sum, group| {
                let share = |key| {
                    engine
                        .get(group, key)
                        .map_or(0, |value| digest(group, key, &value))
                };
                sum ^ share(group::KEY_GROUP) ^ share(group::KEY_HARD_STATE)
            });
        let (mark, marked) = Mark::open(dir, &file_system).map_err(|e| OpenError::Io {
            dir: dir.to_owned(),
            what: format!("the file `MARK`: {e}"),
        })?;
        if seq < marked {
            return Err(damaged(format!(
                "it ends with batch {seq}, but batch {marked} was on disk: a record in the newest `*.raftlog` \
                 file is corrupt or missing"
            )));
        }
        if told != found {
            return Err(damaged(
                "a group's record is corrupt or missing in the `*.rewrite` files".to_owned(),
            ));
        }
        Ok(Log {
            engine: Arc::new(engine),
            mark,
            seq,
            digest: found,
            dir: dir.to_owned(),
            times: SyncTimes::default(),
        })
    }

    /// Opens a group's part. `initial` is stored when the log does not know the group.
    pub(crate) fn group(
        &mut self,
        group: u64,
        initial: &crate::Membership,
    ) -> Result<GroupLog<F>, OpenError> {
        let mut batch = self.batch();
        let log = GroupLog::open(self.engine.clone(), &self.dir, group, initial, &mut batch)?;
        self.commit(batch).map_err(|e| OpenError::Io {
            dir: self.dir.clone(),
            what: e.what,
        })?;
        Ok(log)
    }

    /// Whether it has anything of a group.
    pub(crate) fn knows(&self, group: u64) -> bool {
        self.engine.get(group, group::KEY_GROUP).is_some()
    }

    pub(crate) fn batch(&self) -> Batch {
        Batch {
            records: LogBatch::default(),
            digest: 0,
        }
    }

    /// Marks what was found. The mark may be far behind after a power cut; until the next batch a damaged end would
    /// look like one that was never written.
    pub(crate) fn confirm(&mut self) -> Result<(), Fatal> {
        if self.seq == 0 {
            return Ok(());
        }
        let batch = self.batch();
        self.write(batch)
    }

    /// Makes a batch durable. An error is fatal: what is on disk is not known after a failed fsync.
    pub(crate) fn commit(&mut self, batch: Batch) -> Result<(), Fatal> {
        if batch.records.is_empty() {
            return Ok(());
        }
        self.write(batch)
    }

    fn write(&mut self, mut batch: Batch) -> Result<(), Fatal> {
        self.seq += 1;
        self.digest ^= batch.digest;
        let meta = MetaRecord {
            seq: self.seq,
            digest: self.digest,
        };
        let begin = Instant::now();
        let written = batch
            .records
            .put(META_GROUP, KEY_META.to_vec(), meta.encode_to_vec())
            .and_then(|()| self.engine.write(&mut batch.records, true));
        if let Err(e) = written {
            let what = format!("writing the raft log in `{}` failed: {e}", self.dir.display());
            return Err(Fatal { what });
        }
        self.times.note(begin.elapsed());
        self.mark.write(self.seq).map_err(|e| Fatal {
            what: format!("writing `{}` failed: {e}", self.dir.join("MARK").display()),
        })
    }

    /// Gives back the space of files that nothing needs any more.
    pub(crate) fn purge(&self) -> Result<(), Fatal> {
        self.engine.purge_expired_files().map(drop).map_err(|e| Fatal {
            what: format!(
                "reclaiming old files of the raft log in `{}` failed: {e}",
                self.dir.display()
            ),
        })
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }

    pub(crate) fn times(&self) -> &SyncTimes {
        &self.times
    }
}

fn open_error(dir: &Path, error: raft_engine::Error) -> OpenError {
    use raft_engine::Error as E;
    let dir = dir.to_owned();
    let what = error.to_string();
    match error {
        E::Io(_) => OpenError::Io { dir, what },
        E::Other(_) if what.contains("lock") => OpenError::Locked { dir },
        E::Other(_) => OpenError::Io { dir, what },
        _ => OpenError::Damaged { dir, what },
    }
}
