//! A world of its own for one test: network, mounts, a data folder, and nothing left afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use crate::Cmd;

/// What a test cannot do without, besides root and namespaces.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// A program of `PATH`, and the Debian package that has it.
    Program(&'static str, &'static str),
}

/// QEMU with which guests are run.
pub(crate) const QEMU: Need = Need::Program("qemu-system-x86_64", "qemu-system-x86");

/// The calling thread's new world. Programs and threads that it starts are in it too.
#[derive(Debug)]
pub struct Sandbox {
    dir: Option<TempDir>,
    path: PathBuf,
    network: u64,
}

impl Sandbox {
    /// Moves the calling thread into a network and a mount namespace of its own, with `lo` up. `None`, with the
    /// reason printed as `SKIPPED:`, when this machine cannot run the test.
    ///
    /// # Errors
    /// When namespaces are to be had but cannot be set up.
    pub fn enter(needs: &[Need]) -> Result<Option<Sandbox>> {
        if let Some(reason) = hindrance(needs) {
            println!("SKIPPED: {reason}");
            return Ok(None);
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .context("cannot make the mounts private")?;
        // /sys shows the network of whoever mounted it.
        mount(
            Some("sysfs"),
            "/sys",
            Some("sysfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("cannot mount /sys for the new network")?;
        Cmd::new("ip").words("link set lo up").ok()?;
        // A short path: sockets below it have names of at most 107 bytes.
        let mut dir = tempfile::Builder::new().prefix("hearth-").tempdir_in("/tmp")?;
        dir.disable_cleanup(std::env::var_os("HEARTH_TEST_KEEP").is_some());
        Ok(Some(Sandbox {
            path: dir.path().to_path_buf(),
            dir: Some(dir),
            network: network_of("thread-self").context("cannot see the new network namespace")?,
        }))
    }

    /// The test's folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts a memory file system of `bytes` at `path`, seen by this test only.
    ///
    /// # Errors
    /// What the system says.
    pub fn mount_small(&self, path: &Path, bytes: u64) -> Result<()> {
        fs::create_dir_all(path)?;
        let size = format!("size={bytes}");
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(size.as_str()),
        )
        .with_context(|| format!("cannot mount a small file system at {}", path.display()))
    }

    /// Every process that was started in here and still runs, with its command line.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let own = std::process::id();
        let Ok(entries) = fs::read_dir("/proc") else {
            return vec![];
        };
        let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| *pid != own && is_running(*pid))
            .filter_map(|pid| Some((pid, command_line(pid)?)))
            .filter(|(pid, line)| {
                network_of(&pid.to_string()) == Some(self.network)
                    || line.contains(self.path.to_string_lossy().as_ref())
            })
            .collect()
    }

    /// Kills every process in here.
    ///
    /// # Errors
    /// When one is still there ten seconds later.
    pub fn kill_all(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let mut left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > Duration::from_secs(10) {
                bail!("cannot kill {left:?}");
            }
            // Who starts others goes first.
            left.sort_by_key(|(_, line)| !line.contains("supervise"));
            for (pid, _) in left {
                send(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn unmount(&self) {
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(&self.path)) {
            if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount {point}: {error}");
            }
        }
    }

    /// Names of the network interfaces in here, but for `lo`.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let table = fs::read_to_string("/proc/thread-self/net/dev")?;
        let names = table.lines().filter_map(|line| line.split_once(':'));
        Ok(names
            .map(|(name, _)| name.trim().to_owned())
            .filter(|name| name != "lo")
            .collect())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("{error:#}");
        }
        // Taps and rules go with the last process of the namespaces. Mounts would, too, but they hold the folder.
        self.unmount();
        if let Some(dir) = self.dir.take()
            && let Err(error) = dir.close()
        {
            eprintln!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// Sends a signal; a process that is gone already is none of our business.
pub fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// False also for a process that has ended and was not reaped yet.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .trim_start()
            .starts_with('Z')
    })
}

fn hindrance(needs: &[Need]) -> Option<String> {
    if !Uid::effective().is_root() {
        return Some("needs root, for network namespaces".to_owned());
    }
    for Need::Program(program, package) in needs {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            return Some(format!("needs `{program}` (apt-get install {package})"));
        }
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .err()
        .map(|error| format!("this machine gives no namespaces ({error})"))
}

fn network_of(process: &str) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{process}/ns/net")).ok()?.ino())
}

fn command_line(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}
