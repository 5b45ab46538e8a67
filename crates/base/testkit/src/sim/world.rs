//! The simulated world: members, network, clock, and the order in which things happen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use raft_host::{ConfChange, Input, Output, Peer, PeerMessage, Reply, Role};

use super::clients::Clients;
use super::faults::{Fault, Faults};
use super::machine::{Journal, SharedJournal};
use super::nemesis::Nemesis;
use super::node::{GROUP, Node, State, Waiter};
use super::options::Options;
use super::rng::SimRng;

/// Microseconds in a millisecond.
pub(crate) const MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) enum Event {
    Tick { node: u64, life: u64 },
    Wake { node: u64, life: u64 },
    Deliver(Box<PeerMessage>),
    Restart { node: u64, life: u64 },
    Client { client: u32 },
    GiveUp { client: u32, op: u64 },
    Nemesis,
    Admin,
    EndPartition { number: u64 },
    EndFull { node: u64 },
    EndSlow { node: u64 },
}

struct Queued {
    at: u64,
    seq: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

pub(crate) struct World<'a> {
    pub(crate) options: &'a Options,
    pub(crate) now: u64,
    pub(crate) rng: SimRng,
    queue: BinaryHeap<Reverse<Queued>>,
    seq: u64,
    pub(crate) nodes: BTreeMap<u64, Node>,
    dir: &'a Path,
    pub(crate) next_node: u64,
    /// Links that carry nothing, by the partition that cut them.
    pub(crate) cuts: BTreeMap<u64, BTreeSet<(u64, u64)>>,
    last_delivery: BTreeMap<(u64, u64), u64>,
    pub(crate) clients: Clients,
    pub(crate) nemesis: Nemesis,
    pub(crate) journal: SharedJournal,
    pub(crate) faults: Faults,
    leaders: BTreeMap<u64, u64>,
    pub(crate) trace: u64,
    pub(crate) healed: bool,
    pub(crate) next_request: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(options: &'a Options, dir: &'a Path) -> World<'a> {
        let mut rng = SimRng::new(options.seed);
        let clients = Clients::new(options, rng.fork());
        let nemesis = Nemesis::new(rng.fork());
        let mut world = World {
            options,
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            seq: 0,
            nodes: BTreeMap::new(),
            dir,
            next_node: 1,
            cuts: BTreeMap::new(),
            last_delivery: BTreeMap::new(),
            clients,
            nemesis,
            journal: Arc::new(Mutex::new(Journal::default())),
            faults: Faults::default(),
            leaders: BTreeMap::new(),
            trace: 0,
            healed: false,
            next_request: 1,
        };
        let initial: Vec<Peer> = (1..=options.members)
            .map(|id| Peer {
                id,
                address: format!("sim:{id}"),
            })
            .collect();
        for _ in 0..options.members {
            world.add_node(initial.clone());
        }
        for client in 0..options.clients {
            world.at(world.now + u64::from(client) * MS, Event::Client { client });
        }
        world.at(500 * MS, Event::Nemesis);
        world.at(2_000 * MS, Event::Admin);
        world
    }

    /// A new member with empty disks, started.
    pub(crate) fn add_node(&mut self, initial: Vec<Peer>) -> u64 {
        let id = self.next_node;
        self.next_node += 1;
        let dir = self.dir.join(format!("node-{id}"));
        let mut node = Node::new(id, dir, initial, self.options.plant);
        if self.rng.chance(300) {
            node.tick_us = self.rng.between(70_000, 150_000);
            self.faults.add(Fault::ClockSkewed, 1);
        }
        self.nodes.insert(id, node);
        self.start(id);
        id
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.seq += 1;
        self.queue.push(Reverse(Queued {
            at: at.max(self.now),
            seq: self.seq,
            event,
        }));
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .violation
            .clone()
    }

    pub(crate) fn fail(&self, what: String) {
        self.journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fail(what);
    }

    pub(crate) fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.trace = (self.trace ^ number)
                .wrapping_mul(0x0100_0000_01B3)
                .rotate_left(5);
        }
    }

    /// Runs until `until` (microseconds), or until something is wrong, or `done` says so.
    pub(crate) fn run(&mut self, until: u64, done: impl Fn(&World<'_>) -> bool) {
        loop {
            if self.violation().is_some() || done(self) {
                return;
            }
            match self.queue.pop() {
                Some(Reverse(next)) if next.at <= until => {
                    self.now = next.at;
                    self.step(next.event);
                }
                Some(later) => {
                    self.queue.push(later);
                    break;
                }
                None => break,
            }
        }
        self.now = self.now.max(until);
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } => {
                let Some(n) = self.nodes.get_mut(&node).filter(|n| n.life == life) else {
                    return;
                };
                let every = n.tick_us;
                // A paused process gets no ticks; it does not get the lost ones later either.
                if self.now >= n.paused_until {
                    n.inbox.push(Input::Tick);
                    self.wake(node);
                }
                self.at(self.now + every, Event::Tick { node, life });
            }
            Event::Wake { node, life } => self.round(node, life),
            Event::Deliver(message) => self.deliver(message),
            Event::Restart { node, life } => {
                if self
                    .nodes
                    .get(&node)
                    .is_some_and(|n| n.life == life && n.state == State::Down)
                {
                    self.start(node);
                }
            }
            Event::Client { client } => self.client_acts(client),
            Event::GiveUp { client, op } => self.client_gives_up(client, op),
            Event::Nemesis => self.nemesis_acts(),
            Event::Admin => self.admin_acts(),
            Event::EndPartition { number } => drop(self.cuts.remove(&number)),
            Event::EndFull { node } => self.with_node(node, |n| n.disk.set_full(false)),
            Event::EndSlow { node } => self.with_node(node, |n| n.disk.set_sync_delay(Default::default())),
        }
    }

    pub(crate) fn with_node(&mut self, node: u64, act: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&node) {
            act(node);
        }
    }

    /// Sees to it that a member looks at its inbox as soon as it can.
    pub(crate) fn wake(&mut self, node: u64) {
        let now = self.now;
        let Some(n) = self.nodes.get_mut(&node) else {
            return;
        };
        let at = now.max(n.busy_until).max(n.paused_until);
        if n.state != State::Up || n.wake_at.is_some_and(|w| w <= at) {
            return;
        }
        n.wake_at = Some(at);
        let life = n.life;
        self.at(at, Event::Wake { node, life });
    }

    pub(crate) fn start(&mut self, id: u64) {
        let incarnation = self.rng.next();
        let (seed, plant) = (self.options.seed, self.options.plant);
        let journal = self.journal.clone();
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        node.disk.set_full(false);
        match node.start(incarnation, seed, journal, plant) {
            Ok(()) => {
                let (life, every) = (node.life, node.tick_us);
                let first = self.now + self.rng.below(every);
                self.at(first, Event::Tick { node: id, life });
            }
            Err(why) if node.flipped => {
                node.stop(State::Dead);
                self.faults.add(Fault::DamageDetected, 1);
                self.note(&[id, why.len() as u64]);
            }
            Err(why) => self.fail(format!(
                "node {id} did not start although nothing was damaged: {why}"
            )),
        }
    }

    fn round(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.life == life) else {
            return;
        };
        node.wake_at = None;
        if node.state != State::Up || node.inbox.is_empty() {
            return;
        }
        if node.paused_until > self.now || node.busy_until > self.now {
            self.wake(id);
            return;
        }
        match node.round() {
            Ok((output, waited)) => {
                let took = 30 + u64::try_from(waited.as_micros()).unwrap_or(0);
                node.busy_until = self.now + took;
                self.handle(id, output, self.now + took);
            }
            Err(why) => self.stopped(id, &why),
        }
    }

    /// A host stopped by itself.
    fn stopped(&mut self, id: u64, why: &str) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let expected_sync = node.disk.take_sync_failed();
        let full = why.contains("no space left");
        if !expected_sync && !full && !node.flipped {
            self.fail(format!("node {id} stopped without a reason: {why}"));
            return;
        }
        let damaged = node.flipped && !expected_sync && !full;
        if damaged {
            self.faults.add(Fault::DamageDetected, 1);
        }
        self.kill(id, if damaged { State::Dead } else { State::Down });
        // What a failed sync left on the disk is unknown; so is what the process had written.
        self.cut_power(id);
        let life = self.nodes.get(&id).map_or(0, |n| n.life);
        let after = self.rng.between(300, 2_000) * MS;
        self.at(self.now + after, Event::Restart { node: id, life });
    }

    /// Ends a process; clients that wait for it learn nothing.
    pub(crate) fn kill(&mut self, id: u64, state: State) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let waiters = node.stop(state);
        node.first_index = 0;
        for waiter in waiters {
            match waiter {
                Waiter::Client { client, op, .. } => self.client_lost(client, op),
                Waiter::Admin => self.nemesis.admin_done(),
            }
        }
    }

    /// The disks of a stopped member lose what was not synced.
    pub(crate) fn cut_power(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let damage = node.disk.power_cut(&mut self.rng);
        let unsynced = node.state_disk.unsynced() as u64;
        let keep = self.rng.below(unsynced + 1);
        node.state_disk.crash(usize::try_from(keep).unwrap_or(0));
        self.faults.add(Fault::WritesLost, damage.lost_writes);
        self.faults.add(Fault::WriteTorn, damage.torn_writes);
        self.faults.add(Fault::StateLost, unsynced - keep);
    }

    fn handle(&mut self, id: u64, output: Output, at: u64) {
        self.note(&[
            id,
            self.now,
            output.messages.len() as u64,
            output.replies.len() as u64,
        ]);
        for (_, info) in &output.leaders {
            self.note(&[info.term, info.leader.unwrap_or(0)]);
            if info.role == Role::Leader {
                let first = *self.leaders.entry(info.term).or_insert(id);
                if first != id {
                    self.fail(format!("nodes {first} and {id} both lead term {}", info.term));
                }
            }
        }
        for message in output.messages {
            self.send(message, at);
        }
        for reply in output.replies {
            let waiter = self
                .nodes
                .get_mut(&id)
                .and_then(|n| n.waiting.remove(&reply.id()));
            match waiter {
                Some(Waiter::Client {
                    client,
                    op,
                    to_follower,
                }) => {
                    if to_follower && matches!(reply, Reply::Proposed(_, Ok(_))) {
                        self.faults.add(Fault::ProposalForwarded, 1);
                    }
                    self.client_reply(client, op, id, reply, at);
                }
                Some(Waiter::Admin) => self.admin_reply(&reply),
                None => {}
            }
        }
        self.watch_log(id);
    }

    /// Notices compactions and installed snapshots.
    fn watch_log(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(status) = node.host.as_ref().and_then(|h| h.status(GROUP)) else {
            return;
        };
        if node.first_index > 0 && status.first_index > node.first_index {
            let installed = status.first_index == status.applied + 1 || status.first_index > node.applied + 1;
            let kind = if installed {
                Fault::SnapshotInstalled
            } else {
                Fault::LogCompacted
            };
            self.faults.add(kind, 1);
        }
        node.first_index = status.first_index;
        node.applied = status.applied;
    }

    fn send(&mut self, message: PeerMessage, at: u64) {
        let link = (message.from, message.to);
        let faulty = !self.healed;
        if faulty && self.rng.chance(self.options.lose) {
            self.faults.add(Fault::MessageLost, 1);
            return;
        }
        let doubled = faulty && self.rng.chance(self.options.double);
        self.faults.add(Fault::MessageDoubled, u64::from(doubled));
        for _ in 0..=u64::from(doubled) {
            let mut delay = 100 + self.rng.below(self.options.delay_us);
            if faulty && self.rng.chance(self.options.late) {
                delay += self.rng.between(300, 3_000) * MS;
                self.faults.add(Fault::MessageLate, 1);
            }
            let arrives = at + delay;
            let last = self.last_delivery.entry(link).or_default();
            let reordered = arrives < *last;
            *last = arrives.max(*last);
            self.faults.add(Fault::MessageReordered, u64::from(reordered));
            self.at(arrives, Event::Deliver(Box::new(message.clone())));
        }
    }

    fn deliver(&mut self, message: Box<PeerMessage>) {
        let link = (message.from, message.to);
        if self.cuts.values().any(|cut| cut.contains(&link)) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&message.to) else {
            return;
        };
        if node.state == State::Up {
            let to = message.to;
            node.inbox.push(Input::Peer(message));
            self.wake(to);
        }
    }

    /// Gives a member something to do on behalf of a waiter.
    pub(crate) fn ask(&mut self, node: u64, waiter: Waiter, input: impl FnOnce(u64) -> Input) {
        let id = self.next_request;
        self.next_request += 1;
        self.with_node(node, |n| {
            n.waiting.insert(id, waiter);
            n.inbox.push(input(id));
        });
        self.wake(node);
    }

    pub(crate) fn change(&mut self, leader: u64, change: ConfChange) {
        self.ask(leader, Waiter::Admin, |id| Input::ConfChange {
            group: GROUP,
            id,
            change,
        });
    }

    pub(crate) fn up(&self) -> Vec<u64> {
        self.nodes
            .values()
            .filter(|n| n.state == State::Up)
            .map(|n| n.id)
            .collect()
    }

    /// The member that leads the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leading = self
            .nodes
            .values()
            .filter_map(|n| n.leads().map(|term| (term, n.id)));
        leading.max().map(|(_, id)| id)
    }
}
