//! The seam: what a backend offers.
//!
//! ```text
//!            start / adopt
//!   (files) ---------------> Running <----> Paused
//!                               |  \
//!            guest powers off   |   \ process dies
//!                               v    v
//!                         PoweredOff  Gone
//!                               |
//!                               | end()         (end() works from every state)
//!                               v
//!                            (files)
//! ```

use std::fmt;
use std::io;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::intent::Ended;
use crate::serial::ConsoleStream;
use crate::{Accelerator, HypervisorError, MachineId, MachineSpec};

/// State of a machine's process and guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// The guest's CPUs run.
    Running,
    /// They stand still; why, in the hypervisor's word (`paused`, `io-error`, ...).
    Paused(String),
    /// The guest switched itself off; the process waits to be ended.
    PoweredOff,
    /// There is no process any more, and nobody here ended it.
    Gone,
}

impl RunState {
    /// An error unless there is a guest, running or paused, that can do something.
    pub(crate) fn expect_guest(&self, id: &MachineId, act: &'static str) -> Result<(), HypervisorError> {
        let state = match self {
            Self::Running | Self::Paused(_) => return Ok(()),
            Self::PoweredOff => "switched off",
            Self::Gone => "gone",
        };
        Err(HypervisorError::WrongState {
            machine: id.to_string(),
            state,
            act,
        })
    }
}

/// What a backend can do beyond the trait, said honestly: what is false here is refused with a clear error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Most virtual CPUs of a machine.
    pub max_vcpus: u32,
    /// Takes [`crate::NetBackend::User`].
    pub user_network: bool,
    /// A guest that reboots by itself comes up again in the same machine. Where this is false, a
    /// reboot from inside ends the machine as if the guest had switched itself off.
    pub reboot_by_guest: bool,
    /// [`Machine::reset`] keeps the process; else it is a new one with a new pid.
    pub reset_in_place: bool,
    /// A graphical console.
    pub vnc: bool,
    /// Disks can come and go while the guest runs.
    pub hot_plug_disks: bool,
    /// A running guest can move to another host.
    pub live_migration: bool,
}

/// What is known of a running machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineInfo {
    /// Which.
    pub id: MachineId,
    /// Incarnation that it was started with.
    pub epoch: u64,
    /// Version of the specification that it was started with.
    pub generation: u64,
    /// Process id.
    pub pid: u32,
    /// When it was started, by the wall clock.
    pub started_at_unix_ms: i64,
    /// `kvm` or `tcg`.
    pub accelerator: String,
}

/// Result of looking for a machine of an earlier incarnation of the owner.
#[derive(Debug)]
pub enum Adopted {
    /// Its process lives.
    Running(Box<dyn Machine>),
    /// Its files are there, its process is not.
    Ended {
        /// Incarnation of the last start.
        epoch: u64,
        /// Version of the specification of the last start.
        generation: u64,
        /// How it ended, as far as that can be told.
        ended: Ended,
    },
    /// Nothing of it is here.
    Absent,
}

/// Everything that a backend finds on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Machines with a folder, running or not, sorted.
    pub machines: Vec<MachineId>,
    /// Processes that look like ours and belong to no record: for people to look at.
    pub orphans: Vec<String>,
}

