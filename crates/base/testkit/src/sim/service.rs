//! What a service must say about itself to be simulated.

use raft_host::{LeaderInfo, Reply, StateMachine};

use super::journal::SharedJournal;
use super::world::World;
use kv_engine::MemoryDisk;

/// A member's process is about to start.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The member.
    pub node: u64,
    /// The disk of its state machine; it outlives the process.
    pub disk: &'a MemoryDisk,
    /// Where the members' machines write what they applied.
    pub journal: SharedJournal,
    /// Microseconds of true time that this member takes for 100 000.
    pub tick_us: u64,
}

/// Figures of one run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Operations in the history.
    pub operations: u64,
    /// Those of them without a known outcome.
    pub unknown: u64,
}

/// A replicated service on simulated members, and its users.
///
/// The value lies in [`World::service`]; the functions that act take the whole world. All randomness must come from
/// [`super::SimRng`]s forked in the world's making, all time from [`World::now`].
pub trait Service: Sized {
    /// What of a member's state outsiders see while its process runs.
    type View;
    /// What the service schedules for itself.
    type Event: std::fmt::Debug;
    /// Who waits for an answer of a member's host.
    type Ask: std::fmt::Debug;
    /// Kinds of events of the service's own that a whole run must contain.
    const KINDS: &'static [&'static str];

    /// Opens the state machine of a member whose process starts. An error is a finding.
    fn open(&mut self, boot: &Boot<'_>) -> Result<(Box<dyn StateMachine>, Self::View), String>;

    /// The members run: clients begin.
    fn begin(world: &mut World<'_, Self>);

    /// Something that was scheduled is due.
    fn act(world: &mut World<'_, Self>, event: Self::Event);

    /// A host answered at time `at`, which may lie a little ahead of now.
    fn answered(world: &mut World<'_, Self>, ask: Self::Ask, node: u64, reply: Reply, at: u64);

    /// The process that was asked is gone.
    fn lost(world: &mut World<'_, Self>, ask: Self::Ask);

    /// A member is about to take what has happened to it.
    fn before_round(_world: &mut World<'_, Self>, _node: u64) {}

    /// A member has finished a round at time `at`; `leader` is set when its leader or term changed.
    fn after_round(_world: &mut World<'_, Self>, _node: u64, _leader: Option<LeaderInfo>, _at: u64) {}

    /// A member's process ended; its view is gone.
    fn stopped(_world: &mut World<'_, Self>, _node: u64) {}

    /// All faults are over (but the lasting one of liveness mode).
    fn healed(_world: &mut World<'_, Self>) {}

    /// Operations that have succeeded; must grow after healing.
    fn successes(&self) -> u64;

    /// Clients stop after what they are doing.
    fn rest(&mut self);

    /// What is under way that must end before the members are compared.
    fn busy(world: &World<'_, Self>) -> Option<&'static str>;

    /// Checksum of a member's whole state, for comparing members.
    fn digest(view: &Self::View) -> Result<u64, String>;

    /// The run is over: judges what clients saw.
    fn finish(world: &mut World<'_, Self>) -> Result<(), String>;

    /// The figures.
    fn totals(&self) -> Totals;
}
