//! Simulates whole Chainfire clusters from one seed: for development only, nothing that ships links it.
//!
//! # What it is
//! A service for `testkit`'s simulator: real `raft-host`, the server's real machine on `kv-engine` in memory, its watch
//! streams and its lease decisions, in one thread under a virtual clock, with clients, lease owners and watchers who do
//! what etcd's users do, while members are killed, cut off, paused, replaced and restored from snapshots.
//!
//! # What it deliberately does not know
//! Sockets, gRPC, tasks: the server's waiting code is not run here (real processes are tested in `chainfire-server`).
//!
//! # Entry points
//! [`run`], [`run_many`], [`find_bug`]; `cargo xtask sim chainfire`.
//!
//! # Invariants
//! 1. One seed, one run.
//! 2. The model shares no code with what it judges.
//! 3. Every checker is tested by a planted bug ([`Bug`]).
//!
//! ```text
//!   clients, lease owners, watchers ──> members: raft-host + Machine + Stream + lease steps ──> Audited: log of answers
//!                 │ what they saw                                                                   │
//!                 '───────────────> check/: kv, registers, watch, lease <── Model <── replay ───────'
//! ```

mod audit;
mod bug;
mod check;
mod clients;
mod leases;
mod model;
mod ops;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chainfire_core::watch::Response;
use chainfire_server::simulation::{Command, Member};
use kv_engine::Engine;
use raft_host::{LeaderInfo, Reply, Role, StateMachine};
use testkit::sim::{self, Boot, Fault, MS, Options, Report, Service, SimRng, Summary, Totals, World};

use audit::{Audited, Notes};
use clients::{Clients, Outcome};
use leases::{Attempt, Leases};
use watchers::Watchers;

pub use bug::Bug;

/// Simulated milliseconds that leases have to run out, watchers to be told, and members to become equal.
const AGREE_MS: u64 = 40_000;

/// Clients beyond those that registers have: there is more that they do.
const MORE_CLIENTS: u32 = 3;

/// What runs and who uses it.
#[derive(Debug)]
pub struct Chainfire {
    bug: Option<Bug>,
    notes: Notes,
    clients: Clients,
    leases: Leases,
    watchers: Watchers,
    healed_at: u64,
}

/// A running member.
#[derive(Debug)]
pub struct View {
    member: Member,
    /// Its own clock, milliseconds.
    clock: Arc<AtomicU64>,
    /// Term and part that its lease task knows of.
    seen: (u64, Role),
}

/// What is scheduled.
#[derive(Debug)]
#[expect(missing_docs, reason = "the modules that act say what each is")]
#[expect(private_interfaces, reason = "nobody outside makes one")]
pub enum Event {
    Client {
        client: u32,
    },
    GiveUp {
        client: u32,
        op: u64,
    },
    KeepAlive {
        lease: usize,
    },
    PeerRenew {
        from: u64,
        at: u64,
        attempt: Attempt,
    },
    RenewAgain {
        node: u64,
        attempt: Attempt,
    },
    Renewed {
        attempt: Attempt,
        ttl_s: i64,
    },
    LeaderSeen {
        node: u64,
        life: u64,
    },
    LeadAgain {
        node: u64,
        life: u64,
        term: u64,
    },
    LookAtLeases {
        node: u64,
        life: u64,
        term: u64,
    },
    Expire {
        node: u64,
        life: u64,
        term: u64,
        command: Command,
        ids: Vec<i64>,
    },
    Watch {
        client: usize,
    },
    Enrolled {
        client: usize,
        session: u64,
        watch_id: i64,
    },
    Pump {
        client: usize,
        session: u64,
    },
    Stored {
        client: usize,
        session: u64,
    },
    Told {
        client: usize,
        session: u64,
        response: Box<Response>,
    },
}

/// Who waits for a host.
#[derive(Debug)]
#[expect(missing_docs, reason = "the modules that ask say what each is")]
#[expect(private_interfaces, reason = "nobody outside makes one")]
pub enum Ask {
    Operation {
        client: u32,
        op: u64,
        to_follower: bool,
    },
    Renew {
        attempt: Attempt,
    },
    Lead {
        life: u64,
        term: u64,
    },
    Expire {
        life: u64,
        term: u64,
        command: Command,
        ids: Vec<i64>,
    },
}

