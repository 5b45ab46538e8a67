//! When leases run out, as the leader counts it. Not replicated: a new leader gives every lease its full time again,
//! so that no lease ends early because of a change of leader.
//!
//! Time is an input: milliseconds on any clock that never goes back.

use std::collections::{BTreeMap, BTreeSet};

use crate::Leases;

#[derive(Debug, Clone, Copy)]
struct Timer {
    deadline_ms: u64,
    /// An expiry has been proposed: it is too late to renew.
    ending: bool,
}

/// The leader's timers.
#[derive(Debug, Default, Clone)]
pub struct LeaseTimers {
    timers: BTreeMap<i64, Timer>,
    by_deadline: BTreeSet<(u64, i64)>,
}

impl LeaseTimers {
    /// The timers of a new leader: every lease has its full time.
    pub fn start(leases: &Leases, now_ms: u64) -> LeaseTimers {
        let mut timers = LeaseTimers::default();
        for (id, lease) in leases.iter() {
            timers.set(id, lease.ttl_s, now_ms);
        }
        timers
    }

    /// Starts a lease's time anew: it was granted.
    pub fn set(&mut self, id: i64, ttl_s: i64, now_ms: u64) {
        self.remove(id);
        let deadline_ms = now_ms.saturating_add(u64::try_from(ttl_s).unwrap_or(0).saturating_mul(1000));
        self.timers.insert(
            id,
            Timer {
                deadline_ms,
                ending: false,
            },
        );
        self.by_deadline.insert((deadline_ms, id));
    }

    /// Renews a lease; false when it is unknown or already ending.
    pub fn renew(&mut self, id: i64, ttl_s: i64, now_ms: u64) -> bool {
        let alive = self.timers.get(&id).is_some_and(|timer| !timer.ending);
        if alive {
            self.set(id, ttl_s, now_ms);
        }
        alive
    }

    /// Forgets a lease that has ended.
    pub fn remove(&mut self, id: i64) {
        if let Some(timer) = self.timers.remove(&id) {
            self.by_deadline.remove(&(timer.deadline_ms, id));
        }
    }

    /// Whole seconds left, rounded as etcd does (up to the next whole second minus one); -1 when run out.
    pub fn remaining_s(&self, id: i64, now_ms: u64) -> Option<i64> {
        let timer = self.timers.get(&id)?;
        let left_ms = timer.deadline_ms.checked_sub(now_ms);
        Some(left_ms.map_or(-1, |left| i64::try_from(left / 1000).unwrap_or(i64::MAX)))
    }

    /// Takes up to `max` leases that have run out; they can no longer be renewed. Propose their expiry.
    pub fn expire(&mut self, now_ms: u64, max: usize) -> Vec<i64> {
        let due: Vec<(u64, i64)> = self
            .by_deadline
            .iter()
            .take_while(|(at, _)| *at <= now_ms)
            .take(max)
            .copied()
            .collect();
        for key in &due {
            self.by_deadline.remove(key);
            if let Some(timer) = self.timers.get_mut(&key.1) {
                timer.ending = true;
            }
        }
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// The proposal of an expiry failed: the leases are due again at once.
    pub fn not_expired(&mut self, ids: &[i64], now_ms: u64) {
        for id in ids {
            if let Some(timer) = self.timers.get_mut(id) {
                timer.deadline_ms = now_ms;
                self.by_deadline.insert((now_ms, *id));
            }
        }
    }

    /// When the next lease runs out.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.by_deadline.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_out_once_and_cannot_be_renewed_then() {
        let mut timers = LeaseTimers::default();
        timers.set(1, 5, 0);
        timers.set(2, 10, 0);
        assert_eq!(timers.remaining_s(1, 1000), Some(4));
        assert!(timers.expire(4999, 10).is_empty());
        assert!(timers.renew(1, 5, 4999));
        assert!(timers.expire(9998, 10).is_empty());
        assert_eq!(timers.expire(9999, 10), [1]);
        assert!(!timers.renew(1, 5, 9999), "an ending lease stays ended");
        assert!(timers.expire(9999, 10).is_empty(), "it is proposed once");
        timers.not_expired(&[1], 10_000);
        assert_eq!(timers.expire(10_000, 1), [1], "a failed proposal is repeated");
        timers.remove(1);
        timers.remove(2);
        assert_eq!(timers.next_deadline_ms(), None);
        assert!(!timers.renew(1, 5, 0));
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut timers = LeaseTimers::default();
        (1..=10).for_each(|id| timers.set(id, 1, 0));
        assert_eq!(timers.expire(1000, 4).len(), 4);
        assert_eq!(timers.expire(1000, 100).len(), 6);
    }
}
