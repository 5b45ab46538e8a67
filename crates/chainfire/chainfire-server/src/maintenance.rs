//! etcd's Maintenance service.

use std::{pin::Pin, sync::Arc};

use chainfire_client::wire::etcdserverpb::{self as pb, maintenance_server::Maintenance};
use chainfire_core::OpError;
use raft_host::TransferError;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::{
    auth::Credential,
    node::{GROUP, Node, status},
    snapshot,
};

/// What clients take this server for: they switch features on it.
pub(crate) const ETCD_VERSION: &str = "3.6.5";

/// The Maintenance service of a member.
pub(crate) struct MaintenanceService {
    node: Node,
    /// Snapshots that may be streamed at once.
    snapshots: Arc<Semaphore>,
}

impl MaintenanceService {
    pub(crate) fn new(node: Node) -> MaintenanceService {
        let snapshots = Arc::new(Semaphore::new(snapshot::MAX_STREAMS));
        MaintenanceService { node, snapshots }
    }
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        if request.get_ref().action() == pb::alarm_request::AlarmAction::Get {
            caller.known().map_err(status)?;
        } else {
            caller.administer().map_err(status)?;
        }
        // Alarms here are conditions, not switches: they go when the cause goes, so setting them does nothing.
        let full = self.node.check_space().is_err();
        let alarm = pb::AlarmMember {
            member_id: self.node.id,
            alarm: pb::AlarmType::Nospace.into(),
        };
        let alarms = full.then_some(alarm).into_iter().collect();
        Ok(Response::new(pb::AlarmResponse {
            header: self.node.header(),
            alarms,
        }))
    }

    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.known().map_err(status)?;
        let raft = self
            .node
            .raft
            .status(GROUP)
            .await
            .ok_or_else(|| status(OpError::Stopped))?;
        let engine_bytes = self.node.shared.tables.engine.disk_bytes().unwrap_or(0);
        let db_size = i64::try_from(engine_bytes).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if raft.leader.leader.is_none() {
            errors.push(OpError::NoLeader.text().to_owned());
        }
        if self.node.check_space().is_err() {
            errors.push("NOSPACE: the disk is full".to_owned());
        }
        Ok(Response::new(pb::StatusResponse {
            header: self.node.header(),
            version: ETCD_VERSION.to_owned(),
            db_size,
            leader: raft.leader.leader.unwrap_or(0),
            raft_index: raft.commit,
            raft_term: raft.leader.term,
            raft_applied_index: raft.applied,
            errors,
            db_size_in_use: db_size,
            is_learner: raft
                .membership
                .get(self.node.id)
                .is_some_and(|member| member.learner),
            storage_version: String::new(),
            db_size_quota: 0,
            downgrade_info: None,
        }))
    }

    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.administer().map_err(status)?;
        // The engine gives space back by itself, without a stop: there is nothing to do.
        Ok(Response::new(pb::DefragmentResponse {
            header: self.node.header(),
        }))
    }

    async fn hash_kv(
        &self,
        request: Request<pb::HashKvRequest>,
    ) -> Result<Response<pb::HashKvResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.administer().map_err(status)?;
        let wanted = request.into_inner().revision;
        let (now, compacted) = {
            let store = self.node.shared.store();
            (store.revision(), store.compacted())
        };
        if wanted > now {
            return Err(status(OpError::FutureRevision));
        }
        if wanted > 0 && wanted < compacted {
            return Err(status(OpError::Compacted));
        }
        let until = if wanted > 0 { wanted } else { now };
        let (hash, compact_revision) = self.node.hash(until).await?;
        let header = self.node.header();
        Ok(Response::new(pb::HashKvResponse {
            header,
            hash,
            compact_revision,
            hash_revision: until,
        }))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.administer().map_err(status)?;
        if !self.node.leads() {
            return Err(status(OpError::NotLeader));
        }
        let target = request.into_inner().target_id;
        match self.node.raft.transfer_leader(GROUP, target).await {
            Ok(()) => Ok(Response::new(pb::MoveLeaderResponse {
                header: self.node.header(),
            })),
            Err(TransferError::NotVoter(_)) => Err(status(OpError::BadLeaderTransferee)),
            Err(TransferError::NotLeader { .. }) => Err(status(OpError::NotLeader)),
            Err(TransferError::TimedOut(_)) => Err(status(OpError::TimeoutLeaderFailed)),
            Err(TransferError::NoGroup(_) | TransferError::Stopped) => Err(status(OpError::Stopped)),
        }
    }

    async fn hash(&self, _request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    async fn downgrade(
        &self,
        _request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Err(Status::unimplemented("not served yet"))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.administer().map_err(status)?;
        let pieces = snapshot::stream(&self.node, &self.snapshots).await?;
        Ok(Response::new(Box::pin(pieces)))
    }
}
