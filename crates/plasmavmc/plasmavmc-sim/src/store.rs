//! The store as its clients see it: members that have a leader or not, a leader that can commit or not, leases, and
//! transactions that compare.

use testkit::sim::{Faults, SimRng};

use crate::world::{NODES, VMS};

pub(crate) const MEMBERS: usize = 3;
/// A member without a word from the leader for so long has none.
const ELECTION_MS: u64 = 1000;
/// A leader that has not heard of a majority for so long resigns.
const RESIGN_MS: u64 = 2 * ELECTION_MS;
const LEASE_MS: u64 = 15_000;
const ELECTION_LEASE_MS: u64 = 10_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) up: bool,
    pub(crate) stopped_until: u64,
    heard_ms: Option<u64>,
    /// Since when it has had no leader; its start at the earliest.
    leaderless_ms: u64,
}

impl Member {
    pub(crate) fn acts(&self, now: u64) -> bool {
        self.up && now >= self.stopped_until
    }
}

#[derive(Clone, Copy, Debug)]
struct Reign {
    member: usize,
    term: u64,
    quorum_ms: u64,
    serves: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) revision: i64,
    pub(crate) fenced: bool,
}

/// A VM as the store knows it.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) node: usize,
    pub(crate) epoch: u64,
    pub(crate) revision: i64,
    pub(crate) shared: bool,
}

/// Who holds the election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elected {
    pub(crate) control: usize,
    pub(crate) token: i64,
    counted_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) members: [Member; MEMBERS],
    pub(crate) links: [[bool; MEMBERS]; MEMBERS],
    reign: Option<Reign>,
    election_at: Option<u64>,
    term: u64,
    pub(crate) revision: i64,
    /// Time that leaders have counted since the last renewal.
    leases: [Option<u64>; NODES],
    pub(crate) records: [Option<Record>; NODES],
    pub(crate) vms: Vec<Vm>,
    pub(crate) elected: Option<Elected>,
    /// Leaders give the time back that earlier ones have counted.
    regrants: bool,
    /// Parts of a thousand by which the leader's clock is fast.
    drift: i64,
    /// When each node's lease was last renewed, and when it last ran out: for the judge.
    pub(crate) renewed_ms: [u64; NODES],
    pub(crate) expired_ms: [Option<u64>; NODES],
}

impl Store {
    pub(crate) fn new(rng: &mut SimRng) -> Self {
        let vms = (0..VMS)
            .map(|vm| Vm {
                node: vm % NODES,
                epoch: 1,
                revision: 1,
                shared: vm < NODES,
            })
            .collect();
        let member = Member {
            up: true,
            ..Member::default()
        };
        Self {
            members: [member.clone(), member.clone(), member],
            links: [[true; MEMBERS]; MEMBERS],
            reign: None,
            election_at: None,
            term: 1,
            revision: 1,
            leases: [None; NODES],
            records: [None; NODES],
            vms,
            elected: None,
            regrants: rng.chance(300),
            drift: i64::try_from(rng.below(101)).unwrap_or(0) - 50,
            renewed_ms: [0; NODES],
            expired_ms: [None; NODES],
        }
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        a == b
            || self
                .links
                .get(a)
                .and_then(|row| row.get(b))
                .copied()
                .unwrap_or(false)
    }

    /// Whether a leader can commit now.
    pub(crate) fn serves(&self) -> bool {
        self.reign.is_some_and(|reign| reign.serves)
    }

    /// Whether a member thinks that it has a leader.
    pub(crate) fn has_leader(&self, member: usize, now: u64) -> bool {
        let Some(one) = self.members.get(member) else {
            return false;
        };
        let leads = self.reign.is_some_and(|reign| reign.member == member) && one.acts(now);
        leads
            || one
                .heard_ms
                .is_some_and(|heard| now.saturating_sub(heard) < ELECTION_MS)
    }

    /// Whether a request to this member is answered now.
    pub(crate) fn serves_through(&self, member: usize, now: u64) -> bool {
        self.reign.is_some_and(|reign| {
            reign.serves && self.linked(member, reign.member) && self.has_leader(member, now)
        })
    }

    /// For how long a member has had no leader.
    pub(crate) fn leaderless_ms(&self, member: usize, now: u64) -> Option<u64> {
        let since = self.members.get(member)?.leaderless_ms;
        (!self.has_leader(member, now)).then(|| now.saturating_sub(since))
    }

    pub(crate) fn start(&mut self, member: usize, now: u64) {
        if let Some(one) = self.members.get_mut(member) {
            one.up = true;
            one.leaderless_ms = now;
        }
    }

    pub(crate) fn kill(&mut self, member: usize) {
        if let Some(one) = self.members.get_mut(member) {
            one.up = false;
            one.heard_ms = None;
        }
        if self.reign.is_some_and(|reign| reign.member == member) {
            self.reign = None;
        }
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        self.reign.map(|reign| reign.member)
    }

    pub(crate) fn tick(&mut self, now: u64, elapsed: u64, rng: &mut SimRng, faults: &mut Faults) {
        self.lead(now);
        self.elect(now, rng, faults);
        for member in 0..MEMBERS {
            let has = self.has_leader(member, now);
            if let Some(one) = self.members.get_mut(member).filter(|_| has) {
                one.leaderless_ms = now;
            }
        }
        if self.serves() {
            self.count(now, elapsed, faults);
        }
    }