/// Brings a member's own clock up to date.
fn set_clock(world: &World<'_, Chainfire>, node: u64) {
    world.service.notes.now.store(world.now, Ordering::Relaxed);
    if let Some(view) = world.view(node) {
        let own = world.now * 100_000 / world.tick_us(node).max(1) / MS;
        view.clock.store(own, Ordering::Relaxed);
    }
}

impl Service for Chainfire {
    type View = View;
    type Event = Event;
    type Ask = Ask;
    const KINDS: &'static [&'static str] = &[
        "LinearizableRead",
        "SerializableRead",
        "PastRead",
        "CompactedRead",
        "FutureRead",
        "ReadingTxn",
        "WritingTxn",
        "WriteRefused",
        "Compaction",
        "LeaseGranted",
        "LeaseRenewed",
        "LeaseFoundGone",
        "LeaseCheckpoint",
        "LeaseRevoked",
        "LeaseExpired",
        "WatchCreated",
        "WatchEvents",
        "WatchFragment",
        "WatchProgress",
        "WatchFromStorage",
        "WatchClientSlow",
        "WatchBroken",
        "WatchResumed",
        "WatchCancelled",
        "WatchCompacted",
    ];

    fn open(&mut self, boot: &Boot<'_>) -> Result<(Box<dyn StateMachine>, View), String> {
        let clock = Arc::new(AtomicU64::new(0));
        let plant = self.bug.and_then(Bug::machine);
        let (inner, member) = Member::open(Engine::memory(boot.disk), clock.clone(), plant)?;
        let machine = Audited {
            node: boot.node,
            applied: inner.applied_index(),
            inner,
            member: member.clone(),
            journal: boot.journal.clone(),
            notes: self.notes.clone(),
        };
        let seen = (0, Role::Follower);
        Ok((Box::new(machine), View { member, clock, seen }))
    }

    fn begin(world: &mut World<'_, Chainfire>) {
        for client in 0..world.service.clients.count() {
            world.schedule(u64::from(client) * MS, Event::Client { client });
        }
        for client in 0..world.service.watchers.count() {
            world.schedule((client as u64 + 1) * 300 * MS, Event::Watch { client });
        }
    }

    fn act(world: &mut World<'_, Chainfire>, event: Event) {
        match event {
            Event::Client { client } => clients::act(world, client),
            Event::GiveUp { client, op } => clients::lost(world, client, op),
            Event::KeepAlive { lease } => leases::keep_alive(world, lease),
            Event::PeerRenew { from, at, attempt } => leases::peer_renew(world, from, at, attempt),
            Event::RenewAgain { node, attempt } => leases::renew_again(world, node, attempt),
            Event::Renewed { attempt, ttl_s } => leases::renewed(world, attempt, ttl_s),
            Event::LeaderSeen { node, life } => leases::leader_seen(world, node, life),
            Event::LeadAgain { node, life, term } => leases::lead_barrier(world, node, life, term),
            Event::LookAtLeases { node, life, term } => leases::look(world, node, life, term),
            Event::Expire {
                node,
                life,
                term,
                command,
                ids,
            } => leases::expire(world, node, life, term, command, ids),
            Event::Watch { client } => watchers::act(world, client),
            Event::Enrolled {
                client,
                session,
                watch_id,
            } => watchers::enrolled(world, client, session, watch_id),
            Event::Pump { client, session } => watchers::pump(world, client, session),
            Event::Stored { client, session } => watchers::stored(world, client, session),
            Event::Told {
                client,
                session,
                response,
            } => watchers::told(world, client, session, *response),
        }
    }

    fn answered(world: &mut World<'_, Chainfire>, ask: Ask, node: u64, reply: Reply, at: u64) {
        match ask {
            Ask::Operation {
                client,
                op,
                to_follower,
            } => {
                if to_follower && matches!(reply, Reply::Proposed(_, Ok(_))) {
                    world.faults.add(Fault::ProposalForwarded, 1);
                }
                clients::answered(world, client, op, node, reply, at);
            }
            Ask::Renew { attempt } => leases::barrier_passed(world, node, attempt, &reply, at),
            Ask::Lead { life, term } => leases::lead(world, node, life, term, &reply, at),
            Ask::Expire {
                life,
                term,
                command,
                ids,
            } => leases::expired(world, node, (life, term), (&command, &ids), &reply, at),
        }
    }

    fn lost(world: &mut World<'_, Chainfire>, ask: Ask) {
        if let Ask::Operation { client, op, .. } = ask {
            clients::lost(world, client, op);
        }
    }

    fn before_round(world: &mut World<'_, Chainfire>, node: u64) {
        set_clock(world, node);
    }

    fn after_round(world: &mut World<'_, Chainfire>, node: u64, leader: Option<LeaderInfo>, at: u64) {
        if let Some(info) = leader {
            leases::leader_changed(world, node, info, at);
        }
        watchers::after_round(world, node, at);
    }

    fn healed(world: &mut World<'_, Chainfire>) {
        world.service.healed_at = world.now;
    }

    fn successes(&self) -> u64 {
        self.clients.successes
    }

    fn rest(&mut self) {
        self.clients.resting = true;
    }

    fn busy(world: &World<'_, Chainfire>) -> Option<&'static str> {
        let service = &world.service;
        let leases = |node: u64| {
            world
                .view(node)
                .is_some_and(|view| !view.member.leases().is_empty())
        };
        let published = |node: u64| Some(world.view(node)?.member.published());
        if service.clients.busy() {
            Some("a client waits")
        } else if world.leader().is_none_or(leases) {
            Some("a lease lives on")
        } else if service.watchers.busy(published) {
            Some("a watcher has not been told everything")
        } else {
            None
        }
    }

    fn digest(view: &View) -> Result<u64, String> {
        view.member.digest()
    }

    fn finish(world: &mut World<'_, Chainfire>) -> Result<(), String> {
        let now = world.now;
        world.service.clients.finish(now);
        world.service.watchers.finish();
        check::all(world)
    }

    fn totals(&self) -> Totals {
        let unknown = |record: &&clients::Record| matches!(record.outcome, Outcome::Unknown);
        Totals {
            operations: self.clients.records.len() as u64,
            unknown: self.clients.records.iter().filter(unknown).count() as u64,
        }
    }
}

