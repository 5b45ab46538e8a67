//! The machines' folders: records, processes and remains, for every backend that makes processes.
//!
//! A backend says by which words of its own command line a process claims a folder ([`Claim`]); all the
//! rest (what is alive, how an earlier machine ended, what may be killed) is the same for all.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::intent::{self, Ended, Intent, Run};
use crate::process::{self, ProcessIdentity};
use crate::{HypervisorError, Inventory, MachineId, host_boot_id};

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a new process may take to open its socket.
const SPAWN_LIMIT: Duration = Duration::from_secs(30);
const SPAWN_POLL: Duration = Duration::from_millis(10);
/// How long a process that broke its connection may take to be gone.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// The folder that the process `pid` says to work for, if it is one of the backend's own.
pub(crate) type Claim = fn(u32) -> Option<PathBuf>;

/// What the folder of a machine tells.
#[derive(Debug)]
pub(crate) enum Found {
    /// Its process lives; the record names it.
    Running(PathBuf, Intent),
    /// It has none; the record says how it ended.
    Ended(Intent, Ended),
    Absent,
}

/// The folders of one backend.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    root: PathBuf,
    claim: Claim,
}

impl Folders {
    /// Uses `root`; makes it, for its owner only, if it is missing.
    pub(crate) fn open(root: &Path, claim: Claim) -> Result<Self, HypervisorError> {
        make_private(root)?;
        let root = root
            .canonicalize()
            .map_err(HypervisorError::io("resolve", root))?;
        Ok(Self { root, claim })
    }

    pub(crate) fn of(&self, id: &MachineId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Makes the folder of a machine that is to be started.
    pub(crate) fn make_for_start(&self, id: &MachineId) -> Result<PathBuf, HypervisorError> {
        let folder = self.of(id);
        make_private(&folder)?;
        if let Some(earlier) = Intent::read(&folder)?
            && self.process_of(&folder, &earlier).is_some()
        {
            return Err(HypervisorError::AlreadyRunning(id.to_string()));
        }
        Ok(folder)
    }

    /// The live process of a record: the one it names, or, when it names none yet, the one that claims
    /// the folder.
    pub(crate) fn process_of(&self, folder: &Path, intent: &Intent) -> Option<ProcessIdentity> {
        match &intent.run {
            Some(run) => run.process.is_alive().then(|| run.process.clone()),
            None => self.claimant(folder),
        }
    }

    /// The process whose own command line claims the folder, if it belongs to our user.
    pub(crate) fn claimant(&self, folder: &Path) -> Option<ProcessIdentity> {
        let ours = nix::unistd::geteuid().as_raw();
        let pid = process::all().into_iter().find(|pid| {
            (self.claim)(*pid).as_deref() == Some(folder)
                && fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == ours)
        })?;
        ProcessIdentity::of(pid).filter(ProcessIdentity::is_alive)
    }

    /// Looks for a machine of an earlier owner, and completes its record.
    pub(crate) fn find(&self, id: &MachineId) -> Result<Found, HypervisorError> {
        let folder = self.of(id);
        let Some(mut intent) = Intent::read(&folder)? else {
            return Ok(Found::Absent);
        };
        if let Some(process) = self.process_of(&folder, &intent) {
            if intent.run.as_ref().map(|r| &r.process) != Some(&process) {
                // The owner died between start and record. The record was written just before the start.
                let started_at_unix_ms = modified_unix_ms(&folder.join(intent::FILE));
                intent.run = Some(Run {
                    process,
                    started_at_unix_ms,
                });
                intent.ended = None;
                intent.write(&folder)?;
            }
            return Ok(Found::Running(folder, intent));
        }
        let ended = match (&intent.ended, &intent.run) {
            (Some(ended), _) => ended.clone(),
            _ if intent.boot_id != host_boot_id() => Ended::HostRebooted,
            (None, Some(_)) => Ended::Crashed,
            (None, None) => Ended::NeverRan,
        };
        Ok(Found::Ended(intent, ended))
    }

    /// Writes down how a machine without a process ended, if that is not written yet.
    pub(crate) fn note_end(&self, mut intent: Intent, ended: &Ended) -> Result<(), HypervisorError> {
        if intent.ended.is_some() {
            return Ok(());
        }
        intent.ended = Some(ended.clone());
        intent.run = None;
        intent.write(&self.of(&intent.spec.id))
    }

    /// After a failed start: no process stays, the record says that it never ran.
    pub(crate) async fn clear_failed_start(&self, folder: &Path, mut intent: Intent) {
        if let Some(process) = self.process_of(folder, &intent)
            && let Err(error) = kill(&process, folder).await
        {
            tracing::error!(pid = process.pid, %error, "a machine that failed to start cannot be ended");
            return;
        }
        intent.run = None;
        intent.ended = Some(Ended::NeverRan);
        if let Err(error) = intent.write(folder) {
            tracing::warn!(%error, "cannot record a failed start");
        }
    }

