//! What a member stores: space given back through kill -9, the quota and the way back under it, a member whose state has
//! gone wrong, and (measured on demand) the restart with much live data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use chainfire_client::wire::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    PutRequest, RangeRequest, StatusRequest, alarm_request::AlarmAction, kv_client::KvClient,
    lease_client::LeaseClient, maintenance_client::MaintenanceClient,
};
use chainfire_client::{Compare, Error, Op, Txn};
use common::{Cluster, PATIENCE, eventually};
use kv_engine::{Batch, Engine, EngineConfig};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

/// Puts on their way at once.
const PARALLEL: usize = 64;

async fn channel(address: &str) -> Channel {
    Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap()
}

async fn kv(cluster: &Cluster, member: usize) -> KvClient<Channel> {
    KvClient::new(channel(&cluster.members[member].client).await).max_decoding_message_size(1 << 30)
}

async fn maintenance(cluster: &Cluster, member: usize) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(channel(&cluster.members[member].client).await)
}

/// Puts `count` pairs, some at a time.
async fn fill(kv: &KvClient<Channel>, count: usize, key: impl Fn(usize) -> String, value: &[u8]) {
    let keys: Vec<String> = (0..count).map(key).collect();
    let size = count.div_ceil(PARALLEL);
    let workers = keys.chunks(size.max(1)).map(|keys| {
        let mut kv = kv.clone();
        async move {
            for key in keys {
                let put = PutRequest {
                    key: key.clone().into(),
                    value: value.to_vec().into(),
                    ..Default::default()
                };
                kv.put(put).await.unwrap();
            }
        }
    });
    timeout(PATIENCE * 4, futures::future::join_all(workers))
        .await
        .expect("too slow");
}

fn everything(revision: i64) -> RangeRequest {
    RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        revision,
        ..Default::default()
    }
}

async fn pairs(kv: &mut KvClient<Channel>, revision: i64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let reply = kv.range(everything(revision)).await.unwrap().into_inner();
    reply
        .kvs
        .into_iter()
        .map(|kv| (kv.key.to_vec(), kv.value.to_vec()))
        .collect()
}

