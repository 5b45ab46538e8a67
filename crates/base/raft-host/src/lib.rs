//! Runs 1..N Raft groups on one node: one thread owns their state, one log holds their entries.
//!
//! # What it is
//! The consensus algorithm is the `raft` crate's; this crate is everything around it: the log on disk
//! (on `raft-engine`), group commit (one append and one fsync a round for all groups), applying to a
//! [`StateMachine`], snapshots in checked chunks, linearizable reads ([`HostHandle::read_index`]), membership
//! change, leadership transfer, and forwarding of proposals from followers to the leader.
//!
//! # What it deliberately does not know
//! Sockets (a [`Transport`] is injected), files (raft-engine's `FileSystem` is injected), clocks (time is
//! [`Input::Tick`]), randomness ([`HostConfig::seed`] and [`HostConfig::incarnation`] are given), what a command
//! means, and who may send what: the transport must have made sure that a message's `from` is its sender.
//!
//! # Entry points
//! - [`Host`]: the core. `Host::round(inputs) -> outputs`, single-threaded and deterministic. The simulator
//!   drives it directly.
//! - [`start`]: the same core on a thread of its own, behind a cloneable [`HostHandle`]. Production uses this.
//! - [`offline`]: logs of stopped hosts, for backup tools and for the recovery from a lost majority.
//!
//! # Invariants
//! 1. Nothing that promises durability (a vote, an append acknowledgement) leaves before its fsync has returned.
//! 2. An error of the log, of its fsync or of a state machine is fatal: the host stops, it never goes on with
//!    less. [`HostHandle::failed`] tells; the process is expected to exit.
//! 3. A read-index context is used once; all pending contexts are void after a change of leader or term.
//! 4. A proposal is applied at most once: it is forwarded for one term only, and never proposed again here.
//! 5. **Node ids are never reused** (the caller's rule): a node that lost its disk, or was removed, comes back
//!    under a fresh id. Under an old id, votes that it gave and forgot could elect two leaders in one term.
//!
//! ```text
//!   callers --HostHandle--> bounded queue --> owner thread: Host::round
//!                                              | step raft | append+fsync | send | apply | reply
//!   peers  --HostHandle::step--^               '--> Transport::send --> peers
//! ```

mod config;
mod convert;
mod error;
mod group;
mod host;
mod log;
mod machine;
mod membership;
pub mod offline;
mod proposals;
mod reads;
mod shell;
mod snapshot;
mod status;
mod transport;
pub mod wire;

#[cfg(feature = "planted-bugs")]
pub use config::PlantedBug;
pub use config::{GroupConfig, HostConfig, LogConfig};
pub use error::{ConfChangeError, Fatal, OpenError, ProposeError, ReadError, TransferError};
pub use host::{Host, Input, Output, Reply, RequestId};
pub use log::SYNC_CLASSES_US;
pub use machine::{Committed, MachineError, Payload, SnapshotSink, SnapshotSource, StateMachine};
pub use membership::{ConfChange, Member, Membership, Peer};
pub use offline::Found;
pub use proposals::Applied;
pub use raft_engine::env::{DefaultFileSystem, FileSystem, Handle as FileHandle, Permission, WriteExt};
pub use shell::{HostHandle, start};
pub use status::{LeaderInfo, PeerProgress, Role, Status};
pub use transport::Transport;
pub use wire::PeerMessage;

/// A member's identity, for ever: unique in the cluster's whole history, never 0, never reused.
pub type NodeId = u64;
/// A Raft group's identity, the same on all its members. `u64::MAX` is reserved for the log's own records.
pub type GroupId = u64;
