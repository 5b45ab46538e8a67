//! etcd's Maintenance service.

use std::{pin::Pin, sync::Arc};

use chainfire_client::wire::etcdserverpb::{
    self as pb, alarm_request::AlarmAction, maintenance_server::Maintenance,
};
use chainfire_core::{Alarm, OpError};
use raft_host::TransferError;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, metadata::MetadataValue};

use crate::{
    auth::Credential,
    convert,
    hash::{NoHash, hash_all, hash_kv},
    leaderless,
    node::{GROUP, Node, status},
    record::{LogBody, ReplyBody},
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

fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        let message = request.into_inner();
        let kind = convert::alarm_kind(message.alarm);
        let alarms = match (AlarmAction::try_from(message.action), kind) {
            (Ok(AlarmAction::Get), kind) => {
                caller.known().map_err(status)?;
                self.node.read_barrier().await.map_err(status)?;
                let wanted = |alarm: &Alarm| kind.is_none_or(|kind| kind == alarm.kind);
                self.node
                    .alarms()
                    .into_iter()
                    .filter(wanted)
                    .map(convert::alarm)
                    .collect()
            }
            (Ok(AlarmAction::Activate | AlarmAction::Deactivate), Some(_)) => {
                caller.administer().map_err(status)?;
                match self
                    .node
                    .propose(caller.by(), LogBody::Alarm(message))
                    .await
                    .map_err(status)?
                {
                    ReplyBody::Alarms(reply) => reply.alarms,
                    _ => return Err(Status::internal("the state machine answered another question")),
                }
            }
            // As in etcd, no alarm is named, so none changes.
            (Ok(AlarmAction::Activate | AlarmAction::Deactivate), None) | (Err(_), _) => Vec::new(),
        };
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
        let db_size = bytes(self.node.shared.tables.engine.disk_bytes().unwrap_or(0));
        let mut errors = Vec::new();
        if raft.leader.leader.is_none() {
            errors.push(OpError::NoLeader.text().to_owned());
        }
        if self.node.disk_full() {
            errors.push("NOSPACE: the disk is full".to_owned());
        }
        for alarm in self.node.shared.store().alarms().iter().map(convert::alarm) {
            // As etcd prints it.
            errors.push(format!(
                "memberID:{} alarm:{} ",
                alarm.member_id,
                alarm.alarm().as_str_name()
            ));
        }
        let mut response = Response::new(pb::StatusResponse {
            header: self.node.header(),
            version: ETCD_VERSION.to_owned(),
            db_size,
            leader: raft.leader.leader.unwrap_or(0),
            raft_index: raft.commit,
            raft_term: raft.leader.term,
            raft_applied_index: raft.applied,
            errors,
            db_size_in_use: bytes(self.node.shared.live_bytes()),
            is_learner: raft
                .membership
                .get(self.node.id)
                .is_some_and(|member| member.learner),
            storage_version: String::new(),
            db_size_quota: bytes(self.node.config.quota_bytes),
            downgrade_info: None,
        });
        if raft.leader.leader.is_none() {
            let for_ms = MetadataValue::from(self.node.leaderless.for_ms());
            response.metadata_mut().insert(leaderless::METADATA, for_ms);
        }
        Ok(response)
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
        let hashed = self.node.hash(move |tables| hash_kv(tables, wanted)).await?;
        let hashed = hashed.map_err(|none| match none {
            NoHash::Future => status(OpError::FutureRevision),
            NoHash::Compacted => status(OpError::Compacted),
        })?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.node.header(),
            hash: hashed.hash,
            compact_revision: hashed.compacted,
            hash_revision: hashed.revision,
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

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.known().map_err(status)?;
        let hashed = self.node.hash(hash_all).await?;
        Ok(Response::new(pb::HashResponse {
            header: self.node.header_at(hashed.revision),
            hash: hashed.hash,
        }))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.administer().map_err(status)?;
        Err(status(downgrade_refusal(&request.into_inner())))
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

/// No release writes an older one's format, so no target is valid and no downgrade is ever under way. The way back is a
/// backup.
fn downgrade_refusal(wish: &pb::DowngradeRequest) -> OpError {
    if wish.action() == pb::downgrade_request::DowngradeAction::Cancel {
        return OpError::NoInflightDowngrade;
    }
    let numbers = wish.version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = numbers.split('.').collect();
    let numeric = parts.iter().all(|part| part.parse::<u64>().is_ok());
    if numeric && (2..=3).contains(&parts.len()) {
        OpError::InvalidDowngradeTargetVersion
    } else {
        OpError::WrongDowngradeVersionFormat
    }
}
