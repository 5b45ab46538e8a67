//! Clocks of day that jump, member by member (libfaketime): leases neither end early nor live on, and nothing stops. Skipped,
//! with a line that says so, where libfaketime is not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use chainfire_client::{Client, WatchUpdate};
use common::{Cluster, PATIENCE, eventually};
use tokio::time::{Instant, sleep, timeout};

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Offsets in seconds that the members' clocks jump to, in turn. None is before the start, where certificates are not
/// valid yet.
const JUMPS: [[i64; 3]; 4] = [[1800, 0, 0], [1800, 1800, 3000], [0, 3000, 60], [0, 0, 0]];
/// Of a lease that nobody renews, seconds.
const SHORT: i64 = 4;

/// What makes a process read its clock of day through a file; the monotonic one stays.
fn environment(file: &Path) -> Vec<(String, String)> {
    let one = || "1".to_owned();
    vec![
        ("LD_PRELOAD".into(), LIBRARY.into()),
        ("FAKETIME_TIMESTAMP_FILE".into(), file.display().to_string()),
        ("FAKETIME_NO_CACHE".into(), one()),
        ("FAKETIME_DONT_FAKE_MONOTONIC".into(), one()),
        ("DONT_FAKE_MONOTONIC".into(), one()),
    ]
}

fn set(file: &Path, offset_s: i64) {
    // In one step: a member reads it at any moment.
    let fresh = file.with_extension("fresh");
    std::fs::write(&fresh, format!("{offset_s:+}\n")).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

/// The clock of a program in the same environment, seconds after ours.
fn offset(file: &Path) -> i64 {
    let out = Command::new("date")
        .arg("+%s")
        .envs(environment(file))
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    text.trim().parse::<i64>().unwrap() - i64::try_from(now.as_secs()).unwrap()
}

/// Grants a lease that nobody renews and waits for its end; it must not come early.
async fn runs_out(client: &Client) {
    let granted = Instant::now();
    let lease = client.lease_grant(SHORT).await.unwrap().id();
    let life = Duration::from_secs(SHORT.unsigned_abs());
    client.put_with_lease("short", "x", lease).await.unwrap();
    loop {
        let is_there = client.get("short").await.unwrap().is_some();
        let age = granted.elapsed();
        assert!(is_there || age >= life, "it ended after {age:?}");
        assert!(!is_there || age < life + PATIENCE, "it still lives after {age:?}");
        if !is_there {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_day_that_jump_change_nothing() {
    if !Path::new(LIBRARY).is_file() {
        println!("SKIPPED: libfaketime is not installed (apt install --no-install-recommends faketime)");
        return;
    }
    let mut cluster = Cluster::start(3).await;
    let mut files: Vec<PathBuf> = Vec::new();
    for member in &mut cluster.members {
        let file = member.dir.join("clock");
        set(&file, 0);
        member.kill();
        member.environment = environment(&file);
        member.start();
        files.push(file);
    }
    cluster.ready().await;
    for member in &cluster.members {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", member.pid())).unwrap();
        assert!(maps.contains("libfaketime"), "{} has the true clock", member.name);
    }
    let client = cluster.plain();
    let kept = client.lease_grant(6).await.unwrap();
    client.put_with_lease("kept", "x", kept.id()).await.unwrap();
    // Never renewed while the clocks jump, and far from its end.
    let long = client.lease_grant(600).await.unwrap();
    client.put_with_lease("long", "x", long.id()).await.unwrap();
    let first = client.put("k", "begin").await.unwrap().revision;
    let mut watcher = client.watch("k", first);
    let mut puts = 1;
    for jump in JUMPS {
        for (file, offset_s) in files.iter().zip(jump) {
            set(file, offset_s);
            assert!((offset(file) - offset_s).abs() < 60, "the clock did not jump");
        }
        for _ in 0..20 {
            assert_eq!(client.lease_keep_alive_once(kept.id()).await, Ok(6));
            client.put("k", "x").await.unwrap();
            puts += 1;
        }
        let renewing = async {
            loop {
                assert_eq!(client.lease_keep_alive_once(kept.id()).await, Ok(6));
                sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::select! {
            () = runs_out(&client) => {}
            () = renewing => {}
        }
        assert!(client.get("kept").await.unwrap().is_some());
        let left = client.lease_time_to_live(long.id()).await.unwrap().ttl;
        assert!((300..=600).contains(&left), "{left} s are left of 600");
    }
    let mut seen = 0;
    while seen < puts {
        let update = timeout(PATIENCE, watcher.next()).await.expect("a gap").unwrap();
        if let WatchUpdate::Events { events, .. } = update {
            seen += events.len();
        }
    }
    assert_eq!(seen, puts);
    // And a start with a clock that is wrong.
    let leader = cluster.leader().await;
    set(&files[leader], 2400);
    cluster.members[leader].kill();
    cluster.members[leader].start();
    cluster.ready().await;
    eventually("writes go on", async || client.put("k", "end").await.is_ok()).await;
}
