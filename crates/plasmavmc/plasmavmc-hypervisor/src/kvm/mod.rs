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

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures::future::BoxFuture;
use tokio::process::Command;

use crate::folders::{Folders, Found, launch, remove_file, wait_for_socket};
use crate::intent::Intent;
use crate::{
    Accelerator, Adopted, Capabilities, Hypervisor, HypervisorError, Inventory, Machine, MachineId,
    MachineSpec, host_boot_id, process,
};
use command::{CONSOLE, DISK, MONITOR, PID};
use machine::KvmMachine;

const PROGRAM: &str = "qemu-system-x86_64";
/// Its own messages, for the case that it does not come up.
const ERRORS: &str = "qemu.log";

/// The QEMU backend.
#[derive(Debug)]
pub struct KvmBackend {
    folders: Folders,
    accelerator: Accelerator,
}

impl KvmBackend {
    /// Uses `root` for the machines' folders; makes it, for its owner only, if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made or resolved.
    pub fn new(root: &Path, accelerator: Accelerator) -> Result<Self, HypervisorError> {
        let folders = Folders::open(root, claimed_folder)?;
        Ok(Self { folders, accelerator })
    }

    /// Folder of a machine. Callers may keep files of their own in it; `delete` removes them too.
    #[must_use]
    pub fn folder(&self, id: &MachineId) -> PathBuf {
        self.folders.of(id)
    }

    async fn start_machine(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, HypervisorError> {
        spec.validate()?;
        let folder = self.folders.make_for_start(&spec.id)?;
        disk::ensure_overlay(&spec.disk, &folder.join(DISK)).await?;
        let args = command::arguments(spec, self.accelerator.kind, &folder)?;
        for stale in [MONITOR, CONSOLE, PID] {
            remove_file(&folder.join(stale))?;
        }
        let mut intent = Intent::new(spec.clone(), self.accelerator.kind.as_str(), host_boot_id());
        intent.write(&folder)?;
        match spawn(&folder, &args, &mut intent).await {
            Ok(machine) => Ok(Box::new(machine)),
            Err(error) => {
                self.folders.clear_failed_start(&folder, intent).await;
                Err(error)
            }
        }
    }

    async fn adopt_machine(&self, id: &MachineId) -> Result<Adopted, HypervisorError> {
        match self.folders.find(id)? {
            Found::Absent => Ok(Adopted::Absent),
            Found::Running(folder, intent) => Ok(Adopted::Running(Box::new(
                KvmMachine::connect(folder, intent).await?,
            ))),
            Found::Ended(intent, ended) => {
                let (epoch, generation) = (intent.spec.epoch, intent.spec.generation);
                self.folders.note_end(intent, &ended)?;
                Ok(Adopted::Ended {
                    epoch,
                    generation,
                    ended,
                })
            }
        }
    }

    async fn delete_machine(&self, id: &MachineId) -> Result<(), HypervisorError> {
        match self.adopt_machine(id).await {
            Ok(Adopted::Running(mut machine)) => {
                machine.end().await?;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, machine = %id, "deleting a machine that cannot be adopted");
                self.folders.kill_claimant(id).await?;
            }
        }
        self.folders.remove(id)
    }
}

async fn spawn(folder: &Path, args: &[String], intent: &mut Intent) -> Result<KvmMachine, HypervisorError> {
    let errors = folder.join(ERRORS);
    let stderr = File::create(&errors).map_err(HypervisorError::io("make", &errors))?;
    let mut command = Command::new("setsid");
    command
        .arg(PROGRAM)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    launch(command, PROGRAM, (folder, &errors), intent, async |intent| {
        // QEMU opens its monitor last but one.
        wait_for_socket(&folder.join(MONITOR)).await?;
        KvmMachine::connect(folder.to_owned(), intent).await
    })
    .await
}

/// A QEMU of ours names its folder by its pid file.
pub(crate) fn claimed_folder(pid: u32) -> Option<PathBuf> {
    let args = process::arguments(pid);
    let at = args.iter().position(|a| a == "-pidfile")?;
    let file = Path::new(args.get(at + 1)?);
    (file.file_name()? == PID).then(|| file.parent().map(Path::to_owned))?
}

impl Hypervisor for KvmBackend {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_vcpus: crate::spec::MAX_VCPUS,
            user_network: true,
            reboot_by_guest: true,
            reset_in_place: true,
            vnc: false,
            hot_plug_disks: false,
            live_migration: false,
        }
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
        self.folders.inventory()
    }

    fn delete<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<(), HypervisorError>> {
        Box::pin(self.delete_machine(id))
    }
}
