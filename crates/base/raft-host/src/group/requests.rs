//! What callers ask of a group.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};
use raft_engine::env::FileSystem;

use super::Group;
use crate::host::{Output, Reply, RequestId};
use crate::proposals::{Origin, Verdict, refusal};
use crate::wire::{Body, Forward, MemberRecord, MembershipRecord, PeerMessage, Refuse};
use crate::{Applied, ConfChange, ConfChangeError, NodeId, Peer, ProposeError, TransferError};

impl<F: FileSystem> Group<F> {
    pub(crate) fn propose(&mut self, id: RequestId, data: Bytes, now: u64, out: &mut Output) {
        let limit = self.config.max_proposal_bytes;
        let leader = self.known_leader();
        let refused = if data.len() > limit {
            Some(ProposeError::TooBig {
                bytes: data.len(),
                limit,
            })
        } else if self.proposals.len() >= self.config.max_pending {
            Some(ProposeError::Busy)
        } else if leader.is_none() {
            Some(ProposeError::NotLeader { leader })
        } else {
            None
        };
        if let Some(error) = refused {
            out.replies.push(Reply::Proposed(id, Err(error)));
            return;
        }
        let seq = self.proposals.add(id, now + self.config.request_timeout_ticks);
        if self.leads() {
            self.propose_here(seq, data, out);
        } else if let Some(to) = leader {
            let term = self.node.raft.term;
            let body = Body::Forward(Forward {
                term,
                incarnation: self.config.incarnation,
                seq,
                data,
            });
            out.messages.push(self.message(to, body));
        }
    }

    /// Proposes one of this node's own commands; this node leads.
    fn propose_here(&mut self, seq: u64, data: Bytes, out: &mut Output) {
        let origin = Origin {
            node: self.config.node,
            incarnation: self.config.incarnation,
            seq,
        };
        if self.node.propose(origin.encode(), data.to_vec()).is_err() {
            if let Some(id) = self.proposals.take(seq) {
                out.replies.push(Reply::Proposed(id, Err(ProposeError::Dropped)));
            }
            return;
        }
        let index = self.node.raft.raft_log.last_index();
        let term = self.node.raft.term;
        if self.acknowledges_early() {
            if let Some(id) = self.proposals.take(seq) {
                let response = Bytes::new();
                out.replies.push(Reply::Proposed(
                    id,
                    Ok(Applied {
                        index,
                        term,
                        response,
                    }),
                ));
            }
            return;
        }
        self.proposals.placed(seq, index, term);
    }

    /// A follower's proposal arrives.
    pub(super) fn forwarded(&mut self, from: NodeId, forward: Forward, out: &mut Output) {
        let origin = Origin {
            node: from,
            incarnation: forward.incarnation,
            seq: forward.seq,
        };
        let leading = self.leads().then_some(self.node.raft.term);
        let mut refuse = false;
        let mut busy = false;
        match self.forwarded.judge(origin, forward.term, leading) {
            Verdict::Ignore => {}
            Verdict::Refuse => refuse = true,
            Verdict::Take => {
                busy = forward.data.len() > self.config.max_proposal_bytes
                    || self.node.propose(origin.encode(), forward.data.to_vec()).is_err();
            }
        }
        if refuse || busy {
            let body = Body::Refuse(Refuse {
                incarnation: forward.incarnation,
                seq: forward.seq,
                busy,
            });
            out.messages.push(self.message(from, body));
        }
    }

    /// The leader did not take a proposal of this node.
    pub(super) fn refused(&mut self, refuse: &Refuse, out: &mut Output) {
        if refuse.incarnation != self.config.incarnation {
            return;
        }
        if let Some(id) = self.proposals.take(refuse.seq) {
            let error = refusal(refuse.busy, self.known_leader());
            out.replies.push(Reply::Proposed(id, Err(error)));
        }
    }

    pub(crate) fn read(&mut self, id: RequestId, now: u64) {
        self.reads.add(id, now + self.config.request_timeout_ticks);
    }

    /// Asks the leader for the point of all reads that wait, under one new context.
    pub(crate) fn issue_reads(&mut self, now: u64) {
        if self.known_leader().is_none() || (self.leads() && !self.node.raft.commit_to_current_term()) {
            return;
        }
        let Some(seq) = self.reads.issue(now, self.reuses_read_context()) else {
            return;
        };
        let origin = Origin {
            node: self.config.node,
            incarnation: self.config.incarnation,
            seq,
        };
        self.node.read_index(origin.encode());
    }

