//! What can go wrong with a machine, in the words of whoever has to act on it.

use std::io;
use std::path::PathBuf;

/// Failure of an operation on a machine.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A value of the specification cannot be used.
    #[error("invalid machine specification: {0}")]
    Invalid(String),
    /// No backend of that name is registered.
    #[error("no hypervisor `{name}` on this node; it has {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// What is registered, comma separated.
        known: String,
    },
    /// A start was asked for while a process of this machine runs.
    #[error("machine `{0}` is already running")]
    AlreadyRunning(String),
    /// The machine is not in a state for this.
    #[error("machine `{machine}` is {state}: it cannot {act}")]
    WrongState {
        /// Which machine.
        machine: String,
        /// What it is.
        state: &'static str,
        /// What was asked of it.
        act: &'static str,
    },
    /// This hypervisor has no such thing.
    #[error("{hypervisor} cannot {what}")]
    Unsupported {
        /// Its name.
        hypervisor: &'static str,
        /// What was asked, and what to do instead.
        what: String,
    },
    /// The hypervisor's own interface refused a request.
    #[error("{program} refused `{request}`: {message}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What was sent, in short.
        request: String,
        /// Its own words.
        message: String,
    },
    /// The image is not safe or not usable as a base.
    #[error("image `{path}` is refused: {reason}")]
    BadImage {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A host program ended badly.
    #[error("{program} failed: {message}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Its own message, or how it ended.
        message: String,
    },
    /// The monitor of a running machine did not answer as it should.
    #[error("monitor of the machine: {0}")]
    Monitor(String),
    /// Something took longer than its limit.
    #[error("{what} took longer than {limit_ms} ms")]
    Timeout {
        /// What was being done.
        what: &'static str,
        /// The limit.
        limit_ms: u64,
    },
    /// The operating system refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl HypervisorError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// True when the host's disk is full: retrying soon cannot help, people must act.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Program { message, .. } => message.contains("No space left on device"),
            _ => false,
        }
    }
}
