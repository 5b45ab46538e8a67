//! The last known state on disk, so that a restart without Chainfire answers from it.
//!
//! ```text
//! flashdns-state 1 CRC32 LENGTH\n      eight hexadecimal digits; decimal
//! JSON of Saved                        LENGTH bytes that have this CRC32
//! ```
//! Written to a second file, synced and renamed: a crash leaves the old or the new state, never a mix.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// Name of the file in the data folder.
pub(crate) const FILE: &str = "state";
const MAGIC: &str = "flashdns-state 1";

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// Chainfire's cluster id: revisions of another cluster mean nothing here.
    pub(crate) cluster: u64,
    /// Revision that the serial has reached.
    pub(crate) serial_revision: i64,
    /// Key, value and revision of each entry.
    pub(crate) entries: Vec<(String, String, i64)>,
}

/// Why there is no saved state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the file of the last state cannot be read")]
    Read(#[source] io::Error),
    #[error("the file of the last state is damaged ({0})")]
    Damaged(&'static str),
    #[error("the file of the last state was written by another version")]
    Foreign(#[source] serde_json::Error),
}

/// Reads the saved state; `None` when there never was one.
pub(crate) fn load(folder: &Path) -> Result<Option<Saved>, LoadError> {
    let bytes = match fs::read(folder.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LoadError::Read(error)),
    };
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(LoadError::Damaged("no header"))?;
    let (header, body) = bytes.split_at(end);
    let body = body.get(1..).unwrap_or(&[]);
    let expected = header_of(body);
    if header != expected.as_bytes() {
        return Err(LoadError::Damaged("length or checksum do not match"));
    }
    serde_json::from_slice(body).map(Some).map_err(LoadError::Foreign)
}

fn header_of(body: &[u8]) -> String {
    format!("{MAGIC} {:08x} {}", crc32fast::hash(body), body.len())
}

/// Replaces the saved state.
pub(crate) fn store(folder: &Path, saved: &Saved) -> io::Result<()> {
    let body = serde_json::to_vec(saved)?;
    let fresh = folder.join(format!("{FILE}.new"));
    let mut file = File::create(&fresh)?;
    file.write_all(header_of(&body).as_bytes())?;
    file.write_all(b"\n")?;
    file.write_all(&body)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join(FILE))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_loaded_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(folder.path()).unwrap().is_none());
        let entries = vec![("/k".to_owned(), "v".to_owned(), 7)];
        let saved = Saved {
            cluster: u64::MAX,
            serial_revision: 9,
            entries,
        };
        store(folder.path(), &saved).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(saved.clone()));
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert!(
                load(folder.path()).is_err(),
                "a flipped bit at {at} went unnoticed"
            );
            fs::write(&path, &whole[..at]).unwrap();
            assert!(load(folder.path()).is_err(), "a cut at {at} went unnoticed");
        }
        store(folder.path(), &saved).unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(saved));
    }
}
