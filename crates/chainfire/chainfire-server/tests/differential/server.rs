//! One of the two servers, and one request to it.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use chainfire_client::wire::etcdserverpb::{
    self as pb, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    response_op::Response as OpResponse,
};
use tonic::transport::{Channel, Endpoint};

use crate::{common::free_ports, random::Random};

pub struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the etcd that `CHAINFIRE_FUZZ_ETCD` names, else the installed one; `None` when there is none.
pub fn start_etcd(dir: &Path) -> Option<(Etcd, String)> {
    let ports = free_ports(2);
    let client = format!("http://127.0.0.1:{}", ports[0]);
    let peer = format!("http://127.0.0.1:{}", ports[1]);
    let program = std::env::var("CHAINFIRE_FUZZ_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    let child = Command::new(program)
        .args(["--data-dir", dir.to_str().unwrap()])
        .args(["--name", "one", "--log-level", "error"])
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("one={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    Some((Etcd(child), client))
}

pub struct Server {
    pub channel: Channel,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
}

impl Server {
    pub fn new(url: &str) -> Server {
        let channel = Endpoint::from_shared(url.to_owned())
            .unwrap()
            .timeout(Duration::from_secs(20))
            .connect_lazy();
        Server {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            channel,
        }
    }

    /// What it says it is; `None` while it does not serve.
    pub async fn version(&self) -> Option<String> {
        let mut maintenance = MaintenanceClient::new(self.channel.clone());
        let status = maintenance.status(pb::StatusRequest {}).await.ok()?;
        let range = pb::RangeRequest {
            key: "ready".into(),
            ..Default::default()
        };
        self.kv.clone().range(range).await.ok()?;
        Some(status.into_inner().version)
    }
}

/// One request.
#[derive(Debug, Clone)]
pub enum Step {
    Range(pb::RangeRequest),
    Stream(pb::RangeRequest),
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    KeepAlive(pb::LeaseKeepAliveRequest),
    TimeToLive(pb::LeaseTimeToLiveRequest),
    Leases,
    Watch(pb::WatchCreateRequest),
    Unwatch(i64),
}

/// Its answer, without what only one server can say.
#[derive(Debug, PartialEq, Clone)]
pub enum Answer {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    KeepAlive(pb::LeaseKeepAliveResponse),
    TimeToLive(pb::LeaseTimeToLiveResponse),
    Leases(pb::LeaseLeasesResponse),
    Refused(tonic::Code, String),
}

impl Answer {
    /// The store's revision, where the answer says it.
    pub fn revision(&self) -> Option<i64> {
        let header = match self {
            Answer::Range(reply) => &reply.header,
            Answer::Put(reply) => &reply.header,
            Answer::Delete(reply) => &reply.header,
            Answer::Txn(reply) => &reply.header,
            Answer::Compact(reply) => &reply.header,
            Answer::Revoke(reply) => &reply.header,
            Answer::Grant(_) | Answer::KeepAlive(_) | Answer::TimeToLive(_) | Answer::Leases(_) => &None,
            Answer::Refused(..) => &None,
        };
        header.as_ref().map(|header| header.revision)
    }

    pub fn is_refusal(&self) -> bool {
        matches!(self, Answer::Refused(..))
    }
}

fn plain(header: &mut Option<pb::ResponseHeader>) {
    if let Some(header) = header {
        (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
    }
}

fn plain_txn(reply: &mut pb::TxnResponse) {
    plain(&mut reply.header);
    for op in &mut reply.responses {
        match op.response.as_mut().unwrap() {
            OpResponse::ResponseRange(reply) => plain(&mut reply.header),
            OpResponse::ResponsePut(reply) => plain(&mut reply.header),
            OpResponse::ResponseDeleteRange(reply) => plain(&mut reply.header),
            OpResponse::ResponseTxn(reply) => plain_txn(reply),
        }
    }
}

impl Step {
    /// `streams`: whether the other server has RangeStream.
    pub fn random(random: &mut Random, newest: i64, next_watcher: i64, streams: bool) -> Step {
        let lease = |random: &mut Random| random.lease_id();
        match random.below(400) {
            0..=99 if streams && random.one_in(4) => Step::Stream(random.range(newest)),
            0..=99 => Step::Range(random.range(newest)),
            100..=199 => Step::Put(random.put()),
            200..=239 => Step::Delete(random.delete(false)),
            240..=339 => Step::Txn(random.txn(newest, 0)),
            340..=347 => Step::Compact(pb::CompactionRequest {
                revision: (newest - random.number(12)).max(0),
                physical: true,
            }),
            348..=363 => {
                let ttl = if random.one_in(10) {
                    9_000_000_001
                } else {
                    50_000 + random.number(100)
                };
                Step::Grant(pb::LeaseGrantRequest {
                    ttl,
                    id: lease(random),
                })
            }
            364..=373 => Step::Revoke(pb::LeaseRevokeRequest { id: lease(random) }),
            374..=379 => Step::KeepAlive(pb::LeaseKeepAliveRequest { id: lease(random) }),
            380..=388 => Step::TimeToLive(pb::LeaseTimeToLiveRequest {
                id: lease(random),
                keys: random.one_in(2),
            }),
            389..=395 => Step::Leases,
            396 | 397 => Step::Watch(random.watcher(newest, next_watcher)),
            398 => Step::Unwatch(1 + random.number(next_watcher.max(1).cast_unsigned())),
            _ => Step::Range(pb::RangeRequest {
                limit: -1,
                ..random.range(newest)
            }),
        }
    }

    /// Makes the request; steps about watchers are not for here.
    pub async fn run(self, server: &mut Server) -> Answer {
        let refused = |status: tonic::Status| Answer::Refused(status.code(), status.message().to_owned());
        macro_rules! call {
            ($kind:ident, $stub:ident, $method:ident, $message:expr) => {
                server.$stub.$method($message).await.map(|reply| {
                    let mut reply = reply.into_inner();
                    plain(&mut reply.header);
                    Answer::$kind(reply)
                })
            };
        }
        let answer = match self {
            Step::Range(message) => call!(Range, kv, range, message),
            Step::Put(message) => call!(Put, kv, put, message),
            Step::Delete(message) => call!(Delete, kv, delete_range, message),
            Step::Compact(message) => call!(Compact, kv, compact, message),
            Step::Grant(message) => call!(Grant, lease, lease_grant, message),
            Step::Revoke(message) => call!(Revoke, lease, lease_revoke, message),
            Step::Stream(message) => stream(server, message).await.map(Answer::Range),
            Step::Txn(message) => server.kv.txn(message).await.map(|reply| {
                let mut reply = reply.into_inner();
                plain_txn(&mut reply);
                Answer::Txn(reply)
            }),
            Step::KeepAlive(message) => keep_alive(server, message).await.map(Answer::KeepAlive),
            Step::TimeToLive(message) => server.lease.lease_time_to_live(message).await.map(|reply| {
                let mut reply = reply.into_inner();
                plain(&mut reply.header);
                // Time passes between the two calls, and etcd lists keys in no order.
                reply.ttl = reply.ttl.signum();
                reply.keys.sort();
                Answer::TimeToLive(reply)
            }),
            Step::Leases => server
                .lease
                .lease_leases(pb::LeaseLeasesRequest {})
                .await
                .map(|reply| {
                    let mut reply = reply.into_inner();
                    plain(&mut reply.header);
                    reply.leases.sort_by_key(|lease| lease.id);
                    Answer::Leases(reply)
                }),
            Step::Watch(_) | Step::Unwatch(_) => unreachable!("watchers have their own stream"),
        };
        answer.unwrap_or_else(refused)
    }
}

/// A range in pieces, put together: where the pieces are cut is nobody's business.
async fn stream(server: &mut Server, message: pb::RangeRequest) -> Result<pb::RangeResponse, tonic::Status> {
    let mut pieces = server.kv.range_stream(message).await?.into_inner();
    let mut whole = pb::RangeResponse::default();
    while let Some(piece) = pieces.message().await? {
        let piece = piece.range_response.unwrap();
        assert!(whole.header.is_none(), "a piece after the last one");
        whole.kvs.extend(piece.kvs);
        (whole.header, whole.more, whole.count) = (piece.header, piece.more, piece.count);
    }
    plain(&mut whole.header);
    Ok(whole)
}

async fn keep_alive(
    server: &mut Server,
    message: pb::LeaseKeepAliveRequest,
) -> Result<pb::LeaseKeepAliveResponse, tonic::Status> {
    let asks = tokio_stream::once(message);
    let mut replies = server.lease.lease_keep_alive(asks).await?.into_inner();
    let mut reply = replies.message().await?.expect("an answer");
    plain(&mut reply.header);
    Ok(reply)
}
