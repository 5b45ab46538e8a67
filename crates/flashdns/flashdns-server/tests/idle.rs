//! What a server costs that nobody asks: memory, and how often it wakes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Bed, PATIENCE, dig_until};
use flashdns_server::{Config, Server};
use hearth_service::tasks::Tasks;

/// Private memory of the idle process.
const MAX_MEMORY_KIB: u64 = 30 * 1024;
const WINDOW: Duration = Duration::from_secs(10);
const CONFIG: &str = "FLASHDNS_IDLE_CONFIG";

/// Not a test: the process that the test below looks at. It is this program again, with a configuration.
#[tokio::test]
async fn child() {
    let Ok(path) = std::env::var(CONFIG) else { return };
    let config: Config = hearth_service::config::load(path.as_ref()).unwrap();
    let server = Server::bind(&config).await.unwrap();
    println!("\nlistening {}", server.dns_addresses()[0]);
    let tasks = Tasks::new();
    server.start(&tasks, None);
    tasks.stopping().await;
}

struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Idle {
    fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Times each thread has gone to sleep so far.
    fn sleeps(&self) -> Vec<(String, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let read = |task: fs::DirEntry| {
            let name = fs::read_to_string(task.path().join("comm"))
                .unwrap()
                .trim()
                .to_owned();
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            let line = status
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt_switches"))
                .unwrap();
            (name, line.split_whitespace().nth(1).unwrap().parse().unwrap())
        };
        tasks.map(|task| read(task.unwrap())).collect()
    }
}

#[tokio::test]
async fn an_idle_server_is_small_and_sleeps() {
    let Some(bed) = Bed::new() else { return };
    bed.ready().await;
    bed.publish("web", &["10.77.0.5"]).await;
    let config = bed.config(bed.data.path().join("flashdns"));
    let file = bed.data.path().join("flashdns.toml");
    fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads", "1"])
        .env(CONFIG, &file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let idle = Idle(child);
    let mut lines = output.lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("listening ")).unwrap();
    let dns = line.split_once(' ').unwrap().1.parse().unwrap();
    dig_until(dns, &["web.default.hearth.internal", "A"], |answer| {
        answer.answer.len() == 1
    })
    .await;
    let settled = Instant::now();
    while settled.elapsed() < Duration::from_secs(3) && settled.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = idle.sleeps();
    tokio::time::sleep(WINDOW).await;
    let after = idle.sleeps();
    let memory = idle.memory_kib();
    let woken: Vec<(String, u64)> = after
        .iter()
        .zip(&before)
        .map(|((name, after), (_, before))| (name.clone(), after - before))
        .collect();
    println!("idle: {memory} KiB private; wake-ups in {WINDOW:?}: {woken:?}");
    assert!(memory < MAX_MEMORY_KIB, "{memory} KiB");
    let all: u64 = woken.iter().map(|(_, times)| times).sum();
    // The policy watch proves its freshness once a second; timer, request and reply are a wake-up each.
    assert!(all <= 8 * WINDOW.as_secs(), "{woken:?}");
    for (name, times) in &woken {
        assert!(
            name != "dns-udp" || *times == 0,
            "a thread that answers woke without a query: {woken:?}"
        );
    }
}
