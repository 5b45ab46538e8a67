//! Reading a backup file, with every check there is: length, head, every frame and record, count, digest.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use kv_engine::{ExportReader, Exported};
use prost::Message;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::format::{BackupHeader, DIGEST_BYTES, FORMAT, MAGIC, MAX_HEADER_BYTES, PREFIX_BYTES, SECTOR};

/// Read at a time, bytes.
const READ_BYTES: usize = 256 << 10;

/// Why a backup is not used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("cannot read the backup `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is something else.
    #[error("`{path}` is not a backup of Chainfire: {what}")]
    NotOne {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        what: String,
    },
    /// It was written by a release after this one.
    #[error(
        "the backup `{path}` has format {found}, this release reads {FORMAT}: use the release that wrote it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It has changed since it was written.
    #[error("the backup `{path}` is damaged at byte {offset}: {what}; use another one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, about.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// What was done with its content failed.
    #[error("the content of the backup `{path}` cannot be used: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
}

/// What a sound backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupInfo {
    /// The cluster's name, with its incarnation.
    pub cluster: String,
    /// The cluster's id on the wire.
    pub cluster_id: u64,
    /// The member that made it.
    pub member: String,
    /// Revision of the last change in it.
    pub revision: i64,
    /// Oldest readable revision; -1: nothing was compacted.
    pub compacted: i64,
    /// Raft index of the last entry in it.
    pub raft_index: u64,
    /// Raft term when it was made.
    pub raft_term: u64,
    /// Peer addresses of the members of that time.
    pub members: Vec<String>,
    /// Release that wrote it.
    pub release: String,
    /// Keys.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Stored records of all kinds, old revisions included.
    pub records: u64,
    /// Seconds since 1970 by the clock of the member that made it.
    pub created_s: u64,
    /// Length of the file.
    pub bytes: u64,
    /// The digest at its end, in hexadecimal.
    pub sha256: String,
}

/// Checks a backup from end to end.
pub fn check_backup(path: &Path) -> Result<BackupInfo, BackupError> {
    let mut check = crate::record_check::RecordCheck::default();
    let info = read_backup(path, |exported| {
        let pairs = exported.pairs.iter();
        pairs
            .into_iter()
            .try_for_each(|(key, value)| check.pair(&exported.keyspace, key, value))
    })?;
    check
        .agrees_with(info.revision, info.raft_index)
        .map_err(|what| BackupError::Damaged {
            path: path.to_owned(),
            offset: 0,
            what,
        })?;
    Ok(info)
}

/// Reads a backup, giving its content to `each`, and checks everything but the records' insides. What `each` got is
/// good only when this returns well: the digest comes last.
pub(crate) fn read_backup(
    path: &Path,
    each: impl FnMut(Exported) -> Result<(), String>,
) -> Result<BackupInfo, BackupError> {
    let mut file = Hashed::open(path)?;
    let header = file.header()?;
    let records = file.body(each)?;
    let sha256 = file.end()?;
    Ok(BackupInfo {
        cluster: header.cluster,
        cluster_id: header.cluster_id,
        member: header.member,
        revision: header.revision,
        compacted: header.compacted,
        raft_index: header.applied,
        raft_term: header.term,
        members: header.members.into_iter().map(|member| member.peer).collect(),
        release: header.release,
        keys: header.keys,
        leases: header.leases,
        records,
        created_s: header.created_s,
        bytes: file.length,
        sha256,
    })
}

/// The file, hashed as it is read, up to the digest.
struct Hashed {
    path: PathBuf,
    file: File,
    length: u64,
    offset: u64,
    digest: Sha256,
}

impl Hashed {
    fn open(path: &Path) -> Result<Hashed, BackupError> {
        let read = |source| BackupError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        Ok(Hashed {
            path: path.to_owned(),
            file,
            length,
            offset: 0,
            digest: Sha256::new(),
        })
    }