    pub(crate) fn transfer(&mut self, id: RequestId, to: NodeId, now: u64, out: &mut Output) {
        let error = if !self.leads() {
            Some(TransferError::NotLeader {
                leader: self.known_leader(),
            })
        } else if !self.membership().voters().any(|v| v == to) {
            Some(TransferError::NotVoter(to))
        } else {
            None
        };
        if error.is_some() || to == self.config.node {
            out.replies
                .push(Reply::Transferred(id, error.map_or(Ok(()), Err)));
            return;
        }
        self.node.transfer_leader(to);
        // The library gives up after one election time-out.
        self.transfers
            .push((id, to, now + 2 * self.config.election_ticks as u64));
    }

    pub(crate) fn conf_change(&mut self, id: RequestId, change: &ConfChange, now: u64, out: &mut Output) {
        let deadline = now + self.config.request_timeout_ticks;
        if let Err(error) = self.try_conf_change(id, change, deadline) {
            out.replies.push(Reply::ConfChanged(id, Err(error)));
        }
    }

    fn try_conf_change(
        &mut self,
        id: RequestId,
        change: &ConfChange,
        deadline: u64,
    ) -> Result<(), ConfChangeError> {
        if !self.leads() {
            return Err(ConfChangeError::NotLeader {
                leader: self.known_leader(),
            });
        }
        if self.node.raft.has_pending_conf() || !self.membership().outgoing.is_empty() {
            return Err(ConfChangeError::Pending);
        }
        let mut simple = Vec::new();
        let mut peers = Vec::new();
        self.check_change(change, &mut simple, &mut peers)?;
        let mut message = ConfChangeV2::default();
        message.set_changes(simple.into());
        let record = MembershipRecord {
            members: peers
                .into_iter()
                .map(|p| MemberRecord {
                    id: p.id,
                    address: p.address,
                    learner: false,
                })
                .collect(),
            ..MembershipRecord::default()
        };
        message.context = record.encode_to_vec().into();
        // One number for commands and changes: an entry's origin names one request.
        let seq = self.proposals.add(id, deadline);
        self.proposals.take(seq);
        let origin = Origin {
            node: self.config.node,
            incarnation: self.config.incarnation,
            seq,
        };
        if self.node.propose_conf_change(origin.encode(), message).is_err() {
            return Err(ConfChangeError::Dropped);
        }
        self.conf_changes.insert(seq, (id, deadline));
        Ok(())
    }

    fn check_change(
        &self,
        change: &ConfChange,
        simple: &mut Vec<ConfChangeSingle>,
        peers: &mut Vec<Peer>,
    ) -> Result<(), ConfChangeError> {
        let members = self.membership();
        let invalid = |what: String| Err(ConfChangeError::Invalid(what));
        let (kind, id) = match change {
            ConfChange::AddLearner(peer) | ConfChange::AddVoter(peer) => {
                if peer.id == 0 || members.get(peer.id).is_some() {
                    return invalid(format!("node {} is a member already, or its id is 0", peer.id));
                }
                peers.push(peer.clone());
                let learner = matches!(change, ConfChange::AddLearner(_));
                let kind = if learner {
                    ConfChangeType::AddLearnerNode
                } else {
                    ConfChangeType::AddNode
                };
                (kind, peer.id)
            }
            ConfChange::Update(peer) => {
                let Some(member) = members.get(peer.id) else {
                    return invalid(format!("node {} is not a member", peer.id));
                };
                peers.push(peer.clone());
                // To make a member what it is changes nothing in the library, and carries the address.
                let kind = if member.learner {
                    ConfChangeType::AddLearnerNode
                } else {
                    ConfChangeType::AddNode
                };
                (kind, peer.id)
            }
            ConfChange::Promote(id) => {
                if !members.get(*id).is_some_and(|m| m.learner) {
                    return invalid(format!("node {id} is not a learner"));
                }
                (ConfChangeType::AddNode, *id)
            }
            ConfChange::Remove(id) => {
                let Some(member) = members.get(*id) else {
                    return invalid(format!("node {id} is not a member"));
                };
                if *id == self.config.node {
                    return Err(ConfChangeError::IsLeader);
                }
                if !member.learner && members.voters().count() == 1 {
                    return invalid("a group cannot lose its only voter".to_owned());
                }
                (ConfChangeType::RemoveNode, *id)
            }
            ConfChange::Joint(changes) => {
                for inner in changes {
                    if matches!(inner, ConfChange::Joint(_)) {
                        return invalid("joint changes do not nest".to_owned());
                    }
                    self.check_change(inner, simple, peers)?;
                }
                if simple.is_empty() {
                    return invalid("a joint change without changes".to_owned());
                }
                return Ok(());
            }
        };
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = id;
        simple.push(single);
        Ok(())
    }

    pub(super) fn message(&self, to: NodeId, body: Body) -> PeerMessage {
        PeerMessage {
            group: self.id,
            from: self.config.node,
            to,
            body: Some(body),
        }
    }
}
