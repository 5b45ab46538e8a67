//! `cargo xtask sim`: the simulations, from one seed to thousands: of consensus alone, of Chainfire's members, and of
//! the rule by which no disk is open twice.
//!
//! Without `--seed` it is what CI runs: seeds for three and for five members, then every planted bug. It fails when a
//! seed fails, when a kind of fault never happened, or when a planted bug was not found within its budget.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use testkit::sim::{self, Fault, Faults, Report, Summary, registers};

/// Fewer seeds than this need not contain every kind of fault.
const SEEDS_FOR_ALL_FAULTS: u64 = 100;
/// Of 10 seeds, how many run with three members; the others run with five.
const THREE_MEMBERS_OF_TEN: u64 = 6;
/// Seeds of a nightly run.
const NIGHTLY_SEEDS: u64 = 10_000;

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum System {
    /// Consensus: raft-host with registers.
    Registers,
    /// Chainfire: members with their clients, leases and watchers.
    Chainfire,
    /// PlasmaVMC's fencing: guards, take-over, openers of disks.
    Fence,
}

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The system.
    #[arg(value_enum, default_value = "registers")]
    system: System,
    /// Run from this seed on (with --seeds: so many; else only this one, with details).
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds.
    #[arg(long)]
    seeds: Option<u64>,
    /// The nightly number of seeds, 10 000.
    #[arg(long, conflicts_with_all = ["seeds", "plant"])]
    nightly: bool,
    /// Members: 3 or 5. Both in turn when left out (a single seed: 3).
    #[arg(long, value_parser = clap::value_parser!(u64).range(3..=5))]
    members: Option<u64>,
    /// Plant a bug and look for it; an unknown name lists them.
    #[arg(long, value_name = "BUG")]
    plant: Option<String>,
    /// Seeds at a time.
    #[arg(long)]
    jobs: Option<usize>,
}

/// A bug of either system.
#[derive(Debug, Clone, Copy)]
enum Bug {
    Registers(registers::Bug),
    Chainfire(chainfire_sim::Bug),
    Fence(plasmavmc_sim::Bug),
}

impl Bug {
    fn name(self) -> &'static str {
        match self {
            Bug::Registers(bug) => bug.name(),
            Bug::Chainfire(bug) => bug.name(),
            Bug::Fence(bug) => bug.name(),
        }
    }
}

impl System {
    fn bugs(self) -> Vec<(Bug, u64)> {
        match self {
            System::Registers => registers::Bug::ALL
                .map(|(bug, n)| (Bug::Registers(bug), n))
                .to_vec(),
            System::Chainfire => chainfire_sim::Bug::ALL
                .map(|(bug, n)| (Bug::Chainfire(bug), n))
                .to_vec(),
            System::Fence => plasmavmc_sim::Bug::ALL
                .map(|(bug, n)| (Bug::Fence(bug), n))
                .to_vec(),
        }
    }

    fn bug(self, name: &str) -> Result<Bug> {
        let bugs = self.bugs();
        let found = bugs.iter().find(|(bug, _)| bug.name() == name);
        found.map(|(bug, _)| *bug).ok_or_else(|| {
            let names: Vec<_> = bugs.iter().map(|(bug, _)| bug.name()).collect();
            anyhow!("no bug is called `{name}`; there are {}", names.join(", "))
        })
    }

    fn run(self, seed: u64, members: u64, plant: Option<Bug>) -> Result<Report> {
        let report = match (self, plant) {
            (_, Some(Bug::Registers(bug))) => registers::run(seed, members, Some(bug)),
            (_, Some(Bug::Chainfire(bug))) => chainfire_sim::run(seed, members, Some(bug)),
            (_, Some(Bug::Fence(bug))) => Ok(plasmavmc_sim::run(seed, Some(bug))),
            (System::Registers, None) => registers::run(seed, members, None),
            (System::Chainfire, None) => chainfire_sim::run(seed, members, None),
            (System::Fence, None) => Ok(plasmavmc_sim::run(seed, None)),
        };
        report.context("the simulation could not run")
    }

    fn run_many(
        self,
        first: u64,
        seeds: u64,
        members: u64,
        jobs: usize,
        progress: impl Fn(&Report) + Sync,
    ) -> Result<Summary> {
        let summary = match self {
            System::Registers => registers::run_many(first, seeds, members, jobs, progress),
            System::Chainfire => chainfire_sim::run_many(first, seeds, members, jobs, progress),
            System::Fence => plasmavmc_sim::run_many(first, seeds, jobs, progress),
        };
        summary.map_err(|failure| anyhow!(failure))
    }

    /// Kinds of events of its own that a run must contain.
    fn kinds(self) -> &'static [&'static str] {
        match self {
            System::Registers => &[],
            System::Chainfire => chainfire_sim::kinds(),
            System::Fence => plasmavmc_sim::KINDS,
        }
    }

    /// Whether it runs on testkit's members, with the faults that they have.
    fn has_members(self) -> bool {
        self != System::Fence
    }

    fn default_seeds(self) -> u64 {
        match self {
            System::Registers => 500,
            System::Chainfire => 120,
            System::Fence => 2_000,
        }
    }
}

