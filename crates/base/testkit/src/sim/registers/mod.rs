//! The simulator's own service: registers with put and compare-and-set, read linearizably. What is simulated with it
//! is consensus: raft-host, its log, snapshots and membership.

mod clients;
pub mod history;
mod machine;

use raft_host::{Reply, StateMachine};

use self::clients::Clients;
use self::machine::{RegisterMachine, View};
use super::faults::Fault;
use super::options::{HostBug, Options};
use super::service::{Boot, Service, Totals};
use super::world::{MS, World};
use super::{Report, Summary};

/// Bugs that are planted to prove that the simulator finds bugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// See [`HostBug::SkippedFsync`].
    SkippedFsync,
    /// A read takes the local state without asking the leader.
    StaleRead,
    /// One member applies some commands without effect.
    LostApply,
    /// See [`HostBug::DoubleVote`].
    DoubleVote,
    /// See [`HostBug::ReusedReadContext`].
    ReusedReadContext,
    /// See [`HostBug::AckBeforeCommit`].
    AckBeforeCommit,
}

impl Bug {
    /// All of them, with the number of seeds within which the simulator must find each.
    pub const ALL: [(Bug, u64); 6] = [
        (Bug::SkippedFsync, 40),
        (Bug::StaleRead, 20),
        (Bug::LostApply, 10),
        (Bug::DoubleVote, 60),
        (Bug::ReusedReadContext, 60),
        (Bug::AckBeforeCommit, 40),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Bug::SkippedFsync => "skipped-fsync",
            Bug::StaleRead => "stale-read",
            Bug::LostApply => "lost-apply",
            Bug::DoubleVote => "double-vote",
            Bug::ReusedReadContext => "reused-read-context",
            Bug::AckBeforeCommit => "ack-before-commit",
        }
    }

    /// The bug called `name`.
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL
            .into_iter()
            .map(|(bug, _)| bug)
            .find(|bug| bug.name() == name)
    }

    /// What of it lies below the service.
    fn host(self) -> Option<HostBug> {
        match self {
            Bug::SkippedFsync => Some(HostBug::SkippedFsync),
            Bug::DoubleVote => Some(HostBug::DoubleVote),
            Bug::ReusedReadContext => Some(HostBug::ReusedReadContext),
            Bug::AckBeforeCommit => Some(HostBug::AckBeforeCommit),
            Bug::StaleRead | Bug::LostApply => None,
        }
    }
}

/// The registers and their clients.
#[derive(Debug)]
pub struct Registers {
    clients: Clients,
    stale_reads: bool,
    lost_applies: bool,
}

/// What is scheduled.
#[derive(Debug)]
pub enum Event {
    /// A client does something.
    Client {
        /// Which.
        client: u32,
    },
    /// A client has waited long enough.
    GiveUp {
        /// Which.
        client: u32,
        /// For what.
        op: u64,
    },
}

/// An operation that waits for a member.
#[derive(Debug)]
pub struct Ask {
    client: u32,
    op: u64,
    to_follower: bool,
}

impl Service for Registers {
    type View = View;
    type Event = Event;
    type Ask = Ask;
    const KINDS: &'static [&'static str] = &[];

    fn open(&mut self, boot: &Boot<'_>) -> Result<(Box<dyn StateMachine>, View), String> {
        let lose_every = (self.lost_applies && boot.node == 2).then_some(23);
        let (machine, view) = RegisterMachine::open(boot.node, boot.disk, boot.journal.clone(), lose_every)
            .map_err(|e| e.to_string())?;
        Ok((Box::new(machine), view))
    }

    fn begin(world: &mut World<'_, Registers>) {
        for client in 0..world.options.clients {
            world.schedule(world.now + u64::from(client) * MS, Event::Client { client });
        }
    }

    fn act(world: &mut World<'_, Registers>, event: Event) {
        match event {
            Event::Client { client } => world.client_acts(client),
            Event::GiveUp { client, op } => world.client_gives_up(client, op),
        }
    }

    fn answered(world: &mut World<'_, Registers>, ask: Ask, node: u64, reply: Reply, at: u64) {
        if ask.to_follower && matches!(reply, Reply::Proposed(_, Ok(_))) {
            world.faults.add(Fault::ProposalForwarded, 1);
        }
        world.client_reply(ask.client, ask.op, node, reply, at);
    }

    fn lost(world: &mut World<'_, Registers>, ask: Ask) {
        world.client_lost(ask.client, ask.op);
    }

    fn successes(&self) -> u64 {
        self.clients.successes
    }

    fn rest(&mut self) {
        self.clients.rest();
    }

    fn busy(world: &World<'_, Registers>) -> Option<&'static str> {
        world.service.clients.busy().then_some("a client waits")
    }

    fn digest(view: &View) -> Result<u64, String> {
        machine::digest(view).map_err(|e| e.to_string())
    }

    fn finish(world: &mut World<'_, Registers>) -> Result<(), String> {
        world.service.clients.finish();
        world.check_refused();
        if let Some(violation) = world.violation() {
            return Err(violation);
        }
        history::check(&world.service.clients.records)
    }

    fn totals(&self) -> Totals {
        let records = &self.clients.records;
        Totals {
            operations: records.len() as u64,
            unknown: records.iter().filter(|r| r.returned.is_none()).count() as u64,
        }
    }
}

/// Runs one seed.
pub fn run(seed: u64, members: u64, bug: Option<Bug>) -> std::io::Result<Report> {
    let options = Options {
        plant: bug.and_then(Bug::host),
        ..Options::of(seed, members)
    };
    super::run(&options, |options, rng| Registers {
        clients: Clients::new(options, rng),
        stale_reads: bug == Some(Bug::StaleRead),
        lost_applies: bug == Some(Bug::LostApply),
    })
}

/// Runs the `seeds` in a row from `first` on; see [`super::run_many`].
pub fn run_many(
    first: u64,
    seeds: u64,
    members: u64,
    jobs: usize,
    progress: impl Fn(&Report) + Sync,
) -> Result<Summary, String> {
    let run = |seed| run(seed, members, None);
    let repeat = |seed| format!("cargo xtask sim --seed {seed} --members {members}");
    super::run_many(first, seeds, jobs, &run, &repeat, progress)
}

/// Looks for a planted bug in at most `seeds` seeds.
pub fn find_bug(bug: Bug, first: u64, seeds: u64, members: u64) -> std::io::Result<Option<Report>> {
    super::find(first, seeds, |seed| run(seed, members, Some(bug)))
}
