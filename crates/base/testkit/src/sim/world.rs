//! The simulated world: members, network, clock, and the order in which things happen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;

use raft_host::{ConfChange, Input, LeaderInfo, Output, Peer, PeerMessage, Role};

use super::faults::{Fault, Faults};
use super::journal::SharedJournal;
use super::nemesis::Nemesis;
use super::node::{GROUP, Node, State, Waiter};
use super::options::Options;
use super::rng::SimRng;
use super::service::Service;

/// Microseconds in a millisecond.
pub const MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) enum Event<E> {
    Tick { node: u64, life: u64 },
    Wake { node: u64, life: u64 },
    Deliver(Box<PeerMessage>),
    Restart { node: u64, life: u64 },
    Service(E),
    Nemesis,
    Admin,
    EndPartition { number: u64 },
    EndFull { node: u64 },
    EndSlow { node: u64 },
}

struct Queued<E> {
    at: u64,
    seq: u64,
    event: Event<E>,
}

impl<E> PartialEq for Queued<E> {
    fn eq(&self, other: &Queued<E>) -> bool {
        (self.at, self.seq) == (other.at, other.seq)
    }
}
impl<E> Eq for Queued<E> {}
impl<E> PartialOrd for Queued<E> {
    fn partial_cmp(&self, other: &Queued<E>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Queued<E> {
    fn cmp(&self, other: &Queued<E>) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// Members, network, clock and queue of what will happen, with the service that runs on them.
pub struct World<'a, S: Service> {
    pub(crate) options: &'a Options,
    /// Microseconds since the beginning.
    pub now: u64,
    /// The service and its clients.
    pub service: S,
    pub(crate) rng: SimRng,
    queue: BinaryHeap<Reverse<Queued<S::Event>>>,
    seq: u64,
    pub(crate) nodes: BTreeMap<u64, Node<S>>,
    dir: &'a Path,
    pub(crate) next_node: u64,
    /// Links that carry nothing, by the partition that cut them.
    pub(crate) cuts: BTreeMap<u64, BTreeSet<(u64, u64)>>,
    last_delivery: BTreeMap<(u64, u64), u64>,
    pub(crate) nemesis: Nemesis,
    /// What the members applied.
    pub journal: SharedJournal,
    /// What went wrong on purpose, and what else must have happened.
    pub faults: Faults,
    leaders: BTreeMap<u64, u64>,
    pub(crate) trace: u64,
    /// Faults are over.
    pub healed: bool,
    pub(crate) next_request: u64,
}

impl<S: Service> std::fmt::Debug for World<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("now", &self.now)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl<'a, S: Service> World<'a, S> {
    pub(crate) fn new(
        options: &'a Options,
        dir: &'a Path,
        service: impl FnOnce(&Options, SimRng) -> S,
    ) -> World<'a, S> {
        let mut rng = SimRng::new(options.seed);
        let service = service(options, rng.fork());
        let nemesis = Nemesis::new(rng.fork());
        let mut world = World {
            options,
            now: 0,
            service,
            rng,
            queue: BinaryHeap::new(),
            seq: 0,
            nodes: BTreeMap::new(),
            dir,
            next_node: 1,
            cuts: BTreeMap::new(),
            last_delivery: BTreeMap::new(),
            nemesis,
            journal: SharedJournal::default(),
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
        S::begin(&mut world);
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

    pub(crate) fn at(&mut self, at: u64, event: Event<S::Event>) {
        self.seq += 1;
        self.queue.push(Reverse(Queued {
            at: at.max(self.now),
            seq: self.seq,
            event,
        }));
    }

    pub(crate) fn violation(&self) -> Option<String> {
        self.journal.lock().violation.clone()
    }

    /// Something is wrong: the run ends with the first such remark.
    pub fn fail(&self, what: String) {
        self.journal.lock().fail(what);
    }

    /// Adds to the checksum over everything that happened.
    pub fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.trace = (self.trace ^ number)
                .wrapping_mul(0x0100_0000_01B3)
                .rotate_left(5);
        }
    }

    /// Runs until `until` (microseconds), or until something is wrong, or `done` says so.
    pub(crate) fn run(&mut self, until: u64, done: impl Fn(&World<'_, S>) -> bool) {
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

    fn step(&mut self, event: Event<S::Event>) {
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
            Event::Service(event) => S::act(self, event),
            Event::Nemesis => self.nemesis_acts(),
            Event::Admin => self.admin_acts(),
            Event::EndPartition { number } => drop(self.cuts.remove(&number)),
            Event::EndFull { node } => self.with_node(node, |n| n.disk.set_full(false)),
            Event::EndSlow { node } => self.with_node(node, |n| n.disk.set_sync_delay(Default::default())),
        }
    }

    pub(crate) fn with_node(&mut self, node: u64, act: impl FnOnce(&mut Node<S>)) {
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
        match node.start(incarnation, seed, journal, plant, &mut self.service) {
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
        S::before_round(self, id);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
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
        S::stopped(self, id);
        for waiter in waiters {
            match waiter {
                Waiter::Service(ask) => S::lost(self, ask),
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
        let leader = output.leaders.last().map(|(_, info)| *info);
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
                Some(Waiter::Service(ask)) => S::answered(self, ask, id, reply, at),
                Some(Waiter::Admin) => self.admin_reply(&reply),
                None => {}
            }
        }
        self.watch_log(id);
        S::after_round(self, id, leader, at);
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
    pub(crate) fn put_to(&mut self, node: u64, waiter: Waiter<S::Ask>, input: impl FnOnce(u64) -> Input) {
        let id = self.next_request;
        self.next_request += 1;
        self.with_node(node, |n| {
            n.waiting.insert(id, waiter);
            n.inbox.push(input(id));
        });
        self.wake(node);
    }

    pub(crate) fn change(&mut self, leader: u64, change: ConfChange) {
        self.put_to(leader, Waiter::Admin, |id| Input::ConfChange {
            group: GROUP,
            id,
            change,
        });
    }

    /// Members whose process runs.
    pub fn up(&self) -> Vec<u64> {
        self.nodes
            .values()
            .filter(|n| n.state == State::Up)
            .map(|n| n.id)
            .collect()
    }

    /// The member that leads the highest term.
    pub fn leader(&self) -> Option<u64> {
        let leading = self
            .nodes
            .values()
            .filter_map(|n| n.leads().map(|term| (term, n.id)));
        leading.max().map(|(_, id)| id)
    }

    /// What the seed stands for.
    pub fn options(&self) -> &Options {
        self.options
    }

    /// Schedules something of the service's own.
    pub fn schedule(&mut self, at: u64, event: S::Event) {
        self.at(at, Event::Service(event));
    }

    /// Gives a member's host something to do; `ask` comes back with the answer.
    pub fn ask(&mut self, node: u64, ask: S::Ask, input: impl FnOnce(u64) -> Input) {
        self.put_to(node, Waiter::Service(ask), input);
    }

    /// What is seen of a member whose process runs.
    pub fn view(&self, node: u64) -> Option<&S::View> {
        let node = self.nodes.get(&node).filter(|n| n.state == State::Up)?;
        node.view.as_ref()
    }

    /// As [`World::view`], with the service beside it.
    pub fn view_mut(&mut self, node: u64) -> Option<(&mut S::View, &mut S)> {
        let node = self.nodes.get_mut(&node).filter(|n| n.state == State::Up)?;
        Some((node.view.as_mut()?, &mut self.service))
    }

    /// A member's process: it counts starts.
    pub fn life(&self, node: u64) -> u64 {
        self.nodes.get(&node).map_or(0, |n| n.life)
    }

    /// When a member can do something next: it may be paused, or wait for its disk.
    pub fn free_at(&self, node: u64) -> u64 {
        let busy = self.nodes.get(&node).map(|n| n.busy_until.max(n.paused_until));
        busy.unwrap_or(0).max(self.now)
    }

    /// Microseconds of true time that a member takes for 100 000.
    pub fn tick_us(&self, node: u64) -> u64 {
        self.nodes.get(&node).map_or(100_000, |n| n.tick_us)
    }

    /// Stops a member's process for so many microseconds.
    pub fn pause(&mut self, node: u64, lasts: u64) {
        self.faults.add(Fault::Paused, 1);
        let until = self.now + lasts;
        self.with_node(node, |n| n.paused_until = until.max(n.paused_until));
        self.wake(node);
    }

    /// Who a member's host says leads.
    pub fn leader_of(&self, node: u64) -> Option<LeaderInfo> {
        let node = self.nodes.get(&node).filter(|n| n.state == State::Up)?;
        node.host.as_ref()?.leader(GROUP)
    }

    /// The member that leads `term`, if any has been seen to.
    pub fn leader_of_term(&self, term: u64) -> Option<u64> {
        self.leaders.get(&term).copied()
    }

    /// Whether what `from` sends now would reach `to`.
    pub fn connected(&self, from: u64, to: u64) -> bool {
        !self.cuts.values().any(|cut| cut.contains(&(from, to)))
    }

    /// When a message of the service's own from one member to another arrives; `None` when it is lost.
    pub fn hop(&mut self, from: u64, to: u64, at: u64) -> Option<u64> {
        if !self.connected(from, to) || (!self.healed && self.rng.chance(self.options.lose)) {
            return None;
        }
        Some(at + 100 + self.rng.below(self.options.delay_us))
    }

    /// Whether a member is, as far as the administrators know, one of the group.
    pub fn is_member(&self, node: u64) -> bool {
        self.members().get(node).is_some_and(|m| !m.address.is_empty())
    }

    /// Whether a member is a learner, as far as the administrators know.
    pub fn is_learner(&self, node: u64) -> bool {
        self.members().get(node).is_some_and(|m| m.learner)
    }
}
