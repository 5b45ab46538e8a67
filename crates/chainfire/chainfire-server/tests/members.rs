//! Real processes: members come, learn, are promoted, move, are replaced, lose their disks, and go, under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chainfire_client::{
    Client, ClientConfig, Error, Op, Txn,
    wire::etcdserverpb::{self as pb, cluster_client::ClusterClient, maintenance_client::MaintenanceClient},
};
use common::{Cluster, PATIENCE, disk::FAULT, eventually};
use hearth_service::tasks::{Kind, Tasks};
use tokio::time::{Instant, sleep};
use tonic::{Status, transport::Channel};

/// etcd's Cluster service of one member, as etcdctl uses it.
struct Admin(ClusterClient<Channel>);

type Members = Vec<pb::Member>;

impl Admin {
    async fn of(cluster: &Cluster, member: usize) -> Admin {
        let url = format!("http://{}", cluster.members[member].client);
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        Admin(ClusterClient::new(channel))
    }

    async fn add(&mut self, peer: &str, learner: bool) -> Result<(u64, Members), Status> {
        let request = pb::MemberAddRequest {
            peer_ur_ls: vec![peer.to_owned()],
            is_learner: learner,
        };
        let reply = self.0.member_add(request).await?.into_inner();
        Ok((reply.member.unwrap().id, reply.members))
    }

    async fn remove(&mut self, id: u64) -> Result<Members, Status> {
        let request = pb::MemberRemoveRequest { id };
        Ok(self.0.member_remove(request).await?.into_inner().members)
    }

    async fn promote(&mut self, id: u64) -> Result<Members, Status> {
        let request = pb::MemberPromoteRequest { id };
        Ok(self.0.member_promote(request).await?.into_inner().members)
    }

    async fn update(&mut self, id: u64, peer: &str) -> Result<Members, Status> {
        let request = pb::MemberUpdateRequest {
            id,
            peer_ur_ls: vec![peer.to_owned()],
        };
        Ok(self.0.member_update(request).await?.into_inner().members)
    }

    async fn list(&mut self) -> Result<Members, Status> {
        let request = pb::MemberListRequest { linearizable: true };
        Ok(self.0.member_list(request).await?.into_inner().members)
    }
}

fn url(cluster: &Cluster, member: usize) -> String {
    format!("https://{}", cluster.members[member].peer)
}

fn refusal<T: std::fmt::Debug>(outcome: Result<T, Status>) -> String {
    outcome.unwrap_err().message().to_owned()
}

/// Waits until all members have started, by what the list says.
async fn published(cluster: &Cluster, through: usize) -> BTreeMap<String, u64> {
    let mut admin = Admin::of(cluster, through).await;
    let mut ids = BTreeMap::new();
    eventually("all members are published", async || {
        let members = admin.list().await.unwrap_or_default();
        ids = members.iter().map(|m| (m.name.clone(), m.id)).collect();
        let data = |n: usize| cluster.members[n].dir.join("data/member").exists();
        !members.is_empty()
            && members.iter().all(|m| !m.name.is_empty())
            && (0..cluster.members.len())
                .filter(|n| cluster.members[*n].runs())
                .all(data)
            && published_in_log(cluster)
    })
    .await;
    ids
}

/// Members of the configuration have names before they are published; their logs say when they are.
fn published_in_log(cluster: &Cluster) -> bool {
    let running = cluster.members.iter().filter(|member| member.runs());
    running
        .into_iter()
        .all(|member| member.log().contains("this member is published"))
}

/// Promotes a learner as soon as it is ready.
async fn promote(cluster: &Cluster, through: usize, id: u64) {
    let mut admin = Admin::of(cluster, through).await;
    let end = Instant::now() + PATIENCE;
    while let Err(error) = admin.promote(id).await {
        let early = error.message().contains("in sync with leader");
        assert!(early && Instant::now() < end, "{error}\n{}", cluster.logs());
        sleep(Duration::from_millis(100)).await;
    }
}

