//! When leases run out, as the leader counts it, and what of it is worth writing down for the next leader.
//!
//! ```text
//!   renewed ─────────── half of its time ────── a quarter left ────── out
//!      │  owners renew in this time  │ remaining time is stored │ again │ end is proposed
//! ```
//! Deadlines are not replicated. A new leader gives a lease the remaining time that was stored for it, and its full
//! time when none is: so a lease never ends early, and one whose owner is gone does not begin anew with each leader.
//! A lease whose remaining time is stored, or may be, is renewed only after that was cleared through the log.
//!
//! Time is an input: milliseconds on any clock that never goes back.

use std::collections::{BTreeMap, BTreeSet};

use crate::Leases;

/// Leases with less time than this are not worth storing: giving them all of it again is short enough.
pub const MIN_CHECKPOINT_TTL_S: i64 = 10;

#[derive(Debug, Clone, Copy)]
struct Timer {
    ttl_ms: u64,
    deadline_ms: u64,
    /// When its remaining time is to be stored next.
    checkpoint_ms: Option<u64>,
    /// A remaining time is stored, or was proposed to be.
    stored: bool,
    /// An expiry has been proposed: it is too late to renew.
    ending: bool,
}

/// What a renewal came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lease has its full time again.
    Renewed,
    /// Not yet: its stored remaining time has to be cleared first ([`LeaseTimers::cleared`]).
    Stored,
    /// There is no such lease, or it is ending.
    Unknown,
}

/// The leader's timers.
#[derive(Debug, Default, Clone)]
pub struct LeaseTimers {
    timers: BTreeMap<i64, Timer>,
    by_deadline: BTreeSet<(u64, i64)>,
    by_checkpoint: BTreeSet<(u64, i64)>,
}

fn ms(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
}

/// The next moment at which the remaining time is to be stored: at half of it, and when a quarter is left.
fn next_checkpoint(ttl_ms: u64, deadline_ms: u64, now_ms: u64) -> Option<u64> {
    if ttl_ms < ms(MIN_CHECKPOINT_TTL_S) {
        return None;
    }
    [ttl_ms / 2, ttl_ms / 4]
        .into_iter()
        .map(|left| deadline_ms.saturating_sub(left))
        .find(|at| *at > now_ms)
}

impl LeaseTimers {
    /// The timers of a new leader: every lease has what was stored for it, or its full time.
    pub fn start(leases: &Leases, now_ms: u64) -> LeaseTimers {
        let mut timers = LeaseTimers::default();
        for (id, lease) in leases.iter() {
            let stored = lease.remaining_s > 0;
            let left_s = if stored { lease.remaining_s } else { lease.ttl_s };
            timers.begin(
                id,
                ms(lease.ttl_s),
                now_ms.saturating_add(ms(left_s)),
                now_ms,
                stored,
            );
        }
        timers
    }

    fn begin(&mut self, id: i64, ttl_ms: u64, deadline_ms: u64, now_ms: u64, stored: bool) {
        self.remove(id);
        let checkpoint_ms = next_checkpoint(ttl_ms, deadline_ms, now_ms);
        let timer = Timer {
            ttl_ms,
            deadline_ms,
            checkpoint_ms,
            stored,
            ending: false,
        };
        self.timers.insert(id, timer);
        self.by_deadline.insert((deadline_ms, id));
        if let Some(at) = checkpoint_ms {
            self.by_checkpoint.insert((at, id));
        }
    }

    /// Starts a lease's time: it was granted.
    pub fn set(&mut self, id: i64, ttl_s: i64, now_ms: u64) {
        let ttl_ms = ms(ttl_s);
        self.begin(id, ttl_ms, now_ms.saturating_add(ttl_ms), now_ms, false);
    }

    /// Renews a lease, unless it is ending or something is stored for it.
    pub fn renew(&mut self, id: i64, now_ms: u64) -> Renewal {
        match self.timers.get(&id) {
            None | Some(Timer { ending: true, .. }) => Renewal::Unknown,
            Some(Timer { stored: true, .. }) => Renewal::Stored,
            Some(Timer { ttl_ms, .. }) => {
                let ttl_ms = *ttl_ms;
                self.begin(id, ttl_ms, now_ms.saturating_add(ttl_ms), now_ms, false);
                Renewal::Renewed
            }
        }
    }

    /// What was stored for a lease is cleared, and nothing was proposed to be since.
    pub fn cleared(&mut self, id: i64) {
        if let Some(timer) = self.timers.get_mut(&id) {
            timer.stored = false;
        }
    }

    /// Forgets a lease that has ended.
    pub fn remove(&mut self, id: i64) {
        if let Some(timer) = self.timers.remove(&id) {
            self.by_deadline.remove(&(timer.deadline_ms, id));
            if let Some(at) = timer.checkpoint_ms {
                self.by_checkpoint.remove(&(at, id));
            }
        }
    }

    /// Whole seconds left, rounded as etcd does (up to the next whole second minus one); -1 when run out.
    pub fn remaining_s(&self, id: i64, now_ms: u64) -> Option<i64> {
        let timer = self.timers.get(&id)?;
        let left_ms = timer.deadline_ms.checked_sub(now_ms);
        Some(left_ms.map_or(-1, |left| i64::try_from(left / 1000).unwrap_or(i64::MAX)))
    }

