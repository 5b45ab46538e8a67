//! Who is in a group.

use raft::eraftpb::ConfState;

use crate::NodeId;

/// A node and where it can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity, never reused.
    pub id: NodeId,
    /// Where its transport listens; opaque to this crate.
    pub address: String,
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub id: NodeId,
    /// Where it can be reached.
    pub address: String,
    /// Learners receive the log but neither vote nor count.
    pub learner: bool,
}

/// The members of a group at one point of its log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// All members, by id.
    pub members: Vec<Member>,
    /// Voters of the outgoing configuration while a joint change is under way, else empty.
    pub outgoing: Vec<NodeId>,
    /// Voters that become learners when the joint change ends.
    pub learners_next: Vec<NodeId>,
    /// Whether the joint change ends by itself.
    pub auto_leave: bool,
}

impl Membership {
    /// The group's first members, all voters.
    pub fn initial(peers: &[Peer]) -> Membership {
        let mut members: Vec<Member> = peers
            .iter()
            .map(|p| Member {
                id: p.id,
                address: p.address.clone(),
                learner: false,
            })
            .collect();
        members.sort_by_key(|m| m.id);
        Membership {
            members,
            ..Membership::default()
        }
    }

    /// Ids of the members that vote.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.members.iter().filter(|m| !m.learner).map(|m| m.id)
    }

    /// The member `id`.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    /// The Raft library's form.
    pub(crate) fn conf_state(&self) -> ConfState {
        // A voter of the outgoing half only is on its way to learner (`learners_next`) or out of the group; until
        // the joint change ends it is in neither list of the incoming half.
        let leaving = |id: &NodeId| self.learners_next.contains(id) || self.outgoing.contains(id);
        let learners = self.members.iter().filter(|m| m.learner).map(|m| m.id);
        ConfState {
            voters: self.voters().collect(),
            learners: learners.filter(|id| !leaving(id)).collect(),
            voters_outgoing: self.outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
            ..ConfState::default()
        }
    }

    /// The membership that Raft says holds now; addresses from `self`, then from `added`.
    pub(crate) fn updated(&self, state: &ConfState, added: &[Peer]) -> Membership {
        let mut ids: Vec<(NodeId, bool)> = state.voters.iter().map(|id| (*id, false)).collect();
        for id in state
            .learners
            .iter()
            .chain(&state.learners_next)
            .chain(&state.voters_outgoing)
        {
            if !ids.iter().any(|(known, _)| known == id) {
                ids.push((*id, true));
            }
        }
        ids.sort_unstable();
        let address = |id: NodeId| {
            let new = added.iter().find(|p| p.id == id).map(|p| p.address.clone());
            new.or_else(|| self.get(id).map(|m| m.address.clone()))
                .unwrap_or_default()
        };
        Membership {
            members: ids
                .into_iter()
                .map(|(id, learner)| Member {
                    id,
                    address: address(id),
                    learner,
                })
                .collect(),
            outgoing: state.voters_outgoing.clone(),
            learners_next: state.learners_next.clone(),
            auto_leave: state.auto_leave,
        }
    }
}

/// A change of a group's members. One change at a time; several at once ([`ConfChange::Joint`]) go through joint
/// consensus and leave it by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfChange {
    /// Adds a member that does not vote yet. The way to grow a group: add, wait until it has caught up, promote.
    AddLearner(Peer),
    /// Makes a learner a voter.
    Promote(NodeId),
    /// Adds a member that votes at once.
    AddVoter(Peer),
    /// Gives a member another address; nothing else changes.
    Update(Peer),
    /// Removes a member, for ever: its id is never used again.
    Remove(NodeId),
    /// Several simple changes in one step.
    Joint(Vec<ConfChange>),
}
