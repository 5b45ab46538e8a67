//! What members answer each other. Everybody here shows the certificate `service/chainfire`; who sends Raft's messages
//! must be a member, on the disk that it published.

use chainfire_core::OpError;
use prost::Message;
use raft_host::{NodeId, PeerMessage};
use tonic::{Request, Response, Status, Streaming};

use hearth_service::tls::PeerIdentity;

use crate::{
    lessor::{Lessor, MAX_RENEWALS},
    members::{
        change::{self, Changer},
        join,
        slow_disk::percentile,
    },
    node::{GROUP, Node, status},
    outbox::Refusal,
    wire::{
        ChangeMembersReply, ChangeMembersRequest, Delivered, Frame, HelloReply, HelloRequest, JoinReply,
        JoinRequest, LeaseRemainingReply, LeaseRemainingRequest, RenewLeaseReply, RenewLeaseRequest,
        RenewLeasesReply, RenewLeasesRequest, Sender, StateHashReply, StateHashRequest, peer_server::Peer,
    },
};

/// The identity of members.
pub(crate) const MEMBER_IDENTITY: &str = "service/chainfire";

/// Serves the other members.
pub(crate) struct PeerService {
    node: Node,
    lessor: Lessor,
    changer: Changer,
}

impl PeerService {
    pub(crate) fn new(node: Node, lessor: Lessor, changer: Changer) -> PeerService {
        PeerService {
            node,
            lessor,
            changer,
        }
    }

    /// Whether messages of this sender are heard. It is looked at for every frame: members are removed, and disks
    /// published, while streams last.
    fn check_sender(&self, sender: &Sender) -> Result<(), Status> {
        if sender.cluster != 0 && sender.cluster != self.node.config.cluster_id() {
            return Err(Refusal::Cluster.status());
        }
        let table = self.node.shared.members();
        if table.is_removed(sender.member) {
            return Err(Refusal::Removed.status());
        }
        if table.disk(sender.member).is_some_and(|disk| disk != sender.disk) {
            return Err(Refusal::Disk.status());
        }
        drop(table);
        if self.node.membership.borrow().get(sender.member).is_some() {
            return Ok(());
        }
        // Somebody who says who it is, with a member's certificate and the cluster's id, and was never removed as far as
        // known here: it was added while this member was away, or this member is itself just joining. Raft counts nobody
        // that its configuration does not have.
        if sender.cluster == 0 {
            return Err(Refusal::Stranger.status());
        }
        let node = &self.node;
        node.peers.welcome(sender, &node.raft, &node.shared, &node.tasks);
        Ok(())
    }

    /// Hands a frame's messages to Raft.
    fn take(&self, frame: Frame, sender: &mut Option<Sender>) -> Result<(), Status> {
        if frame.sender.is_some() {
            *sender = frame.sender;
        }
        let mut checked: Option<NodeId> = None;
        for bytes in frame.messages {
            let message = PeerMessage::decode(bytes)
                .map_err(|error| Status::invalid_argument(format!("not a peer message: {error}")))?;
            // Earlier releases do not say who they are but in the messages.
            let sender = sender.get_or_insert_with(|| Sender {
                member: message.from,
                ..Sender::default()
            });
            if message.from != sender.member {
                return Err(Refusal::Stranger.status());
            }
            if checked != Some(message.from) {
                self.check_sender(sender)?;
                checked = Some(message.from);
            }
            // Dropped when the queue is full: Raft sends again.
            let _ = self.node.raft.step(message);
        }
        Ok(())
    }
}

fn check_member<T>(request: &Request<T>) -> Result<(), Status> {
    match request.extensions().get::<PeerIdentity>() {
        Some(identity) if identity.path == MEMBER_IDENTITY => Ok(()),
        _ => Err(Status::permission_denied(
            "only members of the cluster may speak to the peer port",
        )),
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn deliver(&self, request: Request<Streaming<Frame>>) -> Result<Response<Delivered>, Status> {
        check_member(&request)?;
        let mut frames = request.into_inner();
        let mut sender = None;
        while let Some(frame) = frames.message().await? {
            self.take(frame, &mut sender)?;
        }
        Ok(Response::new(Delivered {}))
    }

    async fn renew_leases(
        &self,
        request: Request<RenewLeasesRequest>,
    ) -> Result<Response<RenewLeasesReply>, Status> {
        check_member(&request)?;
        let ids = request.into_inner().ids;
        if ids.len() > MAX_RENEWALS {
            return Err(Status::invalid_argument("too many leases in one request"));
        }
        let ttl_s = self.lessor.renew_for_peer(&ids).await.map_err(status)?;
        Ok(Response::new(RenewLeasesReply { ttl_s }))
    }

    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<RenewLeaseReply>, Status> {
        check_member(&request)?;
        let id = request.into_inner().id;
        let answers = self.lessor.renew_for_peer(&[id]).await.map_err(status)?;
        let ttl_s = answers
            .first()
            .copied()
            .filter(|ttl_s| *ttl_s >= 0)
            .ok_or_else(|| status(OpError::NotLeader))?;
        Ok(Response::new(RenewLeaseReply { ttl_s }))
    }

    async fn lease_remaining(
        &self,
        request: Request<LeaseRemainingRequest>,
    ) -> Result<Response<LeaseRemainingReply>, Status> {
        check_member(&request)?;
        let ttl_s = self
            .lessor
            .remaining_here(request.into_inner().id)
            .await
            .map_err(status)?;
        Ok(Response::new(LeaseRemainingReply { ttl_s }))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        check_member(&request)?;
        let raft = self.node.raft.status(GROUP).await;
        let fsyncs = raft.map(|raft| raft.fsyncs).unwrap_or_default();
        let us = |percent| u64::try_from(percentile(&fsyncs, percent).as_micros()).unwrap_or(u64::MAX);
        Ok(Response::new(HelloReply {
            sender: Some(self.node.peers.own().clone()),
            fsync_median_us: us(50),
            fsync_p99_us: us(99),
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        check_member(&request)?;
        join::answer(&self.node, &request.into_inner()).map(Response::new)
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersReply>, Status> {
        check_member(&request)?;
        let outcome = match change::from_wire(request.into_inner()) {
            Some(change) => self.changer.change_here(&change).await,
            None => {
                return Err(Status::invalid_argument(
                    "a change that this release does not know",
                ));
            }
        };
        Ok(Response::new(change::to_reply(outcome)))
    }

    async fn state_hash(
        &self,
        request: Request<StateHashRequest>,
    ) -> Result<Response<StateHashReply>, Status> {
        check_member(&request)?;
        let stamp = self
            .node
            .shared
            .stamp(request.into_inner().index)
            .ok_or_else(|| Status::not_found("the hash of this index is forgotten"))?;
        Ok(Response::new(StateHashReply {
            index: stamp.index,
            since: stamp.since,
            hash: stamp.digest.value(),
        }))
    }
}
