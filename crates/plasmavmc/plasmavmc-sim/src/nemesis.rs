//! What goes wrong, and when.

use testkit::sim::SimRng;

use crate::node::may_be_stopped;
use crate::store::MEMBERS;
use crate::world::{CONTROLS, NODES, World};

const CHAOS_MS: u64 = 150_000;
/// After everything has been healed: the longest lease, a steady store, a start.
const HEALED_MS: u64 = 80_000;
const PARTITION_MS: u64 = 30_000;
const PARTITION_LASTS_MS: u64 = 70_000;
const QUORUM_LOST_MS: u64 = 20_000;
/// Before anything goes wrong, all guests get to run.
const CALM_MS: u64 = 8_000;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Everything goes wrong.
    Chaos,
    /// Everything but that guards are stopped or killed; the storage has no locks, so that the guards alone must do.
    Bare,
    /// One node is cut off from everything, once.
    Partition,
    /// The store loses its quorum, again and again; the nodes are well.
    QuorumLoss,
}

/// The plan of a run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) kind: Kind,
    /// The node that [`Kind::Partition`] is about.
    pub(crate) victim: usize,
    next_ms: u64,
    /// Things to undo.
    undo: Vec<(u64, Undo)>,
    flap: Option<Flap>,
}

#[derive(Clone, Copy, Debug)]
enum Undo {
    Links(usize),
    NodeControls(usize),
    MemberLinks,
    Member(usize),
    ControlLinks(usize),
}

/// The members lose each other again and again, and a node reaches them just when they cannot help it.
#[derive(Clone, Copy, Debug)]
struct Flap {
    node: usize,
    until_ms: u64,
    turn_ms: u64,
    apart: bool,
    /// How long they are apart: from and to.
    apart_ms: (u64, u64),
}

/// Too short for a leader to resign, and for the control plane to notice a gap.
const GLITCH_MS: (u64, u64) = (1_100, 1_250);
/// Long enough for the members to say that they have no leader.
const LONG_MS: (u64, u64) = (3_600, 5_000);

impl Scenario {
    pub(crate) fn of(seed: u64, rng: &mut SimRng) -> Self {
        let kind = match seed % 6 {
            0 | 1 => Kind::Chaos,
            2 | 3 => Kind::Bare,
            4 => Kind::Partition,
            _ => Kind::QuorumLoss,
        };
        Self {
            kind,
            victim: index(rng, NODES),
            next_ms: match kind {
                Kind::Partition => PARTITION_MS,
                Kind::QuorumLoss => QUORUM_LOST_MS,
                _ => CALM_MS,
            },
            undo: Vec::new(),
            flap: None,
        }
    }

    pub(crate) const fn end_ms(&self) -> u64 {
        CHAOS_MS + HEALED_MS
    }

    /// When the cut of [`Kind::Partition`] ends.
    pub(crate) const fn partition_ends_ms() -> u64 {
        PARTITION_MS + PARTITION_LASTS_MS
    }
}

fn index(rng: &mut SimRng, n: usize) -> usize {
    usize::try_from(rng.below(n as u64)).unwrap_or(0)
}

pub(crate) fn act(world: &mut World) {
    let now = world.now;
    undo(world);
    if now >= CHAOS_MS {
        if now < CHAOS_MS + crate::world::STEP_MS {
            heal(world);
        }
        return;
    }
    flap(world);
    if now < world.scenario.next_ms {
        return;
    }
    match world.scenario.kind {
        Kind::Partition => {
            world.scenario.next_ms = u64::MAX;
            let victim = world.scenario.victim;
            isolate(world, victim, PARTITION_LASTS_MS);
        }
        Kind::QuorumLoss => {
            let lasts = world.rng.between(15_000, 60_000);
            world.scenario.next_ms = now + lasts + 25_000;
            lose_quorum(world, lasts);
        }
        Kind::Chaos | Kind::Bare => {
            world.scenario.next_ms = now + world.rng.between(500, 9_000);
            fault(world);
        }
    }
}

