//! Many watchers and many leases against real members. What must hold at any size is asserted; figures are printed.
//!
//! By default the sizes are small. `CHAINFIRE_SCALE=full` takes those of SPECIFICATION.md (minutes; use an optimised
//! build: `CHAINFIRE_SCALE=full cargo test --profile release-lite -p chainfire-server --test scale -- --nocapture
//! --test-threads=1`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{
    self as pb, WatchCreateRequest, WatchRequest, kv_client::KvClient, lease_client::LeaseClient,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use common::{Cluster, PATIENCE};
use futures::{StreamExt, stream};
use hearth_service::tasks::{Kind, Tasks};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

fn full() -> bool {
    std::env::var("CHAINFIRE_SCALE").is_ok_and(|scale| scale == "full")
}

fn sized(small: usize, large: usize) -> usize {
    if full() { large } else { small }
}

/// A connection of its own.
fn connect(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy()
}

/// A value of a process in /proc/PID/status, KiB.
fn resident_kib(pid: u32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time of a process so far.
fn cpu(pid: u32) -> Duration {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return Duration::ZERO;
    };
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// p50 and p99.
fn show(times: &mut [Duration]) -> String {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    format!(
        "p50 {:.2} ms, p99 {:.2} ms of {}",
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
        times.len()
    )
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

async fn put(kv: &mut KvClient<Channel>, key: String, value: Bytes) -> i64 {
    let put = pb::PutRequest {
        key: key.into(),
        value,
        ..Default::default()
    };
    kv.put(put).await.unwrap().into_inner().header.unwrap().revision
}

fn create(id: i64, key: &str, range_end: &str, start_revision: i64) -> WatchRequest {
    WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            range_end: Bytes::copy_from_slice(range_end.as_bytes()),
            watch_id: id,
            start_revision,
            ..Default::default()
        })),
    }
}

type Watching = (mpsc::Sender<WatchRequest>, Streaming<pb::WatchResponse>);

