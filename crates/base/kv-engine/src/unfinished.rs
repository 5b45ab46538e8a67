//! Databases whose making was cut off.
//!
//! fjall makes a lock, an empty folder for keyspaces, a journal, and last its marker; found without the marker, it makes
//! them again and stumbles over the journal that is there. Nothing was ever written to such a database.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::EngineError;

/// fjall's names.
const MARKER: &str = "version";
const LOCK: &str = "lock";
const KEYSPACES: &str = "keyspaces";
const FIRST_JOURNAL: &str = "0.jnl";

/// Removes what a process left behind that was killed while it made a new database. Does nothing where a database is,
/// or none.
///
/// # Errors
/// When another process is at it, and when there are keyspaces and no marker: that is damage, and nothing is touched.
pub(crate) fn clear(path: &Path) -> Result<(), EngineError> {
    let failed = |error: io::Error| EngineError::Io {
        path: path.to_owned(),
        what: error.to_string(),
    };
    if !is_unfinished(path).map_err(failed)? {
        return Ok(());
    }
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join(LOCK))
        .map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => EngineError::Locked {
            path: path.to_owned(),
        },
        TryLockError::Error(error) => failed(error),
    })?;
    // Who had the lock until now may have finished.
    if !is_unfinished(path).map_err(failed)? {
        return Ok(());
    }
    if has_entries(&path.join(KEYSPACES)).map_err(failed)? {
        return Err(EngineError::Damaged {
            path: path.to_owned(),
            what: format!("it has keyspaces, but its file `{MARKER}` is missing or empty"),
        });
    }
    tracing::info!(path = %path.display(), "a database that was never finished is made anew");
    for name in [FIRST_JOURNAL, MARKER] {
        match fs::remove_file(path.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    Ok(())
}

fn is_unfinished(path: &Path) -> io::Result<bool> {
    match fs::metadata(path.join(MARKER)) {
        Ok(marker) => Ok(marker.len() == 0),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok(path.join(FIRST_JOURNAL).try_exists()? || has_entries(&path.join(KEYSPACES))?)
        }
        Err(error) => Err(error),
    }
}

fn has_entries(folder: &Path) -> io::Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
