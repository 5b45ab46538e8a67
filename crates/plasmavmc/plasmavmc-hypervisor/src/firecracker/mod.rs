//! Firecracker over its API socket.
//!
//! Each machine has one folder: the record, the disk (a raw file: Firecracker knows no other format),
//! the socket, the console's log and input, Firecracker's own log. The process is detached like QEMU's.
//!
//! What it cannot do is said by its capabilities and refused with the reason: no user-mode network, no
//! hot-plug, no graphical console, no migration. A guest's reboot ends the machine. The disk is a
//! whole copy of the image (sparse), not an overlay. Metadata reaches guests through the agent's own
//! service and the seed drive, as under QEMU; Firecracker's is left off, because it would answer in its place.

mod api;
mod console;
mod disk;
mod machine;
pub mod plan;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::folders::{Folders, Found, launch, remove_file, wait_for_socket};
use crate::intent::Intent;
use crate::{
    Accelerator, AcceleratorKind, Adopted, Capabilities, Hypervisor, HypervisorError, Inventory, Machine,
    MachineId, MachineSpec, RunState, host_boot_id, process,
};
pub use api::Request;
use machine::FirecrackerMachine;
use plan::Boot;

const NAME: &str = "firecracker";
/// Its messages from before its log is open.
const ERRORS: &str = "firecracker.err";
const DEFAULT_ARGS: &str = "console=ttyS0 reboot=k panic=1 root=/dev/vda rw";

/// What the operator says about Firecracker on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The program.
    pub program: PathBuf,
    /// The guests' kernel.
    pub kernel: PathBuf,
    /// Its initial file system, if it needs one.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default = "default_args")]
    pub boot_args: String,
}

fn default_args() -> String {
    DEFAULT_ARGS.to_owned()
}

impl Settings {
    fn boot(&self) -> Boot {
        Boot {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            args: self.boot_args.clone(),
        }
    }

    /// Every file must be there now: a node that cannot start a guest says so at its own start.
    fn check(&self) -> Result<(), HypervisorError> {
        let files = [Some(&self.program), Some(&self.kernel), self.initrd.as_ref()];
        for file in files.into_iter().flatten() {
            if !file.is_absolute() {
                return Err(HypervisorError::Invalid(format!(
                    "path `{}` of hypervisor `firecracker` is not absolute",
                    file.display()
                )));
            }
            File::open(file).map_err(HypervisorError::io("open", file))?;
        }
        Ok(())
    }
}

/// The Firecracker backend.
#[derive(Debug)]
pub struct FirecrackerBackend {
    settings: Arc<Settings>,
    folders: Folders,
    accelerator: Accelerator,
}

impl FirecrackerBackend {
    /// Uses `root` for the machines' folders; makes it, for its owner only, if it is missing.
    ///
    /// # Errors
    /// When a file of `settings` cannot be opened, or the folder cannot be made or resolved.
    pub fn new(root: &Path, settings: Settings) -> Result<Self, HypervisorError> {
        settings.check()?;
        Ok(Self {
            settings: Arc::new(settings),
            folders: Folders::open(root, claimed_folder)?,
            accelerator: Accelerator {
                kind: AcceleratorKind::Kvm,
                reason: "firecracker has no other".to_owned(),
            },
        })
    }

    /// Folder of a machine.
    #[must_use]
    pub fn folder(&self, id: &MachineId) -> PathBuf {
        self.folders.of(id)
    }

    async fn start_machine(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, HypervisorError> {
        plan::check(spec)?;
        let folder = self.folders.make_for_start(&spec.id)?;
        disk::ensure(&spec.disk, &folder.join(plan::DISK)).await?;
        let mut intent = Intent::new(spec.clone(), self.accelerator.kind.as_str(), host_boot_id());
        intent.write(&folder)?;
        match launch_machine(&self.settings, &folder, &mut intent).await {
            Ok(machine) => Ok(Box::new(machine)),
            Err(error) => {
                self.folders.clear_failed_start(&folder, intent).await;
                Err(error)
            }
        }
    }

    async fn adopt_machine(&self, id: &MachineId) -> Result<Adopted, HypervisorError> {
        let (folder, intent) = match self.folders.find(id)? {
            Found::Absent => return Ok(Adopted::Absent),
            Found::Running(folder, intent) => (folder, intent),
            Found::Ended(intent, ended) => {
                let (epoch, generation) = (intent.spec.epoch, intent.spec.generation);
                // Ended without anybody there: the log knows more than the record.
                let ended = machine::refine(&self.folders.of(id), &intent, ended);
                self.folders.note_end(intent, &ended)?;
                return Ok(Adopted::Ended {
                    epoch,
                    generation,
                    ended,
                });
            }
        };
        let mut machine = FirecrackerMachine::of(self.settings.clone(), folder.clone(), intent.clone())?;
        if machine.query().await? == RunState::Paused(machine::NOT_STARTED.to_owned()) {
            // Its owner died while it was being configured. It never ran, so nothing is lost by its end.
            self.folders.clear_failed_start(&folder, intent.clone()).await;
            return Ok(Adopted::Ended {
                epoch: intent.spec.epoch,
                generation: intent.spec.generation,
                ended: crate::Ended::NeverRan,
            });
        }
        Ok(Adopted::Running(Box::new(machine)))
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

/// Starts the process of a record whose disk is there, and lets its guest run.
async fn launch_machine(
    settings: &Arc<Settings>,
    folder: &Path,
    intent: &mut Intent,
) -> Result<FirecrackerMachine, HypervisorError> {
    for stale in [api::SOCKET, plan::LOG] {
        remove_file(&folder.join(stale))?;
    }
    let errors = folder.join(ERRORS);
    let stderr = File::create(&errors).map_err(HypervisorError::io("make", &errors))?;
    let (stdin, stdout) = console::make(folder)?;
    let requests = plan::requests(&intent.spec, &settings.boot())?;
    let mut command = Command::new("setsid");
    // The socket's path is relative: it has at most 107 bytes.
    command
        .arg(&settings.program)
        .args(["--id", intent.spec.id.as_str(), "--api-sock", api::SOCKET])
        .current_dir(folder)
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr);
    launch(command, NAME, (folder, &errors), intent, async |intent| {
        wait_for_socket(&folder.join(api::SOCKET)).await?;
        for request in &requests {
            api::call(folder, request).await?;
        }
        FirecrackerMachine::of(settings.clone(), folder.to_owned(), intent)
    })
    .await
}

/// A Firecracker of ours works in the folder that is named like its id.
pub(crate) fn claimed_folder(pid: u32) -> Option<PathBuf> {
    let args = process::arguments(pid);
    let value = |name: &str| args.get(args.iter().position(|a| a == name)? + 1);
    (value("--api-sock")? == api::SOCKET).then_some(())?;
    let folder = std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (folder.file_name()? == value("--id")?.as_str()).then_some(folder)
}

impl Hypervisor for FirecrackerBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_vcpus: plan::MAX_VCPUS,
            user_network: false,
            reboot_by_guest: false,
            reset_in_place: false,
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
