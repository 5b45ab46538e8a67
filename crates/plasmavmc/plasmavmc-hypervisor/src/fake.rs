//! A strict imitation of a hypervisor, for tests of its owners.
//!
//! It refuses what the real one refuses (a second start, an invalid specification, a missing image)
//! and keeps its machines in a [`FakeHost`], so that a second backend over the same host finds them
//! again, as after the restart of an agent. It is never a fall-back: only this crate's `fake` feature
//! has it, and only tests switch that on.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt;

use crate::serial::ConsoleStream;
use crate::{
    Accelerator, AcceleratorKind, Adopted, Capabilities, Ended, Hypervisor, HypervisorError, Inventory,
    Machine, MachineId, MachineInfo, MachineSpec, RunState,
};

/// How often a waiting owner looks again.
const POLL: Duration = Duration::from_millis(5);
/// What a guest says when it comes up.
const GREETING: &[u8] = b"imitated console\r\n";
const CONSOLE_BYTES: usize = 4096;

#[derive(Debug, Clone)]
struct FakeMachine {
    spec: MachineSpec,
    pid: u32,
    state: RunState,
    ended: Option<Ended>,
    resets: u32,
    /// It was reset while it stood still: it notices when it goes on, and once.
    fresh: bool,
}

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<MachineId, FakeMachine>,
    starts: u32,
    fail_starts: u32,
    deaf_guests: bool,
    replaces: bool,
}

/// What survives its backends: the machines of one imaginary host.
#[derive(Debug, Clone, Default)]
pub struct FakeHost(Arc<Mutex<State>>);

impl FakeHost {
    /// An empty host.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of processes started so far.
    #[must_use]
    pub fn starts(&self) -> u32 {
        self.state().starts
    }

    /// Number of resets that a machine has seen.
    #[must_use]
    pub fn resets(&self, id: &MachineId) -> u32 {
        self.state().machines.get(id).map_or(0, |m| m.resets)
    }

    /// The specification that a live machine was started with.
    #[must_use]
    pub fn running(&self, id: &MachineId) -> Option<MachineSpec> {
        self.state()
            .machines
            .get(id)
            .filter(|m| m.ended.is_none())
            .map(|m| m.spec.clone())
    }

    /// Lets the next `count` starts fail.
    pub fn fail_starts(&self, count: u32) {
        self.state().fail_starts = count;
    }

    /// Whether guests ignore the power button.
    pub fn deaf_guests(&self, deaf: bool) {
        self.state().deaf_guests = deaf;
    }

    /// Whether a reset ends the process and starts another one, as Firecracker's does.
    pub fn replace_on_reset(&self, replaces: bool) {
        self.state().replaces = replaces;
    }

    /// A reset has replaced the process of a guest, and nobody has noted it.
    pub fn replace(&self, id: &MachineId) {
        let mut state = self.state();
        state.starts += 1;
        let pid = 1_000_000 + state.starts;
        if let Some(machine) = state.machines.get_mut(id) {
            machine.pid = pid;
            machine.resets += 1;
            machine.state = RunState::Running;
        }
    }

    /// The guest switches itself off.
    pub fn power_off(&self, id: &MachineId) {
        if let Some(machine) = self.state().machines.get_mut(id) {
            machine.state = RunState::PoweredOff;
        }
    }

    /// Somebody stops a guest's CPUs behind its owner's back.
    pub fn freeze(&self, id: &MachineId) {
        if let Some(machine) = self.state().machines.get_mut(id) {
            machine.state = RunState::Paused("paused".to_owned());
        }
    }

    /// A guest that stands still has been reset, and nobody has noted it.
    pub fn reset_frozen(&self, id: &MachineId) {
        if let Some(machine) = self.state().machines.get_mut(id) {
            machine.fresh = true;
        }
    }

    /// The process vanishes.
    pub fn crash(&self, id: &MachineId) {
        if let Some(machine) = self.state().machines.get_mut(id) {
            machine.state = RunState::Gone;
            machine.ended = Some(Ended::Crashed);
        }
    }
}

/// A backend over a [`FakeHost`].
#[derive(Debug)]
pub struct FakeHypervisor {
    name: &'static str,
    host: FakeHost,
    accelerator: Accelerator,
}

impl FakeHypervisor {
    /// A backend named `kvm` over `host`.
    #[must_use]
    pub fn new(host: FakeHost) -> Self {
        Self::named("kvm", host)
    }

    /// A backend of another name, to show that names are all that its owners know of it.
    #[must_use]
    pub fn named(name: &'static str, host: FakeHost) -> Self {
        let reason = "an imitation for tests".to_owned();
        Self {
            name,
            host,
            accelerator: Accelerator {
                kind: AcceleratorKind::Tcg,
                reason,
            },
        }
    }

    fn machine(&self, machine: &FakeMachine) -> Box<dyn Machine> {
        let info = MachineInfo {
            id: machine.spec.id.clone(),
            epoch: machine.spec.epoch,
            generation: machine.spec.generation,
            pid: machine.pid,
            started_at_unix_ms: 1,
            accelerator: "tcg".to_owned(),
        };
        Box::new(FakeRunning {
            host: self.host.clone(),
            info,
            seen: None,
        })
    }
}

#[derive(Debug)]
struct FakeRunning {
    host: FakeHost,
    info: MachineInfo,
    seen: Option<RunState>,
}

impl FakeRunning {
    fn now(&self) -> RunState {
        match self.host.state().machines.get(&self.info.id) {
            Some(machine) if machine.pid == self.info.pid => machine.state.clone(),
            _ => RunState::Gone,
        }
    }

