//! The record of a machine: written and synced before its process exists.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{HypervisorError, MachineSpec, ProcessIdentity};

/// Version of the record's format. Readers refuse a higher one.
const FORMAT: u32 = 1;
/// Its file in the machine's folder.
pub(crate) const FILE: &str = "intent.json";

/// How a machine came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The guest switched itself off, by itself or because the power button was pressed.
    PoweredOff,
    /// The owner ended it while the guest ran.
    Forced,
    /// The process vanished without anybody here having ended it.
    Crashed,
    /// The host was booted since.
    HostRebooted,
    /// It was never started to the end.
    NeverRan,
}

/// Where the process of a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) process: ProcessIdentity,
    pub(crate) started_at_unix_ms: i64,
}

/// The record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub(crate) format: u32,
    pub(crate) spec: MachineSpec,
    pub(crate) accelerator: String,
    /// Boot of the host in which the start was intended.
    pub(crate) boot_id: String,
    /// Filled once the process is known; absent means: it may or may not have been started.
    pub(crate) run: Option<Run>,
    /// Filled once the process is known to be gone.
    pub(crate) ended: Option<Ended>,
}

impl Intent {
    pub(crate) fn new(spec: MachineSpec, accelerator: &str, boot_id: String) -> Self {
        Self {
            format: FORMAT,
            spec,
            accelerator: accelerator.to_owned(),
            boot_id,
            run: None,
            ended: None,
        }
    }

    /// Reads the record of a folder; `None` when there is none.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, HypervisorError> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(HypervisorError::io("read", path)(error)),
        };
        let bad =
            |why: String| HypervisorError::io("read", &path)(io::Error::new(io::ErrorKind::InvalidData, why));
        let intent: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if intent.format > FORMAT {
            return Err(bad(format!(
                "format {} is newer than this program",
                intent.format
            )));
        }
        Ok(Some(intent))
    }

    /// Writes the record so that it survives a power cut, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), HypervisorError> {
        let path = folder.join(FILE);
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| HypervisorError::io("encode", &path)(io::Error::other(e)))?;
        write_durably(folder, FILE, &bytes).map_err(HypervisorError::io("write", path))
    }
}

/// Replaces `folder/name` atomically and syncs file and folder.
pub(crate) fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let part = folder.join(format!("{name}.part"));
    let written = (|| {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, folder.join(name))?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The error that matters is the first one; a leftover is overwritten by the next attempt.
        let _ = fs::remove_file(&part);
    }
    written
}