    fn damaged(&self, what: impl Into<String>) -> BackupError {
        BackupError::Damaged {
            path: self.path.clone(),
            offset: self.offset,
            what: what.into(),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), BackupError> {
        self.file.read_exact(buffer).map_err(|source| {
            if source.kind() == io::ErrorKind::UnexpectedEof {
                self.damaged("it is cut off")
            } else {
                BackupError::Read {
                    path: self.path.clone(),
                    source,
                }
            }
        })?;
        self.digest.update(&*buffer);
        self.offset += buffer.len() as u64;
        Ok(())
    }

    fn header(&mut self) -> Result<BackupHeader, BackupError> {
        let mut prefix = [0; PREFIX_BYTES];
        if self.length < PREFIX_BYTES as u64 + DIGEST_BYTES {
            let what = format!("it has only {} bytes", self.length);
            let path = self.path.clone();
            return Err(BackupError::NotOne { path, what });
        }
        self.fill(&mut prefix)?;
        let (magic, rest) = prefix.split_at(MAGIC.len());
        if magic != MAGIC {
            let what = "it does not begin as one (a snapshot of etcd is a bbolt file)".to_owned();
            let path = self.path.clone();
            return Err(BackupError::NotOne { path, what });
        }
        let number = |at: usize| {
            let bytes = rest.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let (format, length) = (number(0), number(4) as usize);
        if format != FORMAT {
            let path = self.path.clone();
            return Err(BackupError::Newer { path, found: format });
        }
        if self.length % SECTOR != DIGEST_BYTES {
            return Err(self.damaged(format!(
                "its length of {} bytes is impossible, it is cut off or something was added",
                self.length
            )));
        }
        if length > MAX_HEADER_BYTES || self.offset + length as u64 > self.body_end() {
            return Err(self.damaged("its header has an impossible length"));
        }
        let mut header = vec![0; length];
        self.fill(&mut header)?;
        BackupHeader::decode(header.as_slice()).map_err(|error| self.damaged(format!("its header: {error}")))
    }

    /// Where the digest begins.
    fn body_end(&self) -> u64 {
        self.length.saturating_sub(DIGEST_BYTES)
    }

    /// Returns how many records there were.
    fn body(&mut self, mut each: impl FnMut(Exported) -> Result<(), String>) -> Result<u64, BackupError> {
        let mut reader = ExportReader::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut filled = true;
        while self.offset < self.body_end() {
            let want = usize::try_from(self.body_end() - self.offset).unwrap_or(READ_BYTES);
            let piece = buffer.get_mut(..want.min(READ_BYTES)).unwrap_or_default();
            let before = self.offset;
            self.fill(piece)?;
            if reader.is_complete() {
                filled &= piece.iter().all(|byte| *byte == 0);
                continue;
            }
            let found = reader.feed(piece).map_err(|error| BackupError::Damaged {
                path: self.path.clone(),
                offset: before,
                what: error.to_string(),
            })?;
            for exported in found {
                each(exported).map_err(|what| BackupError::Content {
                    path: self.path.clone(),
                    what,
                })?;
            }
            if reader.is_complete() {
                filled &=
                    reader.rest().len() < SECTOR as usize && reader.rest().iter().all(|byte| *byte == 0);
            }
        }
        if !reader.is_complete() {
            return Err(self.damaged("its end is missing"));
        }
        if !filled {
            return Err(self.damaged("something follows its content"));
        }
        Ok(reader.pairs())
    }

    fn end(&mut self) -> Result<String, BackupError> {
        let computed = self.digest.clone().finalize();
        let mut told = [0; DIGEST_BYTES as usize];
        self.fill(&mut told)?;
        if computed.as_slice() != told {
            return Err(self.damaged("its content does not fit the checksum at its end"));
        }
        if self.file.read(&mut [0]).is_ok_and(|more| more > 0) {
            return Err(self.damaged("it grew while it was read"));
        }
        Ok(told.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}