/// Runs one seed.
pub fn run(seed: u64, members: u64, bug: Option<Bug>) -> std::io::Result<Report> {
    let mut options = Options {
        plant: bug.and_then(Bug::host),
        ..Options::of(seed, members)
    };
    options.agree_ms = AGREE_MS;
    options.clients += MORE_CLIENTS;
    sim::run(&options, |options, mut rng: SimRng| Chainfire {
        bug,
        notes: Notes::default(),
        clients: Clients::new(options.clients, rng.fork()),
        leases: Leases::new(rng.fork()),
        watchers: Watchers::new(rng.fork()),
        healed_at: 0,
    })
}

/// Runs the `seeds` in a row from `first` on; see [`sim::run_many`].
pub fn run_many(
    first: u64,
    seeds: u64,
    members: u64,
    jobs: usize,
    progress: impl Fn(&Report) + Sync,
) -> Result<Summary, String> {
    let run = |seed| run(seed, members, None);
    let repeat = |seed| format!("cargo xtask sim chainfire --seed {seed} --members {members}");
    sim::run_many(first, seeds, jobs, &run, &repeat, progress)
}

/// Looks for a planted bug in at most `seeds` seeds.
pub fn find_bug(bug: Bug, first: u64, seeds: u64, members: u64) -> std::io::Result<Option<Report>> {
    sim::find(first, seeds, |seed| run(seed, members, Some(bug)))
}

/// Kinds of events, of Chainfire's own, that a whole run must contain.
pub fn kinds() -> &'static [&'static str] {
    Chainfire::KINDS
}
