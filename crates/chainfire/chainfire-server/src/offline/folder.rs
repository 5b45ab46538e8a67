//! Data folders that are built beside their place and put there in one step.
//!
//! ```text
//!   DIR.rebuilt/REBUILT = "building"         being built: a crash leaves this, the next run begins again
//!   DIR.rebuilt/REBUILT = "complete TOKEN"   ready: from here on, every run only finishes
//!   DIR <-> DIR.rebuilt                      exchanged (renamed, when there is no DIR)
//!   DIR.rebuilt -> DIR.before-STAMP          the old data, never deleted
//!   DIR/REBUILT removed                      done
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Name of the mark in a rebuilt folder.
const MARK: &str = "REBUILT";
const BUILDING: &str = "building";
const COMPLETE: &str = "complete ";
/// Names tried for the old data's folder.
const MAX_NAMES: u32 = 1000;

/// How far a rebuilt folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// No mark: not ours, or finished.
    None,
    Building,
    /// With the token of the run that built it.
    Complete(String),
}

/// What went wrong with a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} `{path}`")]
pub struct FolderError {
    /// What was tried.
    what: &'static str,
    /// On what.
    path: PathBuf,
    source: io::Error,
}

/// Names an error.
pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError { what, path, source }
}

/// The folder that stands beside `dir` while it is built.
pub(crate) fn beside(dir: &Path) -> PathBuf {
    with_suffix(dir, ".rebuilt")
}

fn with_suffix(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn mark(dir: &Path) -> Result<Mark, FolderError> {
    let path = dir.join(MARK);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text
            .trim()
            .strip_prefix(COMPLETE)
            .map_or(Mark::Building, |token| Mark::Complete(token.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Mark::None),
        Err(error) => Err(failed("read", &path)(error)),
    }
}

/// Whether there is nothing in `dir`, or no `dir`.
pub(crate) fn is_empty(dir: &Path) -> Result<bool, FolderError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed("look into", dir)(error)),
    }
}

/// Makes an empty folder beside `dir`, throwing away what an interrupted run left there.
pub(crate) fn begin(dir: &Path) -> Result<PathBuf, FolderError> {
    let part = beside(dir);
    match fs::remove_dir_all(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &part)(error)),
        _ => {}
    }
    fs::create_dir_all(&part).map_err(failed("make the folder", &part))?;
    write(&part.join(MARK), BUILDING)?;
    Ok(part)
}

/// Everything in the folder is there: makes it durable and says so.
pub(crate) fn complete(part: &Path, token: &str) -> Result<(), FolderError> {
    sync_all(part)?;
    write(&part.join(MARK), &format!("{COMPLETE}{token}\n"))?;
    sync(parent(part))
}

/// Puts the complete folder beside `dir` in its place; what was there goes to a folder with `stamp` in its name, which
/// is returned. Can be repeated after a crash at any point.
pub(crate) fn put_in_place(dir: &Path, stamp: &str) -> Result<Option<PathBuf>, FolderError> {
    let part = beside(dir);
    if let Mark::Complete(_) = mark(&part)? {
        if !dir.exists() {
            fs::rename(&part, dir).map_err(failed("rename", &part))?;
        } else if !exchange(&part, dir)? {
            // The file system cannot exchange. A crash between the two leaves no `dir`, and the next run goes on here.
            let name = free_name(dir, stamp);
            fs::rename(dir, &name).map_err(failed("rename", dir))?;
            fs::rename(&part, dir).map_err(failed("rename", &part))?;
            sync(parent(dir))?;
            forget_mark(dir)?;
            return Ok(Some(name));
        }
        sync(parent(dir))?;
    }
    let mut kept = None;
    if part.exists() {
        if is_empty(&part)? {
            fs::remove_dir(&part).map_err(failed("remove", &part))?;
        } else {
            let name = free_name(dir, stamp);
            fs::rename(&part, &name).map_err(failed("rename", &part))?;
            kept = Some(name);
        }
        sync(parent(dir))?;
    }
    forget_mark(dir)?;
    Ok(kept)
}