/// Runs the simulation; an error says what was found and how to repeat it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let system = args.system;
    let plant = args.plant.as_deref().map(|name| system.bug(name)).transpose()?;
    if let (Some(seed), None, false) = (args.seed, args.seeds, args.nightly) {
        return one(system, seed, args.members.unwrap_or(3), plant);
    }
    let seeds = if args.nightly {
        NIGHTLY_SEEDS
    } else {
        args.seeds.unwrap_or(system.default_seeds())
    };
    let first = args.seed.unwrap_or(0);
    let jobs = args.jobs.unwrap_or_else(cores);
    if let Some(bug) = plant {
        println!("{}", planted(bug, first, seeds, args.members.unwrap_or(3))?);
        return Ok(());
    }
    many(system, first, seeds, args.members, jobs)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn one(system: System, seed: u64, members: u64, plant: Option<Bug>) -> Result<()> {
    sim::show_panics(true);
    let report = system.run(seed, members, plant)?;
    if system.has_members() {
        println!("{:#?}", report.options);
    }
    print_faults(&report.faults, system);
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

/// Looks for a planted bug; says where it was found.
fn planted(bug: Bug, first: u64, seeds: u64, members: u64) -> Result<String> {
    let found = match bug {
        Bug::Registers(bug) => registers::find_bug(bug, first, seeds, members),
        Bug::Chainfire(bug) => chainfire_sim::find_bug(bug, first, seeds, members),
        Bug::Fence(bug) => plasmavmc_sim::find_bug(bug, first, seeds),
    };
    let Some(Report {
        options,
        violation: Some(what),
        ..
    }) = found.context("the simulation could not run")?
    else {
        bail!(
            "the planted bug {} was not found in {seeds} seeds from {first} on",
            bug.name()
        );
    };
    Ok(format!(
        "planted {}: found at seed {}: {}",
        bug.name(),
        options.seed,
        first_line(&what)
    ))
}

/// Longest line shown of a finding.
const LINE: usize = 200;

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or(text).chars().take(LINE).collect()
}

fn many(system: System, first: u64, seeds: u64, members: Option<u64>, jobs: usize) -> Result<()> {
    let begin = Instant::now();
    // Fencing has three members always.
    let members = if system.has_members() { members } else { Some(3) };
    let three = members.map_or(
        seeds * THREE_MEMBERS_OF_TEN / 10,
        |m| if m == 3 { seeds } else { 0 },
    );
    let mut summary = Summary::default();
    for (from, count, members) in [
        (first, three, 3),
        (first + three, seeds - three, members.unwrap_or(5)),
    ] {
        if count == 0 {
            continue;
        }
        let done = AtomicU64::new(0);
        let progress = |_: &Report| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(100) {
                println!("{done} of {count} seeds with {members} members");
            }
        };
        summary.merge(&system.run_many(from, count, members, jobs, progress)?);
    }
    print_faults(&summary.faults, system);
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
    let mut missing = Vec::new();
    if system.has_members() {
        let faults = summary.faults.missing();
        missing.extend(faults.iter().map(|fault| format!("{fault:?}")));
    }
    let own = system
        .kinds()
        .iter()
        .filter(|kind| summary.faults.noted(kind) == 0);
    missing.extend(own.map(|kind| (*kind).to_owned()));
    if seeds >= SEEDS_FOR_ALL_FAULTS && !missing.is_empty() {
        bail!(
            "these kinds of fault never happened, so nothing is known about them: {}",
            missing.join(", ")
        );
    }
    let bugs = system.bugs();
    for line in find_all(&bugs, jobs)? {
        println!("{line}");
    }
    println!("planted bugs found: {n} of {n}", n = bugs.len());
    Ok(())
}

/// Looks for every planted bug, some at a time.
fn find_all(bugs: &[(Bug, u64)], jobs: usize) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for group in bugs.chunks(jobs.max(1)) {
        let found: Vec<Result<String>> = std::thread::scope(|scope| {
            let searches: Vec<_> = group
                .iter()
                .map(|(bug, budget)| scope.spawn(|| planted(*bug, 0, *budget, 3)))
                .collect();
            searches
                .into_iter()
                .map(|search| {
                    search
                        .join()
                        .unwrap_or_else(|_| Err(anyhow!("a search panicked")))
                })
                .collect()
        });
        for line in found {
            lines.push(line?);
        }
    }
    Ok(lines)
}

fn print_faults(faults: &Faults, system: System) {
    for fault in Fault::ALL.into_iter().filter(|_| system.has_members()) {
        println!("{:>9}  {fault:?}", faults.count(fault));
    }
    for kind in system.kinds() {
        println!("{:>9}  {kind}", faults.noted(kind));
    }
}
