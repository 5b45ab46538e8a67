//! A node is cut off under a guest with high availability: seen from outside, it never runs twice, and it is back in
//! time; what is on the node's own disk does not notice. A store without quorum touches nobody.
//!
//! `HEARTH_FENCE_RUNS` repeats the partition (the full size is 20).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_tests::{Platform, is_left_out, send, wait};
use nix::sys::signal::Signal;

/// The lease, and 30 s, as it is promised.
const BACK_BY: Duration = Duration::from_secs(45);
/// How often the observer looks at all processes.
const LOOK: Duration = Duration::from_millis(20);
/// How long the store is without quorum.
const WITHOUT_QUORUM: Duration = Duration::from_secs(16);
/// Ports that the node's agent and guard reach through the wire: the members of the store, and the control plane.
const WIRED: [u16; 4] = [2379, 2381, 2383, 8444];
/// Bytes that are passed on at a time.
const PIECE: usize = 16 << 10;

/// The node's way to everything; while it is cut, nothing gets through and nobody is told.
#[derive(Clone, Default)]
struct Wire(Arc<AtomicBool>);

impl Wire {
    fn is_cut(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn cut(&self, cut: bool) {
        self.0.store(cut, Ordering::SeqCst);
    }

    /// A port that leads to `port`. Its threads end with the test.
    fn to(&self, port: u16) -> Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let own = listener.local_addr()?.port();
        let wire = self.clone();
        thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let wire = wire.clone();
                thread::spawn(move || {
                    wire.wait();
                    if let Ok(to) = TcpStream::connect(("127.0.0.1", port)) {
                        wire.join(&from, &to);
                    }
                });
            }
        });
        Ok(own)
    }

    fn wait(&self) {
        while self.is_cut() {
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn join(&self, a: &TcpStream, b: &TcpStream) {
        thread::scope(|scope| {
            for (from, to) in [(a, b), (b, a)] {
                scope.spawn(move || self.pass(from, to));
            }
        });
    }

    fn pass(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut piece = vec![0; PIECE];
        while let Ok(read) = from.read(&mut piece) {
            // What was on its way when the wire was cut arrives late, or never.
            self.wait();
            if read == 0 || to.write_all(piece.get(..read).unwrap_or_default()).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    }
}

/// Puts the node's agent and guard behind the wire.
fn rewire(platform: &Platform, node: &str) -> Result<Wire> {
    let wire = Wire::default();
    let mut ports = BTreeMap::new();
    for port in WIRED {
        ports.insert(port, wire.to(port)?);
    }
    for part in ["agent", "guard"] {
        let file = platform.data().join(format!("conf/{part}-{node}.toml"));
        let text = fs::read_to_string(&file)?;
        let mut lines = Vec::new();
        for line in text.lines() {
            let mut line = line.to_owned();
            if line.starts_with("endpoints") || line.starts_with("hubs") {
                for (port, own) in &ports {
                    line = line.replace(&format!("127.0.0.1:{port}\""), &format!("127.0.0.1:{own}\""));
                }
            }
            lines.push(line);
        }
        fs::write(file, lines.join("\n") + "\n")?;
    }
    Ok(wire)
}

/// Looks from outside: the QEMU processes of one VM, at every moment.
struct Observer<'a> {
    platform: &'a Platform,
    vm: String,
    most: usize,
    looks: u64,
}

impl Observer<'_> {
    fn look(&mut self) -> Vec<u32> {
        let guests = self.platform.guests();
        let own = guests.into_iter().filter(|(_, line)| line.contains(&self.vm));
        let pids: Vec<u32> = own.map(|(pid, _)| pid).collect();
        self.most = self.most.max(pids.len());
        self.looks += 1;
        pids
    }
}

