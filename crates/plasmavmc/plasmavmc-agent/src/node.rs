//! Everything that the VMs of this node share, and who owns which VM.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_service::fail_points::FailPoints;
use hearth_service::tasks::{Kind, Tasks, chain};
use plasmavmc_client::agent::{Assignment, NodeStatus};
use plasmavmc_hypervisor::{HypervisorRegistry, MachineId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::acts::Acts;
use crate::capacity;
use crate::config::{AgentConfig, MEMORY_RESERVE_MIB};
use crate::console::{Console, NoConsole, Viewer};
use crate::gate::{self, Shut};
use crate::images::ImageCache;
use crate::journal::{ActionRecord, Entry, Journal, JournalError};
use crate::net::Network;
use crate::observations::Observations;
use crate::vm::{Actor, Command, Held};

/// VMs that one node takes.
const MAX_VMS: usize = 4096;
/// Commands waiting for the owner of a VM.
const MAX_COMMANDS: usize = 8;
/// Longest wait for the answer to a command that should be quick.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Why an assignment was not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("`{0}` is no id of a VM")]
    Id(String),
    #[error("epoch {offered} is lower than {highest}, which this node has seen")]
    Epoch { offered: u64, highest: u64 },
    #[error("this node has {MAX_VMS} VMs already")]
    Full,
    #[error(transparent)]
    Journal(#[from] JournalError),
}

#[derive(Debug)]
struct Handle {
    desired: watch::Sender<Assignment>,
    commands: mpsc::Sender<Command>,
    console: Console,
}

#[derive(Debug, Default)]
struct Owned {
    entries: BTreeMap<MachineId, Entry>,
    handles: BTreeMap<MachineId, Handle>,
    /// When the control plane last assigned each VM, on the guard's clock; not from the journal.
    assigned_ms: BTreeMap<MachineId, u64>,
}

/// Shared by the owners of the VMs, the stream to the control plane and the local control socket.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: AgentConfig,
    pub(crate) data_dir: PathBuf,
    pub(crate) registry: HypervisorRegistry,
    pub(crate) images: ImageCache,
    pub(crate) network: Network,
    pub(crate) observations: Observations,
    pub(crate) tasks: Tasks,
    pub(crate) fail_points: FailPoints,
    journal: Journal,
    owned: Mutex<Owned>,
}

/// Parts of a node that are opened one by one at start.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: AgentConfig,
    pub(crate) data_dir: PathBuf,
    pub(crate) registry: HypervisorRegistry,
    pub(crate) images: ImageCache,
    pub(crate) network: Network,
    pub(crate) journal: Journal,
    pub(crate) tasks: Tasks,
}

impl Node {
    /// Takes up the VMs of the journal: running guests are adopted, those that should run are started.
    pub(crate) fn start(parts: Parts, entries: Vec<(MachineId, Entry)>) -> Arc<Self> {
        let Parts {
            config,
            data_dir,
            registry,
            images,
            network,
            journal,
            tasks,
        } = parts;
        let node = Arc::new(Self {
            fail_points: FailPoints::below(&data_dir),
            config,
            data_dir,
            registry,
            images,
            network,
            observations: Observations::new(),
            tasks,
            journal,
            owned: Mutex::default(),
        });
        let mut owned = node.lock();
        for (id, entry) in entries {
            if let Some(assignment) = entry.assignment.clone().filter(|_| !entry.gone) {
                node.spawn(&mut owned, &id, assignment, &entry);
            }
            owned.entries.insert(id, entry);
        }
        drop(owned);
        node
    }

