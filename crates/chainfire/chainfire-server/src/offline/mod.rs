//! What an operator does to members that do not run: check a backup, restore one, look at data folders, recover from
//! a lost majority. And the picture that a running member gives away as a backup.
//!
//! ```text
//!  Maintenance.Snapshot ── picture ──> format ──> FILE ──> backup (checks) ──> restore ──┐
//!                                                                                        ├─> build ─> folder (in place)
//!  DATA of a survivor ── inspect ──> recover (applies the rest of its log on a copy) ────┘
//! ```
//!
//! Invariants:
//! 1. what comes of it is another cluster: other ids, revisions far ahead, all history before that forgotten;
//! 2. old data is never changed nor deleted: folders are built beside their place and exchanged (`folder`);
//! 3. members of one new cluster begin with equal states and the same first entry.

mod backup;
mod build;
mod folder;
mod format;
mod inspect;
mod picture;
mod recover;
mod restore;

use std::path::PathBuf;

pub use backup::{BackupError, BackupInfo, check_backup};
pub use folder::FolderError;
pub(crate) use format::{Picture, WriteEnd};
pub use inspect::{Condition, Inspection, inspect, others_with_leader};
use kv_engine::EngineError;
pub(crate) use picture::{Maker, take as take_picture};
use raft_host::OpenError;
pub use recover::{RecoverOptions, Recovered, recover};
pub use restore::{RestoreOptions, Restored, restore};

use crate::{ConfigProblem, tables::StorageError};

/// How far revisions jump unless told otherwise: more than any cluster writes between two backups that matter.
pub const DEFAULT_BUMP: u32 = 1_000_000;

/// Why an operation failed. Nothing has been changed where it says nothing else.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigProblem),
    /// The backup is not used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A file or folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There is something where a new folder should go.
    #[error(
        "the data folder `{path}` of `{member}` is not empty: stop the member, move the folder away, and repeat; for \
         a cluster that lost its majority, `hearth chainfire recover` keeps more than a backup does"
    )]
    NotEmpty {
        /// The member.
        member: String,
        /// The folder.
        path: PathBuf,
    },
    /// Its process has the data open.
    #[error("the member `{member}` runs: stop it first (on a machine of `hearth up`: `hearth down`)")]
    Running {
        /// The member.
        member: String,
    },
    /// An earlier recovery was cut off between its last steps.
    #[error(
        "an interrupted recovery waits in `{path}`: repeat `hearth chainfire recover`, or move that folder away"
    )]
    Interrupted {
        /// The rebuilt folder.
        path: PathBuf,
    },
    /// There is nothing to recover from.
    #[error(
        "none of the data folders can be used:\n{found}\nrestore a backup with `hearth chainfire restore` instead"
    )]
    NoSurvivor {
        /// One line for each.
        found: String,
    },
    /// The cluster is not lost.
    #[error(
        "{sound} of {members} members have sound data, which is a majority: start them instead, and replace the others \
         (to give up what the others hold nevertheless: --force)"
    )]
    MajorityLeft {
        /// How many.
        sound: usize,
        /// Of how many.
        members: usize,
    },
    /// The others go on without this member.
    #[error(
        "`{member}` answers and knows a leader, so the cluster lives: replace this member with `hearth chainfire member \
         remove` and `add` instead (to make a second cluster of it nevertheless: --force)"
    )]
    ClusterLives {
        /// Who answered.
        member: String,
    },
    /// A name is not a configured member.
    #[error("`{0}` is not among the members whose configuration was given")]
    UnknownMember(String),
    /// An incarnation is malformed.
    #[error("`{0}` cannot be an incarnation: use 1 to 40 letters, digits, `-` and `_`")]
    Incarnation(String),
    /// The configurations are not of one cluster.
    #[error(
        "the configuration of `{0}` has another cluster name or another list of members than the first one's"
    )]
    Mixed(String),
    /// Stored state.
    #[error("the state of `{member}` cannot be used: {what}")]
    State {
        /// The member.
        member: String,
        /// Why.
        what: String,
    },
    /// The Raft log.
    #[error("the raft log of `{member}` cannot be used: {what}")]
    Log {
        /// The member.
        member: String,
        /// Why.
        what: String,
    },
}

impl OfflineError {
    fn engine(member: &str, error: &EngineError) -> OfflineError {
        let member = member.to_owned();
        match error {
            EngineError::Locked { .. } => OfflineError::Running { member },
            other => OfflineError::State {
                member,
                what: other.to_string(),
            },
        }
    }

    fn state(member: &str, error: &dyn std::fmt::Display) -> OfflineError {
        OfflineError::State {
            member: member.to_owned(),
            what: error.to_string(),
        }
    }

    fn storage(member: &str, error: &StorageError) -> OfflineError {
        match error {
            StorageError::Engine(engine) => OfflineError::engine(member, engine),
            StorageError::Record { .. } | StorageError::Layout { .. } => OfflineError::state(member, error),
        }
    }

    fn log(member: &str, error: &OpenError) -> OfflineError {
        let member = member.to_owned();
        match error {
            OpenError::Locked { .. } => OfflineError::Running { member },
            other => OfflineError::Log {
                member,
                what: other.to_string(),
            },
        }
    }
}
