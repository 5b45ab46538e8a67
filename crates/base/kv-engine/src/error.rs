//! What can go wrong with an engine.

use std::path::PathBuf;

/// An engine's error: what, why, what to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another process has the database open.
    #[error("the database in `{path}` is in use by another process; stop that process first")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Checksums or structure are wrong.
    #[error(
        "the database in `{path}` is damaged: {what}; delete this folder and let the member be rebuilt by its \
         peers, or restore a backup"
    )]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Another version of the program wrote it.
    #[error(
        "the database in `{path}` was written by another version of this program ({what}); use that version"
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Reading or writing failed. After an error of a write or sync nothing more can be written until the engine
    /// is opened anew.
    #[error(
        "the database in `{path}` cannot be read or written: {what}; see to free space, permissions and the disk"
    )]
    Io {
        /// The folder.
        path: PathBuf,
        /// The system's message.
        what: String,
    },
    /// A keyspace name that is not allowed.
    #[error("`{0}` is no name of a keyspace: 1 to 64 of a-z, 0-9, _ and - are allowed")]
    Name(String),
    /// The keyspace was not opened on this engine.
    #[error("keyspace `{0}` is not open")]
    NoKeyspace(String),
    /// A key is empty or too long.
    #[error("a key has {0} bytes; 1 to {max} are allowed", max = crate::MAX_KEY_BYTES)]
    Key(usize),
    /// What is imported is not a whole export.
    #[error("the imported data is not a complete export: {0}; fetch it again")]
    Import(&'static str),
    /// The simulated disk crashed under this engine.
    #[error("the simulated disk has crashed; open the engine again")]
    Crashed,
}
