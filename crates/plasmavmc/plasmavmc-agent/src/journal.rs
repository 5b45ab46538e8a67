//! What the agent must not forget: per VM the highest epoch, the last assignment, and how it ended;
//! per action, that it was begun and how it ended.
//!
//! One small file per VM, replaced atomically and synced before anything is done about it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use plasmavmc_client::agent::Assignment;
use plasmavmc_hypervisor::MachineId;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::acts::Acts;

/// Version of the files' format; newer ones are refused.
const FORMAT: u32 = 1;
/// Results of actions that are remembered. A hub repeats an action within minutes, not thousands later.
const MAX_ACTIONS: usize = 1024;
/// How long the highest epoch of a VM that is gone is kept.
const GONE_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
const ACTIONS: &str = "actions.json";

/// What went wrong with a journal file.
#[derive(Debug, thiserror::Error)]
#[error("journal `{path}`")]
pub(crate) struct JournalError {
    path: PathBuf,
    source: io::Error,
}

/// The record of one VM.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Entry {
    /// Highest epoch ever assigned; lower ones are refused for ever.
    pub(crate) highest_epoch: u64,
    /// The last assignment taken over.
    pub(crate) assignment: Option<Assignment>,
    /// Epoch and generation in which the guest switched itself off: it is not started again in them.
    pub(crate) guest_off: Option<(u64, u64)>,
    /// Nothing of the VM is left; only the epoch is kept.
    pub(crate) gone: bool,
    /// Pauses and resets.
    pub(crate) acts: Acts,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredEntry {
    format: u32,
    highest_epoch: u64,
    /// The protobuf message in hexadecimal.
    assignment: Option<String>,
    guest_off: Option<(u64, u64)>,
    gone: bool,
    #[serde(default)]
    acts: Acts,
}

/// How an action ended; `None` while it is being done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ActionRecord {
    pub(crate) id: String,
    pub(crate) outcome: Option<Result<(), String>>,
}

/// The folder of journal files.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    actions: Mutex<VecDeque<ActionRecord>>,
}

impl Journal {
    /// Opens or makes the folder and reads every record.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Vec<(MachineId, Entry)>), JournalError> {
        let failed = |source| JournalError {
            path: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut entries = Vec::new();
        for file in fs::read_dir(folder).map_err(failed)? {
            let path = file.map_err(failed)?.path();
            let id = path
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.strip_suffix(".vm"));
            let Some(id) = id.and_then(|id| MachineId::try_from(id.to_owned()).ok()) else {
                continue;
            };
            let entry = read_entry(&path).map_err(|source| JournalError {
                path: path.clone(),
                source,
            })?;
            if entry.gone && is_old(&path) {
                // Nobody can send an assignment that old any more.
                let _ = fs::remove_file(&path);
                continue;
            }
            entries.push((id, entry));
        }
        let actions = match fs::read(folder.join(ACTIONS)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(invalid(e)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => VecDeque::new(),
            Err(error) => return Err(failed(error)),
        };
        Ok((
            Self {
                folder: folder.to_owned(),
                actions: Mutex::new(actions),
            },
            entries,
        ))
    }

    /// Stores the record of a VM; on disk when this returns.
    pub(crate) fn put(&self, id: &MachineId, entry: &Entry) -> Result<(), JournalError> {
        let stored = StoredEntry {
            format: FORMAT,
            highest_epoch: entry.highest_epoch,
            assignment: entry.assignment.as_ref().map(|a| hex::encode(a.encode_to_vec())),
            guest_off: entry.guest_off,
            gone: entry.gone,
            acts: entry.acts.clone(),
        };
        self.write(&format!("{id}.vm"), &stored)
    }

    /// The record of an action, if it was ever begun.
    pub(crate) fn action(&self, id: &str) -> Option<ActionRecord> {
        let actions = self.actions.lock().unwrap_or_else(PoisonError::into_inner);
        actions.iter().find(|a| a.id == id).cloned()
    }

