//! What goes wrong when, and what the administrators do meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use raft_host::{ConfChange, Input, Membership, Peer, Reply};

use super::faults::Fault;
use super::node::{GROUP, State, Waiter};
use super::options::Mode;
use super::rng::SimRng;
use super::service::Service;
use super::world::{Event, MS, World};

/// Most members at one time.
const MAX_MEMBERS: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Transfer,
    AddLearner,
    Promote,
    Remove,
    Joint,
}

#[derive(Debug)]
pub(crate) struct Nemesis {
    rng: SimRng,
    partitions: u64,
    /// The administrative act under way and when it began.
    acting: Option<(Act, u64)>,
    /// Members as the administrators saw them last, with the index up to which that holds.
    members: Membership,
    members_at: u64,
    ever: BTreeSet<u64>,
}

impl Nemesis {
    pub(crate) fn new(rng: SimRng) -> Nemesis {
        Nemesis {
            rng,
            partitions: 0,
            acting: None,
            members: Membership::default(),
            members_at: 0,
            ever: BTreeSet::new(),
        }
    }

    pub(crate) fn admin_done(&mut self) {
        self.acting = None;
    }
}

impl<S: Service> World<'_, S> {
    pub(crate) fn nemesis_acts(&mut self) {
        if self.healed {
            return;
        }
        let every = self.options.fault_every_ms;
        let next = self.nemesis.rng.between(every / 2, every * 3 / 2) * MS;
        self.at(self.now + next, Event::Nemesis);
        let up = self.up();
        let Some(victim) = self.nemesis.rng.pick(&up).copied() else {
            return;
        };
        // Leaders are where most of the protocol happens.
        let victim = self
            .leader()
            .filter(|_| self.nemesis.rng.chance(400))
            .unwrap_or(victim);
        let lasts = self.nemesis.rng.between(300, 4_000) * MS;
        match self.nemesis.rng.below(20) {
            0..=3 => self.partition(victim, lasts),
            4..=5 => {
                self.faults.add(Fault::ProcessKilled, 1);
                self.crash(victim, false, lasts);
            }
            6..=9 => {
                self.faults.add(Fault::PowerCut, 1);
                self.crash(victim, true, lasts);
            }
            10 => {
                self.faults.add(Fault::PowerCutAll, 1);
                for node in up {
                    let lasts = self.nemesis.rng.between(300, 2_000) * MS;
                    self.crash(node, true, lasts);
                }
            }
            11 => {
                self.faults.add(Fault::DiskFull, 1);
                self.with_node(victim, |n| n.disk.set_full(true));
                self.at(self.now + lasts, Event::EndFull { node: victim });
            }
            12 => {
                self.faults.add(Fault::SyncFailed, 1);
                self.with_node(victim, |n| n.disk.fail_sync());
            }
            13..=14 => {
                self.faults.add(Fault::SyncSlow, 1);
                let delay = Duration::from_millis(self.nemesis.rng.between(5, 400));
                self.with_node(victim, |n| n.disk.set_sync_delay(delay));
                self.at(self.now + lasts, Event::EndSlow { node: victim });
            }
            15 => self.flip_bit(victim),
            _ => {
                self.faults.add(Fault::Paused, 1);
                let until = self.now + lasts;
                self.with_node(victim, |n| n.paused_until = until);
                self.wake(victim);
            }
        }
    }

    fn crash(&mut self, id: u64, power: bool, down_for: u64) {
        self.kill(id, State::Down);
        if power {
            self.cut_power(id);
        } else {
            self.with_node(id, |n| {
                n.disk.flush_all();
                n.state_disk.crash(usize::MAX);
            });
        }
        let life = self.nodes.get(&id).map_or(0, |n| n.life);
        self.at(self.now + down_for, Event::Restart { node: id, life });
    }

    fn partition(&mut self, victim: u64, lasts: u64) {
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        let others = || all.iter().copied().filter(|o| *o != victim);
        let mut cut = BTreeSet::new();
        match self.nemesis.rng.below(4) {
            0 | 1 => {
                self.faults.add(Fault::PartitionIsolate, 1);
                cut.extend(others().flat_map(|o| [(victim, o), (o, victim)]));
            }
            2 => {
                self.faults.add(Fault::PartitionOneWay, 1);
                let out = self.nemesis.rng.chance(500);
                cut.extend(others().map(|o| if out { (victim, o) } else { (o, victim) }));
            }
            _ => {
                self.faults.add(Fault::PartitionSplit, 1);
                let left: BTreeSet<u64> = all
                    .iter()
                    .copied()
                    .filter(|_| self.nemesis.rng.chance(500))
                    .collect();
                for a in &all {
                    cut.extend(
                        all.iter()
                            .filter(|b| left.contains(a) != left.contains(b))
                            .map(|b| (*a, *b)),
                    );
                }
            }
        }
        self.nemesis.partitions += 1;
        let number = self.nemesis.partitions;
        self.cuts.insert(number, cut);
        self.at(self.now + lasts, Event::EndPartition { number });
    }

    /// Damages one member's log, when the group can do without that member. The process is killed and not the
    /// power: a flipped bit in the same moment as a lost mark looks like a torn write, to anybody.
    fn flip_bit(&mut self, id: u64) {
        let dead_voter = self
            .nodes
            .values()
            .any(|n| (n.state == State::Dead || n.flipped) && n.state != State::Removed);
        if dead_voter || self.nemesis.members.voters().count() < 3 {
            return;
        }
        self.crash(id, false, 200 * MS);
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.disk.flip_bit(&mut self.nemesis.rng).is_some() {
            node.flipped = true;
            self.faults.add(Fault::BitFlipped, 1);
        }
    }

    pub(crate) fn admin_acts(&mut self) {
        let next = self.nemesis.rng.between(400, 2_000) * MS;
        self.at(self.now + next, Event::Admin);
        if self
            .nemesis
            .acting
            .is_some_and(|(_, since)| self.now < since + 3_000 * MS)
        {
            return;
        }
        self.nemesis.acting = None;
        let Some(leader) = self.leader() else { return };
        self.look_at_members(leader);
        let members = self.nemesis.members.clone();
        let dead = members.members.iter().map(|m| m.id).find(|id| self.is_dead(*id));
        if self.healed {
            // Only what is needed to be whole again.
            if let Some(dead) = dead {
                self.begin(Act::Remove);
                self.change(leader, ConfChange::Remove(dead));
            }
            return;
        }
        let act = match (dead, self.nemesis.rng.below(10)) {
            (Some(_), 0..=5) => Act::Remove,
            (_, 0..=3) => Act::Transfer,
            (_, 4..=5) => Act::AddLearner,
            (_, 6..=7) => Act::Promote,
            (_, 8) => Act::Remove,
            _ => Act::Joint,
        };
        self.begin_act(act, leader, &members, dead);
    }

    fn begin_act(&mut self, act: Act, leader: u64, members: &Membership, dead: Option<u64>) {
        let voters: Vec<u64> = members.voters().collect();
        let rng = &mut self.nemesis.rng;
        match act {
            Act::Transfer => {
                if let Some(to) = rng.pick(&voters).copied().filter(|to| *to != leader) {
                    self.begin(act);
                    self.put_to(leader, Waiter::Admin, |id| Input::Transfer {
                        group: GROUP,
                        id,
                        to,
                    });
                }
            }
            Act::AddLearner if members.members.len() < MAX_MEMBERS => {
                let peer = self.spare();
                self.begin(act);
                self.change(leader, ConfChange::AddLearner(peer));
            }
            Act::AddLearner => {}
            Act::Promote => {
                let learner = members.members.iter().find(|m| m.learner).map(|m| m.id);
                if let Some(learner) = learner.filter(|l| !self.is_dead(*l)) {
                    self.begin(act);
                    self.change(leader, ConfChange::Promote(learner));
                }
            }
            Act::Remove => {
                let victim = dead.or_else(|| rng.pick(&voters).copied());
                let enough =
                    voters.len() > 3 || dead.is_some_and(|d| !voters.contains(&d) || voters.len() > 2);
                if let Some(victim) = victim.filter(|v| *v != leader && enough) {
                    self.begin(act);
                    self.change(leader, ConfChange::Remove(victim));
                }
            }
            Act::Joint => {
                let victim = rng.pick(&voters).copied().filter(|v| *v != leader);
                if let Some(victim) = victim.filter(|_| voters.len() >= 3) {
                    let peer = self.spare();
                    self.begin(act);
                    let changes = vec![ConfChange::AddVoter(peer), ConfChange::Remove(victim)];
                    self.change(leader, ConfChange::Joint(changes));
                }
            }
        }
    }

    fn begin(&mut self, act: Act) {
        self.nemesis.acting = Some((act, self.now));
    }

    /// A running node that is no member: one whose addition came to nothing, or a new one.
    fn spare(&mut self) -> Peer {
        let members = &self.nemesis.members;
        let ever = &self.nemesis.ever;
        let idle = self.nodes.values().find(|n| {
            n.state == State::Up && !n.flipped && members.get(n.id).is_none() && !ever.contains(&n.id)
        });
        let id = idle.map(|n| n.id);
        let id = id.unwrap_or_else(|| self.add_node(Vec::new()));
        Peer {
            id,
            address: format!("sim:{id}"),
        }
    }

    fn is_dead(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.state == State::Dead)
    }

    /// Learns the members from the leader, and stops nodes that are members no more.
    pub(crate) fn look_at_members(&mut self, leader: u64) {
        let status = self
            .nodes
            .get(&leader)
            .and_then(|n| n.host.as_ref())
            .and_then(|h| h.status(GROUP));
        let Some(status) = status.filter(|s| s.applied >= self.nemesis.members_at) else {
            return;
        };
        self.nemesis.members_at = status.applied;
        self.nemesis.members = status.membership;
        let members: BTreeSet<u64> = self.nemesis.members.members.iter().map(|m| m.id).collect();
        let gone: Vec<u64> = self.nemesis.ever.difference(&members).copied().collect();
        self.nemesis.ever.extend(members);
        for id in gone {
            if self.nodes.get(&id).is_some_and(|n| n.state != State::Removed) {
                self.kill(id, State::Removed);
            }
        }
    }

    pub(crate) fn members(&self) -> &Membership {
        &self.nemesis.members
    }

    pub(crate) fn admin_reply(&mut self, reply: &Reply) {
        let Some((act, _)) = self.nemesis.acting.take() else {
            return;
        };
        let done = matches!(
            reply,
            Reply::ConfChanged(_, Ok(_)) | Reply::Transferred(_, Ok(()))
        );
        let fault = match act {
            Act::Transfer => Fault::LeaderTransferred,
            Act::AddLearner => Fault::LearnerAdded,
            Act::Promote => Fault::LearnerPromoted,
            Act::Remove => Fault::MemberRemoved,
            Act::Joint => Fault::JointChange,
        };
        self.faults.add(fault, u64::from(done));
    }

    /// Ends all faults, but for one member in liveness mode.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.cuts.clear();
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            self.with_node(id, |n| {
                n.disk.heal();
                n.paused_until = 0;
            });
            if self.nodes.get(&id).is_some_and(|n| n.state == State::Down) {
                self.start(id);
            }
            self.wake(id);
        }
        if self.options.mode == Mode::Liveness {
            self.lasting_fault();
        }
        S::healed(self);
    }

    fn lasting_fault(&mut self) {
        if let Some(leader) = self.leader() {
            self.look_at_members(leader);
        }
        let members = self.nemesis.members.clone();
        let voters: Vec<u64> = members.voters().collect();
        // Joint or damaged configurations may need every member that is left.
        let whole = members.outgoing.is_empty()
            && voters.len() >= 3
            && voters.iter().all(|v| {
                self.nodes
                    .get(v)
                    .is_some_and(|n| n.state == State::Up && !n.flipped)
            });
        let Some(victim) = self.nemesis.rng.pick(&voters).copied().filter(|_| whole) else {
            return;
        };
        let all: Vec<u64> = self.nodes.keys().copied().filter(|o| *o != victim).collect();
        match self.nemesis.rng.below(3) {
            0 => self.kill(victim, State::Removed),
            1 => drop(self.cuts.insert(0, all.iter().map(|o| (victim, *o)).collect())),
            _ => drop(self.cuts.insert(0, all.iter().map(|o| (*o, victim)).collect())),
        }
    }
}
