//! etcd's error table, row by row: which call to a real member produces it, which test elsewhere does, or why it cannot
//! occur. A new row does not compile without an entry here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{
    self as pb, cluster_client::ClusterClient, downgrade_request::DowngradeAction as Downgrade,
    kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    request_op::Request as Op,
};
use chainfire_core::{OpError, error::TABLE};
use common::Cluster;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

/// How a row comes about.
enum Case {
    /// A call just made produced this.
    Made(Status),
    /// A test of its own does; where.
    Tested(&'static str),
    /// It cannot occur; why.
    Never(&'static str),
}
use Case::{Never, Tested};

/// Needs users and roles, which have tests of their own.
const USERS: Case = Tested("the tests of users and roles");
const DOWNGRADE: Case = Never("no target is valid, so no downgrade is ever under way");

fn made<T>(reply: Result<T, Status>) -> Case {
    Case::Made(reply.err().expect("it must be refused"))
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: "v".into(),
        ..Default::default()
    }
}

fn op(put: pb::PutRequest) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(Op::RequestPut(put)),
    }
}

fn range(revision: i64, sort_order: i32) -> pb::RangeRequest {
    pb::RangeRequest {
        key: "a".into(),
        revision,
        sort_order,
        ..Default::default()
    }
}

/// One member and the calls to it.
struct Calls {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

impl Calls {
    async fn put(&mut self, put: pb::PutRequest) -> Case {
        made(self.kv.put(put).await)
    }

    async fn txn(&mut self, success: Vec<pb::RequestOp>) -> Case {
        let txn = pb::TxnRequest {
            success,
            ..Default::default()
        };
        made(self.kv.txn(txn).await)
    }

    async fn grant(&mut self, ttl: i64) -> Case {
        self.lease
            .lease_grant(pb::LeaseGrantRequest { ttl: 600, id: 5 })
            .await
            .ok();
        made(self.lease.lease_grant(pb::LeaseGrantRequest { ttl, id: 5 }).await)
    }

    async fn compacted(&mut self) -> Case {
        let put = self.kv.put(put("a")).await.unwrap().into_inner();
        let revision = put.header.unwrap().revision;
        let physical = true;
        self.kv
            .compact(pb::CompactionRequest { revision, physical })
            .await
            .unwrap();
        made(self.kv.range(range(1, 0)).await)
    }

    async fn downgrade(&mut self, action: Downgrade, version: &str) -> Case {
        let wish = pb::DowngradeRequest {
            action: action.into(),
            version: version.into(),
        };
        made(self.maintenance.downgrade(wish).await)
    }

    async fn member(&mut self) -> Case {
        let promote = pb::MemberPromoteRequest { id: 12345 };
        made(self.cluster.member_promote(promote).await)
    }

    async fn own_id(&mut self) -> u64 {
        let status = self.maintenance.status(pb::StatusRequest {}).await.unwrap();
        status.into_inner().header.unwrap().member_id
    }