    fn lock(&self) -> MutexGuard<'_, Owned> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>, owned: &mut Owned, id: &MachineId, assignment: Assignment, entry: &Entry) {
        let (desired, wanted) = watch::channel(assignment);
        let (commands, queue) = mpsc::channel(MAX_COMMANDS);
        let console = Console::default();
        let actor = Actor::new(self.clone(), id.clone(), wanted, queue, console.clone(), entry);
        owned.handles.insert(
            id.clone(),
            Handle {
                desired,
                commands,
                console,
            },
        );
        self.tasks.spawn("vm", Kind::Background, async move {
            actor.run().await;
            Ok(())
        });
    }

    /// Takes over an assignment: it is in the journal when this returns.
    pub(crate) fn assign(self: &Arc<Self>, assignment: Assignment) -> Result<(), Refused> {
        let id = MachineId::try_from(assignment.vm_id.clone())
            .map_err(|_| Refused::Id(assignment.vm_id.clone()))?;
        let mut owned = self.lock();
        let known = owned.entries.get(&id).cloned();
        if let Some(highest) = known
            .as_ref()
            .map(|e| e.highest_epoch)
            .filter(|h| *h > assignment.epoch)
        {
            return Err(Refused::Epoch {
                offered: assignment.epoch,
                highest,
            });
        }
        if known.is_none() && owned.entries.values().filter(|e| !e.gone).count() >= MAX_VMS {
            return Err(Refused::Full);
        }
        let entry = Entry {
            highest_epoch: assignment.epoch,
            assignment: Some(assignment.clone()),
            guest_off: known.as_ref().and_then(|e| e.guest_off),
            gone: false,
            acts: known.as_ref().map(|e| e.acts.clone()).unwrap_or_default(),
        };
        if known.as_ref() != Some(&entry) {
            self.journal.put(&id, &entry)?;
        }
        owned.entries.insert(id.clone(), entry.clone());
        owned.assigned_ms.insert(id.clone(), gate::boot_ms());
        match owned.handles.get(&id) {
            Some(handle) => {
                handle.desired.send_if_modified(|current| {
                    let differs = *current != assignment;
                    *current = assignment;
                    differs
                });
            }
            None => self.spawn(&mut owned, &id, assignment, &entry),
        }
        Ok(())
    }

    /// Whether a guest that may be restarted elsewhere may be started here now.
    pub(crate) fn may_start_movable(&self, id: &MachineId) -> Result<(), Shut> {
        let assigned_ms = self.lock().assigned_ms.get(id).copied();
        gate::ask(self.config.guard_dir.as_deref(), assigned_ms)
    }

    /// The control plane does not assign this VM any more. What is gone is forgotten; anything else is
    /// left as it is: only an explicit deletion destroys.
    pub(crate) fn unassigned(&self, id: &MachineId) {
        if !self.observations.forget_gone(id) {
            tracing::warn!(vm = %id, "no longer assigned to this node, but still here; left alone");
        }
    }

    /// Ids of all VMs that are not gone.
    pub(crate) fn vms(&self) -> Vec<MachineId> {
        self.lock()
            .entries
            .iter()
            .filter(|(_, e)| !e.gone)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// Name of a VM for people; empty when it is not known.
    pub(crate) fn name_of(&self, vm_id: &str) -> String {
        let Ok(id) = MachineId::try_from(vm_id.to_owned()) else {
            return String::new();
        };
        let owned = self.lock();
        let spec = owned
            .entries
            .get(&id)
            .and_then(|e| e.assignment.as_ref()?.spec.as_ref());
        spec.map_or_else(String::new, |s| s.name.clone())
    }

    /// What is on this host without an assignment, for people.
    pub(crate) fn orphans(&self) -> Vec<String> {
        let known: BTreeSet<MachineId> = self.vms().into_iter().collect();
        let mut orphans = Vec::new();
        for hypervisor in self.registry.iter() {
            match hypervisor.inventory() {
                Ok(inventory) => {
                    let strangers = inventory.machines.into_iter().filter(|id| !known.contains(id));
                    orphans.extend(strangers.map(|id| format!("machine {id} is assigned by nobody")));
                    orphans.extend(inventory.orphans);
                }
                Err(error) => tracing::warn!(error = %chain(&error), "cannot take the inventory"),
            }
        }
        orphans
    }

    /// The owner of a VM ends because nothing is left of it. False: somebody has assigned it anew.
    pub(crate) fn retire(&self, id: &MachineId, desired: &mut watch::Receiver<Assignment>) -> bool {
        let mut owned = self.lock();
        if desired.has_changed().unwrap_or(false) {
            return false;
        }
        owned.handles.remove(id);
        owned.assigned_ms.remove(id);
        true
    }

    /// Stores that the guest switched itself off.
    pub(crate) fn note_guest_off(&self, id: &MachineId, at: Option<(u64, u64)>) -> Result<(), JournalError> {
        self.change_entry(id, |entry| entry.guest_off = at)
    }

    /// Stores how far pauses and resets of a VM have come.
    pub(crate) fn note_acts(&self, id: &MachineId, acts: &Acts) -> Result<(), JournalError> {
        self.change_entry(id, |entry| entry.acts = acts.clone())
    }

    /// Stores that nothing is left of a VM but its highest epoch: its keys and user data go, too.
    pub(crate) fn note_gone(&self, id: &MachineId) -> Result<(), JournalError> {
        self.change_entry(id, |entry| {
            entry.gone = true;
            entry.guest_off = None;
            entry.assignment = None;
            entry.acts = Acts::default();
        })
    }

    fn change_entry(&self, id: &MachineId, change: impl FnOnce(&mut Entry)) -> Result<(), JournalError> {
        let mut owned = self.lock();
        let mut entry = owned.entries.get(id).cloned().unwrap_or_default();
        change(&mut entry);
        self.journal.put(id, &entry)?;
        owned.entries.insert(id.clone(), entry);
        Ok(())
    }

    /// Images under the disks of VMs of this node.
    pub(crate) fn images_in_use(&self) -> BTreeSet<String> {
        let owned = self.lock();
        let assignments = owned
            .entries
            .values()
            .filter(|e| !e.gone)
            .filter_map(|e| e.assignment.as_ref());
        let images = assignments.filter_map(|a| a.spec.as_ref()?.image.as_ref());
        images.map(|i| i.sha256.to_ascii_lowercase()).collect()
    }

    /// Joins the viewers of a VM's console.
    pub(crate) fn console(&self, vm_id: &str) -> Result<Viewer, NoConsole> {
        let id = MachineId::try_from(vm_id.to_owned()).map_err(|_| NoConsole)?;
        let console = self.lock().handles.get(&id).map(|h| h.console.clone());
        console.ok_or(NoConsole)?.attach()
    }

    /// Resets a VM once per action id, however often the action is delivered.
    pub(crate) async fn reset_once(&self, action_id: &str, vm_id: &str, epoch: u64) -> Result<(), String> {
        match self.journal.action(action_id) {
            Some(ActionRecord {
                outcome: Some(outcome),
                ..
            }) => return outcome,
            Some(_) => {
                return Err(
                    "the agent was interrupted during this action; its effect is not known".to_owned(),
                );
            }
            None => {}
        }
        let begun = ActionRecord {
            id: action_id.to_owned(),
            outcome: None,
        };
        self.journal.put_action(begun).map_err(|e| chain(&e))?;
        let outcome = self.reset(vm_id, epoch).await;
        let ended = ActionRecord {
            id: action_id.to_owned(),
            outcome: Some(outcome.clone()),
        };
        self.journal.put_action(ended).map_err(|e| chain(&e))?;
        outcome
    }

    async fn reset(&self, vm_id: &str, epoch: u64) -> Result<(), String> {
        let id = MachineId::try_from(vm_id.to_owned()).map_err(|e| e.to_string())?;
        let commands = self.lock().handles.get(&id).map(|h| h.commands.clone());
        let commands = commands.ok_or("this VM is not on this node")?;
        let (done, answer) = oneshot::channel();
        let asked = async {
            commands
                .send(Command::Reset { epoch, done })
                .await
                .map_err(|_| "the VM is gone".to_owned())?;
            answer.await.map_err(|_| "the agent is stopping".to_owned())?
        };
        tokio::time::timeout(COMMAND_LIMIT, asked)
            .await
            .map_err(|_| "the VM's owner is busy".to_owned())?
    }

    /// Stops every guest and keeps it so until the agent ends. Guests that ignore the button are ended
    /// by force after `grace`.
    pub(crate) async fn stop_guests(&self, grace: Duration) -> BTreeMap<MachineId, Option<Held>> {
        let owners: Vec<_> = {
            let owned = self.lock();
            owned
                .handles
                .iter()
                .map(|(id, h)| (id.clone(), h.commands.clone()))
                .collect()
        };
        let holds = owners.into_iter().map(|(id, commands)| async move {
            let (done, answer) = oneshot::channel();
            let asked = async {
                commands.send(Command::Hold { grace, done }).await.ok()?;
                answer.await.ok()
            };
            let held = tokio::time::timeout(grace + COMMAND_LIMIT, asked)
                .await
                .ok()
                .flatten();
            (id, held)
        });
        futures::future::join_all(holds).await.into_iter().collect()
    }

    /// What the node has for guests.
    pub(crate) fn status(&self) -> NodeStatus {
        let machine_cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
        let vcpus = match self.config.vcpus {
            0 => u32::try_from(machine_cpus).unwrap_or(u32::MAX),
            given => given,
        };
        let memory_mib = match self.config.memory_mib {
            0 => capacity::memory_mib().saturating_sub(MEMORY_RESERVE_MIB),
            given => given,
        };
        // Cells are the whole machine's: they say nothing where only a part of it was given.
        let cells = if self.config.vcpus == 0 && self.config.memory_mib == 0 {
            capacity::cells(Path::new("/sys/devices/system/node"))
        } else {
            Vec::new()
        };
        let accelerator = self.registry.get("").ok().map(|h| h.accelerator());
        NodeStatus {
            vcpus,
            memory_bytes: memory_mib << 20,
            disk_bytes: capacity::disk_bytes(&self.data_dir),
            network_mode: self.network.mode().to_owned(),
            accelerator: accelerator.map_or_else(String::new, |a| a.kind.as_str().to_owned()),
            accelerator_reason: accelerator.map_or_else(String::new, |a| a.reason.clone()),
            labels: self.config.labels.clone().into_iter().collect(),
            architecture: std::env::consts::ARCH.to_owned(),
            hypervisors: self.registry.iter().map(|h| h.name().to_owned()).collect(),
            cells,
            images: self.images.held(),
        }
    }
}
