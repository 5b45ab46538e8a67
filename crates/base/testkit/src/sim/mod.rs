//! The seeded simulator.
//!
//! ```text
//!   seed -> Options -> World: clients, administrators and the nemesis act; members run real Host rounds;
//!   messages and disks fail -> heal -> progress? members equal? one leader a term? history linearizable?
//! ```

mod block_cache;
mod clients;
mod disk;
mod faults;
mod history;
mod machine;
mod nemesis;
mod node;
mod options;
mod rng;
mod world;

use std::path::PathBuf;

pub use faults::{Fault, Faults};
pub use node::show_panics;
pub use options::{Bug, Mode, Options};

use node::State;
use world::{MS, World};

/// Every so many-th seed runs twice, and both runs must be the same.
const TWICE_EVERY: u64 = 100;
/// Operations that must succeed after healing.
const PROGRESS: u64 = 30;
/// Simulated time that members have to become equal.
const AGREE_MS: u64 = 15_000;

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
pub fn run(options: &Options) -> std::io::Result<Report> {
    node::install_panic_hook();
    let dir = tempfile::Builder::new()
        .prefix("hearth-sim-")
        .tempdir_in(scratch())?;
    let mut world = World::new(options, dir.path());
    world.run(options.chaos_ms * MS, |_| false);
    world.heal();
    let target = world.clients.successes + PROGRESS;
    let deadline = world.now + options.heal_ms * MS;
    world.run(deadline, |w| w.clients.successes >= target);
    if world.violation().is_none() && world.clients.successes < target {
        let got = world.clients.successes + PROGRESS - target;
        world.fail(format!(
            "no progress: {got} of {PROGRESS} operations in {} ms after healing, leader {:?}",
            options.heal_ms,
            world.leader()
        ));
    }
    if options.mode == Mode::Safety && world.violation().is_none() {
        let deadline = world.now + AGREE_MS * MS;
        world.clients_rest();
        world.run(deadline, |w| w.members_agree());
        if !world.members_agree() {
            world.fail("members do not agree after everything was healed".to_owned());
        }
    }
    world.clients.finish();
    world.check_refused();
    let mut violation = world.violation();
    if violation.is_none() {
        violation = history::check(&world.clients.records).err();
    }
    let records = &world.clients.records;
    let journal = world
        .journal
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Report {
        options: options.clone(),
        violation,
        faults: world.faults.clone(),
        operations: records.len() as u64,
        unknown: records.iter().filter(|r| r.returned.is_none()).count() as u64,
        simulated_ms: world.now / MS,
        entries: journal.last(),
        trace: world.trace,
    })
}

/// Runs `seeds` seeds from `first` on, and stops at the first that fails. The error holds the seed's options and
/// the command that repeats it.
pub fn run_many(
    first: u64,
    seeds: u64,
    members: u64,
    mut progress: impl FnMut(&Report),
) -> Result<Summary, String> {
    let mut summary = Summary::default();
    for seed in first..first + seeds {
        let options = Options::of(seed, members);
        let report = run(&options).map_err(|e| format!("seed {seed} could not run: {e}"))?;
        if let Some(what) = &report.violation {
            return Err(failure(&report.options, what));
        }
        if seed % TWICE_EVERY == 0 {
            let again = run(&options).map_err(|e| format!("seed {seed} could not run: {e}"))?;
            if again.trace != report.trace {
                return Err(failure(&options, "two runs of this seed differ"));
            }
            summary.repeated += 1;
        }
        summary.seeds += 1;
        summary.faults.merge(&report.faults);
        summary.operations += report.operations;
        summary.unknown += report.unknown;
        summary.simulated_ms += report.simulated_ms;
        summary.entries += report.entries;
        progress(&report);
    }
    Ok(summary)
}

/// Looks for a planted bug: the first report, of at most `seeds` seeds, with a violation.
pub fn find_bug(bug: Bug, first: u64, seeds: u64, members: u64) -> std::io::Result<Option<Report>> {
    for seed in first..first + seeds {
        let options = Options {
            plant: Some(bug),
            ..Options::of(seed, members)
        };
        let report = run(&options)?;
        if report.violation.is_some() {
            return Ok(Some(report));
        }
    }
    Ok(None)
}

fn failure(options: &Options, what: &str) -> String {
    format!(
        "{what}\noptions: {options:#?}\nrepeat it: cargo xtask sim --seed {} --members {}",
        options.seed, options.members
    )
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

impl World<'_> {
    /// Clients stop after what they are doing.
    fn clients_rest(&mut self) {
        self.clients.rest();
    }

    /// Whether all running members of the group have applied the same and hold the same registers.
    fn members_agree(&self) -> bool {
        if self.clients.busy() {
            return false;
        }
        let mut states = self.nodes.values().filter(|n| {
            n.state == State::Up && self.members().get(n.id).is_some_and(|m| !m.address.is_empty())
        });
        let Some(first) = states.next() else { return false };
        let content = |n: &node::Node| n.view.as_ref().and_then(|v| machine::contents(v).ok());
        let (applied, expected) = (first.applied, content(first));
        states.all(|n| n.applied == applied && content(n) == expected)
    }
}
