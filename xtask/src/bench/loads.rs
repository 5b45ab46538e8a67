//! What the clients do, and how long it took.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    request_op::Request as Op,
    watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tonic::transport::Channel;

use super::cluster::{Cluster, Usage};
use super::{Cell, Figure, Load, load_average};

/// Size of a value, bytes.
const VALUE_BYTES: usize = 256;
/// Keys that the load goes round.
const KEYS: usize = 10_000;
/// Keys of one long range.
const RANGE_KEYS: usize = 1000;
/// Quiet before each measurement.
const SETTLE: Duration = Duration::from_secs(1);
/// Longest wait for events that were written.
const EVENT_PATIENCE: Duration = Duration::from_secs(20);
/// Messages waiting on a watch's request stream.
const REQUEST_QUEUE: usize = 4;

pub(super) fn key(n: usize) -> Bytes {
    Bytes::from(format!("bench/{:08}", n % KEYS))
}

fn value() -> Bytes {
    Bytes::from(vec![b'x'; VALUE_BYTES])
}

fn put(n: usize) -> PutRequest {
    PutRequest {
        key: key(n),
        value: value(),
        ..Default::default()
    }
}

/// Writes every key once, so that reads find something.
pub(super) async fn fill(channels: &[Channel]) -> Result<()> {
    let workers = 50;
    let fills = (0..workers).map(|worker| {
        let mut kv = KvClient::new(channels[worker % channels.len()].clone());
        async move {
            for n in (worker..KEYS).step_by(workers) {
                kv.put(put(n)).await?;
            }
            Ok::<_, tonic::Status>(())
        }
    });
    futures::future::try_join_all(fills).await?;
    Ok(())
}

/// Runs one load; an error of any request fails the benchmark.
pub(super) async fn measure(
    cluster: &Cluster,
    channels: &[Channel],
    cell: Cell,
    length: Duration,
) -> Result<Figure> {
    tokio::time::sleep(SETTLE).await;
    let load_average = load_average();
    let before = cluster.usage()?;
    let started = Instant::now();
    let (mut micros, elapsed) = if cell.load == Load::Watch {
        watch(channels, cell.clients, length).await?
    } else {
        let micros = request(channels, cell, length).await?;
        (micros, started.elapsed())
    };
    let after = cluster.usage()?;
    ensure!(!micros.is_empty(), "no request was answered");
    micros.sort_unstable();
    let at = |percent: usize| {
        micros
            .get((micros.len() - 1) * percent / 100)
            .copied()
            .unwrap_or(0)
    };
    let Usage { cpu, memory_mib } = after;
    Ok(Figure {
        per_second: micros.len() as f64 / elapsed.as_secs_f64(),
        p50_us: at(50),
        p99_us: at(99),
        cpu_us: (cpu - before.cpu).as_secs_f64() * 1e6 / micros.len() as f64,
        memory_mib,
        load_average,
    })
}

