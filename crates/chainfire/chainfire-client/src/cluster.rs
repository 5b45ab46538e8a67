//! Who the members are and how they are.

use crate::{
    Client, Error, Result,
    conn::{CallKind, STATUS_DEADLINE, cluster_stub, maintenance_stub, request},
    error::{Attempt, judge},
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
    /// Version it reports to clients.
    pub version: String,
    /// What it complains about.
    pub errors: Vec<String>,
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
        let member = |member: pb::Member| Member {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_ur_ls,
            client_urls: member.client_ur_ls,
            is_learner: member.is_learner,
        };
        Ok(reply.members.into_iter().map(member).collect())
    }

    /// Asks every endpoint how it is, all at once; an endpoint that does not answer yields its error.
    pub async fn status(&self) -> Vec<(String, Result<MemberStatus>)> {
        let asks = self.endpoints().iter().map(|(endpoint, channel)| async move {
            // Without `hasleader`: a member without a leader shall say how it is.
            let mut stub = maintenance_stub(channel.clone());
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
                    version: reply.version,
                    errors: reply.errors,
                }
            });
            (endpoint.clone(), status)
        });
        futures::future::join_all(asks).await
    }
}