    /// An unreadable record or a silent monitor must not keep a machine alive for ever: its process is
    /// still proved by its own command line.
    pub(crate) async fn kill_claimant(&self, id: &MachineId) -> Result<(), HypervisorError> {
        let folder = self.of(id);
        match self.claimant(&folder) {
            Some(process) => kill(&process, &folder).await,
            None => Ok(()),
        }
    }

    /// Removes every file of a machine, which must have no process any more.
    pub(crate) fn remove(&self, id: &MachineId) -> Result<(), HypervisorError> {
        let folder = self.of(id);
        if let Some(process) = self.claimant(&folder) {
            let error = io::Error::other(format!("process {} is still alive", process.pid));
            return Err(HypervisorError::io("remove", folder)(error));
        }
        match fs::remove_dir_all(&folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(HypervisorError::io("remove", folder)(error)),
        }
    }

    pub(crate) fn inventory(&self) -> Result<Inventory, HypervisorError> {
        let mut machines = Vec::new();
        let entries = fs::read_dir(&self.root).map_err(HypervisorError::io("list", &self.root))?;
        for entry in entries {
            let entry = entry.map_err(HypervisorError::io("list", &self.root))?;
            if let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|n| MachineId::try_from(n.to_owned()).ok())
            {
                machines.push(id);
            }
        }
        machines.sort();
        let mut orphans = Vec::new();
        for pid in process::all() {
            let Some(folder) = (self.claim)(pid).filter(|f| f.starts_with(&self.root)) else {
                continue;
            };
            let known = Intent::read(&folder)
                .ok()
                .flatten()
                .and_then(|i| self.process_of(&folder, &i));
            if known.is_none_or(|p| p.pid != pid) {
                orphans.push(format!(
                    "process {pid} of `{}` belongs to no record",
                    folder.display()
                ));
            }
        }
        Ok(Inventory { machines, orphans })
    }
}

/// Kills a process that is proved to be a machine's and waits until it is gone.
pub(crate) async fn kill(process: &ProcessIdentity, folder: &Path) -> Result<(), HypervisorError> {
    process
        .kill()
        .map_err(|e| HypervisorError::io("end the process of", folder)(e.into()))?;
    if process.wait_end(KILL_LIMIT).await {
        return Ok(());
    }
    Err(timed_out("the end of a killed process", KILL_LIMIT))
}

/// Starts a machine's program, writes its identity into the record, and waits until `connect` succeeds.
///
/// The program is not killed when this future is dropped: the record is on disk, the next owner finds it.
pub(crate) async fn launch<T, F>(
    mut command: Command,
    program: &'static str,
    (folder, errors): (&Path, &Path),
    intent: &mut Intent,
    connect: impl FnOnce(Intent) -> F,
) -> Result<T, HypervisorError>
where
    F: Future<Output = Result<T, HypervisorError>>,
{
    let failed = |message: String| HypervisorError::Program { program, message };
    process::keep_inherited_files();
    let mut child: Child = command.spawn().map_err(|e| {
        failed(format!(
            "cannot start it ({e}); is the package util-linux installed?"
        ))
    })?;
    let process = child.id().and_then(ProcessIdentity::of);
    let process = process.ok_or_else(|| failed("it vanished at its start".to_owned()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    intent.run = Some(Run {
        process,
        started_at_unix_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
    });
    intent.write(folder)?;
    let connected = tokio::select! {
        status = child.wait() => {
            return Err(failed(last_words(errors, status.map_err(|e| failed(e.to_string()))?)));
        }
        connected = connect(intent.clone()) => connected,
    };
    // It may die with the monitor half open: then its own words say more than a broken connection.
    match connected {
        Ok(machine) => Ok(machine),
        Err(error @ HypervisorError::Refused { .. }) => Err(error),
        Err(error) => match timeout(LAST_WORDS_LIMIT, child.wait()).await {
            Ok(Ok(status)) => Err(failed(last_words(errors, status))),
            _ => Err(error),
        },
    }
}

/// Before its socket is there, there is nobody to talk to.
pub(crate) async fn wait_for_socket(socket: &Path) -> Result<(), HypervisorError> {
    let there = async {
        while !socket.exists() {
            tokio::time::sleep(SPAWN_POLL).await;
        }
    };
    timeout(SPAWN_LIMIT, there)
        .await
        .map_err(|_| timed_out("the start of the hypervisor", SPAWN_LIMIT))
}

pub(crate) fn timed_out(what: &'static str, limit: Duration) -> HypervisorError {
    HypervisorError::Timeout {
        what,
        limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(crate) fn remove_file(path: &Path) -> Result<(), HypervisorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HypervisorError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn make_private(folder: &Path) -> Result<(), HypervisorError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(HypervisorError::io("make", folder))
}

fn last_words(errors: &Path, status: std::process::ExitStatus) -> String {
    let text = fs::read_to_string(errors).unwrap_or_default();
    let last = text
        .lines()
        .rfind(|l| !l.trim().is_empty())
        .unwrap_or("no message");
    format!("{last} ({status})")
}

fn modified_unix_ms(path: &Path) -> i64 {
    let since = fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = since
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
