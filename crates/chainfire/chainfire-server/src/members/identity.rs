//! Who this member is, on its own disk: `DATA/member` (cluster, id, whether it is removed), and the disk's number beside
//! the Raft log, which is lost with the log.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use raft_host::NodeId;

use crate::ServerError;

/// In the data folder.
const MEMBER_FILE: &str = "member";
/// In the log's folder.
const DISK_FILE: &str = "DISK";

/// What `DATA/member` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemberFile {
    pub(crate) cluster: u64,
    pub(crate) id: NodeId,
    /// It came to a cluster that ran already: it never starts one of its own.
    pub(crate) joined: bool,
    /// It was removed from the cluster: it never starts again.
    pub(crate) removed: bool,
}

impl MemberFile {
    /// The file of a data folder, if there is one.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<MemberFile>, ServerError> {
        let path = data_dir.join(MEMBER_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => match MemberFile::parse(&text) {
                Some(file) => Ok(Some(file)),
                None => Err(ServerError::State(format!(
                    "the file `{}` is malformed; restore it from a backup, or remove this member and add it again",
                    path.display()
                ))),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ServerError::Folder { path, source }),
        }
    }

    /// Writes it, durably.
    pub(crate) fn write(&self, data_dir: &Path) -> Result<(), ServerError> {
        replace(data_dir, MEMBER_FILE, &self.text())
    }

    fn text(&self) -> String {
        format!(
            "# Written by this member; do not change it, do not copy it to another member.\n\
             cluster = {:x}\nid = {:x}\njoined = {}\nremoved = {}\n",
            self.cluster, self.id, self.joined, self.removed
        )
    }

    fn parse(text: &str) -> Option<MemberFile> {
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find_map(|(key, value)| (key.trim() == name).then(|| value.trim()))
        };
        let number = |name: &str| u64::from_str_radix(value(name)?, 16).ok();
        Some(MemberFile {
            cluster: number("cluster")?,
            id: number("id")?,
            joined: value("joined")?.parse().ok()?,
            removed: value("removed")?.parse().ok()?,
        })
    }
}

/// The number of the disk that the log is on: made with the log, gone with the log. Never 0.
pub(crate) fn disk(log_dir: &Path) -> Result<u64, ServerError> {
    let path = log_dir.join(DISK_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16)
            .ok()
            .filter(|disk| *disk != 0)
            .ok_or_else(|| {
                ServerError::State(format!(
                    "the file `{}` is malformed; restore it from a backup, or remove this member and add it again",
                    path.display()
                ))
            }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let disk = rand::random::<u64>().max(1);
            replace(log_dir, DISK_FILE, &format!("{disk:x}\n"))?;
            Ok(disk)
        }
        Err(source) => Err(ServerError::Folder { path, source }),
    }
}

/// Whether there is a Raft log in the folder.
pub(crate) fn has_log(log_dir: &Path) -> bool {
    std::fs::read_dir(log_dir).is_ok_and(|mut entries| {
        entries.any(|entry| {
            entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "raftlog"))
        })
    })
}

fn replace(dir: &Path, name: &str, text: &str) -> Result<(), ServerError> {
    let path: PathBuf = dir.join(name);
    let new = dir.join(format!("{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| ServerError::Folder {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_come_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(MemberFile::read(dir.path()).unwrap(), None);
        let file = MemberFile {
            cluster: u64::MAX,
            id: 7,
            joined: true,
            removed: false,
        };
        file.write(dir.path()).unwrap();
        assert_eq!(MemberFile::read(dir.path()).unwrap(), Some(file));
        let first = disk(dir.path()).unwrap();
        assert_eq!(disk(dir.path()).unwrap(), first);
        assert!(!has_log(dir.path()));
        std::fs::write(dir.path().join(MEMBER_FILE), "id = 7\n").unwrap();
        assert!(
            MemberFile::read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("malformed")
        );
        std::fs::write(dir.path().join(DISK_FILE), "0\n").unwrap();
        assert!(disk(dir.path()).unwrap_err().to_string().contains("malformed"));
    }
}
