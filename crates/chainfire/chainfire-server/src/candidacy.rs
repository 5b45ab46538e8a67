//! What locks and elections share: a key `NAME/LEASE` among others of the same name, of which the oldest rules.
//!
//! ```text
//!   enter: the key is made ──> wait: an older one is there ──its deletion──> wait ... ──none is older──> rules
//! ```
//! The creation revision of the key orders the candidates, and grows from one ruler to the next: it is the fencing
//! token. A key goes with its lease, so nobody waits for the dead.

use std::time::Duration;

use bytes::Bytes;
use chainfire_client::wire::{
    etcdserverpb::{
        self as pb, compare, range_request, request_op::Request as Op, response_op::Response as OpReply,
        watch_request::RequestUnion,
    },
    mvccpb::{KeyValue, event::EventType},
};
use hearth_service::tasks::{Kind, Tasks};
use tokio_stream::StreamExt;
use tonic::{Code, Status, Streaming};

use crate::local::Local;

/// Time to live of the lease that a caller without one gets, seconds (etcd's default).
const SESSION_TTL_S: i64 = 60;
/// How long the withdrawal of a candidate whose client is gone may take.
const WITHDRAWAL: Duration = Duration::from_secs(10);

/// One candidate.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) local: Local,
    pub(crate) key: Bytes,
    /// Creation revision of the key.
    pub(crate) revision: i64,
    pub(crate) lease: i64,
}

/// As etcd says it of what its own client inside the server refused: the text, under no particular code.
pub(crate) fn unknown(error: impl Into<String>) -> Status {
    Status::new(Code::Unknown, error)
}

/// The same for an answer of one of the member's services.
pub(crate) fn relayed(error: Status) -> Status {
    unknown(error.message())
}

/// The lease that a caller works under: its own, renewed, or a new one that ends by itself when the caller does not
/// renew it.
pub(crate) async fn session(local: &Local, lease: i64) -> Result<i64, Status> {
    if lease == 0 {
        let grant = pb::LeaseGrantRequest {
            ttl: SESSION_TTL_S,
            id: 0,
        };
        let granted = local.lease().lease_grant(grant).await.map_err(relayed)?;
        return Ok(granted.into_inner().id);
    }
    let renewal = tokio_stream::once(pb::LeaseKeepAliveRequest { id: lease });
    if let Ok(replies) = local.lease().lease_keep_alive(renewal).await {
        // Whether there is such a lease is seen when a key is hung on it.
        let _ = replies.into_inner().message().await;
    }
    Ok(lease)
}

/// The key of the candidate with this lease.
pub(crate) fn candidate_key(name: &[u8], lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    let suffix = format!("/{sign}{:x}", lease.unsigned_abs());
    [name, suffix.as_bytes()].concat().into()
}

/// All candidates of a name: `NAME/` and, as the byte after the slash, the end `NAME0`.
pub(crate) fn candidates(name: &[u8]) -> (Bytes, Bytes) {
    ([name, b"/"].concat().into(), [name, b"0"].concat().into())
}

/// Reads the oldest candidate of a name.
pub(crate) fn oldest(name: &[u8]) -> pb::RangeRequest {
    let (key, range_end) = candidates(name);
    pb::RangeRequest {
        key,
        range_end,
        limit: 1,
        sort_order: range_request::SortOrder::Ascend.into(),
        sort_target: range_request::SortTarget::Create.into(),
        ..Default::default()
    }
}

pub(crate) fn read_one(key: &Bytes) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.clone(),
        ..Default::default()
    }
}

pub(crate) fn created_at(key: &Bytes, revision: i64) -> pb::Compare {
    pb::Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(compare::TargetUnion::CreateRevision(revision)),
    }
}

pub(crate) fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

/// What of an answer is a range.
pub(crate) fn pairs(reply: Option<&pb::ResponseOp>) -> &[KeyValue] {
    match reply.and_then(|reply| reply.response.as_ref()) {
        Some(OpReply::ResponseRange(range)) => &range.kvs,
        _ => &[],
    }
}