    fn act(&self, name: &'static str, act: impl FnOnce(&mut FakeMachine)) -> Result<(), HypervisorError> {
        self.now().expect_guest(&self.info.id, name)?;
        match self.host.state().machines.get_mut(&self.info.id) {
            Some(machine) if machine.pid == self.info.pid && machine.ended.is_none() => {
                act(machine);
                Ok(())
            }
            _ => Err(HypervisorError::Monitor("the machine hung up".to_owned())),
        }
    }
}

impl Machine for FakeRunning {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn status(&mut self) -> BoxFuture<'_, Result<RunState, HypervisorError>> {
        let now = self.now();
        self.seen = Some(now.clone());
        Box::pin(async move { Ok(now) })
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while self.seen.as_ref() == Some(&self.now()) {
                tokio::time::sleep(POLL).await;
            }
        })
    }

    fn press_power_button(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        let deaf = self.host.state().deaf_guests;
        let result = self.act("be asked to switch off", |m| {
            if !deaf {
                m.state = RunState::PoweredOff;
            }
        });
        Box::pin(async move { result })
    }

    fn pause(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        let result = self.act("be paused", |m| m.state = RunState::Paused("paused".to_owned()));
        Box::pin(async move { result })
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        let result = self.act("go on", |m| {
            m.state = RunState::Running;
            m.resets += u32::from(std::mem::take(&mut m.fresh));
        });
        Box::pin(async move { result })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        let replaces = self.host.state().replaces;
        if replaces && self.now().expect_guest(&self.info.id, "be reset").is_ok() {
            self.host.replace(&self.info.id);
            let pid = self.host.state().machines.get(&self.info.id).map(|m| m.pid);
            self.info.pid = pid.unwrap_or(self.info.pid);
            return Box::pin(async { Ok(()) });
        }
        let result = self.act("be reset", |m| match m.state {
            RunState::Paused(_) => m.fresh = true,
            _ => m.resets += 1,
        });
        Box::pin(async move { result })
    }

    fn end(&mut self) -> BoxFuture<'_, Result<Ended, HypervisorError>> {
        let mut state = self.host.state();
        let ended = match state.machines.get_mut(&self.info.id) {
            Some(machine) if machine.pid == self.info.pid => {
                let how = match machine.state {
                    RunState::PoweredOff => Ended::PoweredOff,
                    RunState::Gone => Ended::Crashed,
                    RunState::Running | RunState::Paused(_) => Ended::Forced,
                };
                machine.state = RunState::Gone;
                machine.ended.get_or_insert(how).clone()
            }
            _ => Ended::Crashed,
        };
        Box::pin(async move { Ok(ended) })
    }

    fn console(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        Box::pin(async {
            // Says one line and hears every word, like a guest that nobody has logged in to.
            let (ours, mut theirs) = tokio::io::duplex(CONSOLE_BYTES);
            theirs.write_all(GREETING).await?;
            Ok(Box::new(tokio::io::join(ours, tokio::io::sink())) as Box<dyn ConsoleStream>)
        })
    }

    fn console_history(&self, max: usize) -> io::Result<Vec<u8>> {
        let boots = self.host.resets(&self.info.id) as usize + 1;
        let all = GREETING.repeat(boots);
        Ok(all
            .get(all.len().saturating_sub(max)..)
            .unwrap_or_default()
            .to_vec())
    }

    fn trim_logs(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        self.name
    }

    fn accelerator(&self) -> &Accelerator {
        &self.accelerator
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_vcpus: crate::spec::MAX_VCPUS,
            user_network: true,
            reboot_by_guest: true,
            reset_in_place: !self.host.state().replaces,
            vnc: false,
            hot_plug_disks: false,
            live_migration: false,
        }
    }

    fn start<'a>(
        &'a self,
        spec: &'a MachineSpec,
    ) -> BoxFuture<'a, Result<Box<dyn Machine>, HypervisorError>> {
        Box::pin(async move {
            spec.validate()?;
            if !spec.disk.image.is_file() {
                let error = io::Error::from(io::ErrorKind::NotFound);
                return Err(HypervisorError::io("open", &spec.disk.image)(error));
            }
            let mut state = self.host.state();
            if state.machines.get(&spec.id).is_some_and(|m| m.ended.is_none()) {
                return Err(HypervisorError::AlreadyRunning(spec.id.to_string()));
            }
            if state.fail_starts > 0 {
                state.fail_starts -= 1;
                let message = "told to fail".to_owned();
                return Err(HypervisorError::Program {
                    program: "imitation",
                    message,
                });
            }
            state.starts += 1;
            let pid = 1_000_000 + state.starts;
            let machine = FakeMachine {
                spec: spec.clone(),
                pid,
                state: RunState::Running,
                ended: None,
                resets: 0,
                fresh: false,
            };
            state.machines.insert(spec.id.clone(), machine.clone());
            Ok(self.machine(&machine))
        })
    }

    fn adopt<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<Adopted, HypervisorError>> {
        let adopted = match self.host.state().machines.get(id) {
            None => Adopted::Absent,
            Some(FakeMachine {
                spec,
                ended: Some(ended),
                ..
            }) => Adopted::Ended {
                epoch: spec.epoch,
                generation: spec.generation,
                ended: ended.clone(),
            },
            Some(machine) => Adopted::Running(self.machine(machine)),
        };
        Box::pin(async move { Ok(adopted) })
    }

    fn inventory(&self) -> Result<Inventory, HypervisorError> {
        let machines = self.host.state().machines.keys().cloned().collect();
        Ok(Inventory {
            machines,
            orphans: Vec::new(),
        })
    }

    fn delete<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<(), HypervisorError>> {
        self.host.state().machines.remove(id);
        Box::pin(async { Ok(()) })
    }
}
