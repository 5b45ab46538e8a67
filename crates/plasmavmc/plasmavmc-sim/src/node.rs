//! A node: its clock, its guard, its agent.

use std::collections::BTreeMap;

use plasmavmc_core::fence::{Guard, GuardInput, Level, Owner, Said, TIMES, may_open};
use testkit::sim::SimRng;

use crate::bug::Bug;
use crate::check;
use crate::nemesis::{self, Kind};
use crate::store::MEMBERS;
use crate::world::{Body, CONTROLS, Party, STEP_MS, World};

/// A guard waits so long for an answer before it asks another member.
const PATIENCE_MS: u64 = 2_000;
/// Without a proof for so long, it asks the members for their leaders.
const ASK_AFTER_MS: u64 = 2_500;
const ROUND_MS: u64 = 500;
const RETRY_MS: u64 = 300;
const SYNC_MS: u64 = 1_000;
/// Longest time that a start takes, up to the opening of the disk.
const START_MS: u64 = 2_500;
const KILL_TAKES_MS: u64 = 900;
const RESTART_PAUSE_MS: u64 = 1_500;

#[derive(Debug)]
struct Round {
    began: u64,
    asks_at: [u64; MEMBERS],
    said: [Said; MEMBERS],
    ends_at: u64,
}

/// What survives a guard: the file it keeps in memory of the machine, not of the process.
#[derive(Debug, Default)]
struct File {
    basis: Option<u64>,
    start_until: Option<u64>,
    held_since: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) up_at: Option<u64>,
    pub(crate) frozen_until: u64,
    /// Its requests are lost, its questions are not.
    pub(crate) mute: bool,
    pub(crate) links: [bool; MEMBERS],
    pub(crate) control_links: [bool; CONTROLS],
    drift: u64,
    booted_at: u64,
    file: File,
    guard: Option<Guard>,
    guard_restart_at: u64,
    guard_stopped_until: u64,
    /// Since when the guard runs without having been stopped.
    pub(crate) sound_since: Option<u64>,
    stood_ms: u64,
    life: u64,
    known: Option<i64>,
    have: bool,
    /// When the lease that it has was asked for.
    lease_sent: u64,
    fence_seen: bool,
    pending: Option<u64>,
    next_request: u64,
    round: Option<Round>,
    /// Rounds go on until a renewal.
    asks: bool,
    pub(crate) agent_up: bool,
    pub(crate) agent_restart_at: u64,
    pub(crate) agent_stopped_until: u64,
    /// The nemesis waits for the next start.
    pub(crate) stop_in_start: bool,
    next_sync: u64,
    journal: BTreeMap<usize, u64>,
    /// When a control plane last assigned each VM.
    assigned: BTreeMap<usize, u64>,
    starting: BTreeMap<usize, Start>,
    tried_at: BTreeMap<usize, u64>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) epoch: u64,
    pub(crate) opens_at: u64,
    /// The agent was stopped meanwhile: nothing is known about the time between look and act.
    pub(crate) interrupted: bool,
}

impl Node {
    pub(crate) fn new(rng: &mut SimRng) -> Self {
        Self {
            up_at: Some(0),
            frozen_until: 0,
            mute: false,
            links: [true; MEMBERS],
            control_links: [true; CONTROLS],
            drift: rng.below(101),
            booted_at: 0,
            file: File::default(),
            guard: None,
            guard_restart_at: 0,
            guard_stopped_until: 0,
            sound_since: None,
            stood_ms: 0,
            life: 0,
            known: None,
            have: false,
            lease_sent: 0,
            fence_seen: false,
            pending: None,
            next_request: 0,
            round: None,
            asks: false,
            agent_up: true,
            agent_restart_at: 0,
            agent_stopped_until: 0,
            stop_in_start: false,
            next_sync: 0,
            journal: BTreeMap::new(),
            assigned: BTreeMap::new(),
            starting: BTreeMap::new(),
            tried_at: BTreeMap::new(),
        }
    }

    pub(crate) const fn is_up(&self, now: u64) -> bool {
        matches!(self.up_at, Some(at) if now >= at)
    }

