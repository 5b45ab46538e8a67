//! etcd's Lease service.

use std::pin::Pin;

use chainfire_client::wire::etcdserverpb::{self as pb, lease_server::Lease};
use chainfire_core::{KeyRange, OpError};
use hearth_service::tasks::Kind;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    auth::Credential,
    lessor::{Lessor, Renewing},
    node::{Node, status},
    record::{LogBody, ReplyBody},
};

/// Answers waiting on one keep-alive stream.
const REPLY_QUEUE: usize = 16;

/// Renewals of one stream that are under way at once.
const MAX_ASKED: usize = 256;

/// A renewal under way: the header of its answer, the lease, and what comes of it.
type Asked = (Option<pb::ResponseHeader>, i64, Renewing);

/// Hands the asks of a keep-alive stream on without waiting for their answers.
async fn ask(
    node: Node,
    lessor: Lessor,
    credential: Credential,
    mut asks: Streaming<pb::LeaseKeepAliveRequest>,
    asked: mpsc::Sender<Asked>,
) {
    while let Ok(Some(ask)) = asks.message().await {
        // The revision from before the renewal, as etcd has it.
        let header = node.header_at(node.shared.revision());
        let renewing = match may_renew(&node, &credential, ask.id).await {
            Ok(()) => lessor.renew(ask.id).await,
            Err(error) => Renewing::refused(error),
        };
        if asked.send((header, ask.id, renewing)).await.is_err() {
            return;
        }
    }
}

/// Gives the answers in the order of the asks; the first error is the last answer.
async fn answer(
    mut asked: mpsc::Receiver<Asked>,
    replies: &mpsc::Sender<Result<pb::LeaseKeepAliveResponse, Status>>,
) {
    while let Some((header, id, renewing)) = asked.recv().await {
        let reply = match renewing.answer().await {
            Ok(ttl) => Ok(pb::LeaseKeepAliveResponse { header, id, ttl }),
            Err(error) => Err(status(error)),
        };
        let over = reply.is_err();
        if replies.send(reply).await.is_err() || over {
            return;
        }
    }
}

/// The Lease service of a member.
pub(crate) struct LeaseService {
    node: Node,
    lessor: Lessor,
}

impl LeaseService {
    pub(crate) fn new(node: Node, lessor: Lessor) -> LeaseService {
        LeaseService { node, lessor }
    }

    fn keys_of(&self, id: i64) -> Option<Vec<bytes::Bytes>> {
        self.node
            .shared
            .store()
            .leases()
            .get(id)
            .map(|lease| lease.keys.iter().cloned().collect())
    }
}

/// Whether whoever opened the stream may renew a lease now: rights and tokens end while streams live on.
async fn may_renew(node: &Node, credential: &Credential, id: i64) -> Result<(), OpError> {
    let caller = node.caller(credential).await?;
    caller.renew_lease(node.shared.store().leases(), id)
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.known().map_err(status)?;
        self.node.check_space().map_err(status)?;
        let mut message = request.into_inner();
        if message.ttl > chainfire_core::MAX_LEASE_TTL_S {
            return Err(status(OpError::LeaseTtlTooLarge));
        }
        let chosen_here = message.id == 0;
        loop {
            while chosen_here && message.id == 0 {
                message.id = (rand::random::<u64>() >> 1).cast_signed();
            }
            match self.node.propose(caller.by(), LogBody::Grant(message)).await {
                Ok(ReplyBody::Granted(mut reply)) => {
                    self.node.fill(&mut reply.header);
                    return Ok(Response::new(reply));
                }
                Ok(_) => return Err(Status::internal("the state machine answered another question")),
                // One chance in 2^63 for each lease; the caller did not ask for this id.
                Err(OpError::LeaseExists) if chosen_here => message.id = 0,
                Err(error) => return Err(status(error)),
            }
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.known().map_err(status)?;
        let message = request.into_inner();
        // Ending a lease deletes its keys: only for who may delete them.
        for key in self.keys_of(message.id).unwrap_or_default() {
            caller.propose_write(&KeyRange::single(key)).map_err(status)?;
        }
        let command = LogBody::Revoke(message);
        let reply = self.node.propose(caller.by(), command).await.map_err(status)?;
        let ReplyBody::Done(revision) = reply else {
            return Err(Status::internal("the state machine answered another question"));
        };
        Ok(Response::new(pb::LeaseRevokeResponse {
            header: self.node.header_at(revision),
        }))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        credential.rights().known().map_err(status)?;
        let asks = request.into_inner();
        let (replies, stream) = mpsc::channel(REPLY_QUEUE);
        let (node, lessor, stop) = (self.node.clone(), self.lessor.clone(), self.node.tasks.clone());
        self.node
            .tasks
            .spawn("lease keep-alive stream", Kind::Background, async move {
                let (asked, answers) = mpsc::channel(MAX_ASKED);
                tokio::select! {
                    // The answers to what was asked are still given when the client has no more to ask.
                    () = async { tokio::join!(ask(node, lessor, credential, asks, asked), answer(answers, &replies)); } => {}
                    () = stop.stopping() => {}
                    () = replies.closed() => {}
                }
                Ok(())
            });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.known().map_err(status)?;
        let message = request.into_inner();
        let ttl = self.lessor.remaining(message.id).await.map_err(status)?;
        // The leader's answer is newer than this member's state may be.
        self.node.read_barrier().await.map_err(status)?;
        let granted = self
            .node
            .shared
            .store()
            .leases()
            .get(message.id)
            .map(|lease| lease.ttl_s);
        let mut reply = pb::LeaseTimeToLiveResponse {
            header: self.node.header(),
            id: message.id,
            ttl: if granted.is_some() { ttl } else { -1 },
            granted_ttl: granted.unwrap_or(0),
            keys: Vec::new(),
        };
        if message.keys {
            // By the rights of the state that the keys are of.
            let caller = self.node.caller(&credential).await.map_err(status)?;
            reply.keys = self.keys_of(message.id).unwrap_or_default();
            for key in &reply.keys {
                caller.read(&KeyRange::single(key.clone())).map_err(status)?;
            }
            caller.unchanged().map_err(status)?;
        }
        Ok(Response::new(reply))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        credential.rights().known().map_err(status)?;
        self.node.read_barrier().await.map_err(status)?;
        let caller = self.node.caller(&credential).await.map_err(status)?;
        let leases = {
            let store = self.node.shared.store();
            // etcd's rule: who may not read some key of some lease gets no list at all.
            caller.see_leases(store.leases()).map_err(status)?;
            let ids = store.leases().iter();
            ids.map(|(id, _)| pb::LeaseStatus { id }).collect()
        };
        Ok(Response::new(pb::LeaseLeasesResponse {
            header: self.node.header(),
            leases,
        }))
    }
}
