//! What the idle platform costs.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Platform, is_left_out};

/// The promise (SPECIFICATION.md): three members, three agents, all services, no guest; what the machine gives up for
/// them. All processes are one program, and its pages are there once (`Pss` in Linux's terms).
const RESIDENT_LIMIT_MIB: u64 = 300;
const WATCHED: Duration = Duration::from_secs(20);

#[test]
fn the_idle_platform_is_small() -> Result<()> {
    if is_left_out("watching the idle platform") {
        return Ok(());
    }
    Platform::scenario(&[], |platform| {
        platform.up("--no-first-vm")?;
        let begin = of_all(platform)?;
        std::thread::sleep(WATCHED);
        let end = of_all(platform)?;
        let (mut resident, mut apart, mut ticks) = (0, 0, 0);
        for (pid, process) in &end {
            let name = &process.role;
            let earlier = begin
                .get(pid)
                .with_context(|| format!("process {pid} ({name}) is new"))?;
            let used = process.ticks - earlier.ticks;
            println!(
                "{name}: {} MiB, {} MiB with what others share, {} ms of CPU",
                process.pss_kib >> 10,
                process.rss_kib >> 10,
                used * 10
            );
            resident += process.pss_kib;
            apart += process.rss_kib;
            ticks += used;
        }
        // A time on a shared machine is a figure to read, not one to fail on; a size is the same everywhere.
        println!(
            "idle platform: {} MiB resident ({} MiB if each process counts what it shares), {:.1} % of one core over {} s",
            resident >> 10,
            apart >> 10,
            ticks as f64 / WATCHED.as_secs_f64(),
            WATCHED.as_secs()
        );
        ensure!(
            resident >> 10 < RESIDENT_LIMIT_MIB,
            "{} MiB are more than the promised {RESIDENT_LIMIT_MIB}",
            resident >> 10
        );
        Ok(())
    })
}

/// One process of the platform.
struct Process {
    role: String,
    /// Its memory, what it shares by its share.
    pss_kib: u64,
    rss_kib: u64,
    /// CPU time, in the kernel's hundredths of a second.
    ticks: u64,
}

fn of_all(platform: &Platform) -> Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    for (pid, line) in platform.sandbox().processes() {
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |what: &str| -> Result<u64> {
            let line = memory.lines().find_map(|l| l.strip_prefix(what));
            let kib = line.and_then(|l| l.split_whitespace().next());
            Ok(kib.with_context(|| format!("no {what}"))?.parse()?)
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let time = |n: usize| -> Result<u64> { Ok(fields.get(n).context("a short stat")?.parse()?) };
        let words: Vec<&str> = line.split_whitespace().collect();
        let file = words.iter().find(|w| w.ends_with(".toml"));
        let role = file.map_or(words.get(1).copied().unwrap_or("?"), |f| {
            f.rsplit('/').next().unwrap_or(f).trim_end_matches(".toml")
        });
        let process = Process {
            role: role.to_owned(),
            pss_kib: kib("Pss:")?,
            rss_kib: kib("Rss:")?,
            ticks: time(11)? + time(12)?,
        };
        all.insert(pid, process);
    }
    Ok(all)
}
