//! What can go wrong, for callers that branch on it.

use std::path::PathBuf;

use crate::{GroupId, NodeId};

/// Why a proposal has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader is known here, or the one asked is not the leader any more. Not applied; may be repeated.
    #[error("not the leader of the group; the leader known here is {leader:?}")]
    NotLeader {
        /// The leader as far as known.
        leader: Option<NodeId>,
    },
    /// Certainly not applied, now or later (another entry took its place, or the leader refused it). May be
    /// repeated.
    #[error("the proposal was dropped and will not be applied; repeat it")]
    Dropped,
    /// Nobody can tell whether it was or will be applied. Look at the state before repeating.
    #[error("the outcome of the proposal is unknown: it may have been, or may yet be, applied")]
    Unknown,
    /// Too many proposals wait. Not applied; repeat later.
    #[error("too many proposals are waiting; repeat later")]
    Busy,
    /// Larger than `HostConfig::max_proposal_bytes`. Not applied.
    #[error("the proposal has {bytes} bytes, the limit is {limit}")]
    TooBig {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// This host runs no such group.
    #[error("group {0} does not run here")]
    NoGroup(GroupId),
    /// The host stopped (shutdown or a fatal error) before the outcome was known.
    #[error("the raft host has stopped; the outcome of the proposal is unknown")]
    Stopped,
}

/// Why a linearizable read has no index. A read may always be repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No leader confirmed the read in time.
    #[error("no leader confirmed the read in time; the leader known here is {leader:?}")]
    TimedOut {
        /// The leader as far as known.
        leader: Option<NodeId>,
    },
    /// Too many requests wait.
    #[error("too many requests are waiting; repeat later")]
    Busy,
    /// This host runs no such group.
    #[error("group {0} does not run here")]
    NoGroup(GroupId),
    /// The host stopped.
    #[error("the raft host has stopped")]
    Stopped,
}

/// Why a membership change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfChangeError {
    /// Membership is changed on the leader only.
    #[error("not the leader of the group; the leader known here is {leader:?}")]
    NotLeader {
        /// The leader as far as known.
        leader: Option<NodeId>,
    },
    /// Another change has not been applied yet. Repeat when it is.
    #[error("another membership change is under way; repeat when it is done")]
    Pending,
    /// A leader does not remove itself: transfer leadership first.
    #[error("the leader cannot remove itself; transfer leadership first")]
    IsLeader,
    /// The change makes no sense for the present members.
    #[error("the membership change is not possible: {0}")]
    Invalid(String),
    /// Certainly not made.
    #[error("the membership change was dropped; repeat it")]
    Dropped,
    /// Nobody can tell; look at the membership before repeating.
    #[error("the outcome of the membership change is unknown")]
    Unknown,
    /// This host runs no such group.
    #[error("group {0} does not run here")]
    NoGroup(GroupId),
    /// The host stopped or is overloaded.
    #[error("the raft host has stopped")]
    Stopped,
}

/// Why leadership was not transferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can hand over.
    #[error("not the leader of the group; the leader known here is {leader:?}")]
    NotLeader {
        /// The leader as far as known.
        leader: Option<NodeId>,
    },
    /// The target is not a voter of the group.
    #[error("node {0} is not a voter of the group")]
    NotVoter(NodeId),
    /// The target did not take over in time.
    #[error("node {0} did not take over in time")]
    TimedOut(NodeId),
    /// This host runs no such group.
    #[error("group {0} does not run here")]
    NoGroup(GroupId),
    /// The host stopped or is overloaded.
    #[error("the raft host has stopped")]
    Stopped,
}

/// Why a host could not be opened. Every text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log's content contradicts its checksums, or durable records are gone.
    #[error(
        "the raft log in `{dir}` is damaged: {what}; this member must not vote with it: remove the member from \
         the cluster, delete `{dir}` and the member's state, and add it again as a new member (with one member \
         only: restore a backup)"
    )]
    Damaged {
        /// The log's folder.
        dir: PathBuf,
        /// What was found, with the file where it is known.
        what: String,
    },
    /// The log or its folder could not be read or written.
    #[error("the raft log in `{dir}` cannot be opened: {what}; see to permissions, free space and the disk")]
    Io {
        /// The log's folder.
        dir: PathBuf,
        /// The system's message.
        what: String,
    },
    /// Another process uses the folder.
    #[error("the raft log in `{dir}` is in use by another process; stop that process first")]
    Locked {
        /// The log's folder.
        dir: PathBuf,
    },
    /// State machine and log do not belong together.
    #[error("group {group}: {what}; restore both from one backup, or add this node again as a new member")]
    Mismatch {
        /// The group.
        group: GroupId,
        /// What does not fit.
        what: String,
    },
    /// The configuration is not usable.
    #[error("the raft host's configuration is not usable: {0}")]
    Config(String),
}

/// The host cannot go on; the process must end. The log is as it was at the last successful fsync.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft host stopped: {what}")]
pub struct Fatal {
    /// What happened, with the file or group.
    pub what: String,
}
