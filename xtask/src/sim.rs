//! `cargo xtask sim`: the consensus simulation, from one seed to thousands.
//!
//! Without `--seed` it is what CI runs: seeds for three and for five members, then every planted bug. It fails when a
//! seed fails, when a kind of fault never happened, or when a planted bug was not found within its budget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use testkit::sim::registers::{self, Bug};
use testkit::sim::{self, Fault, Faults, Report, Summary};

/// Fewer seeds than this need not contain every kind of fault.
const SEEDS_FOR_ALL_FAULTS: u64 = 100;
/// Of 10 seeds, how many run with three members; the others run with five.
const THREE_MEMBERS_OF_TEN: u64 = 6;

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run from this seed on (with --seeds: so many; else only this one, with details).
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds.
    #[arg(long)]
    seeds: Option<u64>,
    /// Members: 3 or 5. Both in turn when left out (a single seed: 3).
    #[arg(long, value_parser = clap::value_parser!(u64).range(3..=5))]
    members: Option<u64>,
    /// Plant a bug and look for it: one of skipped-fsync, stale-read, lost-apply, double-vote,
    /// reused-read-context, ack-before-commit.
    #[arg(long, value_name = "BUG")]
    plant: Option<String>,
    /// Seeds at a time.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Runs the simulation; an error says what was found and how to repeat it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let plant = args
        .plant
        .as_deref()
        .map(|name| Bug::named(name).ok_or_else(|| anyhow!("no bug is called `{name}`")));
    let plant = plant.transpose()?;
    if let (Some(seed), None) = (args.seed, args.seeds) {
        return one(seed, args.members.unwrap_or(3), plant);
    }
    let seeds = args.seeds.unwrap_or(500);
    let first = args.seed.unwrap_or(0);
    if let Some(bug) = plant {
        return planted(bug, first, seeds, args.members.unwrap_or(3));
    }
    many(first, seeds, args.members, args.jobs.unwrap_or_else(cores))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn one(seed: u64, members: u64, plant: Option<Bug>) -> Result<()> {
    sim::show_panics(true);
    let report = registers::run(seed, members, plant).context("the simulation could not run")?;
    println!("{:#?}", report.options);
    print_faults(&report.faults);
    println!(
        "{} operations ({} of unknown outcome), {} entries, {} simulated ms, trace {:016x}",
        report.operations, report.unknown, report.entries, report.simulated_ms, report.trace
    );
    match report.violation {
        None => {
            println!("nothing wrong");
            Ok(())
        }
        Some(what) => bail!("{what}"),
    }
}

fn planted(bug: Bug, first: u64, seeds: u64, members: u64) -> Result<()> {
    let found = registers::find_bug(bug, first, seeds, members).context("the simulation could not run")?;
    let Some(Report {
        options,
        violation: Some(what),
        ..
    }) = found
    else {
        bail!(
            "the planted bug {} was not found in {seeds} seeds from {first} on",
            bug.name()
        );
    };
    println!(
        "planted {}: found at seed {}: {}",
        bug.name(),
        options.seed,
        first_line(&what)
    );
    Ok(())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

fn many(first: u64, seeds: u64, members: Option<u64>, jobs: usize) -> Result<()> {
    let begin = Instant::now();
    let three = members.map_or(
        seeds * THREE_MEMBERS_OF_TEN / 10,
        |m| if m == 3 { seeds } else { 0 },
    );
    let mut summary = Summary::default();
    for (from, count, members) in [
        (first, three, 3),
        (first + three, seeds - three, members.unwrap_or(5)),
    ] {
        let done = AtomicU64::new(0);
        let progress = |_: &Report| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(100) {
                println!("{done} of {count} seeds with {members} members");
            }
        };
        let part =
            registers::run_many(from, count, members, jobs, progress).map_err(|failure| anyhow!(failure))?;
        summary.merge(&part);
    }
    print_faults(&summary.faults);
    println!(
        "{} seeds, {} of them twice with equal traces; {:.1} simulated hours; {} entries; {} operations, {} of \
         unknown outcome; 0 anomalies, 0 checker time-outs; {:.1} s",
        summary.seeds,
        summary.repeated,
        summary.simulated_ms as f64 / 3_600_000.0,
        summary.entries,
        summary.operations,
        summary.unknown,
        begin.elapsed().as_secs_f64()
    );
    let missing = summary.faults.missing();
    if seeds >= SEEDS_FOR_ALL_FAULTS && !missing.is_empty() {
        bail!("these kinds of fault never happened, so nothing is known about them: {missing:?}");
    }
    for (bug, budget) in Bug::ALL {
        planted(bug, first, budget, 3)?;
    }
    println!("planted bugs found: {n} of {n}", n = Bug::ALL.len());
    Ok(())
}

fn print_faults(faults: &Faults) {
    for fault in Fault::ALL {
        println!("{:>9}  {fault:?}", faults.count(fault));
    }
}