fn isolate(world: &mut World, node: usize, lasts: u64) {
    world.note("NodeIsolated");
    world.nodes[node].links = [false; MEMBERS];
    world.nodes[node].control_links = [false; CONTROLS];
    let until = world.now + lasts;
    world.scenario.undo.push((until, Undo::Links(node)));
}

fn lose_quorum(world: &mut World, lasts: u64) {
    world.note("QuorumLost");
    let until = world.now + lasts;
    match world.rng.below(3) {
        // Nobody hears anybody.
        0 => {
            world.store.links = [[false; MEMBERS]; MEMBERS];
            world.scenario.undo.push((until, Undo::MemberLinks));
        }
        // All but one are gone.
        _ => {
            let left = index(&mut world.rng, MEMBERS);
            for member in (0..MEMBERS).filter(|member| *member != left) {
                world.store.kill(member);
                let back = until + world.rng.below(3_000);
                world.scenario.undo.push((back, Undo::Member(member)));
            }
        }
    }
}

fn fault(world: &mut World) {
    let now = world.now;
    let node = index(&mut world.rng, NODES);
    let member = index(&mut world.rng, MEMBERS);
    let control = index(&mut world.rng, CONTROLS);
    let lasts = world.rng.between(1_000, 45_000);
    let stops = may_be_stopped(world.scenario.kind);
    match world.rng.below(20) {
        0 | 1 => isolate(world, node, lasts),
        2 => {
            world.note("NodeHalfIsolated");
            for link in 0..MEMBERS {
                world.nodes[node].links[link] = world.rng.chance(400);
            }
            world.scenario.undo.push((now + lasts, Undo::Links(node)));
        }
        3 => {
            world.note("MemberKilled");
            world.store.kill(member);
            let back = now + world.rng.between(1_000, 8_000);
            world.scenario.undo.push((back, Undo::Member(member)));
        }
        4 => {
            world.note("MemberStopped");
            let member = if world.rng.chance(500) {
                world.store.leader().unwrap_or(member)
            } else {
                member
            };
            world.store.members[member].stopped_until = now + lasts;
        }
        5 => lose_quorum(world, lasts),
        6 | 18 => begin_flap(world, node, lasts),
        19 => wrong_side(world, node, member, lasts),
        7 => {
            world.note("ControlKilled");
            let back = now + world.rng.between(500, 20_000);
            world.controls[control].kill(back);
        }
        8 => {
            world.note("ControlStopped");
            world.controls[control].stopped_until = now + lasts;
        }
        9 => {
            world.controls[control].links[member] = false;
            world
                .scenario
                .undo
                .push((now + lasts, Undo::ControlLinks(control)));
        }
        10 => {
            world.note("SlowMessages");
            world.slow_until = now + lasts;
        }
        11 => {
            world.note("AgentKilled");
            let back = now + world.rng.between(300, 15_000);
            world.nodes[node].kill_agent(back);
        }
        12 => reboot(world, node),
        13 if !world.guests.is_empty() => {
            world.note("GuestCrashed");
            let guest = index(&mut world.rng, world.guests.len());
            world.guests[guest].dies_at = Some(now);
        }
        14 if stops => {
            world.note("GuardKilled");
            let back = now + world.rng.between(300, 20_000);
            world.nodes[node].kill_guard(back);
        }
        15 if stops => {
            if world.rng.chance(500) {
                world.note("GuardStopped");
                world.nodes[node].stop_guard(now + lasts);
            } else {
                world.note("AgentStopped");
                world.nodes[node].agent_stopped_until = now + lasts;
            }
            if world.rng.chance(500) {
                isolate(world, node, lasts);
            }
        }
        17 if stops => stop_in_start(world, node),
        16 if stops => {
            world.note("NodeFrozen");
            world.nodes[node].frozen_until = now + lasts + 15_000;
        }
        _ => {}
    }
}

fn reboot(world: &mut World, node: usize) {
    world.note("NodeRebooted");
    let back = world.now + world.rng.between(3_000, 40_000);
    world.nodes[node].reboot(back);
    world.guests.retain(|guest| guest.node != node);
}

