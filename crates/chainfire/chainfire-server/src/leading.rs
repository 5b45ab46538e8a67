//! What the leader decides about leases, in steps without waiting; [`crate::lessor`] does the waiting between them.
//!
//! ```text
//!   elected ──barrier──> begin_leading ──> due / renew / remaining ... ──deposed──> end_leading
//! ```
//! Renewals and answers are given only after a barrier of the same term, by a member that still believes in it.
//!
//! Whoever calls [`Shared::due`] proposes what it says before it calls it again. So what stores remaining times and what
//! clears them stand in the log in the order in which they were decided.

use std::{collections::BTreeSet, time::Duration};

use chainfire_core::{
    OpError,
    timers::{LeaseTimers, Renewal},
};
use raft_host::{LeaderInfo, Role};

use crate::{
    machine::Shared,
    record::{CheckpointLeases, ExpireLeases, LogBody},
};

/// Leases whose end is proposed in one entry.
const EXPIRE_LEASES: usize = 500;
/// Keys of theirs that are deleted in one entry; a lease with more goes alone.
const EXPIRE_KEYS: usize = 500;
/// Leases whose remaining time is stored in one entry.
const CHECKPOINT_LEASES: usize = 5000;
/// Pause between two such entries.
const CHECKPOINT_PAUSE_MS: u64 = 1000;
/// Leases of one entry that clears what is stored.
const CLEAR_LEASES: usize = 5000;
/// Longest wait for the next step: a bound on how late a missed wake-up is noticed.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Lease timers run on the leader only.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) term: u64,
    pub(crate) timers: LeaseTimers,
    /// Leases whose owners are back: what is stored for them is to be cleared.
    to_clear: BTreeSet<i64>,
    /// No remaining times are stored before this.
    checkpoint_at_ms: u64,
}

/// What the leader has to do about leases now.
#[derive(Debug)]
pub(crate) enum Due {
    /// Propose the end of these, and look again.
    Expire(ExpireLeases),
    /// Propose to store or clear what is left of these, tell [`Shared::checkpointed`], and look again.
    Checkpoint(CheckpointLeases),
    /// Nothing will be due for so long, unless a lease is granted or is to be cleared.
    Wait(Duration),
}

impl From<ExpireLeases> for LogBody {
    fn from(expire: ExpireLeases) -> LogBody {
        LogBody::Expire(expire)
    }
}

impl From<CheckpointLeases> for LogBody {
    fn from(checkpoint: CheckpointLeases) -> LogBody {
        LogBody::Checkpoint(checkpoint)
    }
}

impl Leading {
    fn clear(&self) -> Option<CheckpointLeases> {
        let ids: Vec<i64> = self.to_clear.iter().take(CLEAR_LEASES).copied().collect();
        (!ids.is_empty()).then(|| CheckpointLeases {
            remaining_s: vec![0; ids.len()],
            ids,
            term: self.term,
        })
    }

    fn checkpoint(&mut self, now_ms: u64) -> Option<CheckpointLeases> {
        if now_ms < self.checkpoint_at_ms {
            return None;
        }
        let leases = self.timers.checkpoint(now_ms, CHECKPOINT_LEASES);
        if leases.is_empty() {
            return None;
        }
        self.checkpoint_at_ms = now_ms + CHECKPOINT_PAUSE_MS;
        let (ids, remaining_s) = leases.into_iter().unzip();
        Some(CheckpointLeases {
            ids,
            remaining_s,
            term: self.term,
        })
    }

