//! Pid files that name one process for certain: pid and start time, since pids are used again.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A process: its pid and when it was started (clock ticks since boot, /proc/PID/stat field 22).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) pid: u32,
    start: u64,
}

impl Known {
    /// The process that has this pid now; None when there is none, or nobody has reaped it yet.
    pub(crate) fn now(pid: u32) -> Option<Known> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in brackets and may hold anything, spaces too.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        // After state come fields 4.. ; the start time is field 22.
        let start = fields.nth(18)?.parse().ok()?;
        Some(Known { pid, start })
    }

    pub(crate) fn is_alive(self) -> bool {
        Known::now(self.pid) == Some(self)
    }
}

/// Writes `PID START` through a rename: the file is whole or absent.
pub(crate) fn write(path: &Path, pid: u32) -> Result<()> {
    let known = Known::now(pid).with_context(|| format!("process {pid} has ended already"))?;
    let new = path.with_extension("new");
    fs::write(&new, format!("{} {}\n", known.pid, known.start))
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The process that the file names, if it still runs.
pub(crate) fn read(path: &Path) -> Option<Known> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, start) = text.trim().split_once(' ')?;
    let known = Known {
        pid: pid.parse().ok()?,
        start: start.parse().ok()?,
    };
    known.is_alive().then_some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_names_one_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        write(&path, std::process::id()).unwrap();
        assert_eq!(read(&path).map(|k| k.pid), Some(std::process::id()));
        // The same pid with another start time is somebody else.
        fs::write(&path, format!("{} 1\n", std::process::id())).unwrap();
        assert_eq!(read(&path), None);
    }
}