    /// Takes up to `max` leases whose owners seem gone, with the whole seconds left, rounded up. From now on they count
    /// as stored. Propose that they are.
    pub fn checkpoint(&mut self, now_ms: u64, max: usize) -> Vec<(i64, i64)> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((at, id)) = self.by_checkpoint.first().copied()
            && at <= now_ms
        {
            self.by_checkpoint.pop_first();
            let Some(timer) = self.timers.get_mut(&id) else {
                continue;
            };
            timer.checkpoint_ms = None;
            let left_ms = timer.deadline_ms.saturating_sub(now_ms);
            if timer.ending || left_ms == 0 {
                continue;
            }
            timer.stored = true;
            timer.checkpoint_ms = next_checkpoint(timer.ttl_ms, timer.deadline_ms, now_ms);
            if let Some(at) = timer.checkpoint_ms {
                self.by_checkpoint.insert((at, id));
            }
            taken.push((id, i64::try_from(left_ms.div_ceil(1000)).unwrap_or(i64::MAX)));
        }
        taken
    }

    /// Takes leases that have run out, up to `max` and as long as their costs stay within `budget` (one at least); they
    /// can no longer be renewed. Propose their expiry.
    pub fn expire(
        &mut self,
        now_ms: u64,
        max: usize,
        budget: usize,
        cost: impl Fn(i64) -> usize,
    ) -> Vec<i64> {
        let mut taken = Vec::new();
        let mut spent = 0;
        while taken.len() < max
            && let Some((at, id)) = self.by_deadline.first().copied()
            && at <= now_ms
        {
            spent += cost(id);
            if spent > budget && !taken.is_empty() {
                break;
            }
            self.by_deadline.pop_first();
            if let Some(timer) = self.timers.get_mut(&id) {
                timer.ending = true;
            }
            taken.push(id);
        }
        taken
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

    /// When the next remaining time is to be stored.
    pub fn next_checkpoint_ms(&self) -> Option<u64> {
        self.by_checkpoint.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expire(timers: &mut LeaseTimers, now_ms: u64, max: usize) -> Vec<i64> {
        timers.expire(now_ms, max, usize::MAX, |_| 1)
    }

    #[test]
    fn a_lease_runs_out_once_and_cannot_be_renewed_then() {
        let mut timers = LeaseTimers::default();
        timers.set(1, 5, 0);
        timers.set(2, 10, 0);
        assert_eq!(timers.remaining_s(1, 1000), Some(4));
        assert!(expire(&mut timers, 4999, 10).is_empty());
        assert_eq!(timers.renew(1, 4999), Renewal::Renewed);
        assert!(expire(&mut timers, 9998, 10).is_empty());
        assert_eq!(expire(&mut timers, 9999, 10), [1]);
        assert_eq!(
            timers.renew(1, 9999),
            Renewal::Unknown,
            "an ending lease stays ended"
        );
        assert!(expire(&mut timers, 9999, 10).is_empty(), "it is proposed once");
        timers.not_expired(&[1], 10_000);
        assert_eq!(
            expire(&mut timers, 10_000, 1),
            [1],
            "a failed proposal is repeated"
        );
        timers.remove(1);
        timers.remove(2);
        assert_eq!(timers.next_deadline_ms(), None);
        assert_eq!(timers.next_checkpoint_ms(), None);
        assert_eq!(timers.renew(1, 0), Renewal::Unknown);
    }

    #[test]
    fn a_batch_is_bounded_in_leases_and_in_keys() {
        let mut timers = LeaseTimers::default();
        (1..=10).for_each(|id| timers.set(id, 2, 0));
        assert_eq!(expire(&mut timers, 2000, 4).len(), 4);
        let keys = |id| if id == 7 { 1000 } else { 3 };
        assert_eq!(timers.expire(2000, 100, 8, keys), [5, 6]);
        assert_eq!(timers.expire(2000, 100, 8, keys), [7], "a large one goes alone");
        assert_eq!(timers.expire(2000, 100, 8, keys), [8, 9]);
        assert_eq!(timers.expire(2000, 100, 8, keys), [10]);
    }

    #[test]
    fn the_time_left_of_a_lease_that_nobody_renews_is_stored_twice() {
        let mut timers = LeaseTimers::default();
        timers.set(1, 60, 0);
        timers.set(2, 60, 0);
        timers.set(3, MIN_CHECKPOINT_TTL_S - 1, 0);
        assert!(timers.checkpoint(29_999, 9).is_empty());
        assert_eq!(timers.renew(2, 29_999), Renewal::Renewed);
        assert_eq!(timers.checkpoint(30_500, 9), [(1, 30)]);
        assert!(timers.checkpoint(30_500, 9).is_empty());
        assert_eq!(timers.checkpoint(45_001, 9), [(1, 15)], "rounded up");
        assert_eq!(timers.next_checkpoint_ms(), Some(59_999));
        // The owner is back: not before what is stored is cleared.
        assert_eq!(timers.renew(1, 50_000), Renewal::Stored);
        timers.cleared(1);
        assert_eq!(timers.renew(1, 50_000), Renewal::Renewed);
        assert_eq!(timers.remaining_s(1, 50_000), Some(60));
        assert_eq!(timers.checkpoint(80_001, 1), [(2, 10)], "a batch is bounded");
        assert_eq!(timers.checkpoint(80_001, 1), [(1, 30)]);
    }

    #[test]
    fn a_new_leader_goes_on_from_what_is_stored() {
        let mut leases = Leases::default();
        leases.restore(1, 60, 0);
        leases.restore(2, 60, 20);
        let mut timers = LeaseTimers::start(&leases, 5_000);
        assert_eq!(timers.remaining_s(1, 5_000), Some(60));
        assert_eq!(timers.remaining_s(2, 5_000), Some(20));
        assert_eq!(timers.renew(1, 5_000), Renewal::Renewed);
        assert_eq!(timers.renew(2, 5_000), Renewal::Stored);
        assert_eq!(timers.checkpoint(10_000, 9), [(2, 15)]);
        assert_eq!(expire(&mut timers, 25_000, 9), [2]);
    }
}
