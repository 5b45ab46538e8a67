//! QEMU (q35), accelerated by KVM or translated by TCG.
//!
//! Each machine has one folder: the intent, the overlay, the sockets, the console's log. QEMU is started
//! through `setsid` in a session of its own, with no pipe to its parent, so it survives the end of
//! whoever started it. (Its own `-daemonize` cannot be used: it forks after the sandbox is up.)

mod command;
pub mod disk;
mod machine;
pub mod probe;
mod qmp;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::process::Command;
use tokio::time::timeout;

use crate::intent::{Ended, Intent, Run};
use crate::process::{self, ProcessIdentity};
use crate::{
    Accelerator, Adopted, Hypervisor, HypervisorError, Inventory, Machine, MachineId, MachineSpec,
    host_boot_id,
};
use command::{CONSOLE, DISK, MONITOR, PID};
use machine::KvmMachine;

const PROGRAM: &str = "qemu-system-x86_64";
/// How long QEMU may take to open its files and sockets.
const SPAWN_LIMIT: Duration = Duration::from_secs(30);
const SPAWN_POLL: Duration = Duration::from_millis(10);
/// How long a process that broke its connection may take to be gone.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Its own messages, for the case that it does not come up.
const ERRORS: &str = "qemu.log";

/// The QEMU backend.
#[derive(Debug)]
pub struct KvmBackend {
    root: PathBuf,
    accelerator: Accelerator,
}

