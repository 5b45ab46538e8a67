//! Processes by pid, start time and boot id; never by name.

use std::fs;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How often the end of a process is looked for.
const POLL: Duration = Duration::from_millis(20);

/// One process of one boot of one host. A pid alone comes again; the three together do not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The host's boot id at the time.
    pub boot_id: String,
}

/// Id of the host's current boot.
///
/// Empty when the kernel does not tell: then no process of an earlier run is taken for ours.
#[must_use]
pub fn host_boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|t| t.trim().to_owned())
        .unwrap_or_default()
}

/// Start time and state letter of a process, if it exists.
fn start_ticks(pid: u32) -> Option<(u64, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in brackets and may itself contain both spaces and brackets.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?.chars().next()?;
    let ticks = fields.nth(18)?.parse().ok()?;
    Some((ticks, state))
}

impl ProcessIdentity {
    /// The identity of a process that runs now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let (start_ticks, _) = start_ticks(pid)?;
        Some(Self {
            pid,
            start_ticks,
            boot_id: host_boot_id(),
        })
    }

    /// Whether exactly this process still runs. A zombie does not: it holds no file any more.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.boot_id.is_empty()
            && self.boot_id == host_boot_id()
            && start_ticks(self.pid).is_some_and(|(ticks, state)| ticks == self.start_ticks && state != 'Z')
    }

    /// Kills it if it still is this process.
    ///
    /// # Errors
    /// What the system says.
    pub fn kill(&self) -> Result<(), Errno> {
        self.signal(Signal::SIGKILL)
    }

    /// Makes it stand still, if it still is this process.
    ///
    /// # Errors
    /// What the system says.
    pub fn stand_still(&self) -> Result<(), Errno> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// What the system says.
    pub fn go_on(&self) -> Result<(), Errno> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if !self.is_alive() {
            return Ok(());
        }
        let Ok(pid) = i32::try_from(self.pid) else {
            return Err(Errno::EINVAL);
        };
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for its end; false when it still lives after `limit`.
    pub(crate) async fn wait_end(&self, limit: Duration) -> bool {
        let ended = async {
            while self.is_alive() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, ended).await.is_ok()
    }
}

/// Arguments of a process; empty for kernel threads and for those that are gone.
pub(crate) fn arguments(pid: u32) -> Vec<String> {
    fs::read(format!("/proc/{pid}/cmdline"))
        .map(|raw| {
            raw.split(|b| *b == 0)
                .filter(|a| !a.is_empty())
                .map(|a| String::from_utf8_lossy(a).into_owned())
                .collect()
        })
        .unwrap_or_default()
}

/// All process ids of the moment.
pub(crate) fn all() -> Vec<u32> {
    fs::read_dir("/proc")
        .map(|dir| {
            dir.flatten()
                .filter_map(|e| e.file_name().to_str()?.parse().ok())
                .collect()
        })
        .unwrap_or_default()
}

/// Keeps files that whoever started this process left open (a lock, a log) from the machines, which would
/// hold them for as long as they live. What this program opens itself is never passed on anyway.
#[expect(unsafe_code, reason = "a file that is only known by its number is borrowed")]
pub(crate) fn keep_inherited_files() {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = open.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    for number in numbers.filter(|n| *n > nix::libc::STDERR_FILENO) {
        // SAFETY: the number is used for this one call only, which reads and writes no memory; if the
        // file has been closed meanwhile the call fails, if another has taken its number, that one
        // is not to be passed on either.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inherited_files_are_not_passed_on() {
        let file = fs::File::open("/dev/zero").unwrap();
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let passed_on = || {
            let output = std::process::Command::new("readlink")
                .arg(&link)
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).contains("/dev/zero")
        };
        assert!(passed_on());
        keep_inherited_files();
        assert!(!passed_on());
    }

    #[test]
    fn knows_itself_and_no_namesake() {
        let me = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(
            !ProcessIdentity {
                start_ticks: me.start_ticks + 1,
                ..me.clone()
            }
            .is_alive(),
            "reused pid"
        );
        assert!(
            !ProcessIdentity {
                boot_id: "another".to_owned(),
                ..me.clone()
            }
            .is_alive(),
            "earlier boot"
        );
        assert!(all().contains(&me.pid));
        assert!(!arguments(me.pid).is_empty());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id());
        std::thread::sleep(Duration::from_millis(300));
        if let Some(identity) = identity {
            assert!(!identity.is_alive());
        }
        child.wait().unwrap();
    }
}
