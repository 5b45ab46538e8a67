//! etcd's v3election service.

use std::pin::Pin;

use bytes::Bytes;
use chainfire_client::wire::{
    etcdserverpb::{self as pb, request_op::Request as Op},
    mvccpb::{KeyValue, event::EventType},
    v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
        ProclaimResponse, ResignRequest, ResignResponse, election_server::Election,
    },
};
use hearth_service::tasks::{Kind, Tasks};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    candidacy::{
        Candidate, WhileWaiting, candidates, changes, created_at, oldest, op, pairs, relayed, revision_of,
        session, unknown, watch,
    },
    local::Local,
};

/// Leaders that wait for a slow observer.
const OBSERVED: usize = 16;

const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";
const NO_KEY: &str = "\"leader\" field must be provided";

/// The Election service of a member.
pub(crate) struct ElectionService {
    routes: Routes,
    tasks: Tasks,
}

impl ElectionService {
    pub(crate) fn new(routes: &Routes, tasks: &Tasks) -> ElectionService {
        ElectionService {
            routes: routes.clone(),
            tasks: tasks.clone(),
        }
    }
}

/// The candidate that a caller says it is.
async fn claimed(local: Local, leader: Option<LeaderKey>) -> Result<Candidate, Status> {
    let leader = leader.ok_or_else(|| unknown(NO_KEY))?;
    let lease = session(&local, leader.lease).await?;
    Ok(Candidate {
        local,
        key: leader.key,
        revision: leader.rev,
        lease,
    })
}

/// Writes a candidate's value, if its key is still the one that was made.
async fn proclaim(candidate: &Candidate, value: Bytes) -> Result<pb::TxnResponse, Status> {
    let put = pb::PutRequest {
        key: candidate.key.clone(),
        value,
        lease: candidate.lease,
        ..Default::default()
    };
    let txn = pb::TxnRequest {
        compare: vec![created_at(&candidate.key, candidate.revision)],
        success: vec![op(Op::RequestPut(put))],
        failure: Vec::new(),
    };
    let reply = candidate.local.kv().txn(txn).await.map_err(relayed)?.into_inner();
    if reply.succeeded {
        Ok(reply)
    } else {
        Err(unknown(NOT_LEADER))
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let local = Local::of(&self.routes, &request);
        let CampaignRequest { name, lease, value } = request.into_inner();
        let lease = session(&local, lease).await?;
        let (candidate, reply) = Candidate::enter(local, &name, lease, value.clone(), None).await?;
        let waiting = WhileWaiting::new(&candidate, &self.tasks);
        let found = pairs(reply.responses.first()).first();
        if !reply.succeeded && found.is_some_and(|found| found.value != value) {
            // When it fails, the candidacy is given up.
            proclaim(&candidate, value).await?;
        }
        let waited = candidate.wait(&name).await;
        waiting.over();
        waited?;
        Ok(Response::new(CampaignResponse {
            header: reply.header,
            leader: Some(LeaderKey {
                name,
                key: candidate.key,
                rev: candidate.revision,
                lease,
            }),
        }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let local = Local::of(&self.routes, &request);
        let ProclaimRequest { leader, value } = request.into_inner();
        let candidate = claimed(local, leader).await?;
        let reply = proclaim(&candidate, value).await?;
        Ok(Response::new(ProclaimResponse { header: reply.header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let local = Local::of(&self.routes, &request);
        let reply = local.kv().range(oldest(&request.into_inner().name)).await;
        let reply = reply.map_err(relayed)?.into_inner();
        let kv = reply.kvs.into_iter().next().ok_or_else(|| unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse {
            header: reply.header,
            kv: Some(kv),
        }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let local = Local::of(&self.routes, &request);
        let name = request.into_inner().name;
        let (leaders, stream) = mpsc::channel(OBSERVED);
        let stop = self.tasks.clone();
        self.tasks
            .spawn("election observer", Kind::Background, async move {
                let closed = leaders.clone();
                let observer = Observer {
                    local,
                    name,
                    leaders: leaders.clone(),
                };
                let ended = tokio::select! {
                    () = stop.stopping() => return Ok(()),
                    () = closed.closed() => return Ok(()),
                    ended = observer.run() => ended,
                };
                if let Err(error) = ended {
                    let _ = leaders.send(Err(error)).await;
                }
                Ok(())
            });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let local = Local::of(&self.routes, &request);
        let candidate = claimed(local, request.into_inner().leader).await?;
        let reply = candidate.withdraw().await?;
        Ok(Response::new(ResignResponse { header: reply.header }))
    }
}

/// Tells a client who leads, from the leader of now on.
struct Observer {
    local: Local,
    name: Bytes,
    leaders: mpsc::Sender<Result<LeaderResponse, Status>>,
}

impl Observer {
    async fn run(&self) -> Result<(), Status> {
        loop {
            let reply = self.local.kv().range(oldest(&self.name)).await;
            let reply = reply.map_err(relayed)?.into_inner();
            let (header, kv) = match reply.kvs.into_iter().next() {
                Some(kv) => (reply.header, kv),
                None => match self.first(revision_of(reply.header.as_ref())).await? {
                    Some(found) => found,
                    None => continue,
                },
            };
            let (key, from) = (kv.key.clone(), revision_of(header.as_ref()) + 1);
            if !self.tell(header, kv).await {
                return Ok(());
            }
            if !self.follow(key, from).await? {
                return Ok(());
            }
        }
    }

    /// Waits for a candidate where there is none.
    async fn first(&self, from: i64) -> Result<Option<(Option<pb::ResponseHeader>, KeyValue)>, Status> {
        let (key, range_end) = candidates(&self.name);
        let mut stream = watch(&self.local, key, range_end, from).await?;
        while let Some(reply) = changes(&mut stream).await? {
            let put = reply
                .events
                .into_iter()
                .find(|event| event.r#type() == EventType::Put)
                .and_then(|event| event.kv);
            if let Some(kv) = put {
                let revision = kv.mod_revision;
                let header = reply
                    .header
                    .map(|header| pb::ResponseHeader { revision, ..header });
                return Ok(Some((header, kv)));
            }
        }
        Ok(None)
    }

    /// Tells what a leader proclaims until its key goes; false when nobody listens any more.
    async fn follow(&self, key: Bytes, from: i64) -> Result<bool, Status> {
        let mut stream = watch(&self.local, key, Bytes::new(), from).await?;
        while let Some(reply) = changes(&mut stream).await? {
            for event in reply.events {
                match (event.r#type(), event.kv) {
                    (EventType::Put, Some(kv)) => {
                        if !self.tell(reply.header, kv).await {
                            return Ok(false);
                        }
                    }
                    _ => return Ok(true),
                }
            }
        }
        Ok(true)
    }

    async fn tell(&self, header: Option<pb::ResponseHeader>, kv: KeyValue) -> bool {
        let reply = LeaderResponse { header, kv: Some(kv) };
        self.leaders.send(Ok(reply)).await.is_ok()
    }
}
