//! Simulates the rule of fencing from one seed: for development only, nothing that ships links it.
//!
//! # What it is
//! The state machines of `plasmavmc_core::fence` on nodes with guards, agents, guests and clocks of their own, under
//! two control planes and three members of the store, while links break, messages wait, processes are stopped and
//! killed, nodes freeze and boot again, and the store loses its quorum.
//!
//! # What it deliberately does not know
//! Raft: the store is a model of what a client sees of one (leaders need a majority, forget their followers after two
//! election time-outs, may be without contact for one). The real members are simulated in `chainfire-sim`. Leases run
//! out as early as Chainfire may let them: time counted by one leader is not given back by the next.
//!
//! # Entry points
//! [`run`], [`run_many`], [`find_bug`]; `cargo xtask sim fence`.
//!
//! # Invariants
//! 1. One seed, one run.
//! 2. What judges (`check`) looks at the world as it is, never at what a state machine believes.
//! 3. Every judgement is tested by a planted bug ([`Bug`]).
//!
//! ```text
//!   guard ──renew, acquire, rounds──> members, leader <──look, fence, move── control planes
//!     │ stop, go on, kill                 │ assignments (through a control plane)
//!     v                                   v
//!   guests <──start: gate, lock, note── agent                      check: openers, epochs, causes, deadlines
//! ```

mod bug;
mod check;
mod control;
mod nemesis;
mod node;
mod store;
mod world;

use testkit::sim::{self, Options, Report, Summary};

pub use bug::Bug;
use world::World;

/// Members, as far as the options of the other simulations want to know.
const MEMBERS: u64 = store::MEMBERS as u64;

/// Kinds of events that a whole run must contain.
pub const KINDS: &[&str] = &[
    "LeaseExpired",
    "LeaseRenewed",
    "LeaseAcquired",
    "AcquireRefused",
    "RoundWithoutLeader",
    "RoundWithRefusal",
    "GuestPaused",
    "GuestResumed",
    "GuestKilled",
    "GuestStarted",
    "StartRefusedByGate",
    "OpenRefusedByLock",
    "Fenced",
    "FenceRefused",
    "FenceTakenAway",
    "MovedElsewhere",
    "MoveRefused",
    "LeaderElected",
    "QuorumLost",
    "NodeIsolated",
    "NodeHalfIsolated",
    "MemberKilled",
    "MemberStopped",
    "GuardKilled",
    "GuardStopped",
    "AgentKilled",
    "AgentStopped",
    "NodeFrozen",
    "NodeRebooted",
    "ControlKilled",
    "ControlStopped",
    "SlowMessages",
    "GuestCrashed",
];

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, bug: Option<Bug>) -> Report {
    let mut world = World::new(seed, bug);
    let violation = world.run().err();
    Report {
        options: Options::of(seed, MEMBERS),
        violation: violation.map(|what| format!("{what}; scenario {:?}", world.scenario)),
        faults: world.faults.clone(),
        operations: world.counts.operations,
        unknown: world.counts.unanswered,
        simulated_ms: world.now,
        entries: world.store.revision.unsigned_abs(),
        trace: world.trace,
    }
}

/// Runs the `seeds` in a row from `first` on; see [`sim::run_many`].
///
/// # Errors
/// What was found, and the command that repeats it.
pub fn run_many(
    first: u64,
    seeds: u64,
    jobs: usize,
    progress: impl Fn(&Report) + Sync,
) -> Result<Summary, String> {
    let run = |seed| Ok(run(seed, None));
    let repeat = |seed| format!("cargo xtask sim fence --seed {seed}");
    sim::run_many(first, seeds, jobs, &run, &repeat, progress)
}

/// Looks for a planted bug in at most `seeds` seeds.
///
/// # Errors
/// Never: the other simulations' shape.
pub fn find_bug(bug: Bug, first: u64, seeds: u64) -> std::io::Result<Option<Report>> {
    sim::find(first, seeds, |seed| Ok(run(seed, Some(bug))))
}