    const fn moves(&self, now: u64) -> bool {
        self.is_up(now) && now >= self.frozen_until
    }

    /// The node's own clock: 5 % slow to 5 % fast, from its boot on.
    pub(crate) const fn clock(&self, now: u64) -> u64 {
        now.saturating_sub(self.booted_at) * (950 + self.drift) / 1000
    }

    pub(crate) fn guard_runs(&self, now: u64) -> bool {
        self.guard.is_some() && self.moves(now) && now >= self.guard_stopped_until
    }

    pub(crate) fn agent_runs(&self, now: u64) -> bool {
        self.agent_up && self.moves(now) && now >= self.agent_stopped_until
    }

    pub(crate) fn guard_stopped_until(&self) -> u64 {
        self.guard_stopped_until.max(self.frozen_until)
    }

    pub(crate) fn kill_guard(&mut self, restart_at: u64) {
        self.guard = None;
        self.guard_restart_at = restart_at;
        self.guard_stopped_until = 0;
        self.life += 1;
        self.known = None;
        self.have = false;
        self.fence_seen = false;
        self.pending = None;
        self.round = None;
    }

    pub(crate) fn stop_guard(&mut self, until: u64) {
        self.guard_stopped_until = until;
    }

    pub(crate) fn kill_agent(&mut self, restart_at: u64) {
        self.agent_up = false;
        self.agent_restart_at = restart_at;
        self.agent_stopped_until = 0;
        self.starting.clear();
        self.assigned.clear();
    }

    /// Power off and on again at `up_at`. The journal is on a disk, the guard's file is not.
    pub(crate) fn reboot(&mut self, up_at: u64) {
        self.kill_guard(up_at);
        self.kill_agent(up_at);
        self.up_at = Some(up_at);
        self.booted_at = up_at;
        self.frozen_until = 0;
        self.file = File::default();
        self.stood_ms = 0;
        self.tried_at.clear();
    }

    /// Everything runs from now on.
    pub(crate) fn heal(&mut self, now: u64) {
        self.frozen_until = 0;
        self.guard_stopped_until = 0;
        self.agent_stopped_until = 0;
        self.stop_in_start = false;
        self.mute = false;
        self.guard_restart_at = self.guard_restart_at.min(now);
        self.agent_restart_at = self.agent_restart_at.min(now);
        if self.up_at.is_some_and(|at| at > now) {
            self.up_at = Some(now);
            self.booted_at = now;
        }
    }

    fn level(&self, clock: u64) -> Level {
        self.guard
            .as_ref()
            .map_or(Level::Kill, |guard| guard.level(clock))
    }
}

pub(crate) fn act(world: &mut World, index: usize) -> Result<(), String> {
    let now = world.now;
    let stands = world.has(Bug::ClockStands);
    let node = &mut world.nodes[index];
    if node.is_up(now) && node.guard.is_none() && now >= node.guard_restart_at && node.moves(now) {
        let basis = node.file.basis;
        let basis = if world.bug == Some(Bug::ForgetsAtRestart) {
            Some(node.clock(now))
        } else {
            basis
        };
        node.guard = Some(Guard::new(TIMES, basis, node.file.held_since));
        node.next_request = 0;
    }
    let runs = node.guard_runs(now);
    if !runs {
        node.sound_since = None;
        if stands && node.guard.is_some() {
            node.stood_ms += STEP_MS;
        }
    } else {
        node.sound_since.get_or_insert(now);
    }
    if runs {
        enforce(world, index)?;
        ask_members(world, index);
        request(world, index);
        let node = &mut world.nodes[index];
        node.file.basis = node.guard.as_ref().and_then(Guard::basis_ms);
        node.file.start_until = node.guard.as_ref().and_then(Guard::may_start_until_ms);
        node.file.held_since = node.guard.as_ref().and_then(Guard::held_since_ms);
    }
    agent(world, index)
}

fn guard_clock(world: &World, index: usize) -> u64 {
    let node = &world.nodes[index];
    node.clock(world.now).saturating_sub(node.stood_ms)
}

