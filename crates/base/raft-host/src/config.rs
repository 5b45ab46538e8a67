//! What the host is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use crate::{GroupId, NodeId, Peer, StateMachine};

/// Settings of one host. `Default` is fit for production but for `node`, `log_dir`, `incarnation` and `seed`.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// This node. Not 0, never reused (see the crate's invariants).
    pub node: NodeId,
    /// Folder of the Raft log. Created when missing (its parent must exist).
    pub log_dir: PathBuf,
    /// A fresh random number for every start of the process: makes request ids unique across restarts.
    pub incarnation: u64,
    /// Seeds the election time-outs.
    pub seed: u64,
    /// Length of one [`crate::Input::Tick`]; only [`crate::start`] uses it.
    pub tick: Duration,
    /// Ticks without a leader before an election is called (randomised up to twice this).
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Largest command accepted by `propose`, bytes.
    pub max_proposal_bytes: usize,
    /// Most proposals of this node that wait for an answer in one group; more are `Busy`.
    pub max_pending: usize,
    /// A request that is not answered after this many ticks ends in `Unknown` / `TimedOut`.
    pub request_timeout_ticks: u64,
    /// The log is compacted when it holds this many entries more than `keep_entries`.
    pub compact_entries: u64,
    /// Entries kept behind the applied one, for members that lag a little (else they need a snapshot).
    pub keep_entries: u64,
    /// Size of one chunk of a snapshot, bytes.
    pub snapshot_chunk_bytes: usize,
    /// Largest snapshot that this node accepts, bytes; `None`: the disk is the limit (it goes there as it arrives).
    pub max_snapshot_bytes: Option<u64>,
    /// While a member catches up (a snapshot on its way, and what came after it), entries that it still lacks are
    /// kept although `keep_entries` would let them go, as long as the log needs no more than this, bytes.
    pub hold_log_bytes: u64,
    /// Entries in one append message, bytes.
    pub max_append_bytes: u64,
    /// Requests that may wait for the owner thread; more are `Busy`, messages of peers are dropped.
    pub queue: usize,
    /// The log's files.
    pub log: LogConfig,
    /// A bug to plant, for tests of the checkers.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<PlantedBug>,
}

impl Default for HostConfig {
    fn default() -> HostConfig {
        HostConfig {
            node: 0,
            log_dir: PathBuf::new(),
            incarnation: 0,
            seed: 0,
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 1,
            max_proposal_bytes: 2 << 20,
            max_pending: 8192,
            request_timeout_ticks: 50,
            compact_entries: 10_000,
            keep_entries: 5_000,
            snapshot_chunk_bytes: 512 << 10,
            max_snapshot_bytes: None,
            hold_log_bytes: 1 << 30,
            max_append_bytes: 1 << 20,
            queue: 16_384,
            log: LogConfig::default(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// The Raft log's files.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A file is closed and the next one begun at this size, bytes.
    pub file_bytes: u64,
    /// Old files are reclaimed when the log is larger than this, bytes.
    pub purge_bytes: u64,
    /// Files filled with zeros ahead of use, bytes in all (0: none). An fsync into a prefilled file is about
    /// half as long as one that grows its file.
    pub prefill_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            file_bytes: 8 << 20,
            purge_bytes: 32 << 20,
            prefill_bytes: 16 << 20,
        }
    }
}

/// One group to run on this host.
pub struct GroupConfig {
    /// Its identity.
    pub id: GroupId,
    /// The group's first voters, the same list on each of them, this node included. Used only when the log knows
    /// nothing of the group. **Empty** for a node that joins a running group: it waits to be contacted.
    pub initial: Vec<Peer>,
    /// Where committed entries go.
    pub machine: Box<dyn StateMachine>,
}

impl std::fmt::Debug for GroupConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupConfig")
            .field("id", &self.id)
            .field("initial", &self.initial)
            .finish_non_exhaustive()
    }
}

/// Bugs that a test plants on purpose; each must be found by the simulator.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// Term and vote are not written to the log: a restarted member votes twice in one term.
    ForgetHardState,
    /// Every read of a node uses the same read-index context (etcd's issue 20418).
    ReuseReadContext,
    /// A proposal is answered when the leader has appended it, before a majority has.
    AckBeforeCommit,
}
