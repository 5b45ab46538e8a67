//! The judge: looks at the world as it is, not at what anybody believes.

use crate::nemesis::{Kind, Scenario};
use crate::node::Start;
use crate::store::MEMBERS;
use crate::world::{Guest, NODES, VMS, World};

/// A guard that has run for so long, uninterrupted, answers for what it does.
const SOUND_MS: u64 = 7_000;
/// For so long everything was well between a node and the store, so that a touched guest was touched for nothing.
const WELL_MS: u64 = 7_000;
/// The store had no quorum for so long, and the members said so.
const QUORUMLESS_MS: u64 = 5_500;
/// At the beginning of that, the last renewal was at most so old.
const FRESH_MS: u64 = 2_500;
/// Without a renewal for so long, under a store that serves, no movable guest lives.
const DEAD_BY_MS: u64 = 13_000;
/// A guard that has run for so long has acted.
const ACTED_MS: u64 = 2_500;
/// A start that was not interrupted follows a renewal by so much at most.
const START_BY_MS: u64 = 9_000;
/// A guest is back so long after the end of the lease.
const BACK_BY_MS: u64 = 30_000;

#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// Since when a node and the store are well together.
    well: [Option<u64>; NODES],
    /// Since when nothing stands between a node and any member, and nothing is slow.
    linked: [Option<u64>; NODES],
    /// Since when the store has had no leader, and a majority of its members could tell the node.
    quorumless: [Option<u64>; NODES],
    serving: Option<u64>,
    /// Which members acted in the last step: refusals and silences are counted from their changes.
    acted: [bool; MEMBERS],
    /// Highest epoch in which each disk was opened, and by whom.
    opened: [Option<(u64, usize)>; VMS],
}

fn since(slot: &mut Option<u64>, holds: bool, now: u64) {
    if holds {
        slot.get_or_insert(now);
    } else {
        *slot = None;
    }
}

pub(crate) fn each_step(world: &mut World) -> Result<(), String> {
    let now = world.now;
    let serves = world.store.serves();
    let slow = now < world.slow_until + 1_000;
    since(&mut world.judge.serving, serves, now);
    let leaderless: Vec<bool> = (0..MEMBERS).map(|m| !world.store.has_leader(m, now)).collect();
    let acted = std::array::from_fn(|m| world.store.members[m].acts(now));
    let same = std::mem::replace(&mut world.judge.acted, acted) == acted;
    for node in 0..NODES {
        let links = world.nodes[node].links;
        let linked = links.iter().all(|link| *link) && !slow;
        let acting = (0..MEMBERS).filter(|m| world.store.members[*m].acts(now));
        let all = acting.clone().count() == MEMBERS && leaderless.iter().all(|without| !without);
        // Who neither acts nor is down keeps silent; who is down refuses.
        let telling = (0..MEMBERS)
            .filter(|m| leaderless[*m] && (world.store.members[*m].acts(now) || !world.store.members[*m].up));
        let told = acting.count() > 0 && telling.count() * 2 > MEMBERS;
        let judge = &mut world.judge;
        since(&mut judge.linked[node], linked, now);
        since(&mut judge.well[node], linked && serves && all, now);
        since(
            &mut judge.quorumless[node],
            linked && same && !serves && told,
            now,
        );
        deadline(world, node)?;
    }
    partition(world)
}

/// A guard that runs has killed in time.
fn deadline(world: &World, node: usize) -> Result<(), String> {
    let now = world.now;
    let long = |since: Option<u64>, ms| since.is_some_and(|since| now - since >= ms);
    let silent = now.saturating_sub(world.store.renewed_ms[node]) >= DEAD_BY_MS;
    if silent && long(world.judge.serving, DEAD_BY_MS) && long(world.nodes[node].sound_since, ACTED_MS) {
        let lives = movable(world, node).find(|guest| !guest.blind);
        if let Some(guest) = lives {
            return Err(format!(
                "node {node} has not renewed for {DEAD_BY_MS} ms, and its guard has run, but {guest:?} lives"
            ));
        }
    }
    Ok(())
}

fn movable(world: &World, node: usize) -> impl Iterator<Item = &Guest> {
    world
        .guests
        .iter()
        .filter(move |guest| guest.node == node && world.store.vms[guest.vm].shared)
}

/// The guard stops or kills a guest.
pub(crate) fn touched(world: &World, at: usize, what: &str) -> Result<(), String> {
    let guest = &world.guests[at];
    let (node, now) = (guest.node, world.now);
    if !world.store.vms[guest.vm].shared {
        return Err(format!("{guest:?} on a local disk was {what}"));
    }
    let sound = world.nodes[node]
        .sound_since
        .is_some_and(|since| now - since >= SOUND_MS);
    if !sound || !world.store.lease(node) || world.store.record(node).is_some_and(|r| r.fenced) {
        return Ok(());
    }
    let renewed = world.store.renewed_ms[node];
    let judge = &world.judge;
    if judge.well[node].is_some_and(|since| now - since >= WELL_MS) {
        return Err(format!(
            "{guest:?} was {what} although its node and the store were well together"
        ));
    }
    if let Some(begin) = judge.quorumless[node]
        && now - begin >= QUORUMLESS_MS
        && judge.linked[node].is_some_and(|linked| linked + SOUND_MS <= begin)
        && renewed + FRESH_MS >= begin
    {
        return Err(format!("{guest:?} was {what} because the store had no quorum"));
    }
    if world.scenario.kind == Kind::QuorumLoss && what == "killed" {
        return Err(format!("{guest:?} was killed although only the store was ill"));
    }
    Ok(())
}