    fn lead(&mut self, now: u64) {
        let Some(mut reign) = self.reign else { return };
        let awake = self.members.get(reign.member).is_some_and(|m| m.acts(now));
        let mut followers = 0;
        for member in 0..MEMBERS {
            let reached = member != reign.member && self.linked(member, reign.member);
            if let Some(one) = self.members.get_mut(member)
                && awake
                && reached
                && one.acts(now)
            {
                one.heard_ms = Some(now);
                followers += 1;
            }
        }
        reign.serves = awake && (followers + 1) * 2 > MEMBERS;
        if reign.serves {
            reign.quorum_ms = now;
        }
        let resigns = now.saturating_sub(reign.quorum_ms) >= RESIGN_MS;
        self.reign = (!resigns).then_some(reign);
    }

    fn elect(&mut self, now: u64, rng: &mut SimRng, faults: &mut Faults) {
        if self.serves() {
            self.election_at = None;
            return;
        }
        // Who has no leader and reaches a majority of such members.
        let free = |member: usize| {
            self.members.get(member).is_some_and(|m| m.acts(now)) && !self.has_leader(member, now)
        };
        let candidate = (0..MEMBERS).find(|one| {
            let voters = (0..MEMBERS).filter(|other| free(*other) && self.linked(*one, *other));
            free(*one) && voters.count() * 2 > MEMBERS
        });
        let Some(candidate) = candidate else {
            self.election_at = None;
            return;
        };
        let at = *self.election_at.get_or_insert(now + rng.below(ELECTION_MS));
        if now < at {
            return;
        }
        self.election_at = None;
        self.term += 1;
        self.revision += 1;
        faults.note("LeaderElected", 1);
        self.reign = Some(Reign {
            member: candidate,
            term: self.term,
            quorum_ms: now,
            serves: false,
        });
        if self.regrants {
            self.leases = self.leases.map(|lease| lease.map(|_| 0));
        }
        self.lead(now);
        assert!(self.reign.is_none_or(|reign| reign.term == self.term));
    }

    fn count(&mut self, now: u64, elapsed: u64, faults: &mut Faults) {
        // By chance a fast clock gains its parts of a thousand at once.
        let fast = i64::try_from(elapsed).unwrap_or(0) * (1000 + self.drift) / 1000;
        let elapsed = u64::try_from(fast).unwrap_or(elapsed);
        for (node, lease) in self.leases.iter_mut().enumerate() {
            let Some(counted) = lease else { continue };
            *counted += elapsed;
            if *counted >= LEASE_MS {
                *lease = None;
                self.revision += 1;
                faults.note("LeaseExpired", 1);
                if let Some(at) = self.expired_ms.get_mut(node) {
                    *at = Some(now);
                }
            }
        }
        if let Some(elected) = &mut self.elected {
            elected.counted_ms += elapsed;
            if elected.counted_ms >= ELECTION_LEASE_MS {
                self.elected = None;
                self.revision += 1;
            }
        }
    }

    pub(crate) fn lease(&self, node: usize) -> bool {
        self.leases.get(node).copied().flatten().is_some()
    }

    pub(crate) fn record(&self, node: usize) -> Option<Record> {
        self.records.get(node).copied().flatten()
    }

    /// Renews a node's lease, if it is there.
    pub(crate) fn renew(&mut self, node: usize, now: u64) -> bool {
        match self.leases.get_mut(node) {
            Some(Some(counted)) => {
                *counted = 0;
                if let Some(at) = self.renewed_ms.get_mut(node) {
                    *at = now;
                }
                true
            }
            _ => false,
        }
    }

    /// The guard's transaction: a new lease and a record without a fence, if the record is as the guard knows it.
    pub(crate) fn acquire(
        &mut self,
        node: usize,
        known: Option<i64>,
        now: u64,
    ) -> Result<i64, Option<Record>> {
        let record = self.record(node);
        if record.map(|r| r.revision) != known {
            return Err(record);
        }
        self.revision += 1;
        let revision = self.revision;
        if let Some(slot) = self.records.get_mut(node) {
            *slot = Some(Record {
                revision,
                fenced: false,
            });
        }
        if let (Some(lease), Some(at)) = (self.leases.get_mut(node), self.renewed_ms.get_mut(node)) {
            *lease = Some(0);
            *at = now;
        }
        Ok(revision)
    }

    /// The election: its holder renews it, anybody takes a free one. The token of the holder.
    pub(crate) fn campaign(&mut self, control: usize) -> Option<i64> {
        match &mut self.elected {
            Some(elected) if elected.control == control => {
                elected.counted_ms = 0;
                Some(elected.token)
            }
            Some(_) => None,
            None => {
                self.revision += 1;
                let token = self.revision;
                self.elected = Some(Elected {
                    control,
                    token,
                    counted_ms: 0,
                });
                Some(token)
            }
        }
    }

    pub(crate) fn is_elected(&self, token: i64) -> bool {
        self.elected.is_some_and(|elected| elected.token == token)
    }

    /// Writes the fence, if nothing but the lease's absence was seen since `known`.
    pub(crate) fn fence(&mut self, node: usize, known: Option<i64>, token: i64) -> bool {
        let Some(record) = self.record(node) else {
            return false;
        };
        let same = known.is_none_or(|known| known == record.revision);
        if self.lease(node) || !same || !self.is_elected(token) || record.fenced {
            return false;
        }
        self.revision += 1;
        if let Some(slot) = self.records.get_mut(node) {
            *slot = Some(Record {
                revision: self.revision,
                fenced: true,
            });
        }
        true
    }
}
