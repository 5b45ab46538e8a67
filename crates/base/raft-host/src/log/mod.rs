//! The log on disk: entries and hard states of all groups, in one `raft-engine` log, one append and one fsync a
//! round.
//!
//! raft-engine checks every record's checksum, but it cannot tell a torn last record (normal after a crash: it was
//! never synced, nobody was promised anything) from a damaged one (which was promised): it cuts both off. [`Mark`]
//! tells them apart. Every batch carries a number; after each fsync the number is written, without another fsync,
//! into a small file. A log that ends before its mark has lost durable records, and is refused.

mod group;
mod mark;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use raft_engine::env::FileSystem;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

pub(crate) use group::{GroupLog, Snapshotted};
use mark::Mark;

use crate::config::LogConfig;
use crate::{Fatal, OpenError};

/// The log's own records are kept under this group.
const META_GROUP: u64 = u64::MAX;
/// Key of the number of the last batch.
const KEY_SEQ: &[u8] = b"seq";
/// Sync durations that are remembered.
const FSYNCS_KEPT: usize = 128;

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
    dir: PathBuf,
    fsyncs: VecDeque<Duration>,
}

/// What one round writes.
pub(crate) struct Batch {
    records: LogBatch,
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
        let engine = Engine::open_with_file_system(engine_config, file_system.clone())
            .map_err(|e| open_error(dir, e))?;
        let seq = match engine.get(META_GROUP, KEY_SEQ) {
            None => 0,
            Some(bytes) => <[u8; 8]>::try_from(bytes.as_slice())
                .map(u64::from_le_bytes)
                .map_err(|_| OpenError::Damaged {
                    dir: dir.to_owned(),
                    what: "its batch number is malformed".to_owned(),
                })?,
        };
        let (mark, marked) = Mark::open(dir, &file_system).map_err(|e| OpenError::Io {
            dir: dir.to_owned(),
            what: format!("the file `MARK`: {e}"),
        })?;
        if seq < marked {
            return Err(OpenError::Damaged {
                dir: dir.to_owned(),
                what: format!(
                    "it ends with batch {seq}, but batch {marked} was on disk: a record in the newest \
                     `*.raftlog` file is corrupt or missing"
                ),
            });
        }
        Ok(Log {
            engine: Arc::new(engine),
            mark,
            seq,
            dir: dir.to_owned(),
            fsyncs: VecDeque::new(),
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

    pub(crate) fn batch(&self) -> Batch {
        Batch {
            records: LogBatch::default(),
        }
    }

    /// Makes a batch durable. An error is fatal: what is on disk is not known after a failed fsync.
    pub(crate) fn commit(&mut self, mut batch: Batch) -> Result<(), Fatal> {
        if batch.records.is_empty() {
            return Ok(());
        }
        self.seq += 1;
        let begin = Instant::now();
        let written = batch
            .records
            .put(META_GROUP, KEY_SEQ.to_vec(), self.seq.to_le_bytes().to_vec())
            .and_then(|()| self.engine.write(&mut batch.records, true));
        if let Err(e) = written {
            let what = format!("writing the raft log in `{}` failed: {e}", self.dir.display());
            return Err(Fatal { what });
        }
        if self.fsyncs.len() == FSYNCS_KEPT {
            self.fsyncs.pop_front();
        }
        self.fsyncs.push_back(begin.elapsed());
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

    pub(crate) fn fsyncs(&self) -> Vec<Duration> {
        self.fsyncs.iter().copied().collect()
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
