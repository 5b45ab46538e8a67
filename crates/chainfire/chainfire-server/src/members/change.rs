//! Changing the members: on any member, carried to the leader, which looks at the rules and lets Raft do it.

use std::{sync::Arc, time::Duration};

use chainfire_core::{OpError, error};
use raft_host::{ConfChange, ConfChangeError, Membership, NodeId, Peer, TransferError};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};

use super::{
    rules::{Seen, View},
    table::LEVEL,
};
use crate::{
    node::{GROUP, Node},
    wire::{ChangeMembersReply, ChangeMembersRequest, MemberAddress, change_members_request::Change as Wire},
};

/// How long a change looks for a leader, and waits for an earlier change.
const PATIENCE: Duration = Duration::from_secs(7);
/// Pause before it is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// A change of the members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Add { address: String, learner: bool },
    Remove(NodeId),
    Update { id: NodeId, address: String },
    Promote(NodeId),
}

/// What a change brought about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The member that it was about.
    pub(crate) id: NodeId,
    /// All members afterwards.
    pub(crate) members: Membership,
}

/// Changes the members. Clones share it.
#[derive(Clone)]
pub(crate) struct Changer {
    node: Node,
    /// One change at a time: rules are looked at and the change is made under it.
    turn: Arc<Mutex<()>>,
}

impl Changer {
    pub(crate) fn new(node: Node) -> Changer {
        Changer {
            node,
            turn: Arc::default(),
        }
    }

    /// Makes a change, wherever the leader is. A refusal is definite; `Timeout` means that nobody can tell.
    pub(crate) async fn change(&self, change: &Change) -> Result<Changed, OpError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let outcome = match self.node.leader_info().leader {
                None => Err(OpError::NoLeader),
                Some(leader) if leader == self.node.id => self.change_here(change).await,
                Some(leader) => self.forward(leader, change, end).await,
            };
            match outcome {
                Err(OpError::NoLeader | OpError::NotLeader) if Instant::now() < end => sleep(PAUSE).await,
                Err(OpError::NotLeader) => return Err(OpError::NoLeader),
                outcome => return outcome,
            }
        }
    }

    async fn forward(&self, leader: NodeId, change: &Change, end: Instant) -> Result<Changed, OpError> {
        let mut peer = self.node.peers.get(leader).ok_or(OpError::NoLeader)?;
        let call = peer.change_members(to_wire(change));
        match timeout_at(end + PATIENCE, call).await {
            Ok(Ok(reply)) => {
                let changed = from_reply(reply.into_inner())?;
                // Who asked this member sees the change here next. It is made even if that cannot be had now.
                if let Err(error) = self.node.read_barrier().await {
                    tracing::info!(%error, "the members changed, and this member may not know it yet");
                }
                Ok(changed)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a change of the members was sent to the leader and not answered");
                Err(OpError::Timeout)
            }
            Err(_) => Err(OpError::Timeout),
        }
    }

    /// Makes a change if this member leads.
    pub(crate) async fn change_here(&self, change: &Change) -> Result<Changed, OpError> {
        let _turn = self.turn.lock().await;
        let end = Instant::now() + PATIENCE;
        loop {
            // Proves that it leads, and that what it knows is the newest.
            self.node.read_barrier().await?;
            let view = self.view().await?;
            self.check(&view, change)?;
            if *change == Change::Remove(view.leader) {
                return Err(self.step_aside(&view).await);
            }
            let (id, raft) = self.for_raft(change);
            let why = match self.node.raft.conf_change(GROUP, raft).await {
                Ok(members) => {
                    tracing::info!(?change, id = %format!("{id:x}"), members = members.members.len(), "the members changed");
                    return Ok(Changed { id, members });
                }
                Err(why) => why,
            };
            match why {
                ConfChangeError::Pending | ConfChangeError::Dropped if Instant::now() < end => {
                    sleep(PAUSE).await
                }
                ConfChangeError::NotLeader { .. } => return Err(OpError::NotLeader),
                ConfChangeError::Pending | ConfChangeError::Dropped | ConfChangeError::Unknown => {
                    return Err(OpError::Timeout);
                }
                ConfChangeError::Stopped | ConfChangeError::NoGroup(_) => return Err(OpError::Stopped),
                ConfChangeError::IsLeader | ConfChangeError::Invalid(_) => {
                    tracing::warn!(?change, error = %why, "Raft refuses a change that the rules allow");
                    return Err(OpError::MemberNotFound);
                }
            }
        }
    }

    /// The members as this leader sees them.
    async fn view(&self) -> Result<View, OpError> {
        let raft = self.node.raft.status(GROUP).await.ok_or(OpError::Stopped)?;
        if raft.leader.leader != Some(self.node.id) {
            return Err(OpError::NotLeader);
        }
        let table = self.node.shared.members();
        let members = raft.membership.members.into_iter().map(|member| {
            let progress = raft.progress.iter().find(|progress| progress.id == member.id);
            let own = member.id == self.node.id;
            Seen {
                id: member.id,
                started: table.disk(member.id).is_some(),
                active: own || progress.is_some_and(|progress| progress.active),
                matched: match progress {
                    _ if own => raft.last_index,
                    Some(progress) => progress.matched,
                    None => 0,
                },
                address: member.address,
                learner: member.learner,
            }
        });
        Ok(View {
            leader: self.node.id,
            members: members.collect(),
            last: raft.last_index,
        })
    }

    fn check(&self, view: &View, change: &Change) -> Result<(), OpError> {
        // Below this level a member of an earlier release would keep no record of the change.
        if self.node.shared.members().level() < LEVEL {
            return Err(OpError::MemberNotEnoughStarted);
        }
        match change {
            Change::Add { address, learner } => view.may_add(address, *learner),
            Change::Remove(id) => view.may_remove(*id),
            Change::Update { id, address } => view.may_update(*id, address),
            Change::Promote(id) => view.may_promote(*id),
        }
    }

    /// A leader does not remove itself: another one leads first, and then removes it.
    async fn step_aside(&self, view: &View) -> OpError {
        let Some(to) = view.successor() else {
            return OpError::Unhealthy;
        };
        tracing::info!(to = %format!("{to:x}"), "handing leadership over, to be removed");
        match self.node.raft.transfer_leader(GROUP, to).await {
            Ok(()) | Err(TransferError::NotLeader { .. }) => OpError::NotLeader,
            Err(TransferError::NotVoter(_) | TransferError::TimedOut(_)) => OpError::TimeoutLeaderFailed,
            Err(TransferError::NoGroup(_) | TransferError::Stopped) => OpError::Stopped,
        }
    }

    fn for_raft(&self, change: &Change) -> (NodeId, ConfChange) {
        match change {
            Change::Add { address, learner } => {
                let id = self.fresh_id();
                let peer = Peer {
                    id,
                    address: address.clone(),
                };
                if *learner {
                    (id, ConfChange::AddLearner(peer))
                } else {
                    (id, ConfChange::AddVoter(peer))
                }
            }
            Change::Remove(id) => (*id, ConfChange::Remove(*id)),
            Change::Update { id, address } => {
                let peer = Peer {
                    id: *id,
                    address: address.clone(),
                };
                (*id, ConfChange::Update(peer))
            }
            Change::Promote(id) => (*id, ConfChange::Promote(*id)),
        }
    }

    /// An id that was never used in this cluster.
    fn fresh_id(&self) -> NodeId {
        loop {
            let id = rand::random::<u64>();
            if id != 0 && self.node.shared.members().get(id).is_none() {
                return id;
            }
        }
    }
}

