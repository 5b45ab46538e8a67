//! Backup, restore, and the recovery from a lost majority: nothing acknowledged is lost that could be kept, and nothing
//! old is ever taken for new.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chainfire_client::{Client, Compare, Op, Txn, WatchUpdate};
use chainfire_server::{
    Config,
    offline::{
        self, BackupInfo, Condition, DEFAULT_BUMP, OfflineError, RecoverOptions, RestoreOptions, check_backup,
    },
};
use common::{Cluster, PATIENCE, eventually};
use hearth_service::tasks::{Kind, Tasks};
use tokio::time::{sleep, timeout};

const ACCOUNTS: usize = 8;
const MONEY: i64 = 100;
/// Writers when the disks are lost.
const WORKERS: usize = 16;

fn account(n: usize) -> String {
    format!("bank/{n}")
}

fn config(cluster: &Cluster, n: usize) -> Config {
    hearth_service::config::load(&cluster.members[n].dir.join("conf.toml")).unwrap()
}

fn configs(cluster: &Cluster) -> Vec<Config> {
    (0..cluster.members.len()).map(|n| config(cluster, n)).collect()
}

fn data_of(cluster: &Cluster, n: usize) -> PathBuf {
    cluster.members[n].dir.join("data")
}

fn kill_all(cluster: &mut Cluster) {
    cluster.members.iter_mut().for_each(common::Member::kill);
}

fn start_all(cluster: &mut Cluster) {
    cluster.members.iter_mut().for_each(common::Member::start);
}

fn recover_options(name: &str) -> RecoverOptions {
    RecoverOptions {
        bump: DEFAULT_BUMP,
        survivor: None,
        force: false,
        incarnation: name.to_owned(),
        stamp: "recovery".to_owned(),
    }
}

const RESTORE: RestoreOptions = RestoreOptions {
    bump: DEFAULT_BUMP,
    token: None,
};