/// Makes the level true for every movable guest of the node.
fn enforce(world: &mut World, index: usize) -> Result<(), String> {
    let clock = guard_clock(world, index);
    let mut level = world.nodes[index].level(clock);
    if level == Level::Kill && world.has(Bug::NeverKills) {
        level = Level::Pause;
    }
    for at in 0..world.guests.len() {
        let guest = &world.guests[at];
        let movable = world.store.vms[guest.vm].shared || world.has(Bug::KillsLocal);
        if guest.node != index || !movable {
            continue;
        }
        let (still, dying) = (guest.still, guest.dies_at.is_some());
        match level {
            Level::Run if still && !dying => {
                world.guests[at].still = false;
                world.note("GuestResumed");
            }
            Level::Pause if !still => {
                check::touched(world, at, "paused")?;
                world.guests[at].still = true;
                world.note("GuestPaused");
            }
            Level::Kill if !dying => {
                check::touched(world, at, "killed")?;
                let takes = world.rng.below(KILL_TAKES_MS);
                world.guests[at].still = true;
                world.guests[at].dies_at = Some(world.now + takes);
                world.note("GuestKilled");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Rounds of questions, while there is no proof.
fn ask_members(world: &mut World, index: usize) {
    let (now, clock) = (world.now, guard_clock(world, index));
    if world.has(Bug::StopsCounting) && !world.store.serves() {
        // As if the first proof had switched the counting off.
        hear(
            world,
            index,
            GuardInput::Held {
                sent_ms: clock + 600_000,
            },
        );
    }
    let Some(mut round) = world.nodes[index].round.take() else {
        begin_round(world, index);
        return;
    };
    for member in 0..MEMBERS {
        // The question arrives in this step, and the answer comes back at once.
        let due = round.asks_at[member] <= now && round.asks_at[member] + STEP_MS > now;
        if due && world.nodes[index].links[member] {
            round.said[member] = said(world, member);
        }
    }
    if now < round.ends_at && round.said.contains(&Said::Nothing) {
        world.nodes[index].round = Some(round);
        return;
    }
    let without = round
        .said
        .iter()
        .filter(|said| matches!(said, Said::NoLeader { .. }))
        .count();
    let has_one = round.said.contains(&Said::Leader);
    if without > 0 && !has_one {
        world.note("RoundWithoutLeader");
    }
    if round.said.contains(&Said::Refused) {
        world.note("RoundWithRefusal");
    }
    for said in &mut round.said {
        *said = match *said {
            _ if world.has(Bug::OneMemberIsEnough) && without > 0 => Said::NoLeader { for_ms: 60_000 },
            Said::NoLeader { .. } if world.has(Bug::AnyAbsenceIsEnough) => Said::NoLeader { for_ms: 60_000 },
            Said::Nothing if world.has(Bug::SilenceIsRefusal) => Said::Refused,
            said => said,
        };
    }
    if let Some(guard) = &mut world.nodes[index].guard {
        guard.hear_round(round.began, clock, &round.said);
    }
}

fn begin_round(world: &mut World, index: usize) {
    let (now, clock) = (world.now, guard_clock(world, index));
    let guard = world.nodes[index].guard.as_ref();
    let without = guard.and_then(|guard| guard.without_proof_ms(clock));
    // A proof by rounds alone must not stop the rounds: those who refuse are counted over several.
    let asks = without.is_some_and(|ms| ms > ASK_AFTER_MS) || world.nodes[index].asks;
    let renewed = guard
        .and_then(Guard::may_start_until_ms)
        .is_some_and(|until| clock < until.saturating_sub(TIMES.start_ms) + ASK_AFTER_MS);
    world.nodes[index].asks = asks && !renewed;
    if !world.nodes[index].asks || world.has(Bug::QuorumLossIsPartition) {
        return;
    }
    let mut asks_at = [0; MEMBERS];
    for at in &mut asks_at {
        *at = now + world.delay();
    }
    world.nodes[index].round = Some(Round {
        began: clock,
        asks_at,
        said: [Said::Nothing; MEMBERS],
        ends_at: now + ROUND_MS,
    });
}

fn said(world: &World, member: usize) -> Said {
    let one = &world.store.members[member];
    if !one.up {
        return Said::Refused;
    }
    if !one.acts(world.now) {
        return Said::Nothing;
    }
    match world.store.leaderless_ms(member, world.now) {
        Some(for_ms) => Said::NoLeader { for_ms },
        None => Said::Leader,
    }
}

fn hear(world: &mut World, index: usize, input: GuardInput) {
    let mut clock = guard_clock(world, index);
    if let (GuardInput::Held { sent_ms }, true) = (input, world.has(Bug::StopsCounting)) {
        clock = clock.max(sent_ms);
    }
    if let Some(guard) = &mut world.nodes[index].guard {
        guard.hear(input, clock);
    }
}

/// Renews the lease, or asks for a new one.
fn request(world: &mut World, index: usize) {
    let clock = guard_clock(world, index);
    let alive = movable_alive(world, index);
    let node = &mut world.nodes[index];
    if node.pending.is_some_and(|sent| clock >= sent + PATIENCE_MS) {
        node.pending = None;
        node.next_request = clock;
    }
    if node.pending.is_some() || clock < node.next_request {
        return;
    }
    let may = node
        .guard
        .as_ref()
        .is_some_and(|guard| guard.may_acquire(node.fence_seen, alive));
    let body = if node.have {
        Body::Renew
    } else if may {
        Body::Acquire { known: node.known }
    } else {
        return;
    };
    node.pending = Some(clock);
    node.next_request = clock + TIMES.renew_ms;
    let party = Party::Guard {
        node: index,
        life: node.life,
    };
    let member = world.some_member();
    world.send(party, member, clock, body);
}

fn movable_alive(world: &World, index: usize) -> usize {
    let here = world.guests.iter().filter(|guest| guest.node == index);
    here.filter(|guest| world.store.vms[guest.vm].shared).count()
}

/// An answer of the store to the guard.
pub(crate) fn answered(world: &mut World, index: usize, life: u64, sent: u64, body: &Body) {
    let clock = guard_clock(world, index);
    let counted_from = if world.has(Bug::CountsFromAnswer) {
        clock
    } else {
        sent
    };
    let node = &mut world.nodes[index];
    if node.life != life || node.guard.is_none() {
        return;
    }
    if node.pending == Some(sent) {
        node.pending = None;
    }
    let input = match body {
        Body::Renewed(true) => Some(GuardInput::Held {
            sent_ms: counted_from,
        }),
        // An old question about a lease that has been replaced since.
        Body::Renewed(false) if !node.have || sent <= node.lease_sent => None,
        Body::Renewed(false) => {
            node.have = false;
            node.next_request = clock;
            Some(GuardInput::Gone)
        }
        Body::Acquired(Ok(revision)) => {
            node.known = Some(*revision);
            node.have = true;
            node.lease_sent = sent;
            node.fence_seen = false;
            Some(GuardInput::Held {
                sent_ms: counted_from,
            })
        }
        Body::Acquired(Err(record)) if !node.have => {
            node.known = record.map(|record| record.revision);
            node.fence_seen = record.is_some_and(|record| record.fenced);
            node.next_request = clock + RETRY_MS;
            node.fence_seen.then_some(GuardInput::Fenced)
        }
        _ => None,
    };
    if let Some(input) = input {
        hear(world, index, input);
    }
}

fn agent(world: &mut World, index: usize) -> Result<(), String> {
    let now = world.now;
    let node = &mut world.nodes[index];
    if !node.agent_up && now >= node.agent_restart_at && node.is_up(now) {
        node.agent_up = true;
    }
    if !node.agent_runs(now) {
        node.starting
            .values_mut()
            .for_each(|start| start.interrupted = true);
        return Ok(());
    }
    if now >= node.next_sync {
        node.next_sync = now + SYNC_MS;
        sync(world, index);
    }
    begin_starts(world, index);
    let due: Vec<(usize, Start)> = {
        let starting = &mut world.nodes[index].starting;
        let due: Vec<_> = starting
            .iter()
            .filter(|(_, s)| s.opens_at <= now)
            .map(|(vm, s)| (*vm, *s))
            .collect();
        starting.retain(|_, start| start.opens_at > now);
        due
    };
    for (vm, start) in due {
        open(world, index, vm, start)?;
    }
    Ok(())
}

/// Takes the assignments over from a control plane that reaches the store.
fn sync(world: &mut World, index: usize) {
    let now = world.now;
    let reached = (0..CONTROLS).any(|control| {
        let one = &world.controls[control];
        let through = (0..MEMBERS)
            .any(|m| one.links[m] && world.store.members[m].acts(now) && world.store.serves_through(m, now));
        world.nodes[index].control_links[control] && one.acts(now) && through
    });
    if !reached {
        return;
    }
    for vm in 0..world.store.vms.len() {
        let (home, epoch) = (world.store.vms[vm].node, world.store.vms[vm].epoch);
        let node = &mut world.nodes[index];
        if home == index {
            let known = node.journal.entry(vm).or_insert(epoch);
            *known = epoch.max(*known);
            let clock = node.clock(now);
            node.assigned.insert(vm, clock);
        } else if node.journal.remove(&vm).is_some() {
            node.starting.remove(&vm);
        }
        // A guest of an earlier incarnation is ended, here and wherever it is.
        for guest in &mut world.guests {
            if guest.vm == vm && guest.node == index && (home != index || guest.epoch < epoch) {
                guest.dies_at.get_or_insert(now + 100);
            }
        }
    }
}

fn begin_starts(world: &mut World, index: usize) {
    let now = world.now;
    let wanted: Vec<(usize, u64)> = world.nodes[index]
        .journal
        .iter()
        .map(|(vm, e)| (*vm, *e))
        .collect();
    for (vm, epoch) in wanted {
        let here = world.guests.iter().any(|g| g.vm == vm && g.node == index);
        let node = &world.nodes[index];
        let waits = node
            .tried_at
            .get(&vm)
            .is_some_and(|at| now < at + RESTART_PAUSE_MS);
        if here || waits || node.starting.contains_key(&vm) {
            continue;
        }
        world.nodes[index].tried_at.insert(vm, now);
        if world.store.vms[vm].shared && !gate(world, index, vm) {
            world.note("StartRefusedByGate");
            continue;
        }
        let start = Start {
            epoch,
            opens_at: now + world.rng.between(100, START_MS),
            interrupted: false,
        };
        world.nodes[index].starting.insert(vm, start);
        if world.store.vms[vm].shared && world.nodes[index].stop_in_start {
            nemesis::stopped_in_start(world, index);
        }
    }
}

/// Whether the guard lets movable guests start.
fn gate(world: &World, index: usize, vm: usize) -> bool {
    let node = &world.nodes[index];
    let clock = node.clock(world.now);
    let held = node.file.start_until.is_some_and(|until| clock < until);
    let told = node.assigned.get(&vm).copied().zip(node.file.held_since);
    let told = told.is_some_and(|(assigned, since)| assigned >= since);
    (held || world.has(Bug::StartsWithoutLease)) && (told || world.has(Bug::StartsUntold))
}

/// The last step of a start: note, lock, process.
fn open(world: &mut World, index: usize, vm: usize, start: Start) -> Result<(), String> {
    let shared = world.store.vms[vm].shared;
    if shared {
        let us = Owner {
            epoch: start.epoch,
            node: index.to_string(),
        };
        let locked = !world.is_open(vm) || !world.has_locks();
        let note = world.notes[vm].clone();
        let last = note.as_ref();
        if let Err(refused) = may_open(last, &us, locked) {
            use plasmavmc_core::fence::OpenRefused::{Open, OpenByStranger};
            let by_lock = matches!(refused, Open(_) | OpenByStranger);
            world.note(if by_lock {
                "OpenRefusedByLock"
            } else {
                "OpenRefusedByNote"
            });
            return Ok(());
        }
        world.notes[vm] = Some(us);
    }
    world.note("GuestStarted");
    check::started(world, index, vm, start)
}

/// Whether the scenario lets a guard or an agent be stopped.
pub(crate) fn may_be_stopped(kind: Kind) -> bool {
    kind == Kind::Chaos
}
