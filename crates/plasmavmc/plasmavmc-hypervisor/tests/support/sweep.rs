//! Ends what a failed test leaves running: guests outlive the test that started them, and all its locks.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// When dropped, kills every process that names the folder in its command line or works in it.
pub(crate) struct Sweep(pub(crate) PathBuf);

impl Drop for Sweep {
    fn drop(&mut self) {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let number = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
            if let Some(pid) = number.filter(|_| works_in(&entry.path(), &self.0)) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn works_in(process: &Path, folder: &Path) -> bool {
    let words = fs::read(process.join("cmdline")).unwrap_or_default();
    // A folder that is gone has a mark behind its name.
    let cwd = fs::read_link(process.join("cwd")).unwrap_or_default();
    String::from_utf8_lossy(&words).contains(&*folder.to_string_lossy()) || cwd.starts_with(folder)
}