fn micros_since(sent: Instant) -> u32 {
    u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// Each client asks, waits for the answer, and asks again.
async fn request(channels: &[Channel], cell: Cell, length: Duration) -> Result<Vec<u32>> {
    let end = Instant::now() + length;
    let workers = (0..cell.clients).map(|worker| {
        let mut kv = KvClient::new(channels[worker % channels.len()].clone())
            .max_decoding_message_size(super::cluster::MAX_ANSWER_BYTES);
        // A task each, so that the load itself uses both cores.
        async move {
            let mut micros = Vec::new();
            let mut n = worker * 7919;
            while Instant::now() < end {
                let sent = Instant::now();
                one(&mut kv, cell.load, n).await?;
                micros.push(micros_since(sent));
                n += 1;
            }
            Ok::<_, tonic::Status>(micros)
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    for worker in workers {
        tasks.spawn(worker);
    }
    let mut all = Vec::new();
    while let Some(micros) = tasks.join_next().await {
        all.extend(micros??);
    }
    Ok(all)
}

async fn one(kv: &mut KvClient<Channel>, load: Load, n: usize) -> Result<(), tonic::Status> {
    match load {
        Load::Put => drop(kv.put(put(n)).await?),
        Load::Get | Load::SerializableGet => {
            let range = RangeRequest {
                key: key(n),
                serializable: load == Load::SerializableGet,
                ..Default::default()
            };
            kv.range(range).await?;
        }
        Load::Txn => drop(kv.txn(txn(n)).await?),
        Load::Range1000 => {
            let first = n % (KEYS - RANGE_KEYS);
            let range = RangeRequest {
                key: key(first),
                range_end: key(first + RANGE_KEYS),
                ..Default::default()
            };
            let reply = kv.range(range).await?.into_inner();
            if reply.kvs.len() != RANGE_KEYS {
                return Err(tonic::Status::internal("a range of 1000 keys had another length"));
            }
        }
        // Measured by `watch`.
        Load::Watch => {}
    }
    Ok(())
}

fn txn(n: usize) -> TxnRequest {
    let op = |request| RequestOp {
        request: Some(request),
    };
    let read = RangeRequest {
        key: key(n),
        ..Default::default()
    };
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Greater.into(),
            target: CompareTarget::Version.into(),
            key: key(n),
            target_union: Some(TargetUnion::Version(0)),
            range_end: Bytes::new(),
        }],
        success: vec![op(Op::RequestPut(put(n))), op(Op::RequestRange(read.clone()))],
        failure: vec![op(Op::RequestRange(read))],
    }
}

/// `watchers` watch one prefix, one writer writes without a pause; latency from the sending of the put to the event.
async fn watch(channels: &[Channel], watchers: usize, length: Duration) -> Result<(Vec<u32>, Duration)> {
    const PREFIX: &[u8] = b"watched/";
    let epoch = Instant::now();
    let created = tokio::sync::Barrier::new(watchers + 1);
    let written = AtomicBool::new(false);
    let total = tokio::sync::watch::Sender::new(usize::MAX);
    let listen = (0..watchers).map(|n| {
        let mut client = WatchClient::new(channels[n % channels.len()].clone());
        let (created, mut total) = (&created, total.subscribe());
        async move {
            let (requests, stream) = tokio::sync::mpsc::channel(REQUEST_QUEUE);
            let create = WatchCreateRequest {
                key: Bytes::from_static(PREFIX),
                range_end: Bytes::from_static(b"watched0"),
                ..Default::default()
            };
            let create = WatchRequest {
                request_union: Some(RequestUnion::CreateRequest(create)),
            };
            requests.send(create).await?;
            let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
            let mut responses = client.watch(stream).await?.into_inner();
            responses.message().await?;
            created.wait().await;
            let mut micros = Vec::new();
            while micros.len() < *total.borrow() {
                let message = tokio::select! {
                    message = responses.message() => message?,
                    _ = total.changed() => continue,
                };
                let Some(message) = message else { break };
                for event in message.events {
                    let sent: Option<[u8; 8]> = event
                        .kv
                        .and_then(|kv| kv.value.get(..8).and_then(|v| v.try_into().ok()));
                    let sent = sent.map_or(0, u64::from_le_bytes);
                    let now = u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
                    micros.push(u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX));
                }
            }
            anyhow::Ok(micros)
        }
    });
    let write = async {
        created.wait().await;
        let started = Instant::now();
        let mut kv = KvClient::new(channels[0].clone());
        let mut count = 0;
        while started.elapsed() < length {
            let mut value = vec![b'x'; VALUE_BYTES];
            let sent = u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
            value[..8].copy_from_slice(&sent.to_le_bytes());
            let put = PutRequest {
                key: Bytes::from(format!("watched/{:04}", count % 1000)),
                value: value.into(),
                ..Default::default()
            };
            kv.put(put).await?;
            count += 1;
        }
        total.send_replace(count);
        written.store(true, Ordering::Relaxed);
        anyhow::Ok(started)
    };
    let listen = async {
        let all = futures::future::try_join_all(listen).await?;
        anyhow::Ok(all.into_iter().flatten().collect::<Vec<u32>>())
    };
    let both = async { futures::future::try_join(listen, write).await };
    let (micros, started) = tokio::time::timeout(length + EVENT_PATIENCE, both).await??;
    Ok((micros, started.elapsed()))
}
