//! A control plane: campaigns, looks, fences, moves.

use plasmavmc_core::Desired;
use plasmavmc_core::fence::{
    Candidate, GuardSeen, Look, Restart, Standing, Storage, TIMES, TakeOver, Times, may_restart_elsewhere,
};
use testkit::sim::SimRng;

use crate::bug::Bug;
use crate::check;
use crate::store::MEMBERS;
use crate::world::{Body, NODES, Party, Seen, World};

const LOOK_EVERY_MS: u64 = 700;
const CAMPAIGN_EVERY_MS: u64 = 2_000;

#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) up: bool,
    pub(crate) restart_at: u64,
    pub(crate) stopped_until: u64,
    pub(crate) links: [bool; MEMBERS],
    life: u64,
    token: Option<i64>,
    nodes: Vec<TakeOver>,
    next_look: u64,
    next_campaign: u64,
    /// Parts of a thousand by which its clock is fast.
    drift: u64,
}

impl Control {
    pub(crate) fn new(rng: &mut SimRng) -> Self {
        Self {
            up: true,
            restart_at: 0,
            stopped_until: 0,
            links: [true; MEMBERS],
            life: 0,
            token: None,
            nodes: Vec::new(),
            next_look: 0,
            next_campaign: rng.below(CAMPAIGN_EVERY_MS),
            drift: rng.below(101),
        }
    }

    pub(crate) fn acts(&self, now: u64) -> bool {
        self.up && now >= self.stopped_until
    }

    /// Its clock: 5 % slow to 5 % fast.
    const fn clock(&self, now: u64) -> u64 {
        now * (950 + self.drift) / 1000
    }

    pub(crate) fn kill(&mut self, restart_at: u64) {
        self.up = false;
        self.restart_at = restart_at;
        self.life += 1;
        self.token = None;
        self.nodes.clear();
    }
}

fn times(world: &World) -> Times {
    let mut times = TIMES;
    if world.has(Bug::Unsteady) {
        times.steady_ms = 0;
        times.gap_ms = 10_000;
    }
    times
}

pub(crate) fn act(world: &mut World, index: usize) {
    let now = world.now;
    let times = times(world);
    let member = world.some_member();
    let control = &mut world.controls[index];
    if !control.up && now >= control.restart_at {
        control.up = true;
    }
    if !control.acts(now) {
        return;
    }
    if control.nodes.is_empty() {
        control.nodes = vec![TakeOver::new(times); NODES];
    }
    let party = Party::Control {
        control: index,
        life: control.life,
    };
    let clock = control.clock(now);
    let (campaigns, looks) = (now >= control.next_campaign, now >= control.next_look);
    if campaigns {
        control.next_campaign = now + CAMPAIGN_EVERY_MS;
    }
    let looks = looks && control.token.is_some();
    if looks {
        control.next_look = now + LOOK_EVERY_MS;
    }
    if campaigns {
        world.send(party, member, clock, Body::Campaign);
    }
    if looks {
        world.send(party, member, clock, Body::Look);
    }
}

pub(crate) fn answered(world: &mut World, index: usize, life: u64, sent: u64, body: Body) {
    let times = times(world);
    let control = &mut world.controls[index];
    if !control.up || control.life != life {
        return;
    }
    match body {
        // What was seen in another term of the election was seen by somebody else.
        Body::Elected(token) if control.token != token => {
            control.nodes = vec![TakeOver::new(times); NODES];
            control.token = token;
        }
        Body::Looked(seen) => looked(world, index, sent, &seen),
        _ => {}
    }
}

fn looked(world: &mut World, index: usize, asked_ms: u64, seen: &Seen) {
    let control = &mut world.controls[index];
    let now_ms = control.clock(world.now);
    let Some(token) = control.token else { return };
    let party = Party::Control {
        control: index,
        life: control.life,
    };
    let standings: Vec<Standing> = control
        .nodes
        .iter_mut()
        .enumerate()
        .map(|(node, known)| {
            known.look(&Look {
                asked_ms,
                now_ms,
                lease: seen.leases[node],
                record: seen.records[node].map(|record| GuardSeen {
                    revision: record.revision,
                    fenced: record.fenced,
                }),
            })
        })
        .collect();
    for (node, standing) in standings.iter().enumerate() {
        if let Standing::MayFence { revision } = standing {
            let member = world.some_member();
            let body = Body::Fence {
                node,
                known: Some(*revision),
                token,
            };
            world.send(party, member, now_ms, body);
        }
    }
    for (vm, record) in seen.vms.iter().enumerate() {
        let shared = record.shared || world.has(Bug::MovesLocal);
        let candidate = Candidate {
            desired: Desired::Running,
            restart: Restart::Elsewhere,
            storage: if shared {
                Storage::Shared("pool".to_owned())
            } else {
                Storage::Local
            },
        };
        let targets: Vec<usize> = (0..NODES)
            .filter(|node| *node != record.node && seen.leases[*node])
            .collect();
        let to = world.rng.pick(&targets).copied();
        if let Ok(fence) = may_restart_elsewhere(&candidate, standings[record.node])
            && let Some(to) = to
        {
            let member = world.some_member();
            let body = Body::Move {
                vm,
                to,
                revision: record.revision,
                fence: Some(fence),
                token,
            };
            world.send(party, member, now_ms, body);
        }
    }
}

/// The transaction that gives a guest to another node.
pub(crate) fn moved(
    world: &mut World,
    vm: usize,
    to: usize,
    revision: i64,
    fence: Option<i64>,
    token: i64,
) -> Result<(), String> {
    let record = &world.store.vms[vm];
    let from = record.node;
    let stands = world
        .store
        .record(from)
        .is_some_and(|guard| guard.fenced && Some(guard.revision) == fence)
        && !world.store.lease(from);
    if record.revision != revision || !stands || !world.store.is_elected(token) {
        world.note("MoveRefused");
        return Ok(());
    }
    let raise = u64::from(!world.has(Bug::SameEpoch));
    world.store.revision += 1;
    let at = world.store.revision;
    let record = &mut world.store.vms[vm];
    let before = record.epoch;
    record.epoch += raise;
    record.node = to;
    record.revision = at;
    world.note("MovedElsewhere");
    check::moved(world, vm, from, before)
}
