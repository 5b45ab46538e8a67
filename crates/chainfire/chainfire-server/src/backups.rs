//! Scheduled backups: every so often, a verified file in a folder of this member, the oldest of them removed.
//!
//! A member does this for itself, leader or not: whoever has the folder in its configuration. A backup that failed is
//! logged and tried again after the next period; the ones before it stay.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::sleep;

use crate::{
    node::{GROUP, Node},
    offline::{BackupError, BackupInfo, Maker, WriteEnd, check_backup, take_picture},
    tables::StorageError,
};

/// End of a backup's name.
const EXTENSION: &str = "chainfire";

/// Why a backup was not made.
#[derive(Debug, thiserror::Error)]
enum ScheduleError {
    #[error("the member is stopping")]
    Stopping,
    #[error("the state cannot be read: {0}")]
    State(String),
    #[error("cannot write `{path}`")]
    Write { path: PathBuf, source: io::Error },
    #[error("what was written is not sound")]
    Check(#[from] BackupError),
}

impl From<StorageError> for ScheduleError {
    fn from(error: StorageError) -> ScheduleError {
        ScheduleError::State(error.to_string())
    }
}

/// Makes backups as the configuration says, until the stop.
pub(crate) async fn run(node: &Node) {
    let config = &node.config;
    let Some(dir) = config.backup_dir.clone() else {
        return node.tasks.stopping().await;
    };
    let period = Duration::from_secs(config.backup_every_s);
    loop {
        tokio::select! {
            () = node.tasks.stopping() => return,
            () = sleep(period) => {}
        }
        match one(node, &dir).await {
            Ok((path, info)) => {
                tracing::info!(path = %path.display(), revision = info.revision, bytes = info.bytes, "made a backup");
                rotate(&dir, &config.member, config.backup_keep);
            }
            Err(ScheduleError::Stopping) => return,
            Err(error) => {
                let error = hearth_service::tasks::chain(&error);
                tracing::error!(error, dir = %dir.display(), "no backup was made; the next is tried after the usual time");
            }
        }
    }
}

async fn one(node: &Node, dir: &Path) -> Result<(PathBuf, BackupInfo), ScheduleError> {
    let raft = node.raft.status(GROUP).await.ok_or(ScheduleError::Stopping)?;
    let maker = Maker {
        cluster: node.config.cluster.clone(),
        cluster_id: node.config.cluster_id(),
        member: node.config.member.clone(),
        member_id: node.id,
        term: raft.leader.term,
        members: raft.membership,
    };
    let (shared, dir) = (node.shared.clone(), dir.to_owned());
    let work = move || {
        let picture = take_picture(&shared, maker)?;
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        // Ten digits until the year 2286: names sort by age.
        let name = format!(
            "{}-{seconds}-r{}.{EXTENSION}",
            picture.header.member, picture.header.revision
        );
        let (path, part) = (dir.join(&name), dir.join(name + ".part"));
        let cannot = |source| ScheduleError::Write {
            path: part.clone(),
            source,
        };
        fs::create_dir_all(&dir).map_err(cannot)?;
        let mut file = File::create(&part).map_err(cannot)?;
        let written = picture.write(|bytes| file.write_all(bytes));
        let kept = match written {
            Ok(()) => file.sync_all().map_err(cannot),
            Err(WriteEnd::Engine(error)) => Err(ScheduleError::State(error.to_string())),
            Err(WriteEnd::Sink(error)) => Err(cannot(error)),
        };
        let checked = kept.and_then(|()| Ok(check_backup(&part)?));
        let info = checked.inspect_err(|_| drop(fs::remove_file(&part)))?;
        fs::rename(&part, &path).map_err(cannot)?;
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(cannot)?;
        Ok((path, info))
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(ScheduleError::Stopping))
}

/// Removes all but the newest `keep` backups of this member.
fn rotate(dir: &Path, member: &str, keep: usize) {
    let mut names: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_backup_of(path, member))
            .collect(),
        Err(error) => return tracing::warn!(%error, dir = %dir.display(), "old backups cannot be listed"),
    };
    names.sort();
    let old = names.len().saturating_sub(keep.max(1));
    for path in names.into_iter().take(old) {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "an old backup cannot be removed");
        }
    }
}

/// `MEMBER-SECONDS-rREVISION.chainfire` of exactly this member: `m1-x` is not `m1`.
fn is_backup_of(path: &Path, member: &str) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    name.as_deref()
        .and_then(|name| name.strip_prefix(member)?.strip_prefix('-'))
        .and_then(|rest| rest.strip_suffix(EXTENSION)?.strip_suffix('.'))
        .and_then(|rest| rest.split_once("-r"))
        .is_some_and(|(seconds, revision)| {
            let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number(seconds) && is_number(revision)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_old_backups_go() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            "m1-1700000001-r5.chainfire",
            "m1-1700000002-r4.chainfire",
            "m1-1700000003-r9.chainfire",
            "m1-x-1700000000-r1.chainfire",
            "m2-1700000000-r1.chainfire",
            "m1-1700000000-r1.chainfire.part",
            "m1-notes.chainfire",
        ];
        for name in names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        rotate(dir.path(), "m1", 2);
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let mut expected: Vec<&str> = names.into_iter().skip(1).collect();
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
