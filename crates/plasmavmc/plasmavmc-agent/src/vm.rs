//! One VM on this node: one task owns it and makes true what is assigned.
//!
//! ```text
//!  assignment ON                                    assignment OFF
//!   PREPARING --image, network--> STARTING --> RUNNING --button--> STOPPING --deadline: ended--> STOPPED
//!       ^                             |           |                    |
//!       |          back-off           v           | process vanished   | guest switched off
//!       +-------------------------- FAILED <------+                    +------------------> STOPPED
//!
//!  assignment with `delete`: from everywhere, forced --> GONE, the task ends
//! ```
//!
//! Pauses and resets of a running guest are in `acts.rs`.
//!
//! Level-triggered: every step looks at what is wanted and what is, and does the next thing. It may be
//! interrupted anywhere by the death of the process; [`Hypervisor::adopt`] tells the next one what is.

use std::sync::Arc;
use std::time::Duration;

use hearth_service::tasks::chain;
use plasmavmc_client::agent::{Assignment, Observed, Power, VmState};
use plasmavmc_hypervisor::{
    Adopted, DiskSpec, Ended, Hypervisor, HypervisorError, ImageFormat, Machine, MachineId, MachineSpec,
    RunState,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::acts::{self, Acts, Cpus, Look};
use crate::console::{Console, HISTORY_BYTES};
use crate::gate::Shut;
use crate::images::ImageError;
use crate::journal::{Entry, JournalError};
use crate::net::{Guest, NetError};
use crate::node::Node;

/// How often a VM is looked at when nothing happens.
const LOOK: Duration = Duration::from_secs(5);
/// How often the power button is pressed again: a guest that is still booting does not notice it.
const PRESS_AGAIN: Duration = Duration::from_secs(3);
/// Grace of a stop whose assignment names none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// Longest grace that an assignment can ask for.
const MAX_GRACE: Duration = Duration::from_secs(3600);
const MAX_BACK_OFF: Duration = Duration::from_secs(60);

/// Requests that are not assignments.
#[derive(Debug)]
pub(crate) enum Command {
    /// Stop the guest because this node is going down; stay so until the agent ends.
    Hold {
        grace: Duration,
        done: oneshot::Sender<Held>,
    },
    /// Reset it, in this epoch only.
    Reset {
        epoch: u64,
        done: oneshot::Sender<Result<(), String>>,
    },
}

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It did not run.
    WasOff,
    /// It switched itself off.
    SwitchedOff,
    /// It was ended by force.
    Forced,
}

/// Why a step failed; shown to the user as the reason of FAILED.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Gate(#[from] Shut),
    #[error("{0}")]
    Spec(String),
    #[error("the guest's process vanished")]
    Vanished,
}

/// What follows a step.
enum Next {
    /// Look again at once.
    Again,
    /// Wait for something to happen, at most until then.
    Wait(Instant),
    /// Nothing is left of the VM.
    Gone,
}

/// A stop under way.
#[derive(Debug)]
struct Stopping {
    deadline: Instant,
    press_at: Instant,
}

