//! The core: all groups of one node, driven in rounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use raft_engine::env::FileSystem;

use crate::group::{Group, Trust};
use crate::log::Log;
use crate::{
    Applied, ConfChange, ConfChangeError, Fatal, GroupConfig, GroupId, HostConfig, LeaderInfo, Membership,
    NodeId, OpenError, PeerMessage, ProposeError, ReadError, Status, TransferError,
};

/// The caller's number for a request; it comes back in the [`Reply`].
pub type RequestId = u64;

/// Passes over the groups in one round: work that makes more work (a vote won, an entry committed) is done at
/// once, but a round ends.
const MAX_PASSES: usize = 64;

/// What happens to a host.
#[derive(Clone, Debug)]
pub enum Input {
    /// [`HostConfig::tick`] has passed.
    Tick,
    /// A message arrived; its sender is authentic.
    Peer(Box<PeerMessage>),
    /// Replicate a command.
    Propose {
        /// The group.
        group: GroupId,
        /// Comes back in [`Reply::Proposed`].
        id: RequestId,
        /// The command.
        data: Bytes,
    },
    /// Ask for the point of a linearizable read.
    ReadIndex {
        /// The group.
        group: GroupId,
        /// Comes back in [`Reply::Read`].
        id: RequestId,
    },
    /// Change the members.
    ConfChange {
        /// The group.
        group: GroupId,
        /// Comes back in [`Reply::ConfChanged`].
        id: RequestId,
        /// The change.
        change: ConfChange,
    },
    /// Hand leadership over.
    Transfer {
        /// The group.
        group: GroupId,
        /// Comes back in [`Reply::Transferred`].
        id: RequestId,
        /// The new leader.
        to: NodeId,
    },
    /// Messages to a node do not arrive.
    Unreachable {
        /// The node.
        node: NodeId,
    },
}

impl Input {
    /// The request's number, for inputs that are answered.
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Input::Propose { id, .. }
            | Input::ReadIndex { id, .. }
            | Input::ConfChange { id, .. }
            | Input::Transfer { id, .. } => Some(*id),
            Input::Tick | Input::Peer(_) | Input::Unreachable { .. } => None,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To [`Input::Propose`].
    Proposed(RequestId, Result<Applied, ProposeError>),
    /// To [`Input::ReadIndex`].
    Read(RequestId, Result<u64, ReadError>),
    /// To [`Input::ConfChange`].
    ConfChanged(RequestId, Result<Membership, ConfChangeError>),
    /// To [`Input::Transfer`].
    Transferred(RequestId, Result<(), TransferError>),
}

impl Reply {
    /// The request's number.
    pub fn id(&self) -> RequestId {
        match self {
            Reply::Proposed(id, _)
            | Reply::Read(id, _)
            | Reply::ConfChanged(id, _)
            | Reply::Transferred(id, _) => *id,
        }
    }
}

/// What a round brings about.
#[derive(Debug, Default)]
pub struct Output {
    /// To send, in this order per receiver.
    pub messages: Vec<PeerMessage>,
    /// Answers.
    pub replies: Vec<Reply>,
    /// Groups whose leader or term changed.
    pub leaders: Vec<(GroupId, LeaderInfo)>,
    /// Members whose address became known (`Some`) or that are gone (`None`).
    pub addresses: Vec<(NodeId, Option<String>)>,
    /// Groups whose members changed.
    pub memberships: Vec<(GroupId, Membership)>,
}

/// All groups of one node. See the crate's documentation.
///
/// One host a thread: raft-engine caches the last block it read per thread, by file and offset but not by engine,
/// and would hand one host another's entries. (The simulator runs many on one thread, and empties that cache.)
pub struct Host<F: FileSystem> {
    config: HostConfig,
    log: Log<F>,
    groups: BTreeMap<GroupId, Group<F>>,
    /// Ticks since the start.
    now: u64,
    /// The error that stopped it.
    stopped: Option<Fatal>,
}

impl<F: FileSystem> std::fmt::Debug for Host<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("node", &self.config.node)
            .finish_non_exhaustive()
    }
}

impl<F: FileSystem> Host<F> {
    /// Opens the log and all groups. What was committed but not yet in a state machine is applied in the first
    /// round.
    pub fn open(
        config: HostConfig,
        file_system: Arc<F>,
        groups: Vec<GroupConfig>,
    ) -> Result<Host<F>, OpenError> {
        if config.node == 0 {
            return Err(OpenError::Config("node id 0 is not allowed".to_owned()));
        }
        let mut log = Log::open(&config.log_dir, &config.log, file_system)?;
        let mut open = BTreeMap::new();
        for group in groups {
            let id = group.id;
            if id == GroupId::MAX || open.contains_key(&id) {
                return Err(OpenError::Config(format!(
                    "group id {id} is reserved or used twice"
                )));
            }
            open.insert(id, Group::open(&config, &mut log, group, Trust::Committed)?);
        }
        log.confirm().map_err(|e| OpenError::Io {
            dir: config.log_dir.clone(),
            what: e.what,
        })?;
        Ok(Host {
            config,
            log,
            groups: open,
            now: 0,
            stopped: None,
        })
    }