    /// Stores that an action is begun (`None`) or how it ended.
    pub(crate) fn put_action(&self, record: ActionRecord) -> Result<(), JournalError> {
        let mut actions = self.actions.lock().unwrap_or_else(PoisonError::into_inner);
        actions.retain(|a| a.id != record.id);
        if actions.len() >= MAX_ACTIONS {
            actions.pop_front();
        }
        actions.push_back(record);
        // Written under the lock: two writers must not overtake each other. It is held for one small write.
        self.write(ACTIONS, &*actions)
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), JournalError> {
        let path = self.folder.join(name);
        let bytes = serde_json::to_vec(value).map_err(|e| JournalError {
            path: path.clone(),
            source: io::Error::other(e),
        })?;
        write_durably(&self.folder, name, &bytes).map_err(|source| JournalError { path, source })
    }
}

fn is_old(path: &Path) -> bool {
    let age = fs::metadata(path)
        .and_then(|m| m.modified())
        .ok()
        .and_then(|t| t.elapsed().ok());
    age.is_some_and(|age| age > GONE_KEPT)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn read_entry(path: &Path) -> io::Result<Entry> {
    let stored: StoredEntry = serde_json::from_slice(&fs::read(path)?).map_err(invalid)?;
    if stored.format > FORMAT {
        let text = format!("format {} is newer than this program", stored.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let assignment = match stored.assignment {
        Some(text) => {
            let bytes = hex::decode(text).map_err(invalid)?;
            Some(Assignment::decode(bytes.as_slice()).map_err(invalid)?)
        }
        None => None,
    };
    Ok(Entry {
        highest_epoch: stored.highest_epoch,
        assignment,
        guest_off: stored.guest_off,
        gone: stored.gone,
        acts: stored.acts,
    })
}

/// Replaces `folder/name` atomically and syncs file and folder. A failure leaves no half-made file.
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
        // The first error is the one to report.
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let id = MachineId::try_from("vm-1".to_owned()).unwrap();
        let assignment = Assignment {
            vm_id: "vm-1".to_owned(),
            epoch: 4,
            generation: 9,
            ..Default::default()
        };
        let entry = Entry {
            highest_epoch: 4,
            assignment: Some(assignment),
            guest_off: Some((4, 8)),
            gone: false,
            acts: Acts {
                resets: 2,
                begun: Some((3, 4711)),
                held: true,
            },
        };
        let record = ActionRecord {
            id: "a".to_owned(),
            outcome: None,
        };
        {
            let (journal, entries) = Journal::open(dir.path()).unwrap();
            assert!(entries.is_empty());
            journal.put(&id, &entry).unwrap();
            journal.put_action(record.clone()).unwrap();
        }
        let (journal, entries) = Journal::open(dir.path()).unwrap();
        assert_eq!(entries, [(id, entry)]);
        assert_eq!(journal.action("a"), Some(record));
        for n in 0..MAX_ACTIONS {
            let actions = &mut *journal.actions.lock().unwrap();
            actions.push_back(ActionRecord {
                id: n.to_string(),
                outcome: Some(Ok(())),
            });
        }
        journal
            .put_action(ActionRecord {
                id: "b".to_owned(),
                outcome: Some(Ok(())),
            })
            .unwrap();
        assert_eq!(journal.action("a"), None, "the oldest goes first");
    }

    #[test]
    fn only_what_is_long_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let ids = ["new-gone", "old-gone", "old-kept"].map(|n| MachineId::try_from(n.to_owned()).unwrap());
        let (journal, _) = Journal::open(dir.path()).unwrap();
        for id in &ids {
            let gone = id.as_str().ends_with("gone");
            journal
                .put(
                    id,
                    &Entry {
                        gone,
                        ..Entry::default()
                    },
                )
                .unwrap();
            if id.as_str().starts_with("old") {
                let file = File::options()
                    .write(true)
                    .open(dir.path().join(format!("{id}.vm")))
                    .unwrap();
                file.set_modified(std::time::SystemTime::now() - 2 * GONE_KEPT)
                    .unwrap();
            }
        }
        let (_, mut entries) = Journal::open(dir.path()).unwrap();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            entries.iter().map(|e| e.0.as_str()).collect::<Vec<_>>(),
            ["new-gone", "old-kept"]
        );
    }

    #[test]
    fn a_newer_format_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let text = br#"{"format":2,"highest_epoch":1,"assignment":null,"guest_off":null,"gone":false}"#;
        fs::write(dir.path().join("vm-1.vm"), text).unwrap();
        assert!(Journal::open(dir.path()).is_err());
    }
}
