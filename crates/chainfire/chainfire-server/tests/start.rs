//! Starts that must fail, and say what, why and what to do; and what an idle member costs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use chainfire_client::Error;
use common::{Cluster, eventually};

/// Cuts off most of a file below a folder.
fn damage(dir: &Path, suffix: &str) -> PathBuf {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().ends_with(suffix) {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let file = files
        .first()
        .unwrap_or_else(|| panic!("no file {suffix} in {}", dir.display()))
        .clone();
    // Records that were promised are gone; the first few are still there.
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(2048)
        .unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_a_taken_port_and_a_wrong_configuration_are_explained() {
    let mut cluster = Cluster::start(1).await;
    let root = cluster.client("operator/root");
    for n in 0..100 {
        root.put(format!("k/{n}"), "x".repeat(100)).await.unwrap();
    }
    let conf = cluster.members[0].dir.join("conf.toml");
    let good = std::fs::read_to_string(&conf).unwrap();
    let (code, text) = cluster.members[0].run_to_end();
    assert!(
        code != Some(0) && text.contains("cannot listen on 127.0.0.1"),
        "{text}"
    );

    cluster.members[0].kill();
    std::fs::write(&conf, good.replace("member = \"m0\"", "member = \"nobody\"")).unwrap();
    let (code, text) = cluster.members[0].run_to_end();
    assert!(
        code != Some(0) && text.contains("`nobody` does not stand in [[chainfire.members]]"),
        "{text}"
    );
    std::fs::write(&conf, good.replace("[chainfire]", "[chainfire]\nunknown = 1")).unwrap();
    let (code, text) = cluster.members[0].run_to_end();
    assert!(code != Some(0) && text.contains("unknown"), "{text}");
    std::fs::write(&conf, good).unwrap();

    damage(&cluster.members[0].dir.join("data/raft"), ".raftlog");
    let (code, text) = cluster.members[0].run_to_end();
    assert!(
        code != Some(0) && text.contains("data/raft") && text.contains("damaged"),
        "{text}"
    );
    // It stays an error: nothing was repaired by forgetting.
    let (code, again) = cluster.members[0].run_to_end();
    assert!(code != Some(0) && again.contains("damaged"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_leaves_nothing_half_made() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    let data = cluster.members[0].dir.join("data");
    std::fs::remove_dir_all(&data).unwrap();
    let _held = TcpListener::bind(&cluster.members[0].peer).unwrap();
    let (code, text) = cluster.members[0].run_to_end();
    assert!(code != Some(0) && text.contains("cannot listen"), "{text}");
    assert!(!data.join("raft").exists(), "nothing half-made");
}

/// CPU ticks and resident KiB of a process.
fn cost(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    (ticks, rss.split_whitespace().next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_member_is_small_and_quiet() {
    let cluster = Cluster::start(3).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before: Vec<(u64, u64)> = cluster.members.iter().map(|member| cost(member.pid())).collect();
    let seconds = 10;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    for (member, before) in cluster.members.iter().zip(before) {
        let (ticks, rss_kib) = cost(member.pid());
        let percent = (ticks - before.0) as f64 / seconds as f64;
        println!(
            "{}: {:.1} MiB, {percent:.1} % of a core (unoptimised build)",
            member.name,
            rss_kib as f64 / 1024.0
        );
        assert!(rss_kib < 60 * 1024, "{} uses {rss_kib} KiB", member.name);
        // Unoptimised code; the release build is held to 1 %.
        assert!(percent < 4.0, "{} uses {percent} % of a core", member.name);
    }
}

/// A small file system of its own; gone at the end.
struct SmallDisk(PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_refuses_writes_and_recovers() {
    let mut cluster = Cluster::start(1).await;
    cluster.members[0].kill();
    let data = cluster.members[0].dir.join("data");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::create_dir(&data).unwrap();
    let options = Some("size=192m");
    if nix::mount::mount(
        Some("tmpfs"),
        &data,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        options,
    )
    .is_err()
    {
        println!("SKIPPED: only root may mount the small disk of this test");
        return;
    }
    let _disk = SmallDisk(data.clone());
    cluster.members[0].start();
    cluster.ready().await;
    let root = cluster.client("operator/root");
    root.put("k", "before").await.unwrap();
    let filler = data.join("filler");
    let stat = nix::sys::statvfs::statvfs(&data).unwrap();
    let free = stat.blocks_available() * stat.fragment_size();
    std::fs::write(&filler, vec![1; usize::try_from(free - (32 << 20)).unwrap()]).unwrap();
    let refused = |error: &Error| matches!(error, Error::Etcd { message, .. } if message == "etcdserver: mvcc: database space exceeded");
    eventually(
        "writes are refused",
        async || matches!(root.put("k", "x").await, Err(error) if refused(&error)),
    )
    .await;
    assert!(root.get("k").await.unwrap().is_some(), "reads go on");
    root.delete("k").await.unwrap();
    assert!(
        root.status().await[0]
            .1
            .as_ref()
            .unwrap()
            .errors
            .iter()
            .any(|error| error.contains("NOSPACE"))
    );
    std::fs::remove_file(&filler).unwrap();
    eventually("writes are accepted again", async || {
        root.put("k", "after").await.is_ok()
    })
    .await;
    cluster.members[0].kill();
}
