//! Three member processes: reads and writes anywhere, kill -9, restarts, rights, leases across a change of leader.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use chainfire_client::{Compare, Error, Op, Txn, WatchEvent, WatchUpdate};
use common::{Cluster, PATIENCE, eventually};
use hearth_service::tasks::Tasks;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn every_member_serves_and_a_killed_one_comes_back_with_everything() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster.client("operator/root");
    for n in 0..3 {
        let one = cluster.client_of(n, "operator/root");
        let put = one.put(format!("via/{n}"), "x").await.unwrap();
        for m in 0..3 {
            let read = cluster
                .client_of(m, "operator/root")
                .get(format!("via/{n}"))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(
                read.mod_revision, put.revision,
                "written through {n}, read through {m}"
            );
        }
    }
    assert_eq!(root.member_list().await.unwrap().len(), 3);

    let mut watcher = root.watch("load/", 0);
    // The watch begins before the load.
    assert!(timeout(Duration::from_millis(500), watcher.next()).await.is_err());
    let mut acknowledged = BTreeMap::new();
    for round in 0..6 {
        let victim = if round % 2 == 0 {
            cluster.leader().await
        } else {
            round % 3
        };
        cluster.members[victim].kill();
        for n in 0..20 {
            let (key, value) = (format!("load/{round}/{n}"), format!("{round}-{n}"));
            loop {
                match root.put(&key, &value).await {
                    Ok(_) => break,
                    // Putting the same again is harmless here.
                    Err(Error::UnknownOutcome { .. } | Error::NoLeader | Error::Unavailable { .. }) => {}
                    Err(error) => panic!("{error}\n{}", cluster.logs()),
                }
            }
            acknowledged.insert(key, value);
        }
        cluster.members[victim].start();
        cluster.ready().await;
    }

    // Every member has all of it, each on its own.
    for n in 0..3 {
        let one = cluster.client_of(n, "operator/root");
        let listing = one.list("load/").await.unwrap();
        let found: BTreeMap<String, String> = listing
            .kvs
            .iter()
            .map(|kv| {
                (
                    kv.key_text().into_owned(),
                    String::from_utf8_lossy(&kv.value).into_owned(),
                )
            })
            .collect();
        assert_eq!(found, acknowledged, "member {n}");
    }
    // The watcher was moved between members and has seen every key, in order, once.
    let mut last = 0;
    let mut seen = BTreeMap::new();
    while seen.len() < acknowledged.len() {
        let update = timeout(PATIENCE, watcher.next())
            .await
            .expect("a lost event")
            .unwrap();
        let WatchUpdate::Events { events, .. } = update else {
            continue;
        };
        for event in events {
            let WatchEvent::Put { kv, .. } = event else {
                panic!("nothing was deleted")
            };
            assert!(kv.mod_revision > last, "out of order or twice");
            last = kv.mod_revision;
            seen.insert(
                kv.key_text().into_owned(),
                String::from_utf8_lossy(&kv.value).into_owned(),
            );
        }
    }
    assert_eq!(seen, acknowledged);
    same_state_everywhere(&cluster).await;
}