    /// Takes everything that happened since the last round. After an error every further round fails alike.
    pub fn round(&mut self, inputs: Vec<Input>) -> Result<Output, Fatal> {
        if let Some(fatal) = &self.stopped {
            return Err(fatal.clone());
        }
        let result = self.run_round(inputs);
        if let Err(fatal) = &result {
            self.stopped = Some(fatal.clone());
        }
        result
    }

    fn run_round(&mut self, inputs: Vec<Input>) -> Result<Output, Fatal> {
        let mut out = Output::default();
        for input in inputs {
            self.take(input, &mut out)?;
        }
        for group in self.groups.values_mut() {
            group.issue_reads(self.now);
        }
        for _ in 0..MAX_PASSES {
            let mut batch = self.log.batch();
            let mut busy = false;
            for group in self.groups.values_mut() {
                busy |= group.begin_ready(&mut self.log, &mut batch, self.now, &mut out)?;
            }
            if !busy {
                break;
            }
            self.log.commit(batch)?;
            for group in self.groups.values_mut() {
                group.finish_ready(&mut self.log, self.now, &mut out)?;
            }
        }
        let mut compacted = false;
        for group in self.groups.values_mut() {
            compacted |= group.end_round(&mut self.log, self.now, &mut out)?;
        }
        if compacted {
            self.log.purge()?;
        }
        Ok(out)
    }

    fn take(&mut self, input: Input, out: &mut Output) -> Result<(), Fatal> {
        match input {
            Input::Tick => {
                self.now += 1;
                for group in self.groups.values_mut() {
                    group.tick(self.now, out)?;
                }
            }
            Input::Unreachable { node } => {
                self.groups.values_mut().for_each(|g| g.unreachable(node));
            }
            Input::Peer(message) => {
                if message.to != self.config.node || message.from == self.config.node {
                    tracing::debug!(
                        to = message.to,
                        from = message.from,
                        "a message for somebody else is dropped"
                    );
                } else if let Some(group) = self.groups.get_mut(&message.group) {
                    group.peer(*message, self.now, out)?;
                }
            }
            Input::Propose { group, id, data } => match self.groups.get_mut(&group) {
                Some(g) => g.propose(id, data, self.now, out),
                None => out
                    .replies
                    .push(Reply::Proposed(id, Err(ProposeError::NoGroup(group)))),
            },
            Input::ReadIndex { group, id } => match self.groups.get_mut(&group) {
                Some(g) => g.read(id, self.now),
                None => out.replies.push(Reply::Read(id, Err(ReadError::NoGroup(group)))),
            },
            Input::ConfChange { group, id, change } => match self.groups.get_mut(&group) {
                Some(g) => g.conf_change(id, &change, self.now, out),
                None => out
                    .replies
                    .push(Reply::ConfChanged(id, Err(ConfChangeError::NoGroup(group)))),
            },
            Input::Transfer { group, id, to } => match self.groups.get_mut(&group) {
                Some(g) => g.transfer(id, to, self.now, out),
                None => out
                    .replies
                    .push(Reply::Transferred(id, Err(TransferError::NoGroup(group)))),
            },
        }
        Ok(())
    }

    /// A group's state.
    pub fn status(&self, group: GroupId) -> Option<Status> {
        let status = self.groups.get(&group)?.status(self.now);
        let times = self.log.times();
        Some(Status {
            log_bytes: self.log.used_bytes(),
            syncs: times.count,
            fsyncs: times.latest.iter().copied().collect(),
            sync_classes: times.classes(),
            sync_total: times.total,
            ..status
        })
    }

    /// Who leads a group, as known here.
    pub fn leader(&self, group: GroupId) -> Option<LeaderInfo> {
        self.groups.get(&group).map(Group::leader)
    }

    /// The members of a group, as applied here.
    pub fn membership(&self, group: GroupId) -> Option<&Membership> {
        self.groups.get(&group).map(Group::membership)
    }

    /// Addresses of all members of all groups, for the transport's start.
    pub fn addresses(&self) -> Vec<(NodeId, String)> {
        let members = self.groups.values().flat_map(|g| &g.membership().members);
        members.map(|m| (m.id, m.address.clone())).collect()
    }

    /// The state machine of a group, for tests that look inside it.
    pub fn machine(&self, group: GroupId) -> Option<&dyn crate::StateMachine> {
        self.groups.get(&group).map(Group::machine)
    }
}
