//! etcd's Cluster service.

use chainfire_client::wire::etcdserverpb::{self as pb, cluster_server::Cluster};
use chainfire_core::OpError;
use tonic::{Request, Response, Status};

use crate::{
    auth::Caller,
    node::{GROUP, Node, status},
};

/// The Cluster service of a member.
pub(crate) struct ClusterService {
    node: Node,
}

impl ClusterService {
    pub(crate) fn new(node: Node) -> ClusterService {
        ClusterService { node }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        Caller::of(request.extensions()).known().map_err(status)?;
        if request.get_ref().linearizable {
            self.node.read_barrier().await.map_err(status)?;
        }
        let raft = self
            .node
            .raft
            .status(GROUP)
            .await
            .ok_or_else(|| status(OpError::Stopped))?;
        let config = &self.node.config;
        // Tools connect to these addresses as they stand: plain text where it is served, TLS otherwise.
        let scheme = if config.plaintext_loopback {
            "http"
        } else {
            "https"
        };
        let members = raft
            .membership
            .members
            .iter()
            .map(|member| {
                let known = config
                    .members
                    .iter()
                    .find(|known| config.node_id(&known.name) == member.id);
                pb::Member {
                    id: member.id,
                    name: known.map(|known| known.name.clone()).unwrap_or_default(),
                    peer_ur_ls: vec![format!("https://{}", member.address)],
                    client_ur_ls: known
                        .map(|known| format!("{scheme}://{}", known.client))
                        .into_iter()
                        .collect(),
                    is_learner: member.learner,
                }
            })
            .collect();
        let header = self.node.header_at(0);
        Ok(Response::new(pb::MemberListResponse { header, members }))
    }

    async fn member_add(
        &self,
        _request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn member_remove(
        &self,
        _request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn member_update(
        &self,
        _request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn member_promote(
        &self,
        _request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }
}
