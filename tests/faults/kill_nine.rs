//! SIGKILL to every service in turn while VMs come and go: no guest dies, nothing is lost, nothing leaks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_tests::guest::{self, Console};
use hearth_tests::{Platform, is_left_out, leaks, repeat, send, store, wait};
use nix::sys::signal::Signal;

#[test]
fn no_kill_touches_a_guest_and_everything_converges() -> Result<()> {
    if is_left_out("killing every service") {
        return Ok(());
    }
    Platform::scenario(&[store::NEED], |platform| {
        platform.up("--no-first-vm")?;
        platform
            .hearth("vm create steady --image tiny --cpus 1 --memory 128MiB --wait")
            .ok()?;
        let clean = leaks::Traces::of(platform)?;
        let steady = Steady::of(platform)?;
        let node = steady.node.clone();
        let mut victims = members()?;
        victims.extend(["aegis", "flashdns", "plasmavmc"].map(str::to_owned));
        victims.push(format!("agent-{node}"));

        let enough = AtomicBool::new(false);
        let (killed, churned) = thread::scope(|scope| {
            let churn = scope.spawn(|| churn(platform, &enough));
            let killed = victims.iter().try_for_each(|victim| {
                kill_and_recover(platform, &steady, victim).with_context(|| format!("kill -9 of {victim}"))
            });
            enough.store(true, Ordering::SeqCst);
            (killed, churn.join())
        });
        killed?;
        let churned = churned.map_err(|_| anyhow::anyhow!("the loop panicked"))??;
        println!(
            "VMs created and deleted meanwhile: {} ({} requests repeated)",
            churned.ids.len(),
            churned.repeated
        );
        ensure!(
            churned.ids.len() >= 3,
            "the loop made only {} VMs",
            churned.ids.len()
        );

        platform.is_healthy(60)?;
        clean.are_all(platform, 30)?;
        leaks::no_file_names(platform, &churned.ids)?;
        steady.is_untouched(platform)
    })
}

/// The guest that must not notice anything.
struct Steady {
    id: String,
    node: String,
    pid: u32,
    boot: String,
}

impl Steady {
    fn of(platform: &Platform) -> Result<Steady> {
        let vm = platform.vm("steady")?;
        let id = vm["id"].as_str().context("no id")?.to_owned();
        let mut console = Console::open(platform.hearth("vm console steady"))?;
        console.log_in("steady")?;
        Ok(Steady {
            pid: platform.guest(&id)?,
            node: vm["node"].as_str().context("no node")?.to_owned(),
            boot: console.run("cat /proc/sys/kernel/random/boot_id")?,
            id,
        })
    }

    fn still_runs(&self, platform: &Platform) -> Result<()> {
        let pid = platform.guest(&self.id)?;
        ensure!(pid == self.pid, "its QEMU was {} and is {pid}", self.pid);
        guest::answers_echo(platform.address("steady")?, 5)
    }

    /// The same process, the same boot, the same name.
    fn is_untouched(&self, platform: &Platform) -> Result<()> {
        self.still_runs(platform)?;
        let mut console = Console::open(platform.hearth("vm console steady"))?;
        let boot = console.run("cat /proc/sys/kernel/random/boot_id")?;
        ensure!(boot == self.boot, "the guest booted again");
        let found = guest::dig("steady.default.hearth.internal A")?;
        ensure!(
            found == [platform.address("steady")?.to_string()],
            "its name is {found:?}"
        );
        Ok(())
    }
}

/// Every member of the store, the one that hurts most first: the leader.
fn members() -> Result<Vec<String>> {
    let status = store::etcdctl().words("endpoint status -w json").ok()?.json()?;
    let all = status.as_array().context("no status")?;
    let leads = |one: &serde_json::Value| one["Status"]["leader"] == one["Status"]["header"]["member_id"];
    let leader = all.iter().position(leads).context("no leader")?;
    let mut numbers: Vec<_> = (0..all.len()).collect();
    numbers.swap(0, leader);
    ensure!(numbers.len() == 3, "{} members", numbers.len());
    Ok(numbers
        .iter()
        .map(|number| format!("chainfire-{}", number + 1))
        .collect())
}

fn kill_and_recover(platform: &Platform, steady: &Steady, victim: &str) -> Result<()> {
    let old = platform.pid(victim)?;
    send(old, Signal::SIGKILL);
    let begin = Instant::now();
    wait::until_ok(&format!("{victim} is started again"), 30, || {
        let new = platform.pid(victim)?;
        ensure!(new != old, "still the killed process");
        Ok(())
    })?;
    platform.is_healthy(60)?;
    println!(
        "{victim}: everything ready again {:.1} s after the kill",
        begin.elapsed().as_secs_f64()
    );
    // The guest itself, not through the control plane.
    steady.still_runs(platform)?;
    // Some more requests meet the new process before the next one dies.
    thread::sleep(Duration::from_secs(3));
    Ok(())
}

struct Churned {
    ids: Vec<String>,
    repeated: u32,
}

/// Creates and deletes VMs until told that it is enough.
fn churn(platform: &Platform, enough: &AtomicBool) -> Result<Churned> {
    let mut all = Churned {
        ids: vec![],
        repeated: 0,
    };
    for number in 0.. {
        if enough.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("churn{number}");
        let create = format!("vm create {name} --image tiny --cpus 1 --memory 96MiB");
        // A create whose answer was lost has been done: the repetition finds the name taken.
        all.repeated += repeat(|| platform.hearth(&create), |output| output.code == Some(7))?;
        let mut id = None;
        all.repeated += repeat(|| platform.hearth(&format!("-o json vm show {name}")), |_| false)?;
        wait::until_ok(&format!("{name} is running"), 120, || {
            let vm = platform.vm(&name)?;
            id = vm["id"].as_str().map(str::to_owned);
            ensure!(vm["state"] == "running", "it is {vm}");
            Ok(())
        })?;
        all.ids.push(id.with_context(|| format!("{name} has no id"))?);
        let delete = format!("vm delete {name} --wait");
        all.repeated += repeat(|| platform.hearth(&delete), |output| output.code == Some(4))?;
    }
    Ok(all)
}
