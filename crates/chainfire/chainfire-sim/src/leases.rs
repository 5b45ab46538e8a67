//! Leases: their owners, who keep them alive through any member, and the leader's task that lets them run out.

use chainfire_server::simulation::{Command, LeaseStep};
use raft_host::{Input, LeaderInfo, Reply, Role};
use testkit::sim::{GROUP, MS, SimRng, World};

use crate::{Ask, Bug, Chainfire, Event};

/// How often the leader looks at its timers at most.
const LOOK_US: u64 = 150 * MS;

/// Pause before a renewal is tried again, microseconds.
const PAUSE_US: u64 = 100 * MS;
/// How often it is.
const AGAIN: u64 = 20;

/// One life of a lease, as its owner knows it.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: i64,
    pub(crate) ttl_s: i64,
    /// When the grant was asked for.
    pub(crate) granted: u64,
    /// When the grant was acknowledged.
    pub(crate) known: u64,
    pub(crate) renewals: Vec<Renewal>,
    /// Its owner renews it so often, microseconds: three times in its life, or hardly in time.
    every: u64,
    /// The owner cares no more, or was told that it is gone.
    pub(crate) left: bool,
    pub(crate) revoked: bool,
}

/// One attempt to renew.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) called: u64,
    /// When its owner heard of it.
    pub(crate) acknowledged: Option<u64>,
}

/// A renewal on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    lease: usize,
    number: usize,
    /// The member that the owner asked, when that is not the leader.
    via: Option<u64>,
    /// How often it may be tried again.
    again: u64,
}

#[derive(Debug)]
pub(crate) struct Leases {
    rng: SimRng,
    pub(crate) all: Vec<Lease>,
    /// When members became leaders: time, node.
    pub(crate) leaders: Vec<(u64, u64)>,
    /// When leaders had passed their barrier and began to count: after what they must catch up with others.
    pub(crate) duties: Vec<u64>,
}

impl Leases {
    pub(crate) fn new(rng: SimRng) -> Leases {
        Leases {
            rng,
            all: Vec::new(),
            leaders: Vec::new(),
            duties: Vec::new(),
        }
    }

    fn live(&mut self, id: i64) -> Option<&mut Lease> {
        self.all.iter_mut().rev().find(|lease| lease.id == id)
    }
}

/// A client was granted a lease: it is used and kept alive from now on.
pub(crate) fn granted(world: &mut World<'_, Chainfire>, id: i64, ttl_s: i64, called: u64, at: u64) {
    let leases = &mut world.service.leases;
    let ttl_us = ttl_s.cast_unsigned() * 1_000 * MS;
    let every = if leases.rng.chance(500) {
        ttl_us / 3
    } else {
        leases.rng.between(ttl_us / 3, ttl_us * 9 / 10)
    };
    leases.all.push(Lease {
        id,
        ttl_s,
        granted: called,
        known: at,
        renewals: Vec::new(),
        every,
        left: false,
        revoked: false,
    });
    let lease = leases.all.len() - 1;
    let first = at + leases.rng.below(every);
    world.service.clients.ops.leases.push(id);
    world.faults.note("LeaseGranted", 1);
    world.schedule(first, Event::KeepAlive { lease });
}

/// A client revoked a lease.
pub(crate) fn revoked(world: &mut World<'_, Chainfire>, id: i64) {
    world.service.clients.ops.leases.retain(|other| *other != id);
    world.service.clients.ops.ended.push(id);
    if let Some(lease) = world.service.leases.live(id) {
        lease.left = true;
        lease.revoked = true;
    }
}

/// An owner renews its lease, or forgets to.
pub(crate) fn keep_alive(world: &mut World<'_, Chainfire>, lease: usize) {
    let resting = world.service.clients.resting;
    let up = world.up();
    let now = world.now;
    let leases = &mut world.service.leases;
    let forget = leases.rng.chance(40);
    let any = leases.rng.pick(&up).copied();
    let believe = leases.rng.chance(400);
    // Members that believe to lead, deposed ones among them, are where it matters.
    let believers: Vec<u64> = up
        .iter()
        .copied()
        .filter(|node| {
            believe
                && world
                    .leader_of(*node)
                    .is_some_and(|info| info.leader == Some(*node))
        })
        .collect();
    let leases = &mut world.service.leases;
    let node = leases.rng.pick(&believers).copied().or(any);
    let Some(it) = leases.all.get_mut(lease).filter(|lease| !lease.left) else {
        return;
    };
    if resting || forget {
        it.left = true;
        let id = it.id;
        world.service.clients.ops.leases.retain(|other| *other != id);
        return;
    }
    it.renewals.push(Renewal {
        called: now,
        acknowledged: None,
    });
    let mut attempt = Attempt {
        lease,
        number: it.renewals.len() - 1,
        via: None,
        again: AGAIN,
    };
    let every = it.every;
    world.schedule(now + every, Event::KeepAlive { lease });
    let Some(node) = node else { return };
    let Some(leader) = world.leader_of(node).and_then(|info| info.leader) else {
        return;
    };
    if leader == node {
        return renew_here(world, node, attempt);
    }
    attempt.via = Some(node);
    if let Some(arrives) = world.hop(node, leader, now) {
        world.schedule(
            arrives,
            Event::PeerRenew {
                from: node,
                at: leader,
                attempt,
            },
        );
    }
}