fn runs() -> u32 {
    std::env::var("HEARTH_FENCE_RUNS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1)
}

fn create_on(platform: &Platform, vm: &str, node: &str, more: &str) -> Result<String> {
    let others = ["node01", "node02", "node03"]
        .into_iter()
        .filter(|other| *other != node);
    let others: Vec<_> = others.collect();
    for other in &others {
        platform.hearth(&format!("node cordon {other}")).ok()?;
    }
    platform
        .hearth(&format!(
            "vm create {vm} --image tiny --cpus 1 --memory 128MiB --wait {more}"
        ))
        .ok()?;
    for other in &others {
        platform.hearth(&format!("node uncordon {other}")).ok()?;
    }
    let shown = platform.vm(vm)?;
    ensure!(shown["node"] == node, "{vm} is on {shown}");
    Ok(shown["id"].as_str().context("no id")?.to_owned())
}

#[test]
fn a_cut_off_node_never_runs_a_guest_twice() -> Result<()> {
    if is_left_out("cutting a node off") {
        return Ok(());
    }
    Platform::scenario(&[], |platform| {
        platform
            .hearth("cluster init --data-dir")
            .arg(platform.data())
            .ok()?;
        let wire = rewire(platform, "node01")?;
        platform.up("--no-first-vm")?;
        let own = create_on(platform, "own", "node01", "")?;
        let own_pid = platform.guest(&own)?;
        for run in 1..=runs() {
            partition(platform, &wire, run)?;
            ensure!(
                platform.guest(&own)? == own_pid,
                "the guest on the node's own disk was touched"
            );
        }
        without_quorum(platform)?;
        ensure!(
            platform.guest(&own)? == own_pid,
            "the guest on the node's own disk was touched"
        );
        Ok(())
    })
}

fn partition(platform: &Platform, wire: &Wire, run: u32) -> Result<()> {
    let vm = create_on(platform, "web", "node01", "--ha")?;
    platform
        .hearth("vm explain web")
        .ok()?
        .says(&["holds its lease"])?;
    let old = platform.guest(&vm)?;
    let mut observer = Observer {
        platform,
        vm,
        most: 0,
        looks: 0,
    };
    let begin = Instant::now();
    wire.cut(true);
    let (mut ended, mut back) = (None, None);
    while back.is_none() {
        let pids = observer.look();
        if ended.is_none() && !pids.contains(&old) {
            ended = Some(begin.elapsed());
        }
        if pids.iter().any(|pid| *pid != old) {
            back = Some(begin.elapsed());
        }
        ensure!(
            begin.elapsed() < BACK_BY,
            "it is not back after {BACK_BY:?}; ended {ended:?}, {pids:?}"
        );
        thread::sleep(LOOK);
    }
    let shown = platform.vm("web")?;
    ensure!(shown["epoch"] == 2 && shown["node"] != "node01", "it is {shown}");
    platform.settled("web", "running", 60)?;
    wire.cut(false);
    wait::until_ok("the node is well again", 60, || {
        observer.look();
        platform.hearth("status").ok().map(drop)?;
        let status = platform.hearth("status").ok()?;
        status.says(&["guard-node01"])?;
        ensure!(!status.stdout.contains("fenced"), "{status}");
        Ok(())
    })?;
    let calm = Instant::now();
    while calm.elapsed() < Duration::from_secs(5) {
        observer.look();
        thread::sleep(LOOK);
    }
    println!(
        "run {run}: ended {:.1} s after the cut, elsewhere after {:.1} s; {} looks, at most {} at once",
        ended.unwrap_or_default().as_secs_f64(),
        back.unwrap_or_default().as_secs_f64(),
        observer.looks,
        observer.most
    );
    ensure!(
        observer.most == 1,
        "{} processes had the disk open at once",
        observer.most
    );
    platform.hearth("vm delete web --wait").ok().map(drop)
}

/// Two of three members are dead: nobody can have been given a guest, so nobody is touched.
fn without_quorum(platform: &Platform) -> Result<()> {
    let vm = create_on(platform, "web", "node02", "--ha")?;
    let before = platform.guest(&vm)?;
    let supervisor = platform.pid("supervisor")?;
    // Who would start them again.
    send(supervisor, Signal::SIGSTOP);
    for member in ["chainfire-2", "chainfire-3"] {
        send(platform.pid(member)?, Signal::SIGKILL);
    }
    let begin = Instant::now();
    while begin.elapsed() < WITHOUT_QUORUM {
        ensure!(platform.guest(&vm)? == before, "the guest was touched");
        thread::sleep(Duration::from_millis(100));
    }
    send(supervisor, Signal::SIGCONT);
    platform.is_healthy(90)?;
    ensure!(platform.guest(&vm)? == before, "the guest was touched");
    Ok(())
}
