//! The rules of PlasmaVMC without any of its machinery: what a valid request is, which node a VM goes to, what a
//! report from a node means for a VM's life, and the arithmetic of claims and addresses.
//!
//! It does not know time, randomness, storage, network or any wire format: all of these are inputs or belong to
//! the server, which turns the answers into one transaction.
//!
//! Entry points: [`validate`], [`Cluster`] (where a VM goes, and why not), [`Quota`], [`accept`] (a report arrives), [`progress`] (how an operation stands), [`next_step`] (what is left to do),
//! [`shown_state`] (what people see), [`Alloc`] (claims on a node), [`Network::choose`] (an address), [`fence`] (that no disk is open twice).
//!
//! Invariants: [`Cluster::decide`] never chooses a node whose claims would then exceed its capacity times the overcommit;
//! the sum of an [`Alloc`] is the sum of its claims; only a report of "gone" in the current epoch frees anything.

mod address;
mod alloc;
pub mod fence;
mod lifecycle;
mod operation;
mod quota;
mod request;
mod schedule;

pub use address::{Network, NetworkError};
pub use alloc::{Alloc, AllocError, CellRoom, Resources, Room};
pub use lifecycle::{
    Desired, Effects, IllegalTransition, Phase, Publication, Refused, Report, Shown, Step, Tracked, accept,
    next_step, shown_state,
};
pub use operation::{Goal, OperationKind, OperationState, Progress, Sight, progress};
pub use quota::{OverQuota, Quota, Usage};
pub use request::{Hypervisor, InvalidRequest, Limits, NetworkMode, RawRequest, VmRequest, validate};
pub use schedule::{
    BEST, Cell, Cluster, Decision, Group, GroupRule, NoPlace, NodeVerdict, NodeView, Pick, Placement, Policy,
    Verdict, Weigher, Weight, WhyNot,
};