/// (hash, size in use) of one member.
async fn measures(cluster: &Cluster, member: usize) -> (u32, i64) {
    let mut client = maintenance(cluster, member).await;
    let hash = client.hash_kv(HashKvRequest { revision: 0 }).await.unwrap();
    let status = client.status(StatusRequest {}).await.unwrap();
    (hash.into_inner().hash, status.into_inner().db_size_in_use)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_killed_while_it_reclaims_comes_back_right_and_reclaims_the_rest() {
    let mut cluster = Cluster::start(1).await;
    let mut kv = kv(&cluster, 0).await;
    for round in 0..8 {
        fill(&kv, 500, |n| format!("k/{:03}", n % 300), &[b'0' + round; 100]).await;
    }
    for n in 0..100 {
        let delete = DeleteRangeRequest {
            key: format!("k/{n:03}").into(),
            ..Default::default()
        };
        kv.delete_range(delete).await.unwrap();
    }
    let last = kv
        .range(everything(0))
        .await
        .unwrap()
        .into_inner()
        .header
        .unwrap()
        .revision;
    let (middle, near) = (last - 1500, last - 50);
    let expected: Vec<_> = [
        pairs(&mut kv, middle).await,
        pairs(&mut kv, near).await,
        pairs(&mut kv, last).await,
    ]
    .into();
    let (_, full) = measures(&cluster, 0).await;
    let mut previous = full;
    for (round, delay_ms) in [0, 2, 5, 10, 0].into_iter().enumerate() {
        let compaction = CompactionRequest {
            revision: middle - 8 + i64::try_from(round).unwrap() * 2,
            physical: false,
        };
        kv.compact(compaction).await.unwrap();
        sleep(Duration::from_millis(delay_ms)).await;
        cluster.members[0].kill();
        cluster.members[0].start();
        cluster.ready().await;
        kv = self::kv(&cluster, 0).await;
        let error = kv.range(everything(compaction.revision - 1)).await.unwrap_err();
        assert_eq!(
            error.message(),
            "etcdserver: mvcc: required revision has been compacted"
        );
        for (revision, expected) in [middle, near, last].into_iter().zip(&expected) {
            assert!(pairs(&mut kv, revision).await == *expected, "at {revision}");
        }
        let (_, now) = measures(&cluster, 0).await;
        assert!(now <= previous, "{now} bytes after {previous}");
        previous = now;
    }
    // The checksum does not know how far the reclaiming is, and a physical compaction answers when it is done.
    let compaction = CompactionRequest {
        revision: near,
        physical: false,
    };
    kv.compact(compaction).await.unwrap();
    let (hash, _) = measures(&cluster, 0).await;
    let compaction = CompactionRequest {
        revision: last,
        physical: true,
    };
    let before = measures(&cluster, 0).await;
    kv.compact(compaction).await.unwrap();
    let (_, reclaimed) = measures(&cluster, 0).await;
    assert_eq!(before.0, hash);
    // 200 keys live of about 4 100 changes; the deletion at the mark stays.
    assert!(reclaimed < 201 * 220, "{reclaimed} bytes are still counted");
    assert!(pairs(&mut kv, last).await == expected[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_quota_is_recovered_from_by_deleting_and_compacting_alone() {
    let cluster = Cluster::start_with(3, "quota_bytes = 1000000").await;
    let mut kv = kv(&cluster, 0).await;
    let mut lease = LeaseClient::new(channel(&cluster.members[1].client).await);
    let mut admin = maintenance(&cluster, 2).await;
    let put = |n: usize| PutRequest {
        key: format!("k/{n:04}").into(),
        value: vec![7; 2000].into(),
        ..Default::default()
    };
    let mut written = 0;
    let refused = loop {
        match kv.put(put(written)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 2000, "nothing stopped the writer");
    };
    let full = "etcdserver: mvcc: database space exceeded";
    assert_eq!(
        (refused.code(), refused.message()),
        (tonic::Code::ResourceExhausted, full)
    );
    assert!(written > 400, "{written} of a quota of about 475");
    let list = AlarmRequest {
        action: AlarmAction::Get.into(),
        ..Default::default()
    };
    // Every member counts for itself and says so.
    eventually("every member raises the alarm", async || {
        let mut admin = admin.clone();
        let alarms = admin.alarm(list).await.unwrap().into_inner().alarms;
        alarms.len() == 3
            && alarms
                .iter()
                .all(|alarm| alarm.alarm == i32::from(AlarmType::Nospace))
    })
    .await;
    let grant = lease.lease_grant(LeaseGrantRequest { id: 7, ttl: 60 }).await;
    assert_eq!(grant.unwrap_err().message(), full);
    let status = admin.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.db_size_quota, 1_000_000);
    assert!(status.db_size_in_use > 900_000, "{}", status.db_size_in_use);
    assert!(
        status.errors.iter().any(|error| error.contains("NOSPACE")),
        "{:?}",
        status.errors
    );
    // Disarmed by hand, it comes again while nothing has changed.
    for alarm in admin.alarm(list).await.unwrap().into_inner().alarms {
        let disarm = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let gone = admin.alarm(disarm).await.unwrap().into_inner().alarms;
        assert!(gone.len() <= 1);
    }
    eventually("the alarm is raised again", async || {
        let mut admin = admin.clone();
        !admin.alarm(list).await.unwrap().into_inner().alarms.is_empty()
    })
    .await;
    assert!(kv.range(everything(0)).await.is_ok(), "reads go on");

    let delete = DeleteRangeRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        ..Default::default()
    };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, i64::try_from(written).unwrap());
    let compaction = CompactionRequest {
        revision: deleted.header.unwrap().revision,
        physical: false,
    };
    kv.compact(compaction).await.unwrap();
    eventually("puts are accepted again", async || {
        let mut kv = kv.clone();
        kv.put(put(0)).await.is_ok()
    })
    .await;
    let alarms = admin.alarm(list).await.unwrap().into_inner().alarms;
    assert!(alarms.is_empty(), "{alarms:?}");
    let status = admin.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(status.errors.is_empty(), "{:?}", status.errors);
}

/// Turns every `from` in the stored changes of a stopped member into `to`.
fn tamper(state: &std::path::Path, from: &[u8], to: &[u8]) {
    let engine = Engine::open(state, &EngineConfig::default()).unwrap();
    let revisions = engine.keyspace("revisions").unwrap();
    let mut batch = Batch::new();
    let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
    for pair in engine.snapshot().unwrap().range(&revisions, all).unwrap() {
        let (key, value) = pair.unwrap();
        if let Some(at) = value.windows(from.len()).position(|window| window == from) {
            let mut changed = value.to_vec();
            changed.splice(at..at + from.len(), to.iter().copied());
            batch.put(&revisions, key, changed);
        }
    }
    assert_eq!(batch.len(), 1, "the value was found");
    engine.write(batch).unwrap();
    engine.persist().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_state_went_wrong_stops_and_no_other() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster.client("operator/root");
    root.put("secret", "right-value").await.unwrap();
    let wrong = (cluster.leader().await + 1) % 3;
    let one = cluster.client_of(wrong, "operator/root");
    eventually("it has the value", async || {
        one.get("secret").await.unwrap().is_some()
    })
    .await;
    // All agree, for longer than two comparisons take.
    sleep(Duration::from_secs(11)).await;
    assert!(
        cluster.members.iter_mut().all(common::Member::is_running),
        "{}",
        cluster.logs()
    );

    cluster.members[wrong].kill();
    tamper(
        &cluster.members[wrong].dir.join("data/state"),
        b"right-value",
        b"wrong-value",
    );
    cluster.members[wrong].start();
    cluster.ready().await;
    let txn = Txn::new()
        .when([Compare::value("secret").equal("right-value")])
        .then([Op::put("outcome", "then")])
        .otherwise([Op::put("outcome", "else")]);
    eventually("the transaction is made", async || {
        match root.txn(txn.clone()).await {
            Ok(_) => true,
            Err(Error::UnknownOutcome { .. } | Error::NoLeader | Error::Unavailable { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    let end = Instant::now() + PATIENCE;
    while cluster.members[wrong].is_running() {
        assert!(Instant::now() < end, "it goes on\n{}", cluster.logs());
        sleep(Duration::from_millis(100)).await;
    }
    let log = cluster.members[wrong].log();
    assert!(log.contains("is not that of the majority"), "{log}");
    let other = (wrong + 1) % 3;
    let list = AlarmRequest {
        action: AlarmAction::Get.into(),
        ..Default::default()
    };
    let alarms = maintenance(&cluster, other)
        .await
        .alarm(list)
        .await
        .unwrap()
        .into_inner()
        .alarms;
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert_eq!(alarms[0].alarm, i32::from(AlarmType::Corrupt));
    // The others go on, also writing, through another comparison.
    sleep(Duration::from_secs(6)).await;
    let living = cluster.client_of(other, "operator/root");
    living.put("after", "x").await.unwrap();
    for (member, running) in cluster
        .members
        .iter_mut()
        .enumerate()
        .map(|(n, one)| (n, one.is_running()))
    {
        assert_eq!(running, member != wrong, "member {member}");
    }
    assert_eq!(&living.get("outcome").await.unwrap().unwrap().value[..], b"then");
    // Started again, it stops again: it stays wrong.
    cluster.members[wrong].start();
    let end = Instant::now() + PATIENCE;
    while cluster.members[wrong].is_running() {
        assert!(Instant::now() < end, "it goes on");
        sleep(Duration::from_millis(100)).await;
    }
}

/// MiB of live data (1 KiB values) with which the restart of a member is measured; use a release build.
const RESTART_MIB: &str = "CHAINFIRE_RESTART_MIB";

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_reads_the_keys_only() {
    let mib: usize = std::env::var(RESTART_MIB).map_or(1, |mib| mib.parse().unwrap());
    let mut cluster = Cluster::start_with(1, "quota_bytes = 100000000000").await;
    let kv = kv(&cluster, 0).await;
    let count = mib * 1024;
    let started = Instant::now();
    let value: Vec<u8> = (0..1024u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let keys = |n: usize| format!("/registry/objects/{n:09}");
    for from in (0..count).step_by(100_000) {
        let until = count.min(from + 100_000);
        fill(&kv, until - from, |n| keys(from + n), &value).await;
    }
    println!("{count} keys in {:.1} s", started.elapsed().as_secs_f64());
    let (_, in_use) = measures(&cluster, 0).await;
    cluster.members[0].kill();
    let started = Instant::now();
    cluster.members[0].start();
    // Not `ready`: it waits for less time than this may take.
    let mut answered = false;
    while !answered {
        assert!(started.elapsed() < Duration::from_secs(300), "{}", cluster.logs());
        sleep(Duration::from_millis(20)).await;
        let Ok(channel) = Channel::from_shared(format!("http://{}", cluster.members[0].client))
            .unwrap()
            .connect()
            .await
        else {
            continue;
        };
        let read = RangeRequest {
            key: keys(count - 1).into(),
            ..Default::default()
        };
        answered = KvClient::new(channel)
            .range(read)
            .await
            .is_ok_and(|reply| reply.into_inner().count == 1);
    }
    let took = started.elapsed();
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.members[0].pid())).unwrap();
    let memory: BTreeSet<&str> = status
        .lines()
        .filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"))
        .collect();
    println!(
        "{in_use} logical bytes: read after {:.2} s; {memory:?}",
        took.as_secs_f64()
    );
}