/// The owner of a VM.
#[derive(Debug)]
pub(crate) struct Actor {
    node: Arc<Node>,
    id: MachineId,
    desired: watch::Receiver<Assignment>,
    commands: mpsc::Receiver<Command>,
    console: Console,
    guest_off: Option<(u64, u64)>,
    acts: Acts,
    machine: Option<Box<dyn Machine>>,
    adopted: bool,
    stopping: Option<Stopping>,
    /// The button was pressed in this run of the machine: if it switches off, that was our wish.
    pressed: bool,
    hold: Option<(Duration, Vec<oneshot::Sender<Held>>)>,
    how: Held,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Actor {
    pub(crate) fn new(
        node: Arc<Node>,
        id: MachineId,
        desired: watch::Receiver<Assignment>,
        commands: mpsc::Receiver<Command>,
        console: Console,
        entry: &Entry,
    ) -> Self {
        Self {
            node,
            id,
            desired,
            commands,
            console,
            guest_off: entry.guest_off,
            acts: entry.acts.clone(),
            machine: None,
            adopted: false,
            stopping: None,
            pressed: false,
            hold: None,
            how: Held::WasOff,
            failures: 0,
            retry_at: None,
        }
    }

    /// Runs until the VM is gone or the agent stops. Guests go on running without it.
    pub(crate) async fn run(mut self) {
        let tasks = self.node.tasks.clone();
        loop {
            let wanted = self.desired.borrow_and_update().clone();
            let wait = match self.advance(&wanted).await {
                Ok(Next::Again) => continue,
                Ok(Next::Wait(until)) => until,
                Ok(Next::Gone) => {
                    self.report(&wanted, VmState::Gone, String::new());
                    if self.node.retire(&self.id, &mut self.desired) {
                        return;
                    }
                    self.adopted = false;
                    continue;
                }
                Err(trouble) => self.note_trouble(&wanted, &trouble),
            };
            tokio::select! {
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.retry_at = None;
                    self.failures = 0;
                }
                Some(command) = self.commands.recv() => self.obey(command).await,
                () = happening(&mut self.machine) => {}
                () = tokio::time::sleep_until(wait) => {}
                () = tasks.stopping() => return,
            }
        }
    }

    /// One look and the next act.
    async fn advance(&mut self, wanted: &Assignment) -> Result<Next, Trouble> {
        if let Some(at) = self.retry_at.filter(|at| *at > Instant::now()) {
            return Ok(Next::Wait(at));
        }
        let hypervisor = self.hypervisor(wanted)?;
        if !self.adopted {
            self.adopt(wanted, &*hypervisor).await?;
        }
        if wanted.delete {
            return self.remove(wanted, &*hypervisor).await;
        }
        self.look_at_machine(wanted).await?;
        if self.machine.is_none() {
            // Before a start, not after it: a guest that has just come up is not reset.
            self.note_acts(Acts::without_guest(wanted))?;
        }
        let on = wanted.power() == Power::On && self.hold.is_none();
        match (on, self.machine.is_some()) {
            (true, true) => {
                self.keep_running(wanted, hypervisor.capabilities().reset_in_place)
                    .await
            }
            (true, false) if self.guest_off == Some((wanted.epoch, power_generation(wanted))) => {
                self.report(
                    wanted,
                    VmState::Stopped,
                    "the guest switched itself off".to_owned(),
                );
                Ok(self.idle())
            }
            (true, false) => self.start(wanted, &*hypervisor).await,
            (false, true) => self.stop(wanted).await,
            (false, false) => {
                self.node.network.detach(&self.id).await?;
                let reason = if self.hold.is_some() {
                    "this node is going down"
                } else {
                    ""
                };
                self.report(wanted, VmState::Stopped, reason.to_owned());
                self.tell_holders();
                Ok(self.idle())
            }
        }
    }

    fn hypervisor(&self, wanted: &Assignment) -> Result<Arc<dyn Hypervisor>, Trouble> {
        let name = wanted.spec.as_ref().map_or("", |s| s.hypervisor.as_str());
        Ok(self.node.registry.get(name)?.clone())
    }

    fn idle(&mut self) -> Next {
        self.failures = 0;
        Next::Wait(Instant::now() + LOOK)
    }

    async fn adopt(&mut self, wanted: &Assignment, hypervisor: &dyn Hypervisor) -> Result<(), Trouble> {
        match hypervisor.adopt(&self.id).await? {
            Adopted::Running(machine) => {
                tracing::info!(vm = %self.id, pid = machine.info().pid, "adopted a running guest");
                if let Some(spec) = wanted.spec.as_ref().filter(|_| !wanted.delete) {
                    self.node
                        .network
                        .attach(&Guest::from_spec(&self.id, spec)?, true)
                        .await?;
                }
                self.open_console(&*machine).await;
                self.machine = Some(machine);
            }
            Adopted::Ended { ended, .. } => tracing::info!(vm = %self.id, ?ended, "found an ended guest"),
            Adopted::Absent => {}
        }
        self.adopted = true;
        Ok(())
    }