/// The checksum of the whole history is the same on all members.
async fn same_state_everywhere(cluster: &Cluster) {
    let Some(_) = cluster.etcdctl(&["version"]) else {
        return;
    };
    eventually("equal hashes", async || {
        let out = cluster.etcdctl(&["endpoint", "hashkv"]).unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let hashes: std::collections::BTreeSet<&str> =
            text.lines().filter_map(|line| line.split(", ").nth(1)).collect();
        text.lines().count() == cluster.members.len() && hashes.len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_killed_at_once_loses_nothing() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster.client("operator/root");
    for n in 0..50 {
        root.put(format!("k/{n:02}"), "v").await.unwrap();
    }
    let lease = root.lease_grant(600).await.unwrap();
    root.put_with_lease("leased", "v", lease.id()).await.unwrap();
    let before = root.list("k/").await.unwrap();
    cluster.members.iter_mut().for_each(common::Member::kill);
    cluster.members.iter_mut().for_each(common::Member::start);
    cluster.ready().await;
    let after = root.list("k/").await.unwrap();
    assert_eq!(after.kvs, before.kvs);
    assert_eq!(root.lease_time_to_live(lease.id()).await.unwrap().keys.len(), 1);
    lease.revoke().await.unwrap();
    assert_eq!(root.get("leased").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_lease_survives_its_leader_and_a_forgotten_one_ends() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster.client("operator/root");
    let tasks = Tasks::new();
    let kept = root.lease_grant(4).await.unwrap();
    let mut keeper = kept.keep_alive_in(&tasks);
    let forgotten = root.lease_grant(4).await.unwrap();
    root.put_with_lease("kept", "v", kept.id()).await.unwrap();
    root.put_with_lease("forgotten", "v", forgotten.id())
        .await
        .unwrap();
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    eventually("the forgotten lease ends", async || {
        matches!(root.get("forgotten").await, Ok(None))
    })
    .await;
    sleep(Duration::from_secs(5)).await;
    assert!(
        root.get("kept").await.unwrap().is_some(),
        "a renewed lease must not end"
    );
    assert!(timeout(Duration::from_millis(10), keeper.lost()).await.is_err());
    assert_eq!(forgotten.keep_alive_once().await, Err(Error::LeaseNotFound));
    tasks.stop("end of test");
    assert!(tasks.finished(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_hold_on_reads_writes_transactions_and_watches() {
    let cluster = Cluster::start(1).await;
    let aegis = cluster.client("service/aegis");
    let node = cluster.client("node/node01");
    let plain = cluster.plain();
    aegis.put("/aegis/v1/secret/x", "1").await.unwrap();
    assert_eq!(aegis.put("/plasmavmc/x", "1").await, Err(Error::PermissionDenied));
    assert_eq!(aegis.list("").await, Err(Error::PermissionDenied));
    node.put("/plasmavmc/v1/sessions/node01", "up").await.unwrap();
    assert_eq!(
        node.put("/plasmavmc/v1/sessions/node011", "up").await,
        Err(Error::PermissionDenied)
    );
    assert_eq!(
        node.get("/plasmavmc/v1/sessions/node02").await,
        Err(Error::PermissionDenied)
    );
    let sneaky = Txn::new()
        .when([Compare::absent("/plasmavmc/v1/sessions/node01")])
        .otherwise([
            Op::get("/plasmavmc/v1/sessions/node01"),
            Op::txn(Txn::new().then([Op::get("/aegis/v1/secret/x")])),
        ]);
    assert_eq!(node.txn(sneaky).await, Err(Error::PermissionDenied));
    let mut watcher = node.watch("/aegis/", 0);
    assert_eq!(
        timeout(PATIENCE, watcher.next()).await.unwrap(),
        Err(Error::PermissionDenied)
    );
    assert!(plain.get("/aegis/v1/secret/x").await.unwrap().is_some());
    assert_eq!(
        plain.put("/aegis/v1/secret/x", "2").await,
        Err(Error::PermissionDenied)
    );
    assert_eq!(plain.delete_prefix("/").await, Err(Error::PermissionDenied));
    plain.put("/other", "1").await.unwrap();
    // A lease with somebody else's keys cannot be ended to delete them.
    let lease = aegis.lease_grant(60).await.unwrap();
    aegis
        .put_with_lease("/aegis/v1/leased", "1", lease.id())
        .await
        .unwrap();
    assert_eq!(node.lease_revoke(lease.id()).await, Err(Error::PermissionDenied));
    // A certificate that the table does not know may do nothing.
    let stranger = cluster.client("user/somebody");
    assert_eq!(stranger.get("/other").await, Err(Error::PermissionDenied));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_calls_end_in_no_leader_and_with_one_again_they_work() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster
        .client_of(0, "operator/root")
        .with_deadline(Duration::from_secs(8));
    root.put("k", "1").await.unwrap();
    cluster.members[1].kill();
    cluster.members[2].kill();
    eventually("the leader steps down", async || {
        matches!(root.get("k").await, Err(Error::NoLeader))
    })
    .await;
    assert_eq!(root.put("k", "2").await, Err(Error::NoLeader));
    cluster.members[1].start();
    eventually("a majority is enough", async || root.put("k", "3").await.is_ok()).await;
}
