//! Logs of hosts that do not run: looking at them, beginning one, and applying everything that one holds.
//!
//! [`settle`] breaks Raft's rule on purpose: it takes every entry in a log for committed, also those that a majority
//! may never have had. It is right only when the majority is gone for good and what comes of it goes on as
//! **another** group, with new node ids. Run it on a copy: a member that was settled must never rejoin its old group.

use std::path::Path;
use std::sync::Arc;

use raft_engine::env::FileSystem;

use crate::group::{Group, Trust};
use crate::host::Output;
use crate::log::Log;
use crate::{Fatal, GroupConfig, GroupId, HostConfig, LogConfig, Membership, OpenError, Peer};

/// Rounds of applying; each takes at least one entry, and up to 16 MiB of them.
const MAX_ROUNDS: u64 = 1 << 32;

/// What a log holds of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The newest term that the member took part in.
    pub term: u64,
    /// Last entry that it had noted as committed: a lower bound, for a changed commit index alone is not written.
    pub committed: u64,
    /// First entry still there; what is before it is in the state machine.
    pub first_index: u64,
    /// Last entry.
    pub last_index: u64,
    /// Its term. Of two logs, the one with the higher last term, then the higher last index, is the more advanced.
    pub last_term: u64,
    /// The newest members that were applied.
    pub membership: Membership,
}

/// Why a log could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its entries cannot be applied.
    #[error(transparent)]
    Apply(#[from] Fatal),
    /// It has nothing of the group.
    #[error("the raft log knows nothing of group {0}")]
    NoGroup(GroupId),
    /// An entry cannot be applied: the library holds it back.
    #[error("entry {next} of {last} cannot be applied without a majority")]
    Stuck {
        /// The first that could not.
        next: u64,
        /// The last there is.
        last: u64,
    },
}

/// What the log in `dir` holds of a group; `None` when it has nothing of it. Opening cuts a torn tail off, as every
/// start does, and fails while another process has the log open.
pub fn inspect<F: FileSystem>(
    dir: &Path,
    config: &LogConfig,
    file_system: Arc<F>,
    group: GroupId,
) -> Result<Option<Found>, OpenError> {
    if !dir.is_dir() {
        return Ok(None);
    }
    alone(|| {
        let mut log = Log::open(dir, config, file_system)?;
        if !log.knows(group) {
            return Ok(None);
        }
        Ok(Some(log.group(group, &Membership::default())?.found()))
    })
}

/// Runs `work` on a thread of its own: raft-engine's cache of the last block read is per thread, and does not tell
/// one engine's files from another's (see [`crate::Host`]).
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Begins a log in `dir`, whose group starts with the members `initial`: the same on all of them, whose state
/// machines must hold the same state, at applied index 1 or 0.
pub fn begin<F: FileSystem>(
    dir: &Path,
    config: &LogConfig,
    file_system: Arc<F>,
    group: GroupId,
    initial: &[Peer],
) -> Result<Found, OpenError> {
    alone(|| {
        let mut log = Log::open(dir, config, file_system)?;
        if log.knows(group) {
            return Err(OpenError::Config(format!(
                "the log in `{}` has a group {group} already",
                dir.display()
            )));
        }
        Ok(log.group(group, &Membership::initial(initial))?.found())
    })
}

/// Applies every entry that the log holds, committed or not, and makes the state machine durable. See the module.
pub fn settle<F: FileSystem>(
    config: &HostConfig,
    file_system: Arc<F>,
    group: GroupConfig,
) -> Result<Found, OfflineError> {
    alone(|| apply_everything(config, file_system, group))
}

fn apply_everything<F: FileSystem>(
    config: &HostConfig,
    file_system: Arc<F>,
    group: GroupConfig,
) -> Result<Found, OfflineError> {
    let id = group.id;
    let mut log = Log::open(&config.log_dir, &config.log, file_system)?;
    if !log.knows(id) {
        return Err(OfflineError::NoGroup(id));
    }
    let mut group = Group::open(config, &mut log, group, Trust::Everything)?;
    for _ in 0..MAX_ROUNDS {
        // Nobody listens: there are no messages to send and no callers to answer.
        let mut out = Output::default();
        let mut batch = log.batch();
        if !group.begin_ready(&mut log, &mut batch, 0, &mut out)? {
            break;
        }
        log.commit(batch)?;
        group.finish_ready(&mut log, 0, &mut out)?;
    }
    let (applied, last) = group.progress();
    if applied != last {
        return Err(OfflineError::Stuck {
            next: applied + 1,
            last,
        });
    }
    group.persist_machine()?;
    Ok(group.found())
}
