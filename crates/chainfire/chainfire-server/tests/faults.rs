//! Members that stop, fall far behind and come back: no stale read, no lost write, and a snapshot for who is too late.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use chainfire_client::{Compare, Error, Op, Txn, WatchUpdate};
use common::{Cluster, PATIENCE, eventually};
use hearth_service::tasks::{Kind, Tasks};
use nix::sys::signal::Signal;
use tokio::time::{sleep, timeout};

/// Puts through one client at a time.
const PARALLEL: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_missed_too_much_gets_a_snapshot_and_its_watchers_go_on() {
    // A short log, so that a thousand writes are too many to catch up from it.
    let mut cluster = Cluster::start_with(3, "keep_log_entries = 100").await;
    let root = cluster.client("operator/root");
    let first = root.put("before", "x").await.unwrap().revision;
    let late = (cluster.leader().await + 1) % 3;
    cluster.members[late].kill();
    // Through a member that lives: a write under way on a killed one's connection has an unknown outcome, and
    // repeating it would make one event more.
    let others = (late + 1) % 3;
    let living = cluster.client_of(others, "operator/root");
    let total = 1_000;
    let next = Arc::new(AtomicU64::new(0));
    let workers = (0..PARALLEL).map(|_| {
        let (root, next) = (living.clone(), next.clone());
        async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= total {
                    return;
                }
                root.put(format!("k/{:04}", n % 300), n.to_string())
                    .await
                    .unwrap();
            }
        }
    });
    timeout(PATIENCE * 4, futures::future::join_all(workers))
        .await
        .expect("too slow");
    let expected = living.list("k/").await.unwrap();
    cluster.members[late].start();
    cluster.ready().await;
    let one = cluster.client_of(late, "operator/root");
    let found = one.list("k/").await.unwrap();
    assert_eq!(found.kvs, expected.kvs);
    // History came along: a watch from the first revision, served by the late member, misses nothing.
    let mut watcher = one.watch("k/", first);
    let mut seen = 0;
    while seen < total {
        let WatchUpdate::Events { events, .. } =
            timeout(PATIENCE, watcher.next()).await.expect("a gap").unwrap()
        else {
            continue;
        };
        seen += events.len() as u64;
    }
    assert_eq!(seen, total);
    // And it takes part: with another one dead, the two make a majority.
    cluster.members[others].kill();
    eventually("the late member counts", async || {
        root.put("after", "x").await.is_ok()
    })
    .await;
}

/// A counter raised by compare-and-swap. Whoever reads must see at least what was acknowledged before the read began.
#[tokio::test(flavor = "multi_thread")]
async fn paused_and_killed_leaders_give_no_stale_read_and_lose_no_write() {
    let mut cluster = Cluster::start(3).await;
    let tasks = Tasks::new();
    let acknowledged = Arc::new(AtomicI64::new(0));
    let (reads, writes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let wrong = Arc::new(AtomicBool::new(false));

    let root = cluster
        .client("operator/root")
        .with_deadline(Duration::from_secs(4));
    root.put("counter", "0").await.unwrap();
    let (stop, floor, done) = (tasks.clone(), acknowledged.clone(), writes.clone());
    tasks.spawn("writer", Kind::Background, async move {
        while !stop.is_stopping() {
            let Ok(Some(kv)) = root.get("counter").await else {
                continue;
            };
            let value: i64 = String::from_utf8_lossy(&kv.value).parse()?;
            let swap = Txn::new()
                .when([Compare::mod_revision("counter").equal(kv.mod_revision)])
                .then([Op::put("counter", (value + 1).to_string())]);
            match root.txn(swap).await {
                Ok(outcome) if outcome.succeeded => {
                    floor.fetch_max(value + 1, Ordering::SeqCst);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) | Err(Error::UnknownOutcome { .. } | Error::NoLeader | Error::Unavailable { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    });
    for member in 0..3 {
        let one = cluster
            .client_of(member, "operator/root")
            .with_deadline(Duration::from_secs(2));
        let (stop, floor, wrong, reads) = (tasks.clone(), acknowledged.clone(), wrong.clone(), reads.clone());
        tasks.spawn("reader", Kind::Background, async move {
            while !stop.is_stopping() {
                let least = floor.load(Ordering::SeqCst);
                if let Ok(Some(kv)) = one.get("counter").await {
                    let value: i64 = String::from_utf8_lossy(&kv.value).parse()?;
                    reads.fetch_add(1, Ordering::Relaxed);
                    if value < least {
                        println!("member {member} read {value} after {least} was acknowledged");
                        wrong.store(true, Ordering::SeqCst);
                    }
                }
            }
            Ok(())
        });
    }
    for round in 0..4 {
        let leader = cluster.leader().await;
        if round % 2 == 0 {
            // Longer than an election takes: it wakes up deposed and must notice before it answers.
            cluster.members[leader].signal(Signal::SIGSTOP);
            sleep(Duration::from_secs(4)).await;
            cluster.members[leader].signal(Signal::SIGCONT);
        } else {
            cluster.members[leader].kill();
            sleep(Duration::from_secs(1)).await;
            cluster.members[leader].start();
        }
        let before = (writes.load(Ordering::Relaxed), reads.load(Ordering::Relaxed));
        eventually("work goes on", async || {
            writes.load(Ordering::Relaxed) >= before.0 + 20 && reads.load(Ordering::Relaxed) >= before.1 + 60
        })
        .await;
    }
    tasks.stop("end of test");
    assert!(tasks.finished(PATIENCE).await);
    let (reads, writes) = (reads.load(Ordering::Relaxed), writes.load(Ordering::Relaxed));
    println!("{writes} swaps, {reads} reads");
    assert!(!wrong.load(Ordering::SeqCst), "a stale read");
    assert!(
        writes > 50 && reads > 50,
        "{writes} swaps and {reads} reads prove little"
    );
    let last = cluster
        .client("operator/root")
        .get("counter")
        .await
        .unwrap()
        .unwrap();
    let value: i64 = String::from_utf8_lossy(&last.value).parse().unwrap();
    assert!(
        value >= acknowledged.load(Ordering::SeqCst),
        "an acknowledged write was lost"
    );
}