/// A fence was committed.
pub(crate) fn fenced(world: &World, node: usize) -> Result<(), String> {
    let now = world.now;
    let bare = world.scenario.kind == Kind::Bare;
    let sound = world.nodes[node]
        .sound_since
        .is_some_and(|since| now - since >= 14_000);
    match movable(world, node).find(|guest| !guest.blind) {
        Some(guest) if bare || sound => Err(format!("node {node} was fenced while {guest:?} lived")),
        _ => Ok(()),
    }
}

/// A guard has taken the fence away.
pub(crate) fn unfenced(world: &World, node: usize) -> Result<(), String> {
    match movable(world, node).find(|guest| !guest.blind) {
        Some(guest) => Err(format!("node {node} took its fence away while {guest:?} lived")),
        None => Ok(()),
    }
}

/// A guest was given to another node.
pub(crate) fn moved(world: &World, vm: usize, from: usize, epoch_before: u64) -> Result<(), String> {
    let record = &world.store.vms[vm];
    if !record.shared {
        return Err(format!("VM {vm} on a local disk was moved"));
    }
    if record.epoch <= epoch_before {
        return Err(format!("VM {vm} was moved without a higher epoch"));
    }
    if !world.store.record(from).is_some_and(|guard| guard.fenced) {
        return Err(format!(
            "VM {vm} was moved from node {from}, which was not fenced"
        ));
    }
    Ok(())
}

/// A process opens a disk.
pub(crate) fn started(world: &mut World, node: usize, vm: usize, start: Start) -> Result<(), String> {
    let guest = Guest {
        vm,
        node,
        epoch: start.epoch,
        still: false,
        dies_at: None,
        blind: start.interrupted,
    };
    if let Some(other) = world.guests.iter().find(|other| other.vm == vm) {
        return Err(format!("two have one disk open: {other:?} and {guest:?}"));
    }
    if let Some((epoch, by)) = world.judge.opened[vm]
        && (epoch > guest.epoch || (epoch == guest.epoch && by != node))
    {
        return Err(format!(
            "{guest:?} opened a disk that node {by} had opened in epoch {epoch}"
        ));
    }
    if world.store.vms[vm].shared && !guest.blind {
        let renewed = world.store.renewed_ms[node];
        if renewed + START_BY_MS < world.now {
            return Err(format!(
                "{guest:?} was started {} ms after the last renewal",
                world.now - renewed
            ));
        }
        if world.scenario.kind == Kind::Bare && guest.epoch < world.store.vms[vm].epoch {
            return Err(format!("{guest:?} was started after it had been moved"));
        }
    }
    world.judge.opened[vm] = Some((guest.epoch, node));
    world.guests.push(guest);
    Ok(())
}

/// In the scenario of one partition: guests are back in time, and what is on local disks has not noticed.
fn partition(world: &World) -> Result<(), String> {
    let (now, victim) = (world.now, world.scenario.victim);
    if world.scenario.kind != Kind::Partition || now >= Scenario::partition_ends_ms() {
        return Ok(());
    }
    let Some(expired) = world.store.expired_ms[victim] else {
        return Ok(());
    };
    let runs = |vm: usize, node: usize| {
        world
            .guests
            .iter()
            .any(|g| g.vm == vm && g.node == node && !g.still)
    };
    if now >= expired + BACK_BY_MS {
        for (vm, record) in world.store.vms.iter().enumerate() {
            if record.shared && (record.node == victim || !runs(vm, record.node)) {
                return Err(format!(
                    "VM {vm} is not back {BACK_BY_MS} ms after the end of the lease"
                ));
            }
            if !record.shared && !runs(vm, record.node) {
                return Err(format!("VM {vm} on a local disk does not run"));
            }
        }
    }
    Ok(())
}

/// Long after everything was healed: each guest runs once, where it belongs.
pub(crate) fn at_the_end(world: &World) -> Result<(), String> {
    for (vm, record) in world.store.vms.iter().enumerate() {
        let copies: Vec<_> = world.guests.iter().filter(|guest| guest.vm == vm).collect();
        let right = |guest: &&&Guest| {
            guest.node == record.node
                && guest.epoch == record.epoch
                && !guest.still
                && guest.dies_at.is_none()
        };
        if copies.len() != 1 || copies.iter().filter(right).count() != 1 {
            return Err(format!(
                "VM {vm} should run once, as {record:?}; there are {copies:?}"
            ));
        }
    }
    Ok(())
}