impl KvmBackend {
    /// Uses `root` for the machines' folders; makes it, for its owner only, if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made or resolved.
    pub fn new(root: &Path, accelerator: Accelerator) -> Result<Self, HypervisorError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(HypervisorError::io("make", root))?;
        let root = root
            .canonicalize()
            .map_err(HypervisorError::io("resolve", root))?;
        Ok(Self { root, accelerator })
    }

    /// Folder of a machine. Callers may keep files of their own in it; `delete` removes them too.
    #[must_use]
    pub fn folder(&self, id: &MachineId) -> PathBuf {
        self.root.join(id.as_str())
    }

    async fn start_machine(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, HypervisorError> {
        spec.validate()?;
        let folder = self.folder(&spec.id);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(HypervisorError::io("make", &folder))?;
        if let Some(earlier) = Intent::read(&folder)?
            && find_process(&folder, &earlier).is_some()
        {
            return Err(HypervisorError::AlreadyRunning(spec.id.to_string()));
        }
        disk::ensure_overlay(&spec.disk, &folder.join(DISK)).await?;
        let args = command::arguments(spec, self.accelerator.kind, &folder)?;
        for stale in [MONITOR, CONSOLE, PID] {
            remove_file(&folder.join(stale))?;
        }
        let mut intent = Intent::new(spec.clone(), self.accelerator.kind.as_str(), host_boot_id());
        intent.write(&folder)?;
        let started = self.spawn(&folder, &args, &mut intent).await;
        match started {
            Ok(machine) => Ok(Box::new(machine)),
            Err(error) => {
                self.clear_failed_start(&folder, intent).await;
                Err(error)
            }
        }
    }

    async fn spawn(
        &self,
        folder: &Path,
        args: &[String],
        intent: &mut Intent,
    ) -> Result<KvmMachine, HypervisorError> {
        let failed = |message: String| HypervisorError::Program {
            program: PROGRAM,
            message,
        };
        let errors = folder.join(ERRORS);
        let stderr = File::create(&errors).map_err(HypervisorError::io("make", &errors))?;
        // Not killed when this future is dropped: the intent is on disk, the next owner finds the machine.
        let child = Command::new("setsid")
            .arg(PROGRAM)
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn();
        let mut child = child.map_err(|e| {
            failed(format!(
                "cannot start it ({e}); is the package util-linux installed?"
            ))
        })?;
        let process = child.id().and_then(ProcessIdentity::of);
        let process = process.ok_or_else(|| failed("it vanished at its start".to_owned()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at_unix_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        intent.run = Some(Run {
            process,
            started_at_unix_ms,
        });
        intent.write(folder)?;
        let monitor = folder.join(MONITOR);
        let came_up = async {
            wait_for_monitor(&monitor).await?;
            KvmMachine::connect(folder.to_owned(), intent.clone()).await
        };
        let connected = tokio::select! {
            status = child.wait() => {
                return Err(failed(last_words(&errors, status.map_err(|e| failed(e.to_string()))?)));
            }
            connected = came_up => connected,
        };
        // It may die with the monitor half open: then its own words say more than a broken connection.
        match connected {
            Ok(machine) => Ok(machine),
            Err(error) => match timeout(LAST_WORDS_LIMIT, child.wait()).await {
                Ok(Ok(status)) => Err(failed(last_words(&errors, status))),
                _ => Err(error),
            },
        }
    }

    /// After a failed start: no process stays, the record says that it never ran.
    async fn clear_failed_start(&self, folder: &Path, mut intent: Intent) {
        if let Some(process) = find_process(folder, &intent) {
            let killed = process.kill().is_ok() && process.wait_end(KILL_LIMIT).await;
            if !killed {
                tracing::error!(
                    pid = process.pid,
                    "a machine that failed to start cannot be ended"
                );
                return;
            }
        }
        intent.run = None;
        intent.ended = Some(Ended::NeverRan);
        if let Err(error) = intent.write(folder) {
            tracing::warn!(%error, "cannot record a failed start");
        }
    }

    async fn adopt_machine(&self, id: &MachineId) -> Result<Adopted, HypervisorError> {
        let folder = self.folder(id);
        let Some(mut intent) = Intent::read(&folder)? else {
            return Ok(Adopted::Absent);
        };
        if let Some(process) = find_process(&folder, &intent) {
            if intent.run.as_ref().map(|r| &r.process) != Some(&process) {
                // The owner died between start and record.
                let started_at_unix_ms = modified_unix_ms(&folder.join(PID));
                intent.run = Some(Run {
                    process,
                    started_at_unix_ms,
                });
                intent.ended = None;
                intent.write(&folder)?;
            }
            return Ok(Adopted::Running(Box::new(
                KvmMachine::connect(folder, intent).await?,
            )));
        }
        let ended = match (&intent.ended, &intent.run) {
            (Some(ended), _) => ended.clone(),
            _ if intent.boot_id != host_boot_id() => Ended::HostRebooted,
            (None, Some(_)) => Ended::Crashed,
            (None, None) => Ended::NeverRan,
        };
        if intent.ended.is_none() {
            intent.ended = Some(ended.clone());
            intent.run = None;
            intent.write(&folder)?;
        }
        Ok(Adopted::Ended {
            epoch: intent.spec.epoch,
            generation: intent.spec.generation,
            ended,
        })
    }

    async fn delete_machine(&self, id: &MachineId) -> Result<(), HypervisorError> {
        let folder = self.folder(id);
        match self.adopt_machine(id).await {
            Ok(Adopted::Running(mut machine)) => {
                machine.end().await?;
            }
            Ok(_) => {}
            // An unreadable record or a silent monitor must not keep a machine alive for ever: its
            // process is still proved by its own arguments.
            Err(error) => {
                tracing::warn!(%error, machine = %id, "deleting a machine that cannot be adopted");
                if let Some(process) = process_of_folder(&folder) {
                    process
                        .kill()
                        .map_err(|e| HypervisorError::io("end the process of", &folder)(e.into()))?;
                    process.wait_end(KILL_LIMIT).await;
                }
            }
        }
        if let Some(process) = process_of_folder(&folder) {
            let error = io::Error::other(format!("process {} is still alive", process.pid));
            return Err(HypervisorError::io("remove", folder)(error));
        }
        match fs::remove_dir_all(&folder) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(HypervisorError::io("remove", folder)(error)),
        }
    }

    fn take_inventory(&self) -> Result<Inventory, HypervisorError> {
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
            let Some(folder) = pid_file_argument(pid).and_then(|p| p.parent().map(Path::to_owned)) else {
                continue;
            };
            if !folder.starts_with(&self.root) {
                continue;
            }
            let known = Intent::read(&folder)
                .ok()
                .flatten()
                .and_then(|i| find_process(&folder, &i));
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

/// The live process of a record: the one it names, or, when it names none yet, the one that uses the folder.
fn find_process(folder: &Path, intent: &Intent) -> Option<ProcessIdentity> {
    match &intent.run {
        Some(run) => run.process.is_alive().then(|| run.process.clone()),
        None => process_of_folder(folder),
    }
}

/// The process whose own arguments name the folder's pid file, if it belongs to our user.
fn process_of_folder(folder: &Path) -> Option<ProcessIdentity> {
    let path = folder.join(PID);
    let ours = nix::unistd::geteuid().as_raw();
    let pid = process::all().into_iter().find(|pid| {
        pid_file_argument(*pid).as_ref() == Some(&path)
            && fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == ours)
    })?;
    ProcessIdentity::of(pid).filter(ProcessIdentity::is_alive)
}

/// QEMU opens its monitor last but one; before that there is nobody to talk to.
async fn wait_for_monitor(socket: &Path) -> Result<(), HypervisorError> {
    let there = async {
        while !socket.exists() {
            tokio::time::sleep(SPAWN_POLL).await;
        }
    };
    let limit_ms = u64::try_from(SPAWN_LIMIT.as_millis()).unwrap_or(u64::MAX);
    timeout(SPAWN_LIMIT, there)
        .await
        .map_err(|_| HypervisorError::Timeout {
            what: "the start of QEMU",
            limit_ms,
        })
}

fn last_words(errors: &Path, status: std::process::ExitStatus) -> String {
    let text = fs::read_to_string(errors).unwrap_or_default();
    let last = text
        .lines()
        .rfind(|l| !l.trim().is_empty())
        .unwrap_or("no message");
    format!("{last} ({status})")
}

fn pid_file_argument(pid: u32) -> Option<PathBuf> {
    let args = process::arguments(pid);
    let at = args.iter().position(|a| a == "-pidfile")?;
    args.get(at + 1).map(PathBuf::from)
}

fn modified_unix_ms(path: &Path) -> i64 {
    let since = fs::metadata(path).and_then(|m| m.modified()).ok();
    let since = since
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn remove_file(path: &Path) -> Result<(), HypervisorError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HypervisorError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

impl Hypervisor for KvmBackend {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>, HypervisorError>> {
        Box::pin(self.start_machine(spec))
    }

    fn adopt<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<Adopted, HypervisorError>> {
        Box::pin(self.adopt_machine(id))
    }

    fn inventory(&self) -> Result<Inventory, HypervisorError> {
        self.take_inventory()
    }

    fn delete<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<(), HypervisorError>> {
        Box::pin(self.delete_machine(id))
    }
}