    async fn case(&mut self, row: OpError) -> Case {
        use OpError as E;
        match row {
            E::EmptyKey => self.put(put("")).await,
            E::KeyNotFound => {
                let keep = pb::PutRequest {
                    value: Bytes::new(),
                    ignore_value: true,
                    ..put("missing")
                };
                self.put(keep).await
            }
            E::ValueProvided => {
                self.put(pb::PutRequest {
                    ignore_value: true,
                    ..put("a")
                })
                .await
            }
            E::LeaseProvided => {
                self.put(pb::PutRequest {
                    ignore_lease: true,
                    lease: 1,
                    ..put("a")
                })
                .await
            }
            E::TooManyOps => self.txn(vec![op(put("a")); 129]).await,
            E::DuplicateKey => self.txn(vec![op(put("a")); 2]).await,
            E::InvalidSortOption => made(self.kv.range(range(0, 9)).await),
            E::Compacted => self.compacted().await,
            E::FutureRevision => made(self.kv.range(range(i64::MAX, 0)).await),
            E::LeaseNotFound => {
                self.put(pb::PutRequest {
                    lease: 404,
                    ..put("a")
                })
                .await
            }
            E::LeaseExists => self.grant(600).await,
            E::LeaseTtlTooLarge => self.grant(9_000_000_001).await,
            E::RequestTooLarge => {
                let large = Bytes::from(vec![b'x'; 1_700_000]);
                self.put(pb::PutRequest {
                    value: large,
                    ..put("a")
                })
                .await
            }
            E::PermissionDenied => self.put(put("/aegis/v1/secret")).await,
            E::BadLeaderTransferee => {
                let target = pb::MoveLeaderRequest { target_id: 12345 };
                made(self.maintenance.move_leader(target).await)
            }
            E::MemberNotFound => self.member().await,
            E::MemberNotLearner => {
                let promote = pb::MemberPromoteRequest {
                    id: self.own_id().await,
                };
                made(self.cluster.member_promote(promote).await)
            }
            E::NoLeader | E::NotLeader => {
                Tested("without_a_majority, and etcdctl's move-leader at a follower")
            }
            E::MemberExists
            | E::PeerUrlExists
            | E::MemberNotEnoughStarted
            | E::MemberBadUrls
            | E::LearnerNotReady
            | E::TooManyLearners
            | E::NotSupportedForLearner
            | E::Unhealthy => Tested("tests/members.rs"),
            E::NoSpace => Tested("a full disk (tests/faults.rs in the root) and the quota's tests"),
            E::TooManyRequests => Tested("raft-host's bounded queues: a proposal beyond them is Busy"),
            E::Timeout | E::Stopped => Tested("tests/faults.rs: members that are killed and paused"),
            E::TimeoutLeaderFailed => {
                Never("a transfer of leadership that is not over in time: no test can force one")
            }
            E::WatchCanceled => Never("only etcd's client makes it, of an ended stream"),
            E::RequestCanceled | E::DeadlineExceeded => {
                Never("an abandoned call has nobody to tell; clients make these errors themselves")
            }
            E::InvalidClientApiVersion | E::NotCapable => {
                Never("all members of a cluster serve all calls, whatever version a client names")
            }
            E::ClusterIdMismatch => {
                Never("members of another cluster are refused by certificate and join token")
            }
            E::LeaderChanged => Never("a barrier is repeated under the new leader instead"),
            E::TimeoutConnectionLost | E::TimeoutWaitApplied => {
                Never("etcd's finer reasons of a time-out; here all of them are `request timed out`")
            }
            E::Corrupt => Never("needs a stored record that cannot be read, which stops the member first"),
            E::RootUserNotExist
            | E::RootRoleNotExist
            | E::UserAlreadyExists
            | E::UserEmpty
            | E::UserNotFound
            | E::RoleAlreadyExists
            | E::RoleNotFound
            | E::RoleEmpty
            | E::AuthFailed
            | E::PermissionNotGiven
            | E::RoleNotGranted
            | E::PermissionNotGranted
            | E::AuthNotEnabled
            | E::InvalidAuthToken
            | E::InvalidAuthMgmt
            | E::AuthOldRevision => USERS,
            E::WrongDowngradeVersionFormat => self.downgrade(Downgrade::Validate, "old").await,
            E::InvalidDowngradeTargetVersion => self.downgrade(Downgrade::Enable, "3.5").await,
            E::NoInflightDowngrade => self.downgrade(Downgrade::Cancel, "").await,
            E::ClusterVersionUnavailable | E::DowngradeInProcess => DOWNGRADE,
        }
    }
}

fn calls(address: &str) -> Calls {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    Calls {
        kv: KvClient::new(channel.clone()),
        lease: LeaseClient::new(channel.clone()),
        cluster: ClusterClient::new(channel.clone()),
        maintenance: MaintenanceClient::new(channel),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_has_its_call() {
    let cluster = Cluster::start(1).await;
    let mut calls = calls(&cluster.members[0].client);
    let mut produced = 0;
    for (row, code, text) in TABLE {
        match calls.case(*row).await {
            Case::Made(status) => {
                let expected = (tonic::Code::from_i32(*code as i32), *text);
                assert_eq!((status.code(), status.message()), expected, "{row:?}");
                produced += 1;
            }
            Tested(elsewhere) => println!("{row:?}: {elsewhere}"),
            Never(why) => println!("{row:?}: cannot occur: {why}"),
        }
    }
    assert!(produced >= 17, "only {produced} rows were produced");
}

/// Beyond the connection's limit the refusal is gRPC's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit() {
    let cluster = Cluster::start(1).await;
    let mut calls = calls(&cluster.members[0].client);
    let value = Bytes::from(vec![b'x'; 3_000_000]);
    let refused = calls
        .kv
        .put(pb::PutRequest { value, ..put("a") })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let text = refused.message();
    assert!(
        text.starts_with("grpc: received message larger than max (30000") && text.ends_with(" vs. 2097152)"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority() {
    let mut cluster = Cluster::start(3).await;
    cluster.members[1].kill();
    cluster.members[2].kill();
    let mut calls = calls(&cluster.members[0].client);
    common::eventually("who requires a leader is told that there is none", async || {
        let mut request = Request::new(range(0, 0));
        request.get_mut().serializable = true;
        request
            .metadata_mut()
            .insert("hasleader", "true".parse().unwrap());
        let refused = calls.kv.range(request).await.err();
        refused.is_some_and(|status| {
            status.code() == tonic::Code::Unavailable && status.message() == OpError::NoLeader.text()
        })
    })
    .await;
}
