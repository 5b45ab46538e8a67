//! The Watch service, message by message: one script is played to a Chainfire member and, where it is installed, to
//! Debian's etcd, and the two transcripts must be equal. What only Chainfire promises is tested apart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{
    self as pb, WatchCreateRequest, WatchResponse, kv_client::KvClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use common::{Cluster, PATIENCE, free_ports};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

struct Stream {
    asks: mpsc::Sender<pb::WatchRequest>,
    replies: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(channel: &Channel) -> Stream {
        let (asks, queue) = mpsc::channel(16);
        let mut stub = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        // etcd sends its headers only with its first answer, so a first request must be on its way.
        let first = create("warm-up", |create| create.watch_id = 77);
        asks.send(first).await.unwrap();
        let replies = stub.watch(ReceiverStream::new(queue)).await.unwrap().into_inner();
        let mut stream = Stream { asks, replies };
        assert!(stream.next().await.created);
        stream
            .ask(RequestUnion::CancelRequest(pb::WatchCancelRequest {
                watch_id: 77,
            }))
            .await;
        assert!(stream.next().await.canceled);
        stream
    }

    async fn ask(&self, ask: RequestUnion) {
        self.asks
            .send(pb::WatchRequest {
                request_union: Some(ask),
            })
            .await
            .unwrap();
    }

    async fn create(&self, key: &'static str, more: impl FnOnce(&mut WatchCreateRequest)) {
        self.asks.send(create(key, more)).await.unwrap();
    }

    async fn next(&mut self) -> WatchResponse {
        timeout(PATIENCE, self.replies.message())
            .await
            .expect("no response")
            .unwrap()
            .expect("the stream ended")
    }

    /// The next response as one line; runs of events may be cut differently, so they are taken one by one.
    async fn lines(&mut self, count: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let reply = self.next().await;
            let mut flags = String::new();
            for (flag, set) in [("created ", reply.created), ("canceled ", reply.canceled)] {
                flags += if set { flag } else { "" };
            }
            if reply.compact_revision != 0 {
                flags += &format!("compacted {} ", reply.compact_revision);
            }
            if reply.events.is_empty() {
                lines.push(format!("{} {flags}", reply.watch_id));
            }
            for event in reply.events {
                let kv = event.kv.unwrap();
                let prev = event
                    .prev_kv
                    .map(|prev| format!(" prev {:?}@{}", prev.value, prev.mod_revision));
                lines.push(format!(
                    "{} {flags}{} {:?}={:?}@{} created {} version {}{}",
                    reply.watch_id,
                    if event.r#type == 0 { "put" } else { "delete" },
                    kv.key,
                    kv.value,
                    kv.mod_revision,
                    kv.create_revision,
                    kv.version,
                    prev.unwrap_or_default()
                ));
            }
        }
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }
}

fn create(key: &'static str, more: impl FnOnce(&mut WatchCreateRequest)) -> pb::WatchRequest {
    let mut create = WatchCreateRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..Default::default()
    };
    more(&mut create);
    pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

async fn put(kv: &mut KvClient<Channel>, key: &'static str, value: &'static str) -> i64 {
    let put = pb::PutRequest {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from_static(value.as_bytes()),
        ..Default::default()
    };
    kv.put(put).await.unwrap().into_inner().header.unwrap().revision
}

async fn delete(kv: &mut KvClient<Channel>, key: &'static str) {
    let delete = pb::DeleteRangeRequest {
        key: Bytes::from_static(key.as_bytes()),
        ..Default::default()
    };
    kv.delete_range(delete).await.unwrap();
}

/// Plays the script on a fresh server; what it said.
async fn play(channel: Channel) -> Vec<String> {
    let mut kv = KvClient::new(channel.clone());
    let mut stream = Stream::open(&channel).await;
    let mut said = Vec::new();
    let end = Bytes::from_static(b"b");

    // From now on; then history from revision 2 with the pairs before; filters; one key only.
    assert_eq!(put(&mut kv, "a1", "one").await, 2);
    stream.create("a", |create| create.range_end = end.clone()).await;
    said.extend(stream.lines(1).await);
    put(&mut kv, "a1", "two").await;
    said.extend(stream.lines(1).await);
    stream
        .create("a", |create| {
            (create.range_end, create.start_revision, create.prev_kv) = (end.clone(), 2, true)
        })
        .await;
    said.extend(stream.lines(3).await);
    stream
        .ask(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 0,
        }))
        .await;
    said.extend(stream.lines(1).await);
    stream
        .create("a1", |create| {
            (create.watch_id, create.start_revision, create.filters) = (9, 2, vec![0])
        })
        .await;
    said.extend(stream.lines(1).await);
    delete(&mut kv, "a1").await;
    let mut both = stream.lines(2).await;
    both.sort();
    said.extend(both);

    // An id that is taken, a cancellation of nobody, a range in which nothing lies.
    stream.create("a", |create| create.watch_id = 9).await;
    said.extend(stream.lines(1).await);
    stream
        .ask(RequestUnion::CancelRequest(pb::WatchCancelRequest {
            watch_id: 1234,
        }))
        .await;

    // The future shows no older event.
    stream.create("f", |create| create.start_revision = 6).await;
    said.extend(stream.lines(1).await);
    assert_eq!(put(&mut kv, "f", "too early").await, 5);
    assert_eq!(put(&mut kv, "f", "in time").await, 6);
    said.extend(stream.lines(1).await);

    // Compacted history.
    kv.compact(pb::CompactionRequest {
        revision: 5,
        physical: true,
    })
    .await
    .unwrap();
    stream
        .create("a", |create| (create.range_end, create.start_revision) = (end, 3))
        .await;
    said.extend(stream.lines(2).await);

    // Progress, asked for when everything has been told.
    stream
        .ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}))
        .await;
    let progress = stream.next().await;
    said.push(format!(
        "progress {} at {}",
        progress.watch_id,
        progress.header.unwrap().revision
    ));
    said
}

struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_etcd(dir: &std::path::Path) -> Option<(Etcd, Channel)> {
    let urls: Vec<String> = free_ports(2)
        .iter()
        .map(|port| format!("http://127.0.0.1:{port}"))
        .collect();
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
            &urls[0],
            "--advertise-client-urls",
            &urls[0],
        ])
        .args([
            "--listen-peer-urls",
            &urls[1],
            "--initial-advertise-peer-urls",
            &urls[1],
        ])
        .args(["--initial-cluster", &format!("one={}", urls[1])])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    Some((
        Etcd(child),
        Endpoint::from_shared(urls[0].clone()).unwrap().connect_lazy(),
    ))
}

fn channel(cluster: &Cluster) -> Channel {
    Endpoint::from_shared(format!("http://{}", cluster.members[0].client))
        .unwrap()
        .connect_lazy()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_script_gets_the_same_transcript() {
    let cluster = Cluster::start(1).await;
    let ours = play(channel(&cluster)).await;
    let dir = tempfile::tempdir().unwrap();
    let Some((_etcd, etcd)) = start_etcd(dir.path()) else {
        println!("SKIPPED: the comparison, etcd is not installed (apt install etcd-server)\n{ours:#?}");
        return;
    };
    common::eventually("etcd serves", async || {
        KvClient::new(etcd.clone())
            .range(pb::RangeRequest {
                key: "x".into(),
                ..Default::default()
            })
            .await
            .is_ok()
    })
    .await;
    let theirs = play(etcd).await;
    assert_eq!(ours, theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_watcher_holds_up_nobody_and_catches_up_from_storage() {
    let cluster = Cluster::start(1).await;
    let mut kv = KvClient::new(channel(&cluster));
    // A connection of its own, which nobody reads from: flow control stops the server.
    let mut stuck = Stream::open(&channel(&cluster)).await;
    stuck.create("k", |create| create.start_revision = 2).await;
    let value: &'static str = "x".repeat(64 * 1024).leak();
    let started = std::time::Instant::now();
    // More than the ring, the queues and the windows of the connection hold together.
    for _ in 0..400 {
        put(&mut kv, "k", value).await;
    }
    println!(
        "400 puts of 64 KiB beside a stuck watcher: {:?}",
        started.elapsed()
    );
    let mut prompt = Stream::open(&channel(&cluster)).await;
    prompt.create("k", |_| {}).await;
    assert!(prompt.next().await.created);
    put(&mut kv, "k", "now").await;
    assert_eq!(
        timeout(Duration::from_secs(2), prompt.lines(1))
            .await
            .expect("held up")
            .len(),
        1
    );

    // It reads at last: everything, once, in order.
    assert!(stuck.next().await.created);
    let mut next = 2;
    while next < 403 {
        for event in stuck.next().await.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_revision_comes_whole_or_in_fragments() {
    let cluster = Cluster::start(1).await;
    let channel = channel(&cluster);
    let mut kv = KvClient::new(channel.clone());
    let mut stream = Stream::open(&channel).await;
    let value = Bytes::from(vec![b'x'; 14 * 1024]);
    let end = Bytes::from_static(b"l");
    // Deleting with the pairs before makes one revision whose events are larger than any request may be.
    for part in 0..3 {
        let puts = (0..64).map(|n| pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                key: Bytes::from(format!("k{part}{n:02}")),
                value: value.clone(),
                ..Default::default()
            })),
        });
        kv.txn(pb::TxnRequest {
            success: puts.collect(),
            ..Default::default()
        })
        .await
        .unwrap();
    }
    stream
        .create("k", |create| {
            (create.watch_id, create.range_end, create.prev_kv) = (1, end.clone(), true)
        })
        .await;
    stream
        .create("k", |create| {
            (create.watch_id, create.range_end, create.prev_kv, create.fragment) =
                (2, end.clone(), true, true);
        })
        .await;
    assert!(stream.next().await.created && stream.next().await.created);
    let all = pb::DeleteRangeRequest {
        key: Bytes::from_static(b"k"),
        range_end: end,
        prev_kv: false,
    };
    kv.delete_range(all).await.unwrap();
    let (mut whole, mut fragments) = (Vec::new(), Vec::new());
    while whole.iter().sum::<usize>() < 192 || fragments.iter().map(|(count, _)| count).sum::<usize>() < 192 {
        let reply = stream.next().await;
        match reply.watch_id {
            1 => whole.push(reply.events.len()),
            _ => fragments.push((reply.events.len(), reply.fragment)),
        }
    }
    assert_eq!(whole, [192], "all events of a revision in one response");
    assert!(fragments.len() > 1, "{fragments:?}");
    let (last, before) = fragments.split_last().unwrap();
    assert!(
        !last.1 && before.iter().all(|(_, fragment)| *fragment),
        "{fragments:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_health_answers() {
    let cluster = Cluster::start(1).await;
    let mut stub = tonic_health::pb::health_client::HealthClient::new(channel(&cluster));
    common::eventually("serving", async || {
        let ask = tonic_health::pb::HealthCheckRequest {
            service: String::new(),
        };
        let answer = stub.check(ask).await;
        answer.is_ok_and(|answer| {
            answer.into_inner().status() == tonic_health::pb::health_check_response::ServingStatus::Serving
        })
    })
    .await;
}
