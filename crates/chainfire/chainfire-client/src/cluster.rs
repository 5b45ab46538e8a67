//! Who the members are and how they are.

use crate::{
    Client, Error, Result,
    conn::{CallKind, STATUS_DEADLINE, cluster_stub, maintenance_stub, request},
    error::{Attempt, judge},
    login::link,
    wire::etcdserverpb::{self as pb, MemberListRequest, StatusRequest},
};

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Raft id.
    pub id: u64,
    /// Name from its configuration.
    pub name: String,
    /// URLs the other members use.
    pub peer_urls: Vec<String>,
    /// URLs clients use.
    pub client_urls: Vec<String>,
    /// A learner has no vote.
    pub is_learner: bool,
}

/// How one member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// The endpoint asked.
    pub endpoint: String,
    /// Raft id.
    pub id: u64,
    /// Whom it takes for the leader; 0: nobody.
    pub leader: u64,
    /// Revision of its own state.
    pub revision: i64,
    /// Raft term.
    pub raft_term: u64,
    /// Highest entry it knows to be committed.
    pub raft_index: u64,
    /// Highest entry it has applied.
    pub raft_applied_index: u64,
    /// Bytes on its disk.
    pub db_size: i64,
    /// Bytes of them in use.
    pub db_size_in_use: i64,
    /// Most bytes that it lets collect; 0: it does not say.
    pub db_size_quota: i64,
    /// A learner has no vote.
    pub is_learner: bool,
    /// Version it reports to clients.
    pub version: String,
    /// What it complains about.
    pub errors: Vec<String>,
}

fn member(member: pb::Member) -> Member {
    Member {
        id: member.id,
        name: member.name,
        peer_urls: member.peer_ur_ls,
        client_urls: member.client_ur_ls,
        is_learner: member.is_learner,
    }
}

impl Client {
    /// The members of the cluster.
    pub async fn member_list(&self) -> Result<Vec<Member>> {
        let reply = self
            .call(CallKind::Idempotent, |channel| {
                let message = request(MemberListRequest { linearizable: true });
                async move { Ok(cluster_stub(channel).member_list(message).await?.into_inner()) }
            })
            .await?;
        Ok(reply.members.into_iter().map(member).collect())
    }

    /// Adds a member that will serve the others at `peer_urls`; returns it with its id, and all members.
    pub async fn member_add(
        &self,
        peer_urls: &[String],
        learner: bool,
    ) -> Result<(Option<Member>, Vec<Member>)> {
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(pb::MemberAddRequest {
                    peer_ur_ls: peer_urls.to_vec(),
                    is_learner: learner,
                });
                async move { Ok(cluster_stub(channel).member_add(message).await?.into_inner()) }
            })
            .await?;
        let all = reply.members.into_iter().map(member).collect();
        Ok((reply.member.map(member), all))
    }

    /// Removes a member, for ever.
    pub async fn member_remove(&self, id: u64) -> Result<Vec<Member>> {
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(pb::MemberRemoveRequest { id });
                async move { Ok(cluster_stub(channel).member_remove(message).await?.into_inner()) }
            })
            .await?;
        Ok(reply.members.into_iter().map(member).collect())
    }

    /// Gives a member other peer addresses.
    pub async fn member_update(&self, id: u64, peer_urls: &[String]) -> Result<Vec<Member>> {
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(pb::MemberUpdateRequest {
                    id,
                    peer_ur_ls: peer_urls.to_vec(),
                });
                async move { Ok(cluster_stub(channel).member_update(message).await?.into_inner()) }
            })
            .await?;
        Ok(reply.members.into_iter().map(member).collect())
    }

    /// Gives a learner a vote.
    pub async fn member_promote(&self, id: u64) -> Result<Vec<Member>> {
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(pb::MemberPromoteRequest { id });
                async move { Ok(cluster_stub(channel).member_promote(message).await?.into_inner()) }
            })
            .await?;
        Ok(reply.members.into_iter().map(member).collect())
    }

    /// Asks every endpoint how it is, all at once; an endpoint that does not answer yields its error.
    pub async fn status(&self) -> Vec<(String, Result<MemberStatus>)> {
        let asks = self.endpoints().iter().map(|(endpoint, channel)| async move {
            // Without `hasleader`: a member without a leader shall say how it is.
            let mut stub = maintenance_stub(link(self.login(), channel.clone()));
            let answer = match tokio::time::timeout(STATUS_DEADLINE, stub.status(StatusRequest {})).await {
                Err(_) => Err(Error::Timeout),
                Ok(Err(status)) => Err(match judge(&status) {
                    Attempt::NotApplied(error) | Attempt::Final(error) => error,
                    Attempt::Unknown(detail) => Error::Unavailable { detail },
                }),
                Ok(Ok(reply)) => Ok(reply.into_inner()),
            };
            let status = answer.map(|reply| {
                let header = reply.header.unwrap_or_default();
                MemberStatus {
                    endpoint: endpoint.clone(),
                    id: header.member_id,
                    leader: reply.leader,
                    revision: header.revision,
                    raft_term: reply.raft_term,
                    raft_index: reply.raft_index,
                    raft_applied_index: reply.raft_applied_index,
                    db_size: reply.db_size,
                    db_size_in_use: reply.db_size_in_use,
                    db_size_quota: reply.db_size_quota,
                    is_learner: reply.is_learner,
                    version: reply.version,
                    errors: reply.errors,
                }
            });
            (endpoint.clone(), status)
        });
        futures::future::join_all(asks).await
    }
}