/// A node reaches one member only, and that one no other.
fn wrong_side(world: &mut World, node: usize, member: usize, lasts: u64) {
    world.note("NodeHalfIsolated");
    for other in 0..MEMBERS {
        world.nodes[node].links[other] = other == member;
        world.store.links[member][other] = false;
        world.store.links[other][member] = false;
    }
    let until = world.now + lasts + 10_000;
    world.scenario.undo.push((until, Undo::Links(node)));
    world.scenario.undo.push((until, Undo::MemberLinks));
}

/// The agent will be stopped between its look at the gate and the opening of the disk, in a node that is cut off then.
fn stop_in_start(world: &mut World, node: usize) {
    world.nodes[node].stop_in_start = true;
    for guest in &mut world.guests {
        if guest.node == node && world.store.vms[guest.vm].shared {
            guest.dies_at = Some(world.now);
        }
    }
}

/// Now.
pub(crate) fn stopped_in_start(world: &mut World, node: usize) {
    world.note("AgentStopped");
    world.nodes[node].stop_in_start = false;
    world.nodes[node].agent_stopped_until = world.now + world.rng.between(20_000, 60_000);
    let cut = world.rng.between(15_000, 40_000);
    isolate(world, node, cut);
}

fn begin_flap(world: &mut World, node: usize, lasts: u64) {
    let apart_ms = if world.rng.chance(500) { GLITCH_MS } else { LONG_MS };
    if world.scenario.flap.is_none() {
        world.note("QuorumLost");
        world.scenario.flap = Some(Flap {
            node,
            until_ms: world.now + lasts + 60_000,
            turn_ms: world.now,
            apart: false,
            apart_ms,
        });
    }
}

fn flap(world: &mut World) {
    let now = world.now;
    let Some(mut flap) = world.scenario.flap else {
        return;
    };
    if now >= flap.until_ms {
        world.scenario.flap = None;
        world.store.links = [[true; MEMBERS]; MEMBERS];
        world.nodes[flap.node].links = [true; MEMBERS];
        world.nodes[flap.node].mute = false;
        return;
    }
    if now >= flap.turn_ms {
        flap.apart = !flap.apart;
        let (from, to) = if flap.apart { flap.apart_ms } else { (2_000, 4_000) };
        flap.turn_ms = now + world.rng.between(from, to);
        world.store.links = [[!flap.apart; MEMBERS]; MEMBERS];
        world.scenario.flap = Some(flap);
    }
    world.nodes[flap.node].links = [!world.store.serves(); MEMBERS];
    world.nodes[flap.node].mute = true;
}

fn undo(world: &mut World) {
    let now = world.now;
    let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut world.scenario.undo)
        .into_iter()
        .partition(|(at, _)| *at <= now);
    world.scenario.undo = later;
    for (_, what) in due {
        match what {
            Undo::Links(node) => {
                world.nodes[node].links = [true; MEMBERS];
                // The guard may be back long before the agent hears of anything.
                let later = if world.rng.chance(400) {
                    world.rng.between(2_000, 15_000)
                } else {
                    0
                };
                world.scenario.undo.push((now + later, Undo::NodeControls(node)));
            }
            Undo::NodeControls(node) => world.nodes[node].control_links = [true; CONTROLS],
            Undo::MemberLinks => world.store.links = [[true; MEMBERS]; MEMBERS],
            Undo::Member(member) => world.store.start(member, now),
            Undo::ControlLinks(control) => world.controls[control].links = [true; MEMBERS],
        }
    }
}

fn heal(world: &mut World) {
    let now = world.now;
    world.scenario.flap = None;
    for (at, _) in &mut world.scenario.undo {
        *at = now;
    }
    undo(world);
    world.store.links = [[true; MEMBERS]; MEMBERS];
    for member in 0..MEMBERS {
        world.store.members[member].stopped_until = 0;
        if !world.store.members[member].up {
            world.store.start(member, now);
        }
    }
    for control in &mut world.controls {
        control.stopped_until = 0;
        control.restart_at = control.restart_at.min(now);
    }
    world.slow_until = 0;
    for node in &mut world.nodes {
        node.links = [true; MEMBERS];
        node.control_links = [true; CONTROLS];
        node.heal(now);
    }
}