fn to_wire(change: &Change) -> ChangeMembersRequest {
    let change = match change {
        Change::Add { address, learner } => Wire::Add(MemberAddress {
            id: 0,
            address: address.clone(),
            learner: *learner,
        }),
        Change::Remove(id) => Wire::Remove(*id),
        Change::Update { id, address } => Wire::Update(MemberAddress {
            id: *id,
            address: address.clone(),
            learner: false,
        }),
        Change::Promote(id) => Wire::Promote(*id),
    };
    ChangeMembersRequest { change: Some(change) }
}

/// The change of a request; `None` when this release does not know it.
pub(crate) fn from_wire(request: ChangeMembersRequest) -> Option<Change> {
    Some(match request.change? {
        Wire::Add(member) => Change::Add {
            address: member.address,
            learner: member.learner,
        },
        Wire::Remove(id) => Change::Remove(id),
        Wire::Update(member) => Change::Update {
            id: member.id,
            address: member.address,
        },
        Wire::Promote(id) => Change::Promote(id),
    })
}

/// All members, for the wire.
pub(crate) fn addresses(members: &Membership) -> Vec<MemberAddress> {
    let address = |member: &raft_host::Member| MemberAddress {
        id: member.id,
        address: member.address.clone(),
        learner: member.learner,
    };
    members.members.iter().map(address).collect()
}

/// An outcome, for the wire.
pub(crate) fn to_reply(outcome: Result<Changed, OpError>) -> ChangeMembersReply {
    match outcome {
        Ok(changed) => ChangeMembersReply {
            refused: None,
            member: changed.id,
            members: addresses(&changed.members),
        },
        Err(refusal) => {
            let place = error::TABLE.iter().position(|(row, _, _)| *row == refusal);
            ChangeMembersReply {
                refused: Some(
                    place
                        .and_then(|place| u32::try_from(place).ok())
                        .unwrap_or(u32::MAX),
                ),
                ..ChangeMembersReply::default()
            }
        }
    }
}

fn from_reply(reply: ChangeMembersReply) -> Result<Changed, OpError> {
    if let Some(place) = reply.refused {
        return Err(crate::record::ReplyBody::error(place));
    }
    let member = |member: MemberAddress| raft_host::Member {
        id: member.id,
        address: member.address,
        learner: member.learner,
    };
    Ok(Changed {
        id: reply.member,
        members: Membership {
            members: reply.members.into_iter().map(member).collect(),
            ..Membership::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_and_outcomes_cross_the_wire() {
        let address = || "https://a:1".to_owned();
        let changes = [
            Change::Add {
                address: address(),
                learner: true,
            },
            Change::Remove(7),
            Change::Update {
                id: 7,
                address: address(),
            },
            Change::Promote(7),
        ];
        for change in changes {
            assert_eq!(from_wire(to_wire(&change)), Some(change));
        }
        assert_eq!(from_wire(ChangeMembersRequest { change: None }), None);
        let changed = Changed {
            id: 7,
            members: Membership::initial(&[Peer {
                id: 7,
                address: address(),
            }]),
        };
        assert_eq!(from_reply(to_reply(Ok(changed.clone()))), Ok(changed));
        for (refusal, _, _) in error::TABLE {
            assert_eq!(from_reply(to_reply(Err(*refusal))), Err(*refusal));
        }
    }
}
