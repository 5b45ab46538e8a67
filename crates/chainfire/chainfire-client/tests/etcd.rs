//! The client against Debian's etcd, which is the reference for what the wire means. Skipped, with a line that says
//! so, where etcd is not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use chainfire_client::{Client, ClientConfig, Compare, Error, Op, Txn, WatchEvent, WatchUpdate};
use hearth_service::tasks::Tasks;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// One etcd member that dies with the test.
struct Etcd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    peer: u16,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    test_ports::keep_port().unwrap()
}

fn spawn(dir: &std::path::Path, port: u16, peer: u16) -> Child {
    Command::new("etcd")
        .args([
            "--data-dir",
            dir.to_str().unwrap(),
            "--log-level",
            "error",
            "--name",
            "one",
        ])
        .args(["--listen-client-urls", &format!("http://127.0.0.1:{port}")])
        .args(["--advertise-client-urls", &format!("http://127.0.0.1:{port}")])
        .args(["--listen-peer-urls", &format!("http://127.0.0.1:{peer}")])
        .args([
            "--initial-advertise-peer-urls",
            &format!("http://127.0.0.1:{peer}"),
        ])
        .args(["--initial-cluster", &format!("one=http://127.0.0.1:{peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn start() -> Option<(Etcd, Client)> {
    if Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        println!("SKIPPED: etcd is not installed (apt install etcd-server)");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (port, peer) = (free_port(), free_port());
    let child = spawn(dir.path(), port, peer);
    let client = Client::connect(&ClientConfig::new([format!("127.0.0.1:{port}")]), None).unwrap();
    Some((
        Etcd {
            child,
            dir,
            port,
            peer,
        },
        client,
    ))
}

async fn ready(client: &Client) {
    timeout(PATIENCE, async { while client.get("ready").await.is_err() {} })
        .await
        .expect("etcd did not start");
}

async fn next(watcher: &mut chainfire_client::Watcher) -> WatchUpdate {
    timeout(PATIENCE, watcher.next())
        .await
        .expect("no update in time")
        .unwrap()
}

#[tokio::test]
async fn keys_lists_and_transactions() {
    let Some((_etcd, client)) = start() else { return };
    ready(&client).await;
    assert_eq!(client.get("a").await.unwrap(), None);
    let put = client.put("a", "1").await.unwrap();
    let kv = client.get("a").await.unwrap().unwrap();
    assert_eq!(
        (kv.value.as_ref(), kv.mod_revision, kv.version),
        (&b"1"[..], put.revision, 1)
    );
    for n in 0..1203 {
        client.put(format!("many/{n:05}"), "x").await.unwrap();
    }
    let listing = client.list("many/").await.unwrap();
    assert_eq!(listing.kvs.len(), 1203);
    assert!(listing.kvs.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(client.delete_prefix("many/").await.unwrap().deleted, 1203);

    let claim = |value: &'static str| {
        Txn::new()
            .when([Compare::absent("claim")])
            .then([Op::put("claim", value)])
            .otherwise([Op::get("claim")])
    };
    assert!(client.txn(claim("first")).await.unwrap().succeeded);
    let second = client.txn(claim("second")).await.unwrap();
    assert!(!second.succeeded);
    assert_eq!(second.get(0).unwrap().value.as_ref(), b"first");
    let wrong = Txn::new().then([Op::put("twice", "1"), Op::put("twice", "2")]);
    assert!(matches!(
        client.txn(wrong).await,
        Err(Error::Etcd {
            code: tonic::Code::InvalidArgument,
            ..
        })
    ));
}

#[tokio::test]
async fn a_watcher_survives_a_restart_without_gap_or_duplicate() {
    let Some((mut etcd, client)) = start() else { return };
    ready(&client).await;
    let first = client.put("w/0", "0").await.unwrap().revision;
    let mut watcher = client.watch("w/", first);
    let mut seen = Vec::new();
    for n in 1..=5 {
        client.put(format!("w/{n}"), "x").await.unwrap();
    }
    collect(&mut watcher, &mut seen, 6).await;
    etcd.child.kill().unwrap();
    etcd.child.wait().unwrap();
    etcd.child = spawn(etcd.dir.path(), etcd.port, etcd.peer);
    ready(&client).await;
    for n in 6..=9 {
        client.put(format!("w/{n}"), "x").await.unwrap();
    }
    collect(&mut watcher, &mut seen, 10).await;
    let expected: Vec<String> = (0..10).map(|n| format!("w/{n}")).collect();
    assert_eq!(seen, expected);

    let head = client.put("w/0", "y").await.unwrap().revision;
    client.compact(head).await.unwrap();
    let mut late = client.watch("w/", first);
    assert_eq!(next(&mut late).await, WatchUpdate::Compacted { revision: head });
    assert_eq!(late.next().await, Err(Error::Compacted));
}

async fn collect(watcher: &mut chainfire_client::Watcher, seen: &mut Vec<String>, until: usize) {
    while seen.len() < until {
        if let WatchUpdate::Events { events, .. } = next(watcher).await {
            seen.extend(
                events
                    .iter()
                    .map(|event| String::from_utf8_lossy(event.key()).into_owned()),
            );
        }
    }
}

#[tokio::test]
async fn leases_end_with_their_keys_and_elections_change_hands() {
    let Some((_etcd, client)) = start() else { return };
    ready(&client).await;
    let tasks = Tasks::new();
    let first = client.lease_grant(5).await.unwrap();
    let mut kept = first.keep_alive_in(&tasks);
    let second = client.lease_grant(60).await.unwrap();
    let election = client.election("leader");
    let leader = election.campaign(&first, "first").await.unwrap();
    assert_eq!(client.lease_time_to_live(first.id()).await.unwrap().keys.len(), 1);

    let waiting = election.campaign(&second, "second");
    tokio::pin!(waiting);
    assert!(
        timeout(Duration::from_millis(300), &mut waiting).await.is_err(),
        "two leaders at once"
    );
    let guarded = Txn::new().when([leader.guard()]).then([Op::put("act", "1")]);
    assert!(client.txn(guarded.clone()).await.unwrap().succeeded);

    first.clone().revoke().await.unwrap();
    let successor = timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert!(successor.token() > leader.token(), "tokens must grow");
    timeout(PATIENCE, leader.lost()).await.unwrap().unwrap();
    assert!(
        !client.txn(guarded).await.unwrap().succeeded,
        "the old leader's guard must fail"
    );
    timeout(PATIENCE, kept.lost())
        .await
        .expect("the loss of the lease must be seen");
    assert_eq!(first.keep_alive_once().await, Err(Error::LeaseNotFound));
    assert_eq!(client.lease_revoke(first.id()).await, Err(Error::LeaseNotFound));

    let mut watcher = client.watch("leader", 0);
    let (update, ()) = tokio::join!(next(&mut watcher), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        successor.resign().await.unwrap();
    });
    assert!(
        matches!(update, WatchUpdate::Events { events, .. } if matches!(events[..], [WatchEvent::Delete { .. }]))
    );
    tasks.stop("end of test");
    assert!(tasks.finished(PATIENCE).await);
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_all_dead_is_unavailable() {
    let Some((etcd, client)) = start() else { return };
    ready(&client).await;
    let endpoints = [
        format!("127.0.0.1:{}", free_port()),
        format!("127.0.0.1:{}", etcd.port),
    ];
    let both = Client::connect(&ClientConfig::new(endpoints), None).unwrap();
    both.put("k", "v").await.unwrap();
    assert_eq!(both.member_list().await.unwrap().len(), 1);
    let status = both.status().await;
    assert!(status[0].1.is_err());
    assert_eq!(
        status[1].1.as_ref().unwrap().leader,
        status[1].1.as_ref().unwrap().id
    );

    let dead = Client::connect(&ClientConfig::new([format!("127.0.0.1:{}", free_port())]), None).unwrap();
    let dead = dead.with_deadline(Duration::from_millis(500));
    assert!(matches!(dead.put("k", "v").await, Err(Error::Unavailable { .. })));
    assert!(matches!(
        dead.get("k").await,
        Err(Error::Unavailable { .. } | Error::Timeout)
    ));
}