/// Files are read and engines opened: not on the runtime's threads.
async fn offline<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn backup(client: &Client, file: &Path) -> BackupInfo {
    let mut pieces = client.snapshot().await.unwrap();
    let mut bytes = Vec::new();
    let mut left = None;
    while let Some((piece, remaining)) = pieces.next().await.unwrap() {
        assert!(piece.len() <= 32 << 10);
        if let Some(left) = left {
            assert_eq!(left, piece.len() as u64 + remaining, "the remainder is exact");
        }
        left = Some(remaining);
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(left, Some(0));
    assert_eq!(bytes.len() % 512, 32, "what etcd's clients check");
    std::fs::write(file, bytes).unwrap();
    let file = file.to_owned();
    offline(move || check_backup(&file).unwrap()).await
}

async fn open_accounts(client: &Client) {
    for n in 0..ACCOUNTS {
        client.put(account(n), MONEY.to_string()).await.unwrap();
    }
}

/// Moves money between accounts until told to stop. The sum never changes, at any revision.
async fn transfer(client: Client, seed: usize, stop: Arc<AtomicBool>) {
    let mut step = seed;
    while !stop.load(Ordering::Relaxed) {
        step += 1;
        let (from, to) = (account(step % ACCOUNTS), account((step * 3 + 1) % ACCOUNTS));
        if from == to {
            continue;
        }
        let (Ok(Some(a)), Ok(Some(b))) = (client.get(&from).await, client.get(&to).await) else {
            continue;
        };
        let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse::<i64>().unwrap();
        let txn = Txn::new()
            .when([
                Compare::mod_revision(&from).equal(a.mod_revision),
                Compare::mod_revision(&to).equal(b.mod_revision),
            ])
            .then([
                Op::put(&from, (number(&a.value) - 1).to_string()),
                Op::put(&to, (number(&b.value) + 1).to_string()),
            ]);
        let _ = client.txn(txn).await;
    }
}

async fn sum(client: &Client) -> i64 {
    let listing = client.list("bank/").await.unwrap();
    assert_eq!(listing.kvs.len(), ACCOUNTS);
    let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse::<i64>().unwrap();
    listing.kvs.iter().map(|kv| number(&kv.value)).sum()
}

/// A watcher that resumes after `revision` of the old cluster is told that it is compacted, on every member.
async fn is_compacted_for_old_watchers(cluster: &Cluster, revision: i64) {
    for n in 0..cluster.members.len() {
        let client = cluster.client_of(n, "operator/root");
        let mut watcher = client.watch("", revision + 1);
        let update = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
        assert!(
            matches!(update, WatchUpdate::Compacted { .. }),
            "{revision}: {update:?}"
        );
    }
}

async fn members_agree(cluster: &Cluster) {
    let mut hashes = Vec::new();
    for n in 0..cluster.members.len() {
        hashes.push(cluster.client_of(n, "operator/root"));
    }
    eventually("all members have the same state", async || {
        let mut found = Vec::new();
        for client in &hashes {
            let Ok(hash) = client.state_hash(0).await else {
                return false;
            };
            found.push((hash.hash, hash.hash_revision, hash.compact_revision));
        }
        found.windows(2).all(|pair| pair.first() == pair.last())
    })
    .await;
}

async fn cluster_id(cluster: &Cluster) -> u64 {
    let reply = cluster
        .client_of(0, "operator/root")
        .range(chainfire_client::wire::etcdserverpb::RangeRequest {
            key: b"x".to_vec().into(),
            ..Default::default()
        })
        .await
        .unwrap();
    reply.header.unwrap().cluster_id
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_under_load_are_consistent_and_restore_one_or_three_members() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster.client("operator/root");
    open_accounts(&root).await;
    let lease = root.lease_grant(600).await.unwrap();
    root.put_with_lease("leased", "x", lease.id()).await.unwrap();
    let (tasks, stop) = (Tasks::new(), Arc::new(AtomicBool::new(false)));
    for seed in 0..8 {
        let (client, stop) = (cluster.client("operator/root"), stop.clone());
        tasks.spawn("transfers", Kind::Background, async move {
            transfer(client, seed * 7, stop).await;
            Ok(())
        });
    }
    let dir = tempfile::tempdir().unwrap();
    let mut infos = Vec::new();
    for n in 0..6 {
        sleep(Duration::from_millis(150)).await;
        let file = dir.path().join(format!("{n}.backup"));
        let info = backup(&cluster.client_of(n % 3, "operator/root"), &file).await;
        assert_eq!((info.keys, info.leases), (ACCOUNTS as u64 + 1, 1));
        infos.push((file, info));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(
        infos.last().unwrap().1.revision > infos[0].1.revision,
        "there was load"
    );
    let id_before = cluster_id(&cluster).await;
    // The newest that clients know, past every backup: what comes after the backups is lost with them.
    let newest = root.put("after", "x").await.unwrap().revision;
    kill_all(&mut cluster);

    for (round, (file, info)) in infos.iter().enumerate().step_by(5) {
        for n in 0..3 {
            let _ = std::fs::remove_dir_all(data_of(&cluster, n));
        }
        let (all, from) = (configs(&cluster), file.clone());
        let restored = offline(move || {
            // One by one, as on three machines.
            let mut last = None;
            for one in all {
                last = Some(offline::restore(&from, &[one], &RESTORE).unwrap());
            }
            last.unwrap()
        })
        .await;
        assert_eq!(restored.revision, info.revision + i64::from(DEFAULT_BUMP));
        start_all(&mut cluster);
        cluster.ready().await;
        let root = cluster.client("operator/root");
        assert_eq!(sum(&root).await, MONEY * ACCOUNTS as i64, "backup {round}");
        assert!(root.get("after").await.unwrap().is_none());
        let left = root.lease_time_to_live(lease.id()).await.unwrap();
        assert!(
            (500..=600).contains(&left.ttl) && left.granted_ttl == 600,
            "{left:?}"
        );
        for old in [2, info.revision, newest, newest + 1000] {
            is_compacted_for_old_watchers(&cluster, old).await;
        }
        assert!(root.put("new", "x").await.unwrap().revision > info.revision + i64::from(DEFAULT_BUMP));
        members_agree(&cluster).await;
        let id = cluster_id(&cluster).await;
        assert!(id != id_before && id == restored.cluster_id);
        kill_all(&mut cluster);
    }
    a_repeated_restore_changes_nothing(&cluster, &infos[5].0).await;

    // The same file for a cluster of one.
    let mut single = Cluster::start(1).await;
    kill_all(&mut single);
    let (one, from) = (configs(&single), infos[5].0.clone());
    let refused = {
        let (one, from) = (one.clone(), from.clone());
        offline(move || offline::restore(&from, &one, &RESTORE)).await
    };
    assert!(
        matches!(refused, Err(OfflineError::NotEmpty { .. })),
        "{refused:?}"
    );
    std::fs::remove_dir_all(data_of(&single, 0)).unwrap();
    offline(move || offline::restore(&from, &one, &RESTORE).unwrap()).await;
    start_all(&mut single);
    single.ready().await;
    assert_eq!(
        sum(&single.client("operator/root")).await,
        MONEY * ACCOUNTS as i64
    );
}

async fn a_repeated_restore_changes_nothing(cluster: &Cluster, file: &Path) {
    let (all, from) = (configs(cluster), file.to_owned());
    let again = offline(move || offline::restore(&from, &all, &RESTORE).unwrap()).await;
    assert_eq!((again.members.len(), again.already.len()), (0, 3));
    let (all, from) = (configs(cluster), file.to_owned());
    let other = RestoreOptions {
        token: Some("second".into()),
        ..RESTORE
    };
    let refused = offline(move || offline::restore(&from, &all, &other)).await;
    assert!(
        matches!(refused, Err(OfflineError::NotEmpty { .. })),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_of_a_backup_is_refused() {
    let cluster = Cluster::start(1).await;
    let root = cluster.client("operator/root");
    for n in 0..20 {
        root.put(format!("k/{n}"), "v".repeat(40)).await.unwrap();
    }
    root.lease_grant(60).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sound");
    backup(&root, &file).await;
    let sound = std::fs::read(&file).unwrap();
    let bad = dir.path().join("bad");
    offline(move || {
        let refused = |bytes: &[u8], what: &str| {
            std::fs::write(&bad, bytes).unwrap();
            let error = check_backup(&bad).expect_err(what).to_string();
            assert!(error.contains("bad"), "the file is named: {error}");
        };
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            refused(&bytes, &format!("bit flipped in byte {at}"));
        }
        for length in (0..sound.len())
            .step_by(31)
            .chain([sound.len() - 1, sound.len() - 512])
        {
            refused(&sound[..length], &format!("cut at {length}"));
        }
        for more in [1, 480, 512] {
            let longer = [sound.clone(), vec![0; more]].concat();
            refused(&longer, &format!("{more} bytes more"));
        }
        // Not by accident: a whole sector taken out, with the length still plausible.
        let hole = [&sound[..512], &sound[1024..]].concat();
        refused(&hole, "a sector is missing");
        std::fs::write(&bad, &sound).unwrap();
        check_backup(&bad).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_disks_lost_under_load_and_one_command_brings_everything_back() {
    let mut cluster = Cluster::start(3).await;
    let root = cluster.client("operator/root");
    let lease = root.lease_grant(600).await.unwrap();
    root.put_with_lease("leased", "x", lease.id()).await.unwrap();
    let id_before = cluster_id(&cluster).await;
    let leader = cluster.leader().await;
    let acked = load(&cluster, leader).await;
    kill_all(&mut cluster);
    let newest = acked.values().copied().max().unwrap();
    // Two disks are gone: one empty, one with rubbish on it.
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    std::fs::remove_dir_all(data_of(&cluster, one)).unwrap();
    for file in std::fs::read_dir(data_of(&cluster, two).join("raft")).unwrap() {
        std::fs::write(file.unwrap().path(), "rubbish").unwrap();
    }

    let all = configs(&cluster);
    let recovered = offline(move || offline::recover(&all, &recover_options("life2")).unwrap()).await;
    assert_eq!(
        recovered.survivor.as_deref(),
        Some(cluster.members[leader].name.as_str())
    );
    assert!(
        recovered.revision >= newest + i64::from(DEFAULT_BUMP),
        "{recovered:?}"
    );
    assert_eq!(recovered.kept.len(), 2, "old data is kept: {:?}", recovered.kept);
    start_all(&mut cluster);
    cluster.ready().await;

    let root = cluster.client("operator/root");
    let found: BTreeMap<String, i64> = root
        .list("load/")
        .await
        .unwrap()
        .kvs
        .iter()
        .map(|kv| (kv.key_text().into_owned(), kv.mod_revision))
        .collect();
    for (key, revision) in &acked {
        assert_eq!(found.get(key), Some(revision), "{key} was acknowledged");
    }
    assert_eq!(
        root.lease_time_to_live(lease.id()).await.unwrap().granted_ttl,
        600
    );
    for old in [2, newest, newest + 10_000] {
        is_compacted_for_old_watchers(&cluster, old).await;
    }
    assert!(root.put("new", "x").await.unwrap().revision > recovered.revision);
    members_agree(&cluster).await;
    assert_ne!(cluster_id(&cluster).await, id_before);

    // A second life can be lost, too; this time one member goes on alone.
    kill_all(&mut cluster);
    let alone = vec![config(&cluster, one)];
    let recovered = offline(move || offline::recover(&alone, &recover_options("life3")).unwrap()).await;
    assert_eq!((recovered.members.len(), recovered.missing.len()), (1, 2));
    cluster.members[one].start();
    cluster.ready().await;
    let single = cluster.client_of(one, "operator/root");
    assert_eq!(single.list("load/").await.unwrap().kvs.len(), found.len());
    assert_eq!(single.member_list().await.unwrap().len(), 1);
}

/// Puts through the leader from many clients, until the cluster is killed under them; what was acknowledged, at which
/// revision.
async fn load(cluster: &Cluster, leader: usize) -> BTreeMap<String, i64> {
    let acked = Arc::new(Mutex::new(BTreeMap::new()));
    let (tasks, ended) = (Tasks::new(), Arc::new(AtomicUsize::new(0)));
    for worker in 0..WORKERS {
        let client = cluster
            .client_of(leader, "operator/root")
            .with_deadline(Duration::from_secs(2));
        let (acked, ended) = (acked.clone(), ended.clone());
        tasks.spawn("load", Kind::Background, async move {
            for n in 0.. {
                let key = format!("load/{worker}/{n}");
                let Ok(put) = client.put(&key, "x").await else {
                    break;
                };
                acked.lock().unwrap().insert(key, put.revision);
            }
            ended.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
    }
    eventually("there is load", async || acked.lock().unwrap().len() > 500).await;
    // Killed in the middle, and only then looked at: the survivor may have more than was acknowledged, never less.
    for member in &cluster.members {
        member.signal(nix::sys::signal::Signal::SIGKILL);
    }
    // Nobody may be left who would go on with the next life.
    eventually("all writers have given up", async || {
        ended.load(Ordering::Relaxed) == WORKERS
    })
    .await;
    let acked = acked.lock().unwrap();
    acked.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_cluster_is_not_recovered_by_mistake() {
    let mut cluster = Cluster::start(3).await;
    cluster.client("operator/root").put("k", "v").await.unwrap();
    let all = configs(&cluster);
    let running = offline(move || offline::recover(&all, &recover_options("x"))).await;
    assert!(
        matches!(running, Err(OfflineError::Running { .. })),
        "{running:?}"
    );
    let others = offline::others_with_leader(&config(&cluster, 0)).await.unwrap();
    assert_eq!(others, ["m1", "m2"]);
    kill_all(&mut cluster);
    assert_eq!(
        offline::others_with_leader(&config(&cluster, 0))
            .await
            .unwrap()
            .len(),
        0
    );
    let all = configs(&cluster);
    let sound = offline(move || offline::recover(&all, &recover_options("x"))).await;
    assert!(
        matches!(sound, Err(OfflineError::MajorityLeft { sound: 3, members: 3 })),
        "{sound:?}"
    );
    for n in 0..3 {
        let inspected = offline({
            let config = config(&cluster, n);
            move || offline::inspect(&config)
        })
        .await;
        assert_eq!(inspected.condition, Condition::Sound);
        assert!(
            inspected.last_index >= inspected.applied && inspected.last_term >= 2,
            "{inspected:?}"
        );
        std::fs::remove_dir_all(data_of(&cluster, n)).unwrap();
    }
    let all = configs(&cluster);
    let nothing = offline(move || offline::recover(&all, &recover_options("x"))).await;
    assert!(
        matches!(nothing, Err(OfflineError::NoSurvivor { .. })),
        "{nothing:?}"
    );
}

/// Tells a started copy of this binary to recover, and where.
const RECOVER: &str = "CHAINFIRE_TEST_RECOVER";

/// Not a test: the body of a process that recovers and is killed. Does nothing when the tests run.
#[test]
fn recovering_process() {
    let Some(paths) = std::env::var_os(RECOVER) else {
        return;
    };
    let paths = paths.into_string().unwrap();
    let configs: Vec<Config> = paths
        .split(':')
        .map(|path| hearth_service::config::load(Path::new(path)).unwrap())
        .collect();
    let life = format!("life-{}", std::process::id());
    match offline::recover(&configs, &recover_options(&life)) {
        // One killed between its last step and its exit had done everything: two of the three folders were gone.
        Ok(_) | Err(OfflineError::MajorityLeft { sound: 3, .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_killed_at_any_moment_is_completed_by_the_next() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let root = cluster.client_of(leader, "operator/root");
    for n in 0..200 {
        root.put(format!("k/{n}"), "v".repeat(2000)).await.unwrap();
    }
    kill_all(&mut cluster);
    for n in (0..3).filter(|n| *n != leader) {
        std::fs::remove_dir_all(data_of(&cluster, n)).unwrap();
    }
    let paths: Vec<String> = (0..3)
        .map(|n| cluster.members[n].dir.join("conf.toml").display().to_string())
        .collect();
    let program = std::env::current_exe().unwrap();
    let start = || {
        Command::new(&program)
            .args(["--exact", "recovering_process", "--nocapture"])
            .env(RECOVER, paths.join(":"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut kills = 0;
    // Ever later, until one is through before its kill.
    let mut life = Duration::from_millis(20);
    for attempt in 1..60 {
        let mut child = start();
        let end = std::time::Instant::now() + life;
        life = life * 5 / 4;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if std::time::Instant::now() >= end {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            sleep(Duration::from_millis(1)).await;
        };
        if let Some(status) = status {
            assert!(status.success(), "attempt {attempt}: {status}");
            break;
        }
        kills += 1;
        // The survivor's folder is always whole: the old one or the new one.
        let survivor = config(&cluster, leader);
        let found = offline(move || offline::inspect(&survivor)).await;
        assert_eq!(
            found.condition,
            Condition::Sound,
            "after {kills} kills: {found:?}"
        );
    }
    println!("killed {kills} times");
    start_all(&mut cluster);
    cluster.ready().await;
    assert_eq!(cluster.plain().list("k/").await.unwrap().kvs.len(), 200);
    members_agree(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_saves_a_snapshot_that_our_tool_reads() {
    let cluster = Cluster::start(1).await;
    cluster.client("operator/root").put("k", "v").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.db");
    let Some(out) = cluster.etcdctl(&["snapshot", "save", file.to_str().unwrap()]) else {
        println!("skipped: etcdctl is not installed");
        return;
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let info = offline(move || check_backup(&file).unwrap()).await;
    assert_eq!((info.revision, info.keys), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn scheduled_backups_are_sound_and_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let more = format!(
        "backup_dir = \"{}\"\nbackup_every_s = 1\nbackup_keep = 2",
        dir.path().display()
    );
    let cluster = Cluster::start_with(1, &more).await;
    let root = cluster.client("operator/root");
    root.put("k", "v").await.unwrap();
    let backups = || {
        let mut names: Vec<PathBuf> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "chainfire"))
            .collect();
        names.sort();
        names
    };
    eventually("there are backups", async || !backups().is_empty()).await;
    let first = backups().first().unwrap().clone();
    eventually("the first is gone and two are left", async || {
        let now = backups();
        now.len() == 2 && !now.contains(&first)
    })
    .await;
    drop(cluster);
    let newest = backups().last().unwrap().clone();
    let info = offline(move || check_backup(&newest).unwrap()).await;
    assert_eq!((info.revision, info.keys), (2, 1));
}