    /// Takes note of a machine that is not running any more, or is of an older incarnation.
    async fn look_at_machine(&mut self, wanted: &Assignment) -> Result<(), Trouble> {
        let Some(machine) = self.machine.as_mut() else {
            return Ok(());
        };
        let state = machine.status().await?;
        let stale = machine.info().epoch != wanted.epoch;
        if !stale && matches!(state, RunState::Running | RunState::Paused(_)) {
            if let Err(error) = machine.trim_logs() {
                tracing::warn!(%error, vm = %self.id, "cannot shorten the console's log");
            }
            return Ok(());
        }
        let ended = machine.end().await?;
        self.machine = None;
        let pressed = std::mem::take(&mut self.pressed);
        self.stopping = None;
        self.how = if ended == Ended::Forced {
            Held::Forced
        } else {
            Held::SwitchedOff
        };
        tracing::info!(vm = %self.id, ?ended, stale, "the guest has ended");
        self.node.network.detach(&self.id).await?;
        match ended {
            Ended::PoweredOff if !pressed && !stale => {
                self.guest_off = Some((wanted.epoch, power_generation(wanted)));
                self.node.note_guest_off(&self.id, self.guest_off)?;
            }
            Ended::Crashed if wanted.power() == Power::On && self.hold.is_none() => {
                return Err(Trouble::Vanished);
            }
            _ => {}
        }
        Ok(())
    }

    async fn keep_running(&mut self, wanted: &Assignment, in_place: bool) -> Result<Next, Trouble> {
        self.stopping = None;
        self.reset_when_due(wanted, in_place).await?;
        let Some(machine) = self.machine.as_mut() else {
            return Ok(Next::Again);
        };
        let state = machine.status().await?;
        match acts::judge(wanted.paused, state, self.acts.held) {
            Cpus::Leave(Look::Ended) => return Ok(Next::Again),
            Cpus::Leave(Look::Here { paused, reason }) => {
                self.report_guest(wanted, VmState::Running, paused, reason);
            }
            Cpus::Retry => {
                machine.resume().await?;
                self.report(wanted, VmState::Running, acts::disk());
            }
            Cpus::Stop => {
                self.note_held(true)?;
                if let Some(machine) = self.machine.as_mut() {
                    machine.pause().await?;
                }
                return Ok(Next::Again);
            }
            Cpus::Wake => {
                machine.resume().await?;
                self.note_held(false)?;
                return Ok(Next::Again);
            }
            Cpus::Forget => {
                self.note_held(false)?;
                return Ok(Next::Again);
            }
        }
        Ok(self.idle())
    }

    /// Resets the guest if one is asked for that has not been done.
    async fn reset_when_due(&mut self, wanted: &Assignment, in_place: bool) -> Result<(), Trouble> {
        let Some(machine) = self.machine.as_mut() else {
            return Ok(());
        };
        let Some(begun) = self.acts.begin_reset(wanted, machine.info().pid, in_place) else {
            return Ok(());
        };
        self.note_acts(begun)?;
        if let Some(machine) = self.machine.as_mut() {
            acts::reset(&self.acts, &mut **machine, in_place).await?;
        }
        tracing::info!(vm = %self.id, resets = wanted.resets, "the guest was reset");
        self.note_acts(self.acts.reset_done(wanted))
    }

    fn note_held(&mut self, held: bool) -> Result<(), Trouble> {
        self.note_acts(Acts {
            held,
            ..self.acts.clone()
        })
    }

    /// In the journal when this returns.
    fn note_acts(&mut self, acts: Acts) -> Result<(), Trouble> {
        if self.acts != acts {
            self.node.note_acts(&self.id, &acts)?;
            self.acts = acts;
        }
        Ok(())
    }