/// Opens a stream with these watchers and waits until all exist.
async fn watch(channel: &Channel, watchers: Vec<WatchRequest>) -> Watching {
    let (asks, queue) = mpsc::channel(16);
    let mut stub = WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    let mut replies = stub.watch(ReceiverStream::new(queue)).await.unwrap().into_inner();
    for watcher in watchers {
        asks.send(watcher).await.unwrap();
        let reply = timeout(PATIENCE, replies.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert!(reply.created && !reply.canceled, "{reply:?}");
    }
    (asks, replies)
}

/// What the watchers that read were told: watcher, revisions in order; and how long each event took.
#[derive(Default)]
struct Told {
    revisions: Mutex<BTreeMap<i64, Vec<i64>>>,
    took: Mutex<Vec<Duration>>,
    events: AtomicUsize,
}

/// Reads a stream to its end. Values begin with the time of sending, microseconds since `start`.
async fn listen((_asks, mut replies): Watching, told: Arc<Told>, start: Instant) {
    while let Ok(Some(reply)) = replies.message().await {
        let now = start.elapsed();
        let count = reply.events.len();
        let (mut revisions, mut took) = (told.revisions.lock().unwrap(), told.took.lock().unwrap());
        for event in reply.events {
            let kv = event.kv.unwrap();
            let sent = u64::from_be_bytes(kv.value[..8].try_into().unwrap());
            took.push(now.saturating_sub(Duration::from_micros(sent)));
            revisions.entry(reply.watch_id).or_default().push(kv.mod_revision);
        }
        drop((revisions, took));
        told.events.fetch_add(count, Ordering::SeqCst);
    }
}

/// Writes `count` revisions, many at a time.
async fn history(address: &str, count: usize) {
    let kv = KvClient::new(connect(address));
    stream::iter(0..count)
        .for_each_concurrent(256, |n| {
            let mut kv = kv.clone();
            async move {
                put(&mut kv, format!("load/{}", n % 1000), Bytes::from(vec![b'x'; 64])).await;
            }
        })
        .await;
}

/// Puts one after the other; how long each took and which revision it made.
async fn timed_puts(
    kv: &mut KvClient<Channel>,
    count: usize,
    start: Instant,
    key: impl Fn(usize) -> String,
) -> (Vec<Duration>, Vec<(String, i64)>) {
    let (mut times, mut made) = (Vec::new(), Vec::new());
    for n in 0..count {
        let sent = start.elapsed();
        let mut value = vec![b'x'; 1024];
        value[..8].copy_from_slice(&u64::try_from(sent.as_micros()).unwrap().to_be_bytes());
        let revision = put(kv, key(n), value.into()).await;
        times.push(start.elapsed() - sent);
        made.push((key(n), revision));
    }
    (times, made)
}

/// Watchers on one stream.
const PER_STREAM: usize = 10;
/// Streams on one connection.
const PER_CONNECTION: usize = 100;
/// The watcher that hears of everything.
const ALL: i64 = 1_000_000;
/// What SPECIFICATION.md states: a stream, its watchers, and a stuck client, KiB; and what does not depend on them
/// (ring, engine, allocator), with room for unoptimised builds.
const STREAM_KIB: usize = 40;
const STUCK_KIB: usize = 384;
const BASE_KIB: usize = 128 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn stuck_and_lagging_watchers_cost_others_nothing_and_little_memory() {
    let (watchers, behind, puts) = (sized(500, 10_000), sized(5_000, 500_000), sized(300, 3_000));
    let stuck = watchers / 100 / PER_STREAM;
    let stuck = stuck.max(2);
    let cluster = Cluster::start(1).await;
    let (address, pid) = (cluster.members[0].client.clone(), cluster.members[0].pid());
    let tasks = Tasks::new();
    let start = Instant::now();
    history(&address, behind).await;
    println!("{behind} revisions written in {:.1?}", start.elapsed());
    let mut kv = KvClient::new(connect(&address));
    let (mut idle, _) = timed_puts(&mut kv, puts, start, |n| format!("quiet/{n}")).await;
    let before = resident_kib(pid);

    let told = Arc::new(Told::default());
    let mut channels = Vec::new();
    for first in (0..watchers).step_by(PER_STREAM) {
        let stream = first / PER_STREAM;
        if stream.is_multiple_of(PER_CONNECTION) {
            channels.push(connect(&address));
        }
        let ids = first..watchers.min(first + PER_STREAM);
        let creates = ids.map(|id| create(i64::try_from(id + 1).unwrap(), &format!("w/{id}"), "", 0));
        let watching = watch(channels.last().unwrap(), creates.collect()).await;
        let told = told.clone();
        tasks.spawn("watcher", Kind::Background, async move {
            listen(watching, told, start).await;
            Ok(())
        });
    }
    let everything = watch(&connect(&address), vec![create(ALL, "w/", "w0", 0)]).await;
    let all_told = told.clone();
    tasks.spawn("watcher of everything", Kind::Background, async move {
        listen(everything, all_told, start).await;
        Ok(())
    });
    // Who does not read: each on a connection of its own, and each of its watchers wants everything.
    let mut stuck_streams = Vec::new();
    for _ in 0..stuck {
        let creates = (1..=10).map(|id| create(id, "w/", "w0", 0)).collect();
        stuck_streams.push(watch(&connect(&address), creates).await);
    }
    let idle_watchers = resident_kib(pid);

    // One that begins with the first revision.
    let (_asks, mut lagging) = watch(&connect(&address), vec![create(1, "load/", "load0", 2)]).await;
    let lag_started = Instant::now();
    let caught_up = Arc::new(AtomicUsize::new(0));
    let seen = caught_up.clone();
    tasks.spawn("lagging watcher", Kind::Background, async move {
        let mut next = 2;
        while let Ok(Some(reply)) = lagging.message().await {
            for event in reply.events {
                assert_eq!(event.kv.unwrap().mod_revision, next, "a gap, or out of order");
                next += 1;
                seen.fetch_add(1, Ordering::SeqCst);
            }
            if seen.load(Ordering::SeqCst) == behind {
                println!("caught up {behind} revisions in {:.1?}", lag_started.elapsed());
            }
        }
        Ok(())
    });
    let still_behind = AtomicUsize::new(0);
    let (mut loaded, made) = timed_puts(&mut kv, puts, start, |n| {
        if caught_up.load(Ordering::SeqCst) < behind {
            still_behind.store(n, Ordering::SeqCst);
        }
        format!("w/{}", n * 7919 % watchers)
    })
    .await;
    common::eventually("every event arrives", async || {
        told.events.load(Ordering::SeqCst) >= 2 * puts
    })
    .await;
    let after = resident_kib(pid);

    // Every event exactly once, in order, to who wants it.
    let mut expected: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (key, revision) in &made {
        let id: i64 = key[2..].parse::<i64>().unwrap() + 1;
        expected.entry(id).or_default().push(*revision);
        expected.entry(ALL).or_default().push(*revision);
    }
    assert_eq!(*told.revisions.lock().unwrap(), expected);
    let end = Instant::now() + PATIENCE * 10;
    while caught_up.load(Ordering::SeqCst) < behind {
        assert!(
            Instant::now() < end,
            "still catching up: {}",
            caught_up.load(Ordering::SeqCst)
        );
        sleep(Duration::from_millis(100)).await;
    }
    println!("put beside nobody: {}", show(&mut idle));
    let still_behind = still_behind.into_inner();
    println!(
        "put beside {watchers} watchers while one catches up: {}, after it: {}",
        show(&mut loaded[..still_behind].to_vec()),
        show(&mut loaded[still_behind..].to_vec())
    );
    println!("put beside {watchers} watchers: {}", show(&mut loaded));
    println!("event: {}", show(&mut told.took.lock().unwrap()));
    let streams = watchers.div_ceil(PER_STREAM) + 2;
    println!(
        "resident KiB: {before} before, {idle_watchers} with {streams} streams and {stuck} stuck ones, {after} after the \
         load; load average {}",
        load()
    );
    let bound = BASE_KIB + streams * STREAM_KIB + stuck * STUCK_KIB;
    assert!(after <= before + bound, "{after} KiB, {before} before");

    // The stuck read at last: nothing is lost.
    let (_asks, replies) = stuck_streams.first_mut().unwrap();
    let mut heard: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    while heard.values().map(Vec::len).sum::<usize>() < 10 * puts {
        let reply = timeout(PATIENCE, replies.message())
            .await
            .expect("a lost event")
            .unwrap()
            .unwrap();
        let revisions = reply
            .events
            .into_iter()
            .map(|event| event.kv.unwrap().mod_revision);
        heard.entry(reply.watch_id).or_default().extend(revisions);
    }
    assert!(heard.values().all(|revisions| *revisions == expected[&ALL]));
    drop(stuck_streams);
    drop(cluster);
    tasks.stop("end of test");
    assert!(tasks.finished(PATIENCE).await);
}

/// What is known of the leases that are kept.
struct Kept {
    ttl: Duration,
    /// When the last renewal that was confirmed had been sent.
    renewed: Mutex<Vec<Instant>>,
    early: Mutex<Vec<String>>,
    /// Not renewed in time by this test itself, on a machine that is too busy.
    missed: Mutex<BTreeSet<usize>>,
    renewals: AtomicUsize,
}

/// Ids of kept leases begin here, those of abandoned ones at 1.
const KEPT_FROM: usize = 1_000_000;

fn kept_id(place: usize) -> i64 {
    i64::try_from(KEPT_FROM + place).unwrap()
}

async fn grant(address: &str, ids: impl Iterator<Item = i64>, ttl_s: i64) {
    let stub = LeaseClient::new(connect(address));
    stream::iter(ids)
        .for_each_concurrent(256, |id| {
            let mut stub = stub.clone();
            async move {
                let grant = pb::LeaseGrantRequest { ttl: ttl_s, id };
                stub.lease_grant(grant).await.unwrap();
            }
        })
        .await;
}

/// Renews a share of the leases through whichever member answers, each every third of its time.
async fn keep(endpoints: Vec<String>, first: usize, places: Vec<usize>, kept: Arc<Kept>) {
    let pace = kept.ttl / 3 / u32::try_from(places.len()).unwrap();
    let mut endpoint = first;
    loop {
        endpoint += 1;
        let address = &endpoints[endpoint % endpoints.len()];
        let (asks, queue) = mpsc::channel(64);
        let mut stub = LeaseClient::new(connect(address));
        let opened = stub.lease_keep_alive(ReceiverStream::new(queue));
        let Ok(Ok(replies)) = timeout(Duration::from_secs(2), opened).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut replies = replies.into_inner();
        let asked = Mutex::new(VecDeque::new());
        let ask = async {
            let mut at = Instant::now();
            for place in places.iter().cycle() {
                asked.lock().unwrap().push_back((*place, Instant::now()));
                let ask = pb::LeaseKeepAliveRequest { id: kept_id(*place) };
                if asks.send(ask).await.is_err() {
                    return;
                }
                at += pace;
                tokio::time::sleep_until(at).await;
            }
        };
        let hear = async {
            // Longer than an election; a paused member answers nothing.
            while let Ok(Ok(Some(reply))) = timeout(Duration::from_secs(2), replies.message()).await {
                let (place, sent) = asked.lock().unwrap().pop_front().unwrap();
                assert_eq!(reply.id, kept_id(place));
                kept.renewals.fetch_add(1, Ordering::Relaxed);
                let mut renewed = kept.renewed.lock().unwrap();
                if reply.ttl > 0 {
                    renewed[place] = sent;
                } else if Instant::now() < renewed[place] + kept.ttl {
                    let left = renewed[place] + kept.ttl - Instant::now();
                    kept.early
                        .lock()
                        .unwrap()
                        .push(format!("{place}: {left:?} early"));
                } else {
                    kept.missed.lock().unwrap().insert(place);
                }
            }
        };
        tokio::select! {
            () = ask => {}
            () = hear => {}
        }
    }
}

async fn living(address: &str) -> Option<BTreeSet<i64>> {
    let mut stub = LeaseClient::new(connect(address));
    let listing = timeout(
        Duration::from_secs(5),
        stub.lease_leases(pb::LeaseLeasesRequest {}),
    );
    let listing = listing.await.ok()?.ok()?.into_inner();
    Some(listing.leases.into_iter().map(|lease| lease.id).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_survive_their_leaders_and_end_when_nobody_renews_them() {
    let (leases, ttl_s) = (sized(1_000, 100_000), sized(6, 60));
    let (kept_count, abandoned) = (leases / 2, leases / 2);
    let ttl = Duration::from_secs(ttl_s as u64);
    let mut cluster = Cluster::start(3).await;
    let endpoints = cluster.endpoints();
    let tasks = Tasks::new();
    let start = Instant::now();
    let mut kv = KvClient::new(connect(&endpoints[0]));
    let (mut idle, _) = timed_puts(&mut kv, sized(200, 2_000), start, |n| format!("quiet/{n}")).await;

    let granting = Instant::now();
    let ttl_i64 = i64::try_from(ttl_s).unwrap();
    let kept = Arc::new(Kept {
        ttl,
        renewed: Mutex::new(vec![granting; kept_count]),
        early: Mutex::default(),
        missed: Mutex::default(),
        renewals: AtomicUsize::new(0),
    });
    // In shares, each kept from its grant on.
    let keepers = 12;
    for keeper in 0..keepers {
        let places: Vec<usize> = (keeper..kept_count).step_by(keepers).collect();
        let before = Instant::now();
        grant(&endpoints[0], places.iter().map(|place| kept_id(*place)), ttl_i64).await;
        places
            .iter()
            .for_each(|place| kept.renewed.lock().unwrap()[*place] = before);
        let (stop, endpoints, kept) = (tasks.clone(), endpoints.clone(), kept.clone());
        tasks.spawn("keeper", Kind::Background, async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = keep(endpoints, keeper, places, kept) => {}
            }
            Ok(())
        });
    }
    println!("{kept_count} leases granted in {:.1?}", granting.elapsed());

    // Steady state: what keeping them costs.
    let members: Vec<u32> = cluster.members.iter().map(common::Member::pid).collect();
    let used = |members: &[u32]| members.iter().map(|pid| cpu(*pid)).sum::<Duration>();
    let window = Duration::from_secs(sized(2, 20) as u64);
    let (from, renewals) = (used(&members), kept.renewals.load(Ordering::Relaxed));
    sleep(window).await;
    let renewals = kept.renewals.load(Ordering::Relaxed) - renewals;
    let percent = (used(&members) - from).as_secs_f64() / window.as_secs_f64() * 100.0;
    println!("{renewals} renewals in {window:?}: {percent:.1} % of a core, three members together");
    let (mut loaded, _) = timed_puts(&mut kv, sized(200, 2_000), start, |n| format!("busy/{n}")).await;

    // Now the abandoned, and a leader that dies, and one that is paused for twice their time.
    grant(
        &endpoints[0],
        (1..=abandoned).map(|id| i64::try_from(id).unwrap()),
        ttl_i64,
    )
    .await;
    let all_granted = Instant::now();
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    sleep(Duration::from_secs(2)).await;
    cluster.members[leader].start();
    cluster.ready().await;
    let leader = cluster.leader().await;
    println!("leader {leader} is paused for {:?}", ttl * 2);
    cluster.members[leader].signal(Signal::SIGSTOP);
    let other = endpoints[(leader + 1) % 3].clone();
    let paused = Instant::now();
    let mut gone = None;
    let mut beside_expiry = Vec::new();
    let mut other_kv = KvClient::new(connect(&other));
    while paused.elapsed() < ttl * 2 || gone.is_none() {
        if let Some(living) = living(&other).await
            && gone.is_none()
            && living.iter().all(|id| *id >= kept_id(0))
        {
            gone = Some(all_granted.elapsed());
        }
        let put = pb::PutRequest {
            key: "beside".into(),
            ..Default::default()
        };
        let sent = Instant::now();
        if timeout(Duration::from_secs(5), other_kv.put(put))
            .await
            .is_ok_and(|put| put.is_ok())
        {
            beside_expiry.push(sent.elapsed());
        }
        // With two changes of leader: twice the time, the elections, and room for a busy machine.
        assert!(
            all_granted.elapsed() < ttl * 2 + PATIENCE * 2,
            "abandoned leases live on"
        );
        sleep(Duration::from_millis(20)).await;
    }
    cluster.members[leader].signal(Signal::SIGCONT);
    sleep(ttl / 2).await;
    cluster.ready().await;

    println!("put beside no lease: {}", show(&mut idle));
    println!("put beside {kept_count} kept leases: {}", show(&mut loaded));
    println!(
        "put from the pause of the leader on, elections and expiry included: {}",
        show(&mut beside_expiry)
    );
    println!(
        "{abandoned} abandoned leases of {ttl:?} gone {:.1?} after the last grant, with two changes of leader; load \
         average {}",
        gone.unwrap(),
        load()
    );
    let early = kept.early.lock().unwrap().clone();
    assert!(early.is_empty(), "revoked early: {early:?}\n{}", cluster.logs());
    // All that were renewed in time live, on every member.
    let missed = kept.missed.lock().unwrap().clone();
    println!("{} leases were renewed too late by this test", missed.len());
    for address in &endpoints {
        let living = living(address).await.unwrap();
        let renewed = kept.renewed.lock().unwrap().clone();
        for (place, renewed) in renewed.iter().enumerate() {
            let alive = living.contains(&kept_id(place));
            assert!(
                alive || renewed.elapsed() > ttl || missed.contains(&place),
                "{place} is gone"
            );
        }
    }
    tasks.stop("end of test");
    assert!(tasks.finished(PATIENCE).await);
}