pub(crate) fn revision_of(header: Option<&pb::ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

impl Candidate {
    /// Makes the key of this candidate with `value`, or finds it made; `also` is read in the same transaction. What the
    /// transaction said comes along.
    pub(crate) async fn enter(
        local: Local,
        name: &[u8],
        lease: i64,
        value: Bytes,
        also: Option<pb::RangeRequest>,
    ) -> Result<(Candidate, pb::TxnResponse), Status> {
        let key = candidate_key(name, lease);
        let put = pb::PutRequest {
            key: key.clone(),
            value,
            lease,
            ..Default::default()
        };
        let also = also.map(|range| op(Op::RequestRange(range)));
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: [op(Op::RequestPut(put))]
                .into_iter()
                .chain(also.clone())
                .collect(),
            failure: [op(Op::RequestRange(read_one(&key)))]
                .into_iter()
                .chain(also)
                .collect(),
        };
        let reply = local.kv().txn(txn).await.map_err(relayed)?.into_inner();
        let revision = if reply.succeeded {
            revision_of(reply.header.as_ref())
        } else {
            pairs(reply.responses.first())
                .first()
                .map_or(0, |kv| kv.create_revision)
        };
        let candidate = Candidate {
            local,
            key,
            revision,
            lease,
        };
        Ok((candidate, reply))
    }

    /// Waits until no candidate is older than this one.
    pub(crate) async fn wait(&self, name: &[u8]) -> Result<(), Status> {
        let (key, range_end) = candidates(name);
        let latest_before = pb::RangeRequest {
            key,
            range_end,
            limit: 1,
            sort_order: range_request::SortOrder::Descend.into(),
            sort_target: range_request::SortTarget::Create.into(),
            max_create_revision: self.revision - 1,
            ..Default::default()
        };
        loop {
            let reply = self.local.kv().range(latest_before.clone()).await;
            let reply = reply.map_err(relayed)?.into_inner();
            let Some(before) = reply.kvs.into_iter().next() else {
                return Ok(());
            };
            deletion(&self.local, before.key, revision_of(reply.header.as_ref())).await?;
        }
    }

    /// Deletes the key, if it is still the one that was made.
    pub(crate) async fn withdraw(&self) -> Result<pb::TxnResponse, Status> {
        let delete = pb::DeleteRangeRequest {
            key: self.key.clone(),
            ..Default::default()
        };
        let txn = pb::TxnRequest {
            compare: vec![created_at(&self.key, self.revision)],
            success: vec![op(Op::RequestDeleteRange(delete))],
            failure: Vec::new(),
        };
        Ok(self.local.kv().txn(txn).await.map_err(relayed)?.into_inner())
    }
}

/// Watches some keys from a revision on.
pub(crate) async fn watch(
    local: &Local,
    key: Bytes,
    range_end: Bytes,
    start_revision: i64,
) -> Result<Streaming<pb::WatchResponse>, Status> {
    let create = pb::WatchCreateRequest {
        key,
        range_end,
        start_revision,
        ..Default::default()
    };
    let create = pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    // The open end keeps the stream alive.
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    Ok(local.watch().watch(requests).await.map_err(relayed)?.into_inner())
}

/// The next changes; `None` when they have been forgotten and the state has to be read anew.
pub(crate) async fn changes(
    stream: &mut Streaming<pb::WatchResponse>,
) -> Result<Option<pb::WatchResponse>, Status> {
    let reply = stream.message().await.map_err(relayed)?;
    let reply = reply.ok_or_else(|| unknown("lost watcher waiting for delete"))?;
    if reply.canceled && reply.compact_revision != 0 {
        return Ok(None);
    }
    if reply.canceled {
        return Err(unknown(reply.cancel_reason));
    }
    Ok(Some(reply))
}

/// Waits until a key is deleted, or it is worth looking again.
async fn deletion(local: &Local, key: Bytes, from: i64) -> Result<(), Status> {
    let mut stream = watch(local, key, Bytes::new(), from).await?;
    while let Some(reply) = changes(&mut stream).await? {
        let deleted = |event: &chainfire_client::wire::mvccpb::Event| event.r#type() == EventType::Delete;
        if reply.events.iter().any(deleted) {
            break;
        }
    }
    Ok(())
}

/// Withdraws a candidate when the call that waits for it is dropped, which is what happens when its client goes away.
#[derive(Debug)]
pub(crate) struct WhileWaiting {
    candidate: Option<Candidate>,
    tasks: Tasks,
}

impl WhileWaiting {
    pub(crate) fn new(candidate: &Candidate, tasks: &Tasks) -> WhileWaiting {
        WhileWaiting {
            candidate: Some(candidate.clone()),
            tasks: tasks.clone(),
        }
    }

    /// The wait is over: the candidate stays.
    pub(crate) fn over(mut self) {
        self.candidate = None;
    }
}

impl Drop for WhileWaiting {
    fn drop(&mut self) {
        let Some(candidate) = self.candidate.take() else {
            return;
        };
        self.tasks
            .spawn("withdrawal of a candidate", Kind::Background, async move {
                // Its lease ends it when this cannot be done.
                match tokio::time::timeout(WITHDRAWAL, candidate.withdraw()).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "a candidate could not be withdrawn"),
                    Err(_) => tracing::debug!("a candidate could not be withdrawn in time"),
                }
                Ok(())
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_etcds() {
        assert_eq!(candidate_key(b"my lock", 0x22_09a2), "my lock/2209a2");
        assert_eq!(candidate_key(b"", -1), "/-1");
        let (first, end) = candidates(b"a");
        assert!(first < candidate_key(b"a", 1) && candidate_key(b"a", i64::MAX) < end);
        assert!(end > first && candidate_key(b"aa", 1) > end);
    }
}
