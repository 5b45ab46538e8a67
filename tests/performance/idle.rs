//! What the idle platform costs.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Platform, is_left_out};

/// The promise (SPECIFICATION.md): three members, three agents, all services, no guest.
const RESIDENT_LIMIT_MIB: u64 = 600;
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
        let mut resident = 0;
        let mut ticks = 0;
        for (pid, (name, kib, later)) in &end {
            let (_, _, earlier) = begin
                .get(pid)
                .with_context(|| format!("process {pid} ({name}) is new"))?;
            println!("{name}: {} MiB, {} ms of CPU", kib >> 10, (later - earlier) * 10);
            resident += kib;
            ticks += later - earlier;
        }
        // A time on a shared machine is a figure to read, not one to fail on; a size is the same everywhere.
        println!(
            "idle platform: {} MiB resident, {:.1} % of one core over {} s",
            resident >> 10,
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

/// Of each process: its role, its resident KiB, and its CPU time in the kernel's hundredths of a second.
fn of_all(platform: &Platform) -> Result<BTreeMap<u32, (String, u64, u64)>> {
    let mut all = BTreeMap::new();
    for (pid, line) in platform.sandbox().processes() {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let kib = kib
            .and_then(|l| l.split_whitespace().next())
            .context("no VmRSS")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let time = |n: usize| -> Result<u64> { Ok(fields.get(n).context("a short stat")?.parse()?) };
        let words: Vec<&str> = line.split_whitespace().collect();
        let file = words.iter().find(|w| w.ends_with(".toml"));
        let name = file.map_or(words.get(1).copied().unwrap_or("?"), |f| {
            f.rsplit('/').next().unwrap_or(f).trim_end_matches(".toml")
        });
        all.insert(pid, (name.to_owned(), kib.parse()?, time(11)? + time(12)?));
    }
    Ok(all)
}