/// Another member asks this one to renew.
pub(crate) fn peer_renew(world: &mut World<'_, Chainfire>, from: u64, at: u64, attempt: Attempt) {
    if world.free_at(at) > world.now {
        world.schedule(world.free_at(at), Event::PeerRenew { from, at, attempt });
    } else if world.view(at).is_some() && world.connected(from, at) {
        renew_here(world, at, attempt);
    }
}

/// A renewal is tried again where it is served.
pub(crate) fn renew_again(world: &mut World<'_, Chainfire>, node: u64, attempt: Attempt) {
    if world.view(node).is_some() {
        renew_here(world, node, attempt);
    }
}

fn renew_here(world: &mut World<'_, Chainfire>, node: u64, attempt: Attempt) {
    if world.service.bug == Some(Bug::RenewalByDeposed) {
        return renew(world, node, attempt, world.free_at(node));
    }
    let ask = Ask::Renew { attempt };
    world.ask(node, ask, |id| Input::ReadIndex { group: GROUP, id });
}

/// After the barrier.
pub(crate) fn barrier_passed(
    world: &mut World<'_, Chainfire>,
    node: u64,
    attempt: Attempt,
    reply: &Reply,
    at: u64,
) {
    if matches!(reply, Reply::Read(_, Ok(_))) {
        renew(world, node, attempt, at);
    }
}

fn renew(world: &mut World<'_, Chainfire>, node: u64, attempt: Attempt, at: u64) {
    crate::set_clock(world, node);
    let id = world.service.leases.all.get(attempt.lease).map(|lease| lease.id);
    let (Some(id), Some(info), Some(view)) = (id, world.leader_of(node), world.view(node)) else {
        return;
    };
    let ttl_s = match view.member.renew(id, info) {
        Ok(ttl_s) => ttl_s,
        // What is stored for it has to be cleared first, perhaps; the one that serves asks again.
        Err(_) if attempt.again > 0 && info.role == Role::Leader => {
            let attempt = Attempt {
                again: attempt.again - 1,
                ..attempt
            };
            return world.schedule(at + PAUSE_US, Event::RenewAgain { node, attempt });
        }
        Err(_) => return,
    };
    match attempt.via {
        None => renewed(world, attempt, ttl_s),
        Some(via) => {
            if let Some(arrives) = world.hop(node, via, at) {
                world.schedule(arrives, Event::Renewed { attempt, ttl_s });
            }
        }
    }
}

/// The owner hears of its renewal.
pub(crate) fn renewed(world: &mut World<'_, Chainfire>, attempt: Attempt, ttl_s: i64) {
    world.note(&[attempt.lease as u64, attempt.number as u64, ttl_s.cast_unsigned()]);
    let mut gone = None;
    let now = world.now;
    let leases = &mut world.service.leases;
    // Many an owner dies right after a renewal.
    let dies = leases.rng.chance(150);
    if let Some(lease) = leases.all.get_mut(attempt.lease) {
        if ttl_s == 0 {
            lease.left = true;
            gone = Some(lease.id);
        } else if let Some(renewal) = lease.renewals.get_mut(attempt.number) {
            renewal.acknowledged = Some(now);
            if dies {
                lease.left = true;
                gone = Some(lease.id);
            }
        }
    }
    if let Some(id) = gone {
        world.service.clients.ops.leases.retain(|other| *other != id);
    }
    world.faults.note("LeaseRenewed", u64::from(ttl_s > 0));
    world.faults.note("LeaseFoundGone", u64::from(ttl_s == 0));
}

/// Leader or term changed at a member: its task notices a little later.
pub(crate) fn leader_changed(world: &mut World<'_, Chainfire>, node: u64, info: LeaderInfo, at: u64) {
    let rng = &mut world.service.leases.rng;
    let mut later = at + rng.below(2 * MS);
    // A task of a busy process may be late.
    if rng.chance(150) {
        later += rng.below(1_500) * MS;
    }
    if info.role == Role::Leader {
        world.service.leases.leaders.push((at, node));
    }
    let life = world.life(node);
    world.schedule(later, Event::LeaderSeen { node, life });
}

/// The task of a member notices that leader or term changed.
pub(crate) fn leader_seen(world: &mut World<'_, Chainfire>, node: u64, life: u64) {
    if world.life(node) != life {
        return;
    }
    if world.free_at(node) > world.now {
        let at = world.free_at(node);
        return world.schedule(at, Event::LeaderSeen { node, life });
    }
    // It sees the newest state, not each in between.
    let Some(info) = world.leader_of(node) else { return };
    let Some((view, _)) = world.view_mut(node) else {
        return;
    };
    if (info.term, info.role) == view.seen {
        return;
    }
    view.seen = (info.term, info.role);
    view.member.end_leading();
    if info.role == Role::Leader {
        lead_barrier(world, node, life, info.term);
    }
}