    async fn start(&mut self, wanted: &Assignment, hypervisor: &dyn Hypervisor) -> Result<Next, Trouble> {
        let spec = wanted
            .spec
            .as_ref()
            .ok_or_else(|| Trouble::Spec("the assignment has no specification".into()))?;
        let image = spec
            .image
            .as_ref()
            .ok_or_else(|| Trouble::Spec("the specification has no image".into()))?;
        self.node.fail_points.reach("agent.start.journaled").await;
        if spec.movable {
            self.node.may_start_movable(&self.id)?;
        }
        self.report(wanted, VmState::Preparing, String::new());
        let guest = Guest::from_spec(&self.id, spec)?;
        let in_use = self.node.images_in_use();
        let path = tokio::select! {
            path = self.node.images.ensure(image, &in_use) => path?,
            () = self.node.tasks.stopping() => return Ok(Next::Wait(Instant::now() + LOOK)),
            // The fetch may take minutes; whoever changed his mind is not kept waiting.
            changed = self.desired.changed() => {
                self.desired.mark_changed();
                return Ok(if changed.is_ok() { Next::Again } else { Next::Wait(Instant::now() + LOOK) });
            }
        };
        let format = match image.format.as_str() {
            "qcow2" | "" => ImageFormat::Qcow2,
            "raw" => ImageFormat::Raw,
            other => return Err(Trouble::Spec(format!("image format `{other}`"))),
        };
        self.node.fail_points.reach("agent.start.image").await;
        if spec.movable {
            // The image may have taken minutes.
            self.node.may_start_movable(&self.id)?;
        }
        let attachment = self.node.network.attach(&guest, false).await?;
        self.node.fail_points.reach("agent.start.network").await;
        self.report(wanted, VmState::Starting, String::new());
        let machine_spec = MachineSpec {
            id: self.id.clone(),
            epoch: wanted.epoch,
            generation: wanted.generation,
            name: spec.name.clone(),
            vcpus: spec.vcpus,
            memory_mib: spec.memory_bytes >> 20,
            disk: DiskSpec {
                image: path,
                format,
                size_bytes: spec.disk_bytes,
            },
            seed: attachment.seed,
            nic: Some(attachment.nic),
            movable: spec.movable,
        };
        match hypervisor.start(&machine_spec).await {
            Ok(machine) => {
                self.node.fail_points.reach("agent.start.started").await;
                self.open_console(&*machine).await;
                self.machine = Some(machine);
                Ok(Next::Again)
            }
            Err(error) => {
                // An earlier owner's machine may have come to light.
                self.adopted = false;
                if !matches!(error, HypervisorError::AlreadyRunning(_))
                    && let Err(error) = self.node.network.detach(&self.id).await
                {
                    tracing::warn!(vm = %self.id, error = %chain(&error), "after a failed start");
                }
                Err(error.into())
            }
        }
    }

    /// Presses the button, again and again until the deadline; then ends the guest.
    async fn stop(&mut self, wanted: &Assignment) -> Result<Next, Trouble> {
        let Some(machine) = self.machine.as_mut() else {
            return Ok(Next::Again);
        };
        let now = Instant::now();
        let grace = match (&self.hold, wanted.power(), wanted.graceful_stop_timeout_s) {
            (Some((grace, _)), _, _) => *grace,
            (None, Power::OffForced, _) => Duration::ZERO,
            (None, _, 0) => DEFAULT_GRACE,
            (None, _, s) => Duration::from_secs(s.into()),
        };
        let latest = now + grace.min(MAX_GRACE);
        let stopping = self.stopping.get_or_insert(Stopping {
            deadline: latest,
            press_at: now,
        });
        // A later wish may only shorten the wait.
        stopping.deadline = stopping.deadline.min(latest);
        if now >= stopping.deadline {
            let ended = machine.end().await?;
            tracing::info!(vm = %self.id, ?ended, "ended a guest at its deadline");
            self.how = if ended == Ended::Forced {
                Held::Forced
            } else {
                Held::SwitchedOff
            };
            self.machine = None;
            self.stopping = None;
            self.pressed = false;
            return Ok(Next::Again);
        }
        if now >= stopping.press_at {
            stopping.press_at = now + PRESS_AGAIN;
            self.pressed = true;
            // A guest that was paused could not hear the button.
            if self.acts.held && matches!(machine.status().await?, RunState::Paused(_)) {
                machine.resume().await?;
            }
            machine.press_power_button().await?;
        }
        let wait = stopping.deadline.min(stopping.press_at);
        self.report(wanted, VmState::Stopping, String::new());
        Ok(Next::Wait(wait))
    }

