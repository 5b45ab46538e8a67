//! Runs virtual machines on this host: one trait, one registry, and the backends: QEMU over QMP, and
//! Firecracker over its API socket.
//!
//! What it deliberately does not know: the control plane, placement, epochs' meaning (it stores and
//! returns them), image downloads, how a tap device came to be. It is given files and a finished
//! network device and makes a process out of them.
//!
//! Entry points: [`HypervisorRegistry::open`], [`Hypervisor`], [`Machine`]; the backends [`KvmBackend`] and
//! [`FirecrackerBackend`]; [`kvm::probe::decide`] for QEMU's accelerator.
//!
//! A further backend is a module here and a line in `registry.rs`; nothing outside this crate knows
//! the backends by name.
//!
//! Invariants:
//! * An intent record is on disk, synced, before a process exists; so every process that this crate
//!   started can be found again by a later incarnation of its owner.
//! * A process is known by pid, start time and the host's boot id. Nothing is ever killed by name.
//! * Machines are detached: they survive the end of the process that started them.
//! * A base image is only ever opened for reading; guests write to their own overlay.
//! * The accelerator is decided once and said aloud; there is no silent fall-back.

mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod firecracker;
mod folders;
mod hypervisor;
mod intent;
pub mod kvm;
mod movable;
mod process;
mod registry;
mod serial;
mod spec;

pub use error::HypervisorError;
pub use firecracker::FirecrackerBackend;
pub use hypervisor::{Adopted, Capabilities, Hypervisor, Inventory, Machine, MachineInfo, RunState};
pub use intent::Ended;
pub use kvm::KvmBackend;
pub use kvm::probe::{Accelerator, AcceleratorKind, Preference};
pub use movable::{MovableMachine, movable_machines};
pub use process::{ProcessIdentity, host_boot_id};
pub use registry::{Host, HypervisorRegistry};
pub use serial::ConsoleStream;
pub use spec::{DiskSpec, Forward, ImageFormat, MachineId, MachineSpec, NetBackend, NicSpec};