pub(crate) fn lead_barrier(world: &mut World<'_, Chainfire>, node: u64, life: u64, term: u64) {
    let leads = world
        .view(node)
        .is_some_and(|view| view.seen == (term, Role::Leader));
    if leads && world.life(node) == life {
        let ask = Ask::Lead { life, term };
        world.ask(node, ask, |id| Input::ReadIndex { group: GROUP, id });
    }
}

/// The new leader's barrier.
pub(crate) fn lead(
    world: &mut World<'_, Chainfire>,
    node: u64,
    life: u64,
    term: u64,
    reply: &Reply,
    at: u64,
) {
    if !matches!(reply, Reply::Read(_, Ok(_))) {
        return world.schedule(at + 100 * MS, Event::LeadAgain { node, life, term });
    }
    crate::set_clock(world, node);
    if let Some(view) = world.view(node).filter(|view| view.seen == (term, Role::Leader)) {
        view.member.begin_leading(term);
        world.service.leases.duties.push(at);
        world.schedule(at, Event::LookAtLeases { node, life, term });
    }
}

/// The leader looks at its timers.
pub(crate) fn look(world: &mut World<'_, Chainfire>, node: u64, life: u64, term: u64) {
    if world.life(node) != life {
        return;
    }
    let again = Event::LookAtLeases { node, life, term };
    if world.free_at(node) > world.now {
        return world.schedule(world.free_at(node), again);
    }
    crate::set_clock(world, node);
    let Some(view) = world.view(node).filter(|view| view.seen == (term, Role::Leader)) else {
        return;
    };
    match view.member.due() {
        LeaseStep::Wait(ms) => {
            let wait = (ms * MS).clamp(MS, LOOK_US);
            world.schedule(world.now + wait, again);
        }
        LeaseStep::Expire(command, ids) => {
            let rng = &mut world.service.leases.rng;
            // Between the decision and the proposal the task may lose the processor, and the member its office.
            let mut late = rng.below(MS);
            if rng.chance(300) {
                late += rng.below(1_500) * MS;
            }
            let stop = rng.chance(120).then(|| rng.between(1_000, 4_000) * MS);
            let at = world.now + late;
            if let Some(stop) = stop.filter(|_| !world.healed) {
                // The process is stopped in the worst moment.
                world.pause(node, stop);
            }
            world.schedule(
                at,
                Event::Expire {
                    node,
                    life,
                    term,
                    command,
                    ids,
                },
            );
        }
        LeaseStep::Checkpoint(command) => {
            world.faults.note("LeaseCheckpoint", 1);
            world.schedule(
                world.now,
                Event::Expire {
                    node,
                    life,
                    term,
                    command,
                    ids: Vec::new(),
                },
            );
        }
    }
}

/// The leader's task proposes the end of leases, or what is to be stored of them.
pub(crate) fn expire(
    world: &mut World<'_, Chainfire>,
    node: u64,
    life: u64,
    term: u64,
    command: Command,
    ids: Vec<i64>,
) {
    // A task that has noticed that it leads no more has dropped what it was about to do.
    let leads = world
        .view(node)
        .is_some_and(|view| view.seen == (term, Role::Leader));
    if world.life(node) != life || !leads {
        return;
    }
    if world.free_at(node) > world.now {
        let at = world.free_at(node);
        return world.schedule(
            at,
            Event::Expire {
                node,
                life,
                term,
                command,
                ids,
            },
        );
    }
    let Ok(data) = command.encode() else { return };
    let ask = Ask::Expire {
        life,
        term,
        command,
        ids,
    };
    world.ask(node, ask, |id| Input::Propose {
        group: GROUP,
        id,
        data,
    });
}

/// What came of it.
pub(crate) fn expired(
    world: &mut World<'_, Chainfire>,
    node: u64,
    (life, term): (u64, u64),
    (command, ids): (&Command, &[i64]),
    reply: &Reply,
    at: u64,
) {
    // A task that has noticed that it leads no more, or leads another term, does not wait for this any longer.
    let waits = world
        .view(node)
        .is_some_and(|view| view.seen == (term, Role::Leader));
    if world.life(node) != life || !waits {
        return;
    }
    let failed = !matches!(reply, Reply::Proposed(_, Ok(_)));
    crate::set_clock(world, node);
    if let Some(view) = world.view(node) {
        if failed {
            view.member.not_expired(ids);
        } else {
            view.member.checkpointed(command);
        }
    }
    let pause = if failed { 500 * MS } else { 0 };
    world.schedule(at + pause, Event::LookAtLeases { node, life, term });
}
