//! etcd's v3lock service. The reply's revision, or the key's creation revision, is the holder's fencing token
//! (docs/guides/locks.md).

use bytes::Bytes;
use chainfire_client::wire::{
    etcdserverpb::DeleteRangeRequest,
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};
use hearth_service::tasks::Tasks;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    candidacy::{Candidate, WhileWaiting, oldest, pairs, read_one, relayed, session, unknown},
    local::Local,
};

/// The Lock service of a member.
pub(crate) struct LockService {
    routes: Routes,
    tasks: Tasks,
}

impl LockService {
    pub(crate) fn new(routes: &Routes, tasks: &Tasks) -> LockService {
        LockService {
            routes: routes.clone(),
            tasks: tasks.clone(),
        }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let local = Local::of(&self.routes, &request);
        let LockRequest { name, lease } = request.into_inner();
        let lease = session(&local, lease).await?;
        let also = Some(oldest(&name));
        let (candidate, reply) = Candidate::enter(local, &name, lease, Bytes::new(), also).await?;
        let holder = pairs(reply.responses.get(1)).first();
        if holder.is_none_or(|holder| holder.create_revision == candidate.revision) {
            return Ok(Response::new(LockResponse {
                header: reply.header,
                key: candidate.key,
            }));
        }
        let waiting = WhileWaiting::new(&candidate, &self.tasks);
        candidate.wait(&name).await?;
        let found = candidate.local.kv().range(read_one(&candidate.key)).await;
        let found = found.map_err(relayed)?.into_inner();
        waiting.over();
        if found.kvs.is_empty() {
            return Err(unknown("mutex: session is expired"));
        }
        Ok(Response::new(LockResponse {
            header: found.header,
            key: candidate.key,
        }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let local = Local::of(&self.routes, &request);
        let delete = DeleteRangeRequest {
            key: request.into_inner().key,
            ..Default::default()
        };
        let reply = local.kv().delete_range(delete).await.map_err(relayed)?;
        Ok(Response::new(UnlockResponse {
            header: reply.into_inner().header,
        }))
    }
}