/// One machine; whoever holds it is its only owner.
pub trait Machine: Send + Sync + fmt::Debug {
    /// What it is.
    fn info(&self) -> &MachineInfo;
    /// Asks how it is.
    ///
    /// # Errors
    /// When the process lives and its monitor does not answer.
    fn status(&mut self) -> BoxFuture<'_, Result<RunState, HypervisorError>>;
    /// Waits until something has happened that makes asking [`Machine::status`] worthwhile.
    /// May be dropped at any time and called again without losing anything.
    fn changed(&mut self) -> BoxFuture<'_, ()>;
    /// Presses the power button (ACPI, or what the machine has instead); the guest decides what to do.
    ///
    /// # Errors
    /// [`HypervisorError::WrongState`] without a guest; when the monitor does not answer.
    fn press_power_button(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>>;
    /// Stops the guest's CPUs. Harmless when they stand still already. A paused guest stays paused when
    /// its owner dies and another adopts it.
    ///
    /// # Errors
    /// [`HypervisorError::WrongState`] without a guest; when the monitor does not answer.
    fn pause(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>>;
    /// Stops the guest's CPUs at a point at which a reset is safe: one that follows, and any further one until the
    /// guest goes on, is one reset to the guest. For backends that reset in place.
    ///
    /// # Errors
    /// As [`Machine::pause`].
    fn pause_for_reset(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        self.pause()
    }
    /// Lets them go on. Harmless when they run.
    ///
    /// # Errors
    /// [`HypervisorError::WrongState`] without a guest; when the monitor does not answer.
    fn resume(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>>;
    /// Resets the machine as its reset button would. One that stands still goes on standing still where
    /// [`Capabilities::reset_in_place`]. [`Machine::info`] may tell another process
    /// afterwards ([`Capabilities::reset_in_place`]).
    ///
    /// # Errors
    /// [`HypervisorError::WrongState`] without a guest; when the monitor does not answer.
    fn reset(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>>;
    /// Ends the process, by its monitor or else by a signal, and records how it ended.
    /// Returns only when the process is gone. Calling it again is harmless.
    ///
    /// # Errors
    /// When the process cannot be ended or the record cannot be written.
    fn end(&mut self) -> BoxFuture<'_, Result<Ended, HypervisorError>>;
    /// Connects to the serial console. Only one connection at a time gets the guest's output.
    fn console(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>>;
    /// The last bytes that the guest wrote to its serial console, at most `max`.
    ///
    /// # Errors
    /// When the history cannot be read.
    fn console_history(&self, max: usize) -> io::Result<Vec<u8>>;

    /// Keeps the stored console output and the hypervisor's own log within their limits; the owner calls
    /// it now and then.
    ///
    /// # Errors
    /// When a log cannot be read or cut.
    fn trim_logs(&self) -> io::Result<()>;

    /// Presses the power button, waits at most `grace` for the guest to switch off, then ends it.
    /// A paused guest goes on first: it could not hear the button.
    ///
    /// # Errors
    /// As [`Machine::end`].
    fn stop(&mut self, grace: Duration) -> BoxFuture<'_, Result<Ended, HypervisorError>> {
        Box::pin(async move {
            if matches!(self.status().await, Ok(RunState::Paused(_)))
                && let Err(error) = self.resume().await
            {
                tracing::warn!(%error, "a paused guest does not go on; it will be ended by force");
            }
            if self.press_power_button().await.is_ok() {
                let switched_off = async {
                    while !matches!(self.status().await, Ok(RunState::PoweredOff | RunState::Gone)) {
                        self.changed().await;
                    }
                };
                // Both outcomes are handled by end(): it records which of them it was.
                let _in_time = tokio::time::timeout(grace, switched_off).await;
            }
            self.end().await
        })
    }
}

/// A way to run machines.
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// Its name in specifications: `kvm`.
    fn name(&self) -> &'static str;
    /// What speeds its guests up, and why that.
    fn accelerator(&self) -> &Accelerator;
    /// What it can and cannot do.
    fn capabilities(&self) -> Capabilities;
    /// Makes the disk if there is none, then starts the machine, detached.
    ///
    /// # Errors
    /// See [`HypervisorError`]; a failed start leaves no process and no half-made disk.
    fn start<'a>(&'a self, spec: &'a MachineSpec)
    -> BoxFuture<'a, Result<Box<dyn Machine>, HypervisorError>>;
    /// Finds a machine that was started earlier, perhaps by a process that is dead by now.
    ///
    /// # Errors
    /// When records are unreadable, or a live process does not answer.
    fn adopt<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<Adopted, HypervisorError>>;
    /// Lists what is on the host.
    ///
    /// # Errors
    /// When the folders cannot be read.
    fn inventory(&self) -> Result<Inventory, HypervisorError>;
    /// Ends what still runs of a machine and removes every file of it.
    ///
    /// # Errors
    /// When something stays behind.
    fn delete<'a>(&'a self, id: &'a MachineId) -> BoxFuture<'a, Result<(), HypervisorError>>;
}
