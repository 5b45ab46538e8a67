//! The seeded simulator.
//!
//! ```text
//!   seed -> Options -> World: clients, administrators and the nemesis act; members run real Host rounds;
//!   messages and disks fail -> heal -> progress? members equal? one leader a term? history linearizable?
//! ```

mod block_cache;
mod disk;
mod faults;
mod journal;
mod nemesis;
mod node;
mod options;
pub mod registers;
mod rng;
mod service;
mod world;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use faults::{Fault, Faults};
pub use journal::{Journal, SharedJournal};
pub use node::{GROUP, show_panics};
pub use options::{HostBug, Mode, Options};
pub use rng::SimRng;
pub use service::{Boot, Service, Totals};
pub use world::{MS, World};

use node::State;

/// Every so many-th seed runs twice, and both runs must be the same.
const TWICE_EVERY: u64 = 100;
/// Operations that must succeed after healing.
const PROGRESS: u64 = 30;

/// What one run showed.
#[derive(Clone, Debug)]
pub struct Report {
    /// The options of the run.
    pub options: Options,
    /// What was wrong, if anything.
    pub violation: Option<String>,
    /// What went wrong on purpose.
    pub faults: Faults,
    /// Operations in the history.
    pub operations: u64,
    /// Those of them without a known outcome.
    pub unknown: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Entries that the group applied.
    pub entries: u64,
    /// Checksum over everything that happened.
    pub trace: u64,
}

/// What many runs showed.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Runs.
    pub seeds: u64,
    /// Faults of all of them.
    pub faults: Faults,
    /// Operations in all histories.
    pub operations: u64,
    /// Operations without a known outcome.
    pub unknown: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Entries applied.
    pub entries: u64,
    /// Runs that were made twice, with equal traces.
    pub repeated: u64,
}

/// Runs one seed. An error means that the simulation could not be made (no space for its folders), not that it
/// found something.
pub fn run<S: Service>(
    options: &Options,
    service: impl FnOnce(&Options, SimRng) -> S,
) -> std::io::Result<Report> {
    node::install_panic_hook();
    let dir = tempfile::Builder::new()
        .prefix("hearth-sim-")
        .tempdir_in(scratch())?;
    let mut world = World::new(options, dir.path(), service);
    world.run(options.chaos_ms * MS, |_| false);
    world.heal();
    let target = world.service.successes() + PROGRESS;
    let deadline = world.now + options.heal_ms * MS;
    world.run(deadline, |w| w.service.successes() >= target);
    if world.violation().is_none() && world.service.successes() < target {
        let got = world.service.successes() + PROGRESS - target;
        world.fail(format!(
            "no progress: {got} of {PROGRESS} operations in {} ms after healing, leader {:?}",
            options.heal_ms,
            world.leader()
        ));
    }
    if options.mode == Mode::Safety && world.violation().is_none() {
        let deadline = world.now + options.agree_ms * MS;
        world.service.rest();
        world.run(deadline, |w| w.members_agree());
        if !world.members_agree() {
            world.fail(format!(
                "members do not agree after everything was healed: {}, applied {:?}",
                S::busy(&world).unwrap_or("their states differ"),
                world.applied()
            ));
        }
    }
    let judged = S::finish(&mut world);
    let violation = world.violation().or_else(|| judged.err());
    let totals = world.service.totals();
    let entries = world.journal.lock().last();
    Ok(Report {
        options: options.clone(),
        violation,
        faults: world.faults.clone(),
        operations: totals.operations,
        unknown: totals.unknown,
        simulated_ms: world.now / MS,
        entries,
        trace: world.trace,
    })
}

impl Summary {
    /// Adds what other runs showed.
    pub fn merge(&mut self, other: &Summary) {
        self.seeds += other.seeds;
        self.faults.merge(&other.faults);
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.simulated_ms += other.simulated_ms;
        self.entries += other.entries;
        self.repeated += other.repeated;
    }

    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.faults.merge(&report.faults);
        self.operations += report.operations;
        self.unknown += report.unknown;
        self.simulated_ms += report.simulated_ms;
        self.entries += report.entries;
    }
}

/// Runs one seed, and every hundredth twice. The error holds the seed's options and the command that repeats it.
fn run_checked(
    seed: u64,
    run: &dyn Fn(u64) -> std::io::Result<Report>,
    repeat: &dyn Fn(u64) -> String,
) -> Result<(Report, bool), String> {
    let once = || run(seed).map_err(|e| format!("seed {seed} could not run: {e}"));
    let report = once()?;
    if let Some(what) = &report.violation {
        return Err(failure(&report, what, &repeat(seed)));
    }
    let twice = seed.is_multiple_of(TWICE_EVERY);
    if twice && once()?.trace != report.trace {
        return Err(failure(&report, "two runs of this seed differ", &repeat(seed)));
    }
    Ok((report, twice))
}

/// Runs the `seeds` in a row from `first` on, `jobs` at a time (each on one thread), and stops when one fails.
/// `repeat` is the command that repeats one; `progress` hears of each that passed.
pub fn run_many(
    first: u64,
    seeds: u64,
    jobs: usize,
    run: &(dyn Fn(u64) -> std::io::Result<Report> + Sync),
    repeat: &(dyn Fn(u64) -> String + Sync),
    progress: impl Fn(&Report) + Sync,
) -> Result<Summary, String> {
    let next = AtomicU64::new(first);
    let end = first + seeds;
    let outcome = Mutex::new(Ok(Summary::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let result = run_checked(seed, run, repeat);
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *outcome, result) {
                (Ok(summary), Ok((report, twice))) => {
                    summary.add(&report);
                    summary.repeated += u64::from(twice);
                    progress(&report);
                }
                (Ok(_), Err(failure)) => {
                    *outcome = Err(failure);
                    next.store(end, Ordering::Relaxed);
                }
                (Err(_), _) => {}
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    outcome.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The first report, of at most `seeds` seeds from `first` on, with a violation.
pub fn find(
    first: u64,
    seeds: u64,
    run: impl Fn(u64) -> std::io::Result<Report>,
) -> std::io::Result<Option<Report>> {
    for seed in first..first + seeds {
        let report = run(seed)?;
        if report.violation.is_some() {
            return Ok(Some(report));
        }
    }
    Ok(None)
}

fn failure(report: &Report, what: &str, repeat: &str) -> String {
    format!("{what}\noptions: {:#?}\nrepeat it: {repeat}", report.options)
}

/// Where the placeholder files go: memory where there is such a folder.
fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    }
}

impl<S: Service> World<'_, S> {
    /// What the members have applied.
    fn applied(&self) -> Vec<(u64, u64)> {
        let members = self.nodes.values().filter(|n| self.is_member(n.id));
        members.map(|n| (n.id, n.applied)).collect()
    }

    /// Whether all running members of the group have applied the same and hold the same state.
    fn members_agree(&self) -> bool {
        if S::busy(self).is_some() {
            return false;
        }
        let mut states = self
            .nodes
            .values()
            .filter(|n| n.state == State::Up && self.is_member(n.id));
        let Some(first) = states.next() else { return false };
        if states.clone().any(|n| n.applied != first.applied) {
            return false;
        }
        let digest = |n: &node::Node<S>| n.view.as_ref().and_then(|v| S::digest(v).ok());
        let expected = digest(first);
        states.all(|n| digest(n) == expected)
    }
}