    async fn remove(&mut self, wanted: &Assignment, hypervisor: &dyn Hypervisor) -> Result<Next, Trouble> {
        self.report(wanted, VmState::Stopping, "being deleted".to_owned());
        if let Some(mut machine) = self.machine.take() {
            machine.end().await?;
        }
        self.node.fail_points.reach("agent.delete.ended").await;
        hypervisor.delete(&self.id).await?;
        self.node.fail_points.reach("agent.delete.files").await;
        self.node.network.detach(&self.id).await?;
        self.node.fail_points.reach("agent.delete.network").await;
        self.node.note_gone(&self.id)?;
        self.node.fail_points.reach("agent.delete.noted").await;
        self.how = Held::WasOff;
        self.tell_holders();
        Ok(Next::Gone)
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Hold { grace, done } => match &mut self.hold {
                Some((shorter, waiting)) => {
                    *shorter = grace.min(*shorter);
                    waiting.push(done);
                }
                None => {
                    self.how = Held::WasOff;
                    self.retry_at = None;
                    self.hold = Some((grace, vec![done]));
                }
            },
            Command::Reset { epoch, done } => {
                let result = match self.machine.as_mut() {
                    Some(machine) if machine.info().epoch == epoch => {
                        machine.reset().await.map_err(|e| chain(&e))
                    }
                    Some(machine) => Err(format!(
                        "the VM runs in epoch {}, not {epoch}",
                        machine.info().epoch
                    )),
                    None => Err("the VM is not running".to_owned()),
                };
                // Whoever asked may be gone by now.
                let _ = done.send(result);
            }
        }
    }

    fn tell_holders(&mut self) {
        if let Some((_, waiting)) = &mut self.hold {
            for done in waiting.drain(..) {
                let _ = done.send(self.how);
            }
        }
    }

    async fn open_console(&self, machine: &dyn Machine) {
        let history = machine.console_history(HISTORY_BYTES).unwrap_or_default();
        match machine.console().await {
            Ok(stream) => self.console.connect(stream, history, &self.node.tasks),
            Err(error) => tracing::warn!(vm = %self.id, %error, "the guest runs without its console"),
        }
    }

    fn note_trouble(&mut self, wanted: &Assignment, trouble: &Trouble) -> Instant {
        let reason = match trouble {
            Trouble::Hypervisor(error) if error.is_disk_full() => {
                format!("the disk of this node is full ({})", chain(error))
            }
            other => chain(other),
        };
        tracing::warn!(vm = %self.id, reason, "tried and failed; trying again");
        self.report(wanted, VmState::Failed, reason);
        let back_off = Duration::from_secs(1 << self.failures.min(6)).min(MAX_BACK_OFF);
        self.failures += 1;
        let at = Instant::now() + back_off;
        self.retry_at = Some(at);
        at
    }

    fn report(&self, wanted: &Assignment, state: VmState, reason: String) {
        self.report_guest(wanted, state, false, reason);
    }

    fn report_guest(&self, wanted: &Assignment, state: VmState, paused: bool, reason: String) {
        let info = self.machine.as_ref().map(|m| m.info());
        self.node.observations.put(
            &self.id,
            Observed {
                vm_id: self.id.to_string(),
                epoch: wanted.epoch,
                observed_generation: wanted.generation,
                seq: 0,
                state: state.into(),
                reason,
                pid: info.map_or(0, |i| i.pid),
                started_at_unix_ms: info.map_or(0, |i| i.started_at_unix_ms),
                accelerator: info.map_or_else(String::new, |i| i.accelerator.clone()),
                paused,
                resets: self.acts.resets,
            },
        );
    }
}

/// The generation that the guest's power was last decided in: only a newer one starts a guest that has switched itself
/// off.
fn power_generation(wanted: &Assignment) -> u64 {
    match wanted.power_generation {
        0 => wanted.generation,
        given => given,
    }
}

async fn happening(machine: &mut Option<Box<dyn Machine>>) {
    match machine {
        Some(machine) => machine.changed().await,
        None => std::future::pending().await,
    }
}