/// Removes the mark of a finished run.
pub(crate) fn forget_mark(dir: &Path) -> Result<(), FolderError> {
    let path = dir.join(MARK);
    match fs::remove_file(&path) {
        Ok(()) => sync(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", &path)(error)),
    }
}

/// False when the file system cannot.
fn exchange(part: &Path, dir: &Path) -> Result<bool, FolderError> {
    match renameat2(AT_FDCWD, part, AT_FDCWD, dir, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOSYS) => Ok(false),
        Err(errno) => Err(failed("exchange with the rebuilt folder", dir)(errno.into())),
    }
}

fn free_name(dir: &Path, stamp: &str) -> PathBuf {
    let first = with_suffix(dir, &format!(".before-{stamp}"));
    let others = (2..MAX_NAMES).map(|n| with_suffix(dir, &format!(".before-{stamp}-{n}")));
    std::iter::once(first.clone())
        .chain(others)
        .find(|name| !name.exists())
        .unwrap_or(first)
}

/// Writes a small file, whole or not at all, durably.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), FolderError> {
    let temporary = path.with_added_extension("new");
    fs::write(&temporary, text).map_err(failed("write", &temporary))?;
    sync(&temporary)?;
    fs::rename(&temporary, path).map_err(failed("rename", &temporary))?;
    sync(parent(path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync(path: &Path) -> Result<(), FolderError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", path))
}

/// Syncs every file and folder below `dir`.
fn sync_all(dir: &Path) -> Result<(), FolderError> {
    for entry in fs::read_dir(dir).map_err(failed("look into", dir))? {
        let path = entry.map_err(failed("look into", dir))?.path();
        if path.is_dir() {
            sync_all(&path)?;
        } else {
            sync(&path)?;
        }
    }
    sync(dir)
}

/// Copies a folder of plain files.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), FolderError> {
    fs::create_dir_all(to).map_err(failed("make the folder", to))?;
    for entry in fs::read_dir(from).map_err(failed("look into", from))? {
        let path = entry.map_err(failed("look into", from))?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name)).map_err(failed("copy", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    /// From every point at which a run can have been cut off, a repeated one ends in the same place.
    #[test]
    fn a_run_cut_off_anywhere_is_finished_by_the_next() {
        for cut in ["building", "complete", "exchanged", "renamed", "done"] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("member");
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("data"), "old").unwrap();
            let build = || {
                let part = begin(&dir).unwrap();
                fs::write(part.join("data"), "new").unwrap();
                part
            };
            let part = build();
            if cut == "building" {
                assert_eq!(mark(&beside(&dir)).unwrap(), Mark::Building);
                build();
            }
            complete(&part, "t").unwrap();
            assert_eq!(mark(&part).unwrap(), Mark::Complete("t".into()));
            let old = root.path().join("member.before-now");
            if ["exchanged", "renamed", "done"].contains(&cut) {
                exchange(&part, &dir).unwrap();
            }
            if ["renamed", "done"].contains(&cut) {
                fs::rename(&part, &old).unwrap();
            }
            if cut == "done" {
                forget_mark(&dir).unwrap();
            }
            put_in_place(&dir, "now").unwrap();
            assert_eq!(text(&dir.join("data")), "new", "{cut}");
            assert_eq!(text(&old.join("data")), "old", "{cut}");
            assert_eq!(mark(&dir).unwrap(), Mark::None, "{cut}");
            assert!(!beside(&dir).exists(), "{cut}");
        }
    }

    #[test]
    fn an_empty_or_missing_place_is_simply_taken() {
        for there in [false, true] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("member");
            if there {
                fs::create_dir(&dir).unwrap();
            }
            let part = begin(&dir).unwrap();
            fs::write(part.join("data"), "new").unwrap();
            complete(&part, "t").unwrap();
            assert_eq!(put_in_place(&dir, "now").unwrap(), None);
            assert_eq!(text(&dir.join("data")), "new");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }
}
