//! etcd's KV service. Reads are answered by the asked member after a barrier; writes go through the log.

use std::pin::Pin;

use chainfire_client::wire::etcdserverpb::{self as pb, kv_server::Kv};
use chainfire_core::{Failure, KeyRange, Op, OpError, Txn, check};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::{
    auth::Credential,
    convert,
    node::{Node, status, storage_status},
    range_stream,
    record::{LogBody, ReplyBody},
};

/// The KV service of a member.
pub(crate) struct KvService {
    node: Node,
}

impl KvService {
    pub(crate) fn new(node: Node) -> KvService {
        KvService { node }
    }
}

/// A reply of another kind than the command's: a defect.
fn wrong_reply() -> Status {
    Status::internal("the state machine answered another question")
}

/// Whether every read of a transaction may be answered from the member's own, perhaps old, state.
fn is_serializable(txn: &pb::TxnRequest) -> bool {
    use pb::request_op::Request as R;
    txn.success
        .iter()
        .chain(&txn.failure)
        .all(|op| match &op.request {
            Some(R::RequestRange(range)) => range.serializable,
            Some(R::RequestTxn(txn)) => is_serializable(txn),
            _ => false,
        })
}

fn writes_data(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(txn) => writes_data(txn),
        Op::Range(_) | Op::Delete(_) | Op::Nothing => false,
    })
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let message = request.into_inner();
        let serializable = message.serializable;
        let range = convert::range(message).map_err(status)?;
        check::range(&range).map_err(status)?;
        credential.rights().read(&range.keys).map_err(status)?;
        if !serializable && self.node.is_learner() {
            return Err(status(OpError::NotSupportedForLearner));
        }
        if !serializable {
            self.node.read_barrier().await.map_err(status)?;
        }
        // After the barrier: by the rights of the state that is read.
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.read(&range.keys).map_err(status)?;
        let mut reply = convert::range_reply(self.node.read(&range).await?);
        caller.unchanged().map_err(status)?;
        self.node.fill(&mut reply.header);
        Ok(Response::new(reply))
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let message = request.into_inner();
        let serializable = message.serializable;
        let range = range_stream::check(message)?;
        credential.rights().read(&range.keys).map_err(status)?;
        if !serializable {
            self.node.read_barrier().await.map_err(status)?;
        }
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.read(&range.keys).map_err(status)?;
        Ok(Response::new(Box::pin(range_stream::start(
            &self.node, caller, range,
        ))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let message = request.into_inner();
        check::put(&convert::put(message.clone())).map_err(status)?;
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller
            .propose_write(&KeyRange::single(message.key.clone()))
            .map_err(status)?;
        self.node.check_space().map_err(status)?;
        let command = LogBody::Put(message);
        let reply = self.node.propose(caller.by(), command).await.map_err(status)?;
        let ReplyBody::Put(mut reply) = reply else {
            return Err(wrong_reply());
        };
        self.node.fill(&mut reply.header);
        Ok(Response::new(reply))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let message = request.into_inner();
        let delete = convert::delete(message.clone());
        check::delete(&delete).map_err(status)?;
        let caller = self.node.caller(&credential).await.map_err(status)?;
        caller.propose_write(&delete.keys).map_err(status)?;
        let command = LogBody::Delete(message);
        let reply = self.node.propose(caller.by(), command).await.map_err(status)?;
        let ReplyBody::Delete(mut reply) = reply else {
            return Err(wrong_reply());
        };
        self.node.fill(&mut reply.header);
        Ok(Response::new(reply))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        let message = request.into_inner();
        let txn = convert::txn(message.clone()).map_err(status)?;
        check::txn(&txn).map_err(status)?;
        credential.rights().txn(&txn).map_err(status)?;
        let mut reply = if txn.is_read_only() {
            if !is_serializable(&message) {
                self.node.read_barrier().await.map_err(status)?;
            }
            let caller = self.node.caller(&credential).await.map_err(status)?;
            let outcome = {
                let store = self.node.shared.store();
                caller.txn(store.leases(), &txn).map_err(status)?;
                store.read_txn(&txn)
            };
            caller.unchanged().map_err(status)?;
            convert::txn_reply(outcome.map_err(|failure| match failure {
                Failure::Refused(error) => status(error),
                Failure::Storage(error) => storage_status(&error),
            })?)
        } else {
            let caller = self.node.caller(&credential).await.map_err(status)?;
            caller.propose_txn(&txn).map_err(status)?;
            if writes_data(&txn) {
                self.node.check_space().map_err(status)?;
            }
            let command = LogBody::Txn(message);
            let reply = self.node.propose(caller.by(), command).await.map_err(status)?;
            let ReplyBody::Txn(reply) = reply else {
                return Err(wrong_reply());
            };
            reply
        };
        self.node.fill(&mut reply.header);
        Ok(Response::new(reply))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = self
            .node
            .caller(&Credential::of(&request))
            .await
            .map_err(status)?;
        caller.propose_administration().map_err(status)?;
        let message = request.into_inner();
        let (compacted, physical) = (message.revision, message.physical);
        let command = LogBody::Compact(message);
        let reply = self.node.propose(caller.by(), command).await.map_err(status)?;
        let ReplyBody::Done(revision) = reply else {
            return Err(wrong_reply());
        };
        if physical {
            self.node.reclaimed(compacted).await.map_err(status)?;
        }
        Ok(Response::new(pb::CompactionResponse {
            header: self.node.header_at(revision),
        }))
    }
}