/// Adds a member as a learner, starts it, and makes it a voter.
async fn grow(cluster: &mut Cluster, member: usize, through: usize) -> u64 {
    let mut admin = Admin::of(cluster, through).await;
    let end = Instant::now() + PATIENCE;
    let id = loop {
        match admin.add(&url(cluster, member), true).await {
            Ok((id, _)) => break id,
            // The member that was added last is not heard of yet.
            Err(error) => assert!(Instant::now() < end, "{error}\n{}", cluster.logs()),
        }
        sleep(Duration::from_millis(200)).await;
    };
    cluster.configure_joining(member, "");
    cluster.members[member].start();
    promote(cluster, through, id).await;
    id
}

/// Appends one key after the other until it is stopped.
struct Appender {
    tasks: Tasks,
    acknowledged: Arc<AtomicU64>,
}

impl Appender {
    fn start(endpoints: Vec<String>) -> Appender {
        let (tasks, acknowledged) = (Tasks::new(), Arc::new(AtomicU64::new(0)));
        let client = Client::connect(&ClientConfig::new(endpoints), None)
            .unwrap()
            .with_deadline(Duration::from_secs(3));
        let (stop, done) = (tasks.clone(), acknowledged.clone());
        tasks.spawn("appender", Kind::Background, async move {
            while !stop.is_stopping() {
                let n = done.load(Ordering::SeqCst);
                // An unknown outcome is made certain by putting the same again.
                match client.put(format!("load/{n:06}"), n.to_string()).await {
                    Ok(_) => drop(done.fetch_add(1, Ordering::SeqCst)),
                    Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
            Ok(())
        });
        Appender { tasks, acknowledged }
    }

    fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    async fn goes_on(&self) {
        let before = self.count();
        eventually("writes are acknowledged", async || self.count() >= before + 10).await;
    }

    /// Stops, and looks on each of the members for everything that was acknowledged.
    async fn check(self, cluster: &Cluster, members: &[usize]) {
        self.goes_on().await;
        self.tasks.stop("end of test");
        assert!(self.tasks.finished(PATIENCE).await);
        for member in members {
            let one = cluster.client_of(*member, "operator/root");
            let listing = one.list("load/").await.unwrap();
            let found: Vec<_> = listing
                .kvs
                .iter()
                .map(|kv| {
                    (
                        kv.key_text().into_owned(),
                        String::from_utf8_lossy(&kv.value).into_owned(),
                    )
                })
                .collect();
            let all = self.count();
            assert!(
                found.len() as u64 >= all,
                "{} of {all} on member {member}",
                found.len()
            );
            for (n, (key, value)) in found.iter().enumerate() {
                assert_eq!(
                    (key, value),
                    (&format!("load/{n:06}"), &n.to_string()),
                    "member {member}"
                );
            }
        }
        println!("{} appends acknowledged", self.count());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_to_five_under_load() {
    let mut cluster = Cluster::start(1).await;
    for _ in 0..4 {
        cluster.spare();
    }
    published(&cluster, 0).await;
    let appender = Appender::start(cluster.endpoints());
    appender.goes_on().await;
    let mut admin = Admin::of(&cluster, 0).await;

    // The first one step by step, with what is refused on the way.
    let (id, members) = admin.add(&url(&cluster, 1), true).await.unwrap();
    let added = members.iter().find(|member| member.id == id).unwrap();
    assert!(added.is_learner && added.name.is_empty() && added.client_ur_ls.is_empty());
    assert_eq!(added.peer_ur_ls, [url(&cluster, 1)]);
    let many = admin.add(&url(&cluster, 2), true).await;
    assert_eq!(refusal(many), "etcdserver: too many learner members in cluster");
    let not_ready = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!(refusal(admin.promote(id).await), not_ready);
    cluster.configure_joining(1, "");
    cluster.members[1].start();
    let root = cluster.client("operator/root");
    let one = cluster.client_of(1, "operator/root");
    eventually("the learner answers", async || {
        one.status().await[0]
            .1
            .as_ref()
            .is_ok_and(|status| status.raft_applied_index > 1)
    })
    .await;
    let learner = |error: &Error| format!("{error:?}").contains("etcdserver: rpc not supported for learner");
    let error = one.put("x", "y").await.unwrap_err();
    assert!(learner(&error), "{error:?}");
    let error = one.get("x").await.unwrap_err();
    assert!(learner(&error), "a linearizable read: {error:?}");
    promote(&cluster, 0, id).await;
    assert_eq!(
        refusal(admin.promote(id).await),
        "etcdserver: can only promote a learner member"
    );
    cluster.ready().await;
    for member in 2..5 {
        // Through any member: the leader is found.
        grow(&mut cluster, member, member - 1).await;
        appender.goes_on().await;
    }
    let names = published(&cluster, 4).await;
    assert_eq!(names.keys().collect::<Vec<_>>(), ["m0", "m1", "m2", "m3", "m4"]);
    cluster.ready().await;
    appender.check(&cluster, &[0, 1, 2, 3, 4]).await;
    assert_eq!(root.member_list().await.unwrap().len(), 5);
    // Two of five may go.
    cluster.members[0].kill();
    cluster.members[1].kill();
    let rest = cluster.client_of(4, "operator/root");
    eventually("three of five go on", async || {
        rest.put("after", "x").await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_replaced_in_turn_under_load() {
    let mut cluster = Cluster::start(3).await;
    for _ in 0..3 {
        cluster.spare();
    }
    let ids = published(&cluster, 0).await;
    let appender = Appender::start(cluster.endpoints());
    for old in 0..3 {
        let new = old + 3;
        let fresh = grow(&mut cluster, new, old).await;
        assert!(!ids.values().any(|id| *id == fresh));
        // The leader too, asked of itself: it hands over first.
        let gone = ids[&format!("m{old}")];
        let mut admin = Admin::of(&cluster, old).await;
        let end = Instant::now() + PATIENCE;
        loop {
            match admin.remove(gone).await {
                Ok(members) => {
                    assert!(members.iter().all(|member| member.id != gone));
                    break;
                }
                Err(error) => assert!(Instant::now() < end, "{error}\n{}", cluster.logs()),
            }
            sleep(Duration::from_millis(200)).await;
        }
        let said = cluster.members[old].ended().await;
        assert!(said.contains("was removed from the cluster"), "{said}");
        let (code, said) = cluster.members[old].run_to_end();
        assert!(
            code != Some(0) && said.contains("was removed from the cluster"),
            "{said}"
        );
        let again = Admin::of(&cluster, new).await.remove(gone).await;
        assert_eq!(refusal(again), "etcdserver: member not found");
        appender.goes_on().await;
    }
    appender.check(&cluster, &[3, 4, 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_stops_and_comes_back_as_a_new_one() {
    let mut cluster = Cluster::start(3).await;
    let ids = published(&cluster, 0).await;
    let root = cluster.client("operator/root");
    root.put("k", "1").await.unwrap();
    let lost = (cluster.leader().await + 1) % 3;
    let through = (lost + 1) % 3;
    cluster.members[lost].kill();
    std::fs::remove_dir_all(cluster.members[lost].dir.join("data")).unwrap();
    let (code, said) = cluster.members[lost].run_to_end();
    assert!(
        code != Some(0) && said.contains("is not the one that the cluster knows"),
        "{said}"
    );
    eventually("the cluster goes on", async || root.put("k", "2").await.is_ok()).await;

    let mut admin = Admin::of(&cluster, through).await;
    let old = ids[&cluster.members[lost].name];
    eventually("the dead member is removed", async || {
        admin.remove(old).await.is_ok()
    })
    .await;
    std::fs::remove_dir_all(cluster.members[lost].dir.join("data")).unwrap();
    let new = grow(&mut cluster, lost, through).await;
    assert_ne!(new, old);
    cluster.ready().await;
    let one = cluster.client_of(lost, "operator/root");
    assert_eq!(one.get("k").await.unwrap().unwrap().value, "2");
    // Wiped again, this time as a member that joined.
    published(&cluster, through).await;
    cluster.members[lost].kill();
    std::fs::remove_dir_all(cluster.members[lost].dir.join("data")).unwrap();
    let (code, said) = cluster.members[lost].run_to_end();
    assert!(
        code != Some(0) && said.contains("is not the one that the cluster knows"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_harm_the_cluster_is_refused_and_a_member_moves() {
    let token = "5f2d0a6c9b1e4478";
    let digest = "c5cf94cdfb24a4f36bb4c6d5ffe9a0dd9d2b2b5bd4bb4fb5ab2cfa0e3e8ac56f";
    let digest = sha256_of(token).unwrap_or_else(|| digest.to_owned());
    let mut cluster = Cluster::start_with(3, &format!("join_token_sha256 = \"{digest}\"")).await;
    let spare = cluster.spare();
    let ids = published(&cluster, 0).await;
    let mut admin = Admin::of(&cluster, 0).await;
    let bad = "etcdserver: given member URLs are invalid";
    assert_eq!(refusal(admin.add("nonsense", false).await), bad);
    assert_eq!(refusal(admin.update(ids["m1"], "https://a/b:1").await), bad);
    let exists = "etcdserver: Peer URLs already exists";
    assert_eq!(refusal(admin.add(&url(&cluster, 1), false).await), exists);
    assert_eq!(refusal(admin.update(ids["m1"], &url(&cluster, 2)).await), exists);
    let not_found = "etcdserver: member not found";
    assert_eq!(refusal(admin.remove(1).await), not_found);
    assert_eq!(refusal(admin.promote(1).await), not_found);
    assert_eq!(refusal(admin.update(1, "https://a:1").await), not_found);
    let not_learner = "etcdserver: can only promote a learner member";
    assert_eq!(refusal(admin.promote(ids["m2"]).await), not_learner);

    // Joining: not added, then added but without the token, then with it.
    cluster.configure_joining(spare, "");
    let (code, said) = cluster.members[spare].run_to_end();
    assert!(code != Some(0) && said.contains("join token"), "{said}");
    let file = cluster.members[spare].dir.join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    cluster.configure_joining(spare, &format!("join_token_file = \"{}\"", file.display()));
    let (code, said) = cluster.members[spare].run_to_end();
    assert!(code != Some(0) && said.contains("member add m3"), "{said}");
    let (id, _) = admin.add(&url(&cluster, spare), true).await.unwrap();
    cluster.members[spare].start();
    promote(&cluster, 0, id).await;
    cluster.ready().await;
    admin.remove(id).await.unwrap();
    cluster.members[spare].ended().await;

    // A member moves to another port.
    let root = cluster.client("operator/root");
    let old = cluster.members[1].peer.clone();
    cluster.members[1].peer = format!("127.0.0.1:{}", common::free_ports(1)[0]);
    let members = admin.update(ids["m1"], &url(&cluster, 1)).await.unwrap();
    assert!(
        members
            .iter()
            .any(|member| member.peer_ur_ls == [url(&cluster, 1)])
    );
    cluster.members[1].kill();
    let conf = cluster.members[1].dir.join("conf.toml");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, text.replace(&old, &cluster.members[1].peer)).unwrap();
    cluster.members[1].start();
    cluster.ready().await;

    // One is down: what needs it is refused, its own removal is not.
    cluster.members[1].kill();
    // Until its silence is noticed an addition would be made.
    sleep(Duration::from_secs(4)).await;
    let unhealthy = "etcdserver: unhealthy cluster";
    eventually("its silence is noticed", async || {
        admin
            .add("https://127.0.0.1:1", false)
            .await
            .is_err_and(|error| error.message() == unhealthy)
    })
    .await;
    assert_eq!(refusal(admin.remove(ids["m2"]).await), unhealthy);
    root.put("k", "1").await.unwrap();
    admin.remove(ids["m1"]).await.unwrap();
    root.put("k", "2").await.unwrap();
    // It was down when it was removed, and hears of it from the others.
    let (code, said) = cluster.members[1].run_to_end();
    assert!(
        code != Some(0) && said.contains("was removed from the cluster"),
        "{said}"
    );
    // Removed and added again, in one term, under a new id each time.
    std::fs::remove_dir_all(cluster.members[1].dir.join("data")).unwrap();
    cluster.configure_joining(1, &format!("join_token_file = \"{}\"", file.display()));
    let (id, _) = admin.add(&url(&cluster, 1), false).await.unwrap();
    cluster.members[1].start();
    cluster.ready().await;
    assert_ne!(id, ids["m1"]);
    assert_eq!(published(&cluster, 0).await["m1"], id);
}

/// A member that was away while others came follows a leader that it has never heard of.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_away_follows_a_leader_that_came_meanwhile() {
    let mut cluster = Cluster::start(4).await;
    let spare = cluster.spare();
    published(&cluster, 0).await;
    let away = (cluster.leader().await + 1) % 4;
    let through = (away + 1) % 4;
    cluster.members[away].kill();
    let id = grow(&mut cluster, spare, through).await;
    eventually("the new one leads", async || {
        let leader = cluster.leader().await;
        let endpoint = format!("http://{}", cluster.members[leader].client);
        let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
        let mut maintenance = MaintenanceClient::new(channel);
        let transfer = pb::MoveLeaderRequest { target_id: id };
        leader == spare || maintenance.move_leader(transfer).await.is_ok()
    })
    .await;
    let root = cluster.client("operator/root");
    root.put("k", "1").await.unwrap();
    cluster.members[away].start();
    cluster.ready().await;
    let one = cluster.client_of(away, "operator/root");
    assert_eq!(one.get("k").await.unwrap().unwrap().value, "1");
    // It counts: without two others it is one of three of five.
    for other in (0..4).filter(|n| ![away, through].contains(n)) {
        cluster.members[other].kill();
    }
    let rest = cluster.client_of(through, "operator/root");
    eventually("it counts", async || rest.put("k", "2").await.is_ok()).await;
}

/// One voter becomes two at once: nothing works until the second one is there, and then everything does.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_voter_joins_a_single_one() {
    let mut cluster = Cluster::start(1).await;
    let spare = cluster.spare();
    published(&cluster, 0).await;
    let root = cluster.client_of(0, "operator/root");
    root.put("k", "1").await.unwrap();
    let mut admin = Admin::of(&cluster, 0).await;
    admin.add(&url(&cluster, spare), false).await.unwrap();
    let third = admin.add("https://127.0.0.1:1", false).await;
    let refused = refusal(third);
    assert!(
        refused == "etcdserver: re-configuration failed due to not enough started members"
            || refused == "etcdserver: no leader",
        "{refused}"
    );
    cluster.configure_joining(spare, "");
    cluster.members[spare].start();
    cluster.ready().await;
    let one = cluster.client_of(spare, "operator/root");
    assert_eq!(one.get("k").await.unwrap().unwrap().value, "1");
}

/// The digest that the documentation tells people to make.
fn sha256_of(text: &str) -> Option<String> {
    let shell = format!("printf %s {text} | sha256sum");
    let out = std::process::Command::new("sh")
        .args(["-c", &shell])
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    Some(text.split_whitespace().next()?.to_owned())
}

/// Highest memory that a process has had, MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// Waits until so much of a snapshot has arrived. What an interrupted one left is deleted first: growth counts from the
/// least that was seen.
async fn arrives(cluster: &Cluster, member: usize, mib: u64) {
    let state = cluster.members[member].dir.join("data/state");
    let (mut least, mut now) = (u64::MAX, 0);
    let end = Instant::now() + PATIENCE * 3;
    while now <= least.saturating_add(mib << 20) {
        assert!(
            Instant::now() < end,
            "no snapshot: {now} bytes\n{}",
            cluster.logs()
        );
        sleep(Duration::from_millis(20)).await;
        now = folder_bytes(&state);
        least = least.min(now);
    }
}

/// Bytes below a folder.
fn folder_bytes(dir: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_snapshot_survives_kills_at_both_ends_in_little_memory() {
    let mib: u64 = std::env::var("CHAINFIRE_TEST_SNAPSHOT_MIB").map_or(96, |text| text.parse().unwrap());
    let mut cluster = Cluster::start_with(1, "keep_log_entries = 20").await;
    let spare = cluster.spare();
    published(&cluster, 0).await;
    let root = cluster.client_of(0, "operator/root").with_deadline(PATIENCE);
    // The engine compresses.
    let mut random = 1_u64;
    let value: String = (0..16 << 10)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + u8::try_from(random >> 58).unwrap())
        })
        .collect();
    for n in 0..mib {
        let puts = (0..64).map(|m| Op::put(format!("big/{n:05}/{m:02}"), format!("{n} {value}")));
        root.txn(Txn::new().then(puts)).await.unwrap();
    }
    let mut admin = Admin::of(&cluster, 0).await;
    let (id, _) = admin.add(&url(&cluster, spare), true).await.unwrap();
    cluster.configure_joining(spare, "");
    cluster.members[spare].start();
    arrives(&cluster, spare, mib / 6).await;
    cluster.members[spare].kill();
    cluster.members[spare].start();
    arrives(&cluster, spare, mib / 6).await;
    cluster.members[0].kill();
    cluster.members[0].start();
    eventually("the leader is back", async || root.put("back", "x").await.is_ok()).await;
    promote(&cluster, 0, id).await;
    let one = cluster.client_of(spare, "operator/root").with_deadline(PATIENCE);
    eventually("it serves", async || one.get("big/00000/00").await.is_ok()).await;
    for n in [0, mib / 2, mib - 1] {
        let kv = one.get(format!("big/{n:05}/63")).await.unwrap().unwrap();
        assert!(kv.value.starts_with(format!("{n} ").as_bytes()) && kv.value.len() > 16 << 10);
    }
    let peak = peak_mib(cluster.members[spare].pid());
    println!("{mib} MiB arrived in at most {peak} MiB of memory");
    // Caches, memtables and the window; far from the whole.
    assert!(peak < 125, "{peak} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_slow_disk_hands_over_and_one_with_a_failing_disk_ends() {
    let mut cluster = Cluster::start(3).await;
    published(&cluster, 0).await;
    let appender = Appender::start(cluster.endpoints());
    appender.goes_on().await;
    let slow = cluster.leader().await;
    let fault = cluster.members[slow].dir.join(FAULT);
    std::fs::write(&fault, "slow 350").unwrap();
    let end = Instant::now() + PATIENCE * 2;
    while !cluster.members[slow]
        .log()
        .contains("handing leadership over: the disk of this member is slow")
    {
        assert!(Instant::now() < end, "{}", cluster.logs());
        sleep(Duration::from_millis(200)).await;
    }
    let mut leader = slow;
    eventually("another one leads", async || {
        leader = cluster.leader().await;
        leader != slow
    })
    .await;
    std::fs::remove_file(&fault).unwrap();
    appender.goes_on().await;

    std::fs::write(cluster.members[leader].dir.join(FAULT), "fail").unwrap();
    let said = cluster.members[leader].ended().await;
    assert!(said.contains("raft"), "{said}");
    appender.goes_on().await;
    assert_ne!(cluster.leader().await, leader);
    std::fs::remove_file(cluster.members[leader].dir.join(FAULT)).unwrap();
    cluster.members[leader].start();
    cluster.ready().await;
    appender.check(&cluster, &[0, 1, 2]).await;
}
