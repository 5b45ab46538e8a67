//! Locks, elections, ranges in pieces, the JSON gateway and the probes of a member. Where etcd is installed, the
//! gateway's answers are compared with its own, byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use chainfire_client::wire::{
    etcdserverpb::{self as pb, kv_client::KvClient, lease_client::LeaseClient},
    v3electionpb::{self as epb, election_client::ElectionClient},
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use common::{Cluster, PATIENCE, eventually, free_ports};
use tokio::time::timeout;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy()
}

async fn lease(channel: &Channel) -> i64 {
    let grant = pb::LeaseGrantRequest { ttl: 600, id: 0 };
    let granted = LeaseClient::new(channel.clone()).lease_grant(grant).await;
    granted.unwrap().into_inner().id
}

async fn put(channel: &Channel, key: impl Into<Bytes>, value: impl Into<Bytes>) -> i64 {
    let put = pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    };
    let reply = KvClient::new(channel.clone())
        .put(put)
        .await
        .unwrap()
        .into_inner();
    reply.header.unwrap().revision
}

async fn keys(channel: &Channel, prefix: &'static str) -> usize {
    let mut range_end = prefix.as_bytes().to_vec();
    *range_end.last_mut().unwrap() += 1;
    let range = pb::RangeRequest {
        key: Bytes::from_static(prefix.as_bytes()),
        range_end: range_end.into(),
        count_only: true,
        ..Default::default()
    };
    let reply = KvClient::new(channel.clone())
        .range(range)
        .await
        .unwrap()
        .into_inner();
    usize::try_from(reply.count).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_taken_in_turn_and_given_up_with_the_call() {
    let cluster = Cluster::start(1).await;
    let channel = channel(&cluster.members[0].client);
    let mut locks = LockClient::new(channel.clone());
    let request = |lease| LockRequest {
        name: "mutex".into(),
        lease,
    };
    let (first, second) = (lease(&channel).await, lease(&channel).await);
    let held = locks.lock(request(first)).await.unwrap().into_inner();
    assert_eq!(held.key, format!("mutex/{first:x}"));
    // Held already: the same key, at once.
    let again = timeout(PATIENCE, locks.lock(request(first)))
        .await
        .unwrap()
        .unwrap()
        .into_inner();
    assert_eq!(again.key, held.key);

    // A caller that does not wait long enough leaves nothing behind.
    let waiting = timeout(Duration::from_millis(500), locks.lock(request(second))).await;
    assert!(waiting.is_err(), "two hold the lock");
    eventually("the candidate is withdrawn", async || {
        keys(&channel, "mutex/").await == 1
    })
    .await;

    let mut waiter = locks.clone();
    let waiting = async { waiter.lock(request(second)).await.unwrap().into_inner() };
    let release = async {
        eventually("the second waits", async || keys(&channel, "mutex/").await == 2).await;
        let unlock = UnlockRequest {
            key: held.key.clone(),
        };
        LockClient::new(channel.clone()).unlock(unlock).await.unwrap()
    };
    let (taken, released) = timeout(PATIENCE, async { tokio::join!(waiting, release) })
        .await
        .unwrap();
    let revision = |header: Option<pb::ResponseHeader>| header.unwrap().revision;
    let (token, before) = (revision(taken.header), revision(held.header));
    assert!(token > before, "the fencing token grows: {before}, {token}");
    assert!(token >= revision(released.into_inner().header));

    let strange = locks.lock(request(12345)).await.unwrap_err();
    assert_eq!(
        (strange.code(), strange.message()),
        (Code::Unknown, "etcdserver: requested lease not found")
    );
    // Nobody's lease: one is made.
    let session = LockRequest {
        name: "session".into(),
        lease: 0,
    };
    assert!(
        locks
            .lock(session)
            .await
            .unwrap()
            .into_inner()
            .key
            .starts_with(b"session/")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_are_the_callers_own() {
    let cluster = Cluster::start(1).await;
    let channel = channel(&cluster.members[0].client);
    let mut locks = LockClient::new(channel.clone());
    let reserved = LockRequest {
        name: "/aegis/mutex".into(),
        lease: 0,
    };
    let refused = locks.lock(reserved).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: permission denied");
    let unlock = UnlockRequest {
        key: "/aegis/x".into(),
    };
    let refused = locks.unlock(unlock).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: permission denied");
    let key = "L2FlZ2lzL3g="; // /aegis/x
    let (status, text) = curl(
        &cluster.members[0].client,
        "/v3/kv/put",
        &format!("{{\"key\":\"{key}\"}}"),
    );
    assert_eq!(status, 403, "{text}");
}

async fn leader(elections: &mut ElectionClient<Channel>) -> Result<Bytes, Status> {
    let request = epb::LeaderRequest { name: "e".into() };
    let reply = elections.leader(request).await?.into_inner();
    Ok(reply.kv.unwrap().value)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_election_has_one_leader_after_another() {
    let cluster = Cluster::start(3).await;
    let channel = channel(&cluster.members[1].client);
    let mut elections = ElectionClient::new(channel.clone());
    let none = leader(&mut elections).await.unwrap_err();
    assert_eq!(
        (none.code(), none.message()),
        (Code::Unknown, "election: no leader")
    );
    let campaign = |lease, value: &'static str| epb::CampaignRequest {
        name: "e".into(),
        lease,
        value: value.into(),
    };
    let (one, two) = (lease(&channel).await, lease(&channel).await);
    let observe = epb::LeaderRequest { name: "e".into() };
    let mut observer = elections.clone();
    let observed = async { observer.observe(observe).await.unwrap().into_inner() };
    let won = async {
        elections
            .clone()
            .campaign(campaign(one, "1"))
            .await
            .unwrap()
            .into_inner()
    };
    // The observer may come first or second: it hears of the leader either way.
    let (mut observed, won) = timeout(PATIENCE, async { tokio::join!(observed, won) })
        .await
        .unwrap();
    let mut next = async || {
        let reply = timeout(PATIENCE, observed.message())
            .await
            .expect("a leader")
            .unwrap();
        reply.unwrap().kv.unwrap().value
    };
    assert_eq!(next().await, "1");
    let own = won.leader.unwrap();
    assert_eq!(own.rev, won.header.unwrap().revision);
    // The same candidate again, with another value: it is proclaimed.
    elections.campaign(campaign(one, "1b")).await.unwrap();
    assert_eq!(next().await, "1b");
    let proclaim = |leader: &epb::LeaderKey, value: &'static str| epb::ProclaimRequest {
        leader: Some(leader.clone()),
        value: value.into(),
    };
    elections.proclaim(proclaim(&own, "1c")).await.unwrap();
    assert_eq!(next().await, "1c");

    let mut second = elections.clone();
    let waiting = async { second.campaign(campaign(two, "2")).await.unwrap().into_inner() };
    let resign = async {
        eventually("the second stands", async || keys(&channel, "e/").await == 2).await;
        let resign = epb::ResignRequest {
            leader: Some(own.clone()),
        };
        elections.clone().resign(resign).await.unwrap();
    };
    let (second, ()) = timeout(PATIENCE, async { tokio::join!(waiting, resign) })
        .await
        .unwrap();
    assert_eq!(next().await, "2");
    assert!(second.leader.unwrap().rev > own.rev, "the fencing token grows");
    assert_eq!(leader(&mut elections).await.unwrap(), "2");
    let late = elections.proclaim(proclaim(&own, "late")).await.unwrap_err();
    assert_eq!(
        (late.code(), late.message()),
        (Code::Unknown, "election: not leader")
    );
    let empty = elections
        .resign(epb::ResignRequest { leader: None })
        .await
        .unwrap_err();
    assert_eq!(empty.message(), "\"leader\" field must be provided");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_in_pieces_is_the_same_range() {
    const PAIRS: i64 = 60;
    let cluster = Cluster::start(1).await;
    let channel = channel(&cluster.members[0].client);
    let value = Bytes::from(vec![b'v'; 100_000]);
    let mut revision = 0;
    for n in 0..PAIRS {
        revision = put(&channel, format!("r{n:03}"), value.clone()).await;
    }
    let mut kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let all = pb::RangeRequest {
        key: "r".into(),
        range_end: "s".into(),
        ..Default::default()
    };
    let requests = [
        all.clone(),
        pb::RangeRequest {
            limit: 33,
            ..all.clone()
        },
        pb::RangeRequest {
            limit: PAIRS,
            ..all.clone()
        },
        pb::RangeRequest {
            keys_only: true,
            ..all.clone()
        },
        pb::RangeRequest {
            count_only: true,
            ..all.clone()
        },
        pb::RangeRequest {
            revision: revision - 5,
            ..all.clone()
        },
        pb::RangeRequest {
            key: "r007".into(),
            range_end: Bytes::new(),
            ..all.clone()
        },
        pb::RangeRequest {
            key: "x".into(),
            range_end: "\0".into(),
            serializable: true,
            ..all.clone()
        },
    ];
    for request in requests {
        let whole = kv.range(request.clone()).await.unwrap().into_inner();
        let mut stream = kv.range_stream(request.clone()).await.unwrap().into_inner();
        let mut kvs = Vec::new();
        let last = loop {
            let piece = stream.message().await.unwrap().unwrap().range_response.unwrap();
            let bytes: usize = piece.kvs.iter().map(|kv| kv.value.len()).sum();
            assert!(bytes < 1_700_000, "a piece of {bytes} bytes");
            kvs.extend(piece.kvs.clone());
            if piece.header.is_some() {
                break piece;
            }
        };
        assert!(stream.message().await.unwrap().is_none());
        let merged = pb::RangeResponse { kvs, ..last };
        assert!(merged == whole, "{request:?}");
    }
    let refused = [
        (
            pb::RangeRequest {
                sort_order: 2,
                ..all.clone()
            },
            Code::Unimplemented,
            "RangeStream does not support custom sort orders",
        ),
        (
            pb::RangeRequest {
                min_mod_revision: 1,
                ..all.clone()
            },
            Code::Unimplemented,
            "RangeStream does not support revision filters",
        ),
        (
            pb::RangeRequest {
                key: Bytes::new(),
                ..all.clone()
            },
            Code::InvalidArgument,
            "etcdserver: key is not provided",
        ),
    ];
    for (request, code, text) in refused {
        let error = kv.range_stream(request).await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, text));
    }
    let future = pb::RangeRequest {
        revision: 9999,
        ..all
    };
    let error = kv
        .range_stream(future)
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
}

/// POSTs JSON; the HTTP status and the answer. Streams are read for a moment.
fn curl(address: &str, path: &str, body: &str) -> (u16, String) {
    curl_with(address, path, &["-d", body])
}

fn curl_with(address: &str, path: &str, more: &[&str]) -> (u16, String) {
    let out = Command::new("curl")
        .args(["-s", "-N", "-m", "2", "-w", "\n%{http_code}"])
        .args(more)
        .arg(format!("http://{address}{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_etcd(dir: &std::path::Path) -> Option<(Etcd, String)> {
    let ports = free_ports(2);
    let address = format!("127.0.0.1:{}", ports[0]);
    let (client, peer) = (
        format!("http://{address}"),
        format!("http://127.0.0.1:{}", ports[1]),
    );
    let child = Command::new("etcd")
        .args([
            "--data-dir",
            dir.to_str().unwrap(),
            "--name",
            "one",
            "--log-level",
            "error",
        ])
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
    Some((Etcd(child), address))
}

/// What only one server can say is blanked.
fn blank(text: &str) -> String {
    let mut out = text.to_owned();
    for name in ["cluster_id", "member_id", "raft_term"] {
        let begin = format!("\"{name}\":\"");
        let parts: Vec<&str> = out.split(&begin).collect();
        let rest = parts[1..]
            .iter()
            .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()));
        out = std::iter::once(parts[0])
            .chain(rest)
            .collect::<Vec<_>>()
            .join(&begin);
    }
    out
}

/// One call each: path and JSON. Played in order to both servers.
const SCRIPT: &[(&str, &str)] = &[
    ("kv/put", r#"{"key":"YQ==","value":"Yg=="}"#),
    (
        "kv/put",
        r#"{"key":"YQ==","value":"PD4/","prev_kv":true,"lease":"0"}"#,
    ),
    ("kv/range", r#"{"key":"YQ=="}"#),
    (
        "kv/range",
        r#"{"key":"AA==","rangeEnd":"AA==","sort_order":"DESCEND","sortTarget":1,"unknown":[{}]}"#,
    ),
    (
        "kv/range",
        r#"{"key":"AA==","range_end":"AA==","count_only":true}"#,
    ),
    ("kv/range", r#"{"key":""}"#),
    ("kv/range", ""),
    ("kv/range", r#"{"key":"YQ==","revision":99}"#),
    (
        "kv/txn",
        r#"{"compare":[{"key":"YQ==","result":"EQUAL","target":"VALUE","value":"PD4/"}],"success":[{"request_range":{"key":"YQ=="}},{"requestPut":{"key":"Yg==","value":"Yg=="}}]}"#,
    ),
    (
        "kv/txn",
        r#"{"compare":[{"key":"YQ==","target":"MOD","mod_revision":"1"}],"success":[{"request_put":{"key":"YQ=="}}],"failure":[{"request_delete_range":{"key":"Yg==","prev_kv":true}}]}"#,
    ),
    (
        "kv/txn",
        r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#,
    ),
    ("kv/deleterange", r#"{"key":"Yg=="}"#),
    ("lease/grant", r#"{"TTL":"600","ID":"77"}"#),
    ("lease/keepalive", r#"{"ID":"77"}"#),
    ("lease/keepalive", r#"{"ID":"78"}"#),
    ("lease/leases", "{}"),
    ("kv/lease/leases", "{}"),
    ("kv/put", r#"{"key":"bA==","value":"eA==","lease":77}"#),
    ("lease/revoke", r#"{"ID":77}"#),
    ("lease/revoke", r#"{"ID":77}"#),
    ("lease/timetolive", r#"{"ID":77}"#),
    ("lease/grant", r#"{"TTL":"600","ID":"5"}"#),
    ("lock/lock", r#"{"name":"bA==","lease":"5"}"#),
    ("lock/unlock", r#"{"key":"bC81"}"#),
    ("lock/lock", r#"{"name":"bA==","lease":"6"}"#),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    (
        "election/campaign",
        r#"{"name":"ZQ==","value":"eA==","lease":"5"}"#,
    ),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    ("election/observe", r#"{"name":"ZQ=="}"#),
    (
        "election/proclaim",
        r#"{"leader":{"name":"ZQ==","key":"ZS81","rev":"1","lease":"5"},"value":"eQ=="}"#,
    ),
    ("election/proclaim", "{}"),
    (
        "election/resign",
        r#"{"leader":{"name":"ZQ==","key":"ZS81","rev":"1","lease":"5"}}"#,
    ),
    (
        "watch",
        r#"{"create_request":{"key":"YQ==","start_revision":"1","prev_kv":true}}"#,
    ),
    (
        "watch",
        r#"{"create_request":{"key":"YQ==","watch_id":"7","start_revision":"1","filters":["NOPUT"]}} {"cancel_request":{"watch_id":7}}"#,
    ),
    ("kv/compaction", r#"{"revision":"5"}"#),
    ("kv/compaction", r#"{"revision":"5"}"#),
    ("kv/compaction", r#"{"revision":"500"}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_speaks_etcds_json() {
    let cluster = Cluster::start(1).await;
    let ours = &cluster.members[0].client;
    let dir = tempfile::tempdir().unwrap();
    let etcd = start_etcd(dir.path());
    match &etcd {
        None => println!("SKIPPED in part: etcd is not installed (apt install etcd-server)"),
        Some((_, theirs)) => {
            eventually("etcd serves", async || {
                curl(theirs, "/v3/kv/range", r#"{"key":"YQ=="}"#).0 == 200
            })
            .await;
            for (path, body) in SCRIPT {
                let path = format!("/v3/{path}");
                let (mine, their) = (curl(ours, &path, body), curl(theirs, &path, body));
                assert_eq!(
                    (mine.0, blank(&mine.1)),
                    (their.0, blank(&their.1)),
                    "{path} {body}"
                );
            }
        }
    }
    let (code, text) = curl(ours, "/v3/kv/range", r#"{"key":5}"#);
    assert!(code == 400 && text.contains("\"code\":3"), "{code} {text}");
    assert_eq!(curl(ours, "/v3/kv/nothing", "{}").0, 404);
    assert_eq!(curl_with(ours, "/v3/kv/range", &[]).0, 501);
    let page = ["-d", "{\"key\":\"YQ==\"}", "-H", "Origin: http://evil.example"];
    assert_eq!(curl_with(ours, "/v3/kv/range", &page).0, 403);
    let (_, status) = curl(ours, "/v3/maintenance/status", "{}");
    assert!(status.contains("\"version\":\"3.6."), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_etcds() {
    let mut cluster = Cluster::start(3).await;
    let address = cluster.members[0].client.clone();
    let get = |path: &str| curl_with(&address, path, &[]);
    let healthy = (200, "{\"health\":\"true\",\"reason\":\"\"}".to_owned());
    assert_eq!(get("/health"), healthy);
    assert_eq!(curl_with(&address, "/health", &["-d", "x"]).0, 405);
    assert_eq!(
        get("/livez?verbose"),
        (200, "[+]serializable_read ok\nok\n".to_owned())
    );
    assert_eq!(get("/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(
        get("/readyz?verbose&exclude=non_learner"),
        (
            200,
            "[+]data_corruption ok\n[+]linearizable_read ok\n[+]serializable_read ok\nok\n".to_owned()
        )
    );
    assert_eq!(get("/readyz/linearizable_read"), (200, "ok\n".to_owned()));
    assert_eq!(get("/livez/linearizable_read").0, 404);
    let (_, version) = get("/version");
    for part in [
        "\"etcdserver\":\"3.6.",
        "\"etcdcluster\":\"3.6.0\"",
        "\"service\":\"chainfire\"",
    ] {
        assert!(version.contains(part), "{version}");
    }
    let (_, metrics) = get("/metrics");
    assert!(metrics.contains("etcd_server_has_leader 1"), "{metrics}");
    // What made the cluster ready was counted, how it ended too.
    let reads = "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",\
                 grpc_type=\"unary\"} ";
    let reads = metrics.lines().find_map(|line| line.strip_prefix(reads));
    assert!(reads.is_some_and(|count| count != "0"), "{metrics}");

    cluster.members[1].kill();
    cluster.members[2].kill();
    eventually("it is not ready alone", async || {
        get("/readyz/linearizable_read").0 != 200
    })
    .await;
    eventually("it is unhealthy alone", async || {
        get("/health").1.contains("\"health\":\"false\"")
    })
    .await;
    assert_eq!(get("/health?serializable=true"), healthy);
    assert_eq!(get("/livez").0, 200);
}
