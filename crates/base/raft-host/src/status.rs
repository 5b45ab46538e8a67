//! What a host tells about itself.

use std::time::Duration;

use crate::{GroupId, Membership, NodeId};

/// A member's part in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    #[default]
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Stands in an election.
    Candidate,
    /// Leads.
    Leader,
}

/// Who leads a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderInfo {
    /// The leader, when known.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// This node's part.
    pub role: Role,
}

/// How far another member is, as its leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// The member.
    pub id: NodeId,
    /// The last entry it is known to have on disk.
    pub matched: u64,
    /// Something came from it within the last election time-out.
    pub active: bool,
    /// It is being sent a snapshot.
    pub snapshot: bool,
}

/// One group's state on this node.
#[derive(Clone, Debug)]
pub struct Status {
    /// The group.
    pub group: GroupId,
    /// This node.
    pub node: NodeId,
    /// Who leads, in which term, and this node's part.
    pub leader: LeaderInfo,
    /// Last entry known to be committed.
    pub commit: u64,
    /// Last entry applied to the state machine.
    pub applied: u64,
    /// First entry still in the log.
    pub first_index: u64,
    /// Last entry in the log.
    pub last_index: u64,
    /// Bytes of log data of all groups of this host that are still needed.
    pub log_bytes: u64,
    /// Members.
    pub membership: Membership,
    /// On the leader: the others.
    pub progress: Vec<PeerProgress>,
    /// Log syncs of this host since its start.
    pub syncs: u64,
    /// How long the latest log syncs of this host took (write and fsync), the newest last; at most 128.
    pub fsyncs: Vec<Duration>,
    /// How many of all log syncs fell into each class of [`crate::SYNC_CLASSES_US`]; the last class has no bound.
    pub sync_classes: Vec<u64>,
    /// How long all log syncs took together.
    pub sync_total: Duration,
}
