//! etcd's Cluster service.

use chainfire_client::wire::etcdserverpb::{self as pb, cluster_server::Cluster};
use raft_host::{Membership, NodeId};
use tonic::{Request, Response, Status};

use crate::{
    auth::Credential,
    members::{
        change::{Change, Changed, Changer},
        urls,
    },
    node::{Node, status},
};

/// The Cluster service of a member.
pub(crate) struct ClusterService {
    node: Node,
    changer: Changer,
}

impl ClusterService {
    pub(crate) fn new(node: Node, changer: Changer) -> ClusterService {
        ClusterService { node, changer }
    }

    fn members(&self, membership: &Membership) -> Vec<pb::Member> {
        let table = self.node.shared.members();
        let config = &self.node.config;
        let member = |member: &raft_host::Member| {
            let published = table.get(member.id).filter(|record| record.disk != 0);
            // Members of the configuration are known by name before they have published themselves.
            let listed = config
                .members
                .iter()
                .find(|listed| published.is_none() && config.node_id(&listed.name) == member.id);
            let (name, client_ur_ls) = match (published, listed) {
                (Some(record), _) => (record.name.clone(), record.client_urls.clone()),
                (None, Some(listed)) => (listed.name.clone(), vec![config.client_url(&listed.client)]),
                (None, None) => (String::new(), Vec::new()),
            };
            pb::Member {
                id: member.id,
                name,
                peer_ur_ls: urls::listed(&member.address),
                client_ur_ls,
                is_learner: member.learner,
            }
        };
        membership.members.iter().map(member).collect()
    }

    async fn change<T: Sync>(&self, request: &Request<T>, change: Change) -> Result<Changed, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.administer().map_err(status)?;
        self.changer.change(&change).await.map_err(status)
    }

    /// The member that a change was about, in the reply's list.
    fn one(members: &[pb::Member], id: NodeId) -> Option<pb::Member> {
        members.iter().find(|member| member.id == id).cloned()
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.known().map_err(status)?;
        if request.get_ref().linearizable {
            self.node.read_barrier().await.map_err(status)?;
        }
        let membership = self.node.membership.borrow().clone();
        Ok(Response::new(pb::MemberListResponse {
            header: self.node.header_at(0),
            members: self.members(&membership),
        }))
    }

    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        let message = request.get_ref();
        let address = urls::address(&message.peer_ur_ls).map_err(status)?;
        let learner = message.is_learner;
        let changed = self.change(&request, Change::Add { address, learner }).await?;
        let members = self.members(&changed.members);
        Ok(Response::new(pb::MemberAddResponse {
            header: self.node.header_at(0),
            member: ClusterService::one(&members, changed.id),
            members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        let id = request.get_ref().id;
        let changed = self.change(&request, Change::Remove(id)).await?;
        Ok(Response::new(pb::MemberRemoveResponse {
            header: self.node.header_at(0),
            members: self.members(&changed.members),
        }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        let message = request.get_ref();
        let address = urls::address(&message.peer_ur_ls).map_err(status)?;
        let id = message.id;
        let changed = self.change(&request, Change::Update { id, address }).await?;
        Ok(Response::new(pb::MemberUpdateResponse {
            header: self.node.header_at(0),
            members: self.members(&changed.members),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        let id = request.get_ref().id;
        let changed = self.change(&request, Change::Promote(id)).await?;
        Ok(Response::new(pb::MemberPromoteResponse {
            header: self.node.header_at(0),
            members: self.members(&changed.members),
        }))
    }
}