    fn next_ms(&self) -> Option<u64> {
        let checkpoint = self.timers.next_checkpoint_ms();
        let checkpoint = checkpoint.map(|at| at.max(self.checkpoint_at_ms));
        [self.timers.next_deadline_ms(), checkpoint]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Shared {
    /// This member leads `term`, and everything of earlier terms is applied: every lease gets what is stored for it, or
    /// its full time.
    pub(crate) fn begin_leading(&self, term: u64) {
        // Taken together: a lease granted between the two would have no timer.
        let store = self.store();
        let timers = LeaseTimers::start(store.leases(), self.now_ms());
        *self.leading() = Some(Leading {
            term,
            timers,
            to_clear: BTreeSet::new(),
            checkpoint_at_ms: 0,
        });
    }

    /// This member leads no more.
    pub(crate) fn end_leading(&self) {
        *self.leading() = None;
    }

    /// Takes what ran out, else what is to be stored or cleared.
    pub(crate) fn due(&self) -> Due {
        let now_ms = self.now_ms();
        // In this order everywhere: store, then timers.
        let store = self.store();
        let mut leading = self.leading();
        let Some(leading) = leading.as_mut() else {
            return Due::Wait(MAX_WAIT);
        };
        let keys = |id| store.leases().get(id).map_or(0, |lease| lease.keys.len());
        let ids = leading.timers.expire(now_ms, EXPIRE_LEASES, EXPIRE_KEYS, keys);
        if !ids.is_empty() {
            let term = leading.term;
            return Due::Expire(ExpireLeases { ids, term });
        }
        if let Some(checkpoint) = leading.clear().or_else(|| leading.checkpoint(now_ms)) {
            return Due::Checkpoint(checkpoint);
        }
        let wait = leading.next_ms().map_or(MAX_WAIT, |next| {
            Duration::from_millis(next.saturating_sub(now_ms) + 1)
        });
        Due::Wait(wait.min(MAX_WAIT))
    }

    /// The end of these could not be proposed: they are due again.
    pub(crate) fn not_expired(&self, ids: &[i64]) {
        let now_ms = self.now_ms();
        if let Some(leading) = self.leading().as_mut() {
            leading.timers.not_expired(ids, now_ms);
        }
    }

    /// The entry was applied: where it cleared something, the leases can be renewed. (One that was not applied may be in
    /// the log nevertheless: its leases go on counting as stored, and clears are due again.)
    pub(crate) fn checkpointed(&self, checkpoint: &CheckpointLeases) {
        let mut leading = self.leading();
        let Some(leading) = leading.as_mut().filter(|leading| leading.term == checkpoint.term) else {
            return;
        };
        for (id, remaining_s) in checkpoint.ids.iter().zip(&checkpoint.remaining_s) {
            if *remaining_s == 0 {
                leading.to_clear.remove(id);
                leading.timers.cleared(*id);
            }
        }
    }

    /// Renews leases after a barrier: for each the seconds granted, 0 when there is no such lease, and `None` to ask
    /// again: what is stored for it has to be cleared first, which is due now.
    pub(crate) fn renew(&self, ids: &[i64], info: LeaderInfo) -> Result<Vec<Option<i64>>, OpError> {
        let now_ms = self.now_ms();
        let store = self.store();
        let mut leading = self.leading();
        let leading = leading
            .as_mut()
            .filter(|leading| info.role == Role::Leader && leading.term == info.term)
            .ok_or(OpError::NotLeader)?;
        let mut clears = false;
        let answers = ids
            .iter()
            .map(|id| {
                let Some(lease) = store.leases().get(*id) else {
                    return Some(0);
                };
                match leading.timers.renew(*id, now_ms) {
                    Renewal::Renewed => Some(lease.ttl_s),
                    Renewal::Unknown => Some(0),
                    Renewal::Stored => {
                        leading.to_clear.insert(*id);
                        clears = true;
                        None
                    }
                }
            })
            .collect();
        if clears {
            self.leases_changed.notify_one();
        }
        Ok(answers)
    }

    /// Whole seconds that a lease has left, after a barrier; -1 when there is no such lease.
    pub(crate) fn remaining(&self, id: i64, info: LeaderInfo) -> Result<i64, OpError> {
        let now_ms = self.now_ms();
        let known = self.store().leases().get(id).is_some();
        let leading = self.leading();
        let leading = leading
            .as_ref()
            .filter(|leading| info.role == Role::Leader && leading.term == info.term)
            .ok_or(OpError::NotLeader)?;
        let left_s = leading.timers.remaining_s(id, now_ms).filter(|_| known);
        Ok(left_s.unwrap_or(-1))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use chainfire_client::wire::etcdserverpb::LeaseGrantRequest;
    use kv_engine::{Engine, MemoryDisk};
    use prost::Message;
    use raft_host::{Committed, Payload, StateMachine};

    use super::*;
    use crate::{clock::Clock, machine::Machine, record::LogRecord};

    /// A member whose clock and log the test holds.
    struct World {
        disk: MemoryDisk,
        clock: Arc<AtomicU64>,
        machine: Machine,
        shared: Arc<Shared>,
        index: u64,
    }

    impl World {
        fn new() -> World {
            let (disk, clock) = (MemoryDisk::new(), Arc::new(AtomicU64::new(0)));
            let (machine, shared) = open(&disk, &clock);
            World {
                disk,
                clock,
                machine,
                shared,
                index: 0,
            }
        }

        fn at(&self, seconds: u64) {
            self.clock.store(seconds * 1000, Ordering::Relaxed);
        }

        fn apply(&mut self, term: u64, body: LogBody) {
            self.index += 1;
            let record = LogRecord {
                body: Some(body),
                caller: None,
            };
            let bytes = record.encode_to_vec();
            let entry = Committed {
                index: self.index,
                term,
                payload: Payload::Command(&bytes),
            };
            self.machine.apply(&[entry]).unwrap();
        }

        fn grant(&mut self, term: u64, id: i64, ttl: i64) {
            self.apply(term, LogBody::Grant(LeaseGrantRequest { ttl, id }));
        }

        /// The next checkpoint that is due, applied in `term`.
        fn checkpoint(&mut self, term: u64) -> Vec<(i64, i64)> {
            let Due::Checkpoint(checkpoint) = self.shared.due() else {
                panic!("no checkpoint is due")
            };
            self.apply(term, checkpoint.clone().into());
            self.shared.checkpointed(&checkpoint);
            checkpoint.ids.into_iter().zip(checkpoint.remaining_s).collect()
        }

        fn expired(&self) -> Vec<i64> {
            match self.shared.due() {
                Due::Expire(expire) => expire.ids,
                _ => Vec::new(),
            }
        }

        fn renew(&self, term: u64, id: i64) -> Option<i64> {
            self.shared.renew(&[id], leader(term)).unwrap()[0]
        }

        fn left(&self, term: u64, id: i64) -> i64 {
            self.shared.remaining(id, leader(term)).unwrap()
        }
    }

    fn open(disk: &MemoryDisk, clock: &Arc<AtomicU64>) -> (Machine, Arc<Shared>) {
        Machine::open(Engine::memory(disk), Clock::Simulated(clock.clone()), 4096).unwrap()
    }

    fn leader(term: u64) -> LeaderInfo {
        LeaderInfo {
            leader: Some(1),
            term,
            role: Role::Leader,
        }
    }

    #[test]
    fn what_is_left_of_an_abandoned_lease_survives_leaders_and_restarts() {
        let mut world = World::new();
        world.shared.begin_leading(1);
        world.grant(1, 7, 60);
        world.grant(1, 8, 60);
        world.at(20);
        assert_eq!(world.renew(1, 8), Some(60));
        world.at(30);
        assert_eq!(world.checkpoint(1), [(7, 30)]);
        // The leader dies at 35; the next one leads at 40.
        world.at(40);
        world.shared.begin_leading(2);
        assert_eq!((world.left(2, 7), world.left(2, 8)), (30, 60));
        world.at(55);
        assert_eq!(world.checkpoint(2), [(7, 15)]);
        // It restarts, and leads again at once.
        world.machine.persist().unwrap();
        (world.machine, world.shared) = open(&world.disk, &world.clock);
        world.shared.begin_leading(3);
        assert_eq!((world.left(3, 7), world.left(3, 8)), (15, 60));
        world.at(69);
        assert!(world.expired().is_empty());
        world.at(70);
        assert_eq!(world.expired(), [7]);
    }

    #[test]
    fn an_owner_that_comes_back_is_answered_when_nothing_is_stored_any_more() {
        let mut world = World::new();
        world.shared.begin_leading(1);
        world.grant(1, 7, 60);
        world.at(45);
        assert_eq!(world.checkpoint(1), [(7, 15)]);
        world.at(50);
        assert_eq!(world.renew(1, 7), None, "not before it is cleared");
        assert_eq!(world.checkpoint(1), [(7, 0)]);
        assert_eq!(world.renew(1, 7), Some(60));
        // Promised until 110: no leader ends it earlier.
        world.at(52);
        world.shared.begin_leading(2);
        world.at(109);
        assert_eq!(world.left(2, 7), 3);
        assert!(world.expired().is_empty());
    }

    #[test]
    fn the_clock_of_a_deposed_leader_decides_nothing() {
        let mut world = World::new();
        world.shared.begin_leading(1);
        world.grant(1, 7, 10);
        // It was stopped for two of the lease's lives; another one leads term 2.
        world.at(20);
        let Due::Expire(expire) = world.shared.due() else {
            panic!("it ran out by this clock")
        };
        world.apply(2, expire.into());
        let stale = CheckpointLeases {
            ids: vec![7],
            remaining_s: vec![1],
            term: 1,
        };
        world.apply(2, stale.into());
        let lease = world.shared.store().leases().get(7).cloned().unwrap();
        assert_eq!((lease.ttl_s, lease.remaining_s), (10, 0));
        assert_eq!(world.shared.renew(&[7], leader(2)), Err(OpError::NotLeader));
        let follower = LeaderInfo {
            role: Role::Follower,
            ..leader(1)
        };
        assert_eq!(world.shared.renew(&[7], follower), Err(OpError::NotLeader));
        assert_eq!(world.shared.remaining(7, follower), Err(OpError::NotLeader));
        assert_eq!(world.shared.renew(&[9], leader(1)), Ok(vec![Some(0)]));
    }

    #[test]
    fn thousands_of_leases_end_in_bounded_entries() {
        let mut world = World::new();
        world.shared.begin_leading(1);
        (1..=1200).for_each(|id| world.grant(1, id, 5));
        world.at(5);
        let mut entries = Vec::new();
        while let Due::Expire(expire) = world.shared.due() {
            entries.push(expire.ids.len());
            world.apply(1, expire.into());
        }
        assert_eq!(entries, [EXPIRE_LEASES, EXPIRE_LEASES, 200]);
        assert!(world.shared.store().leases().is_empty());
    }
}
