//! What the leader decides about leases, in steps without waiting; [`crate::lessor`] does the waiting between them.
//!
//! ```text
//!   elected ──barrier──> begin_leading ──> due / renew / remaining ... ──deposed──> end_leading
//! ```
//! Renewals and answers are given only after a barrier of the same term, by a member that still believes in it.

use std::time::Duration;

use chainfire_core::{OpError, timers::LeaseTimers};
use raft_host::{LeaderInfo, Role};

use crate::{
    machine::Shared,
    record::{ExpireLeases, LogBody},
};

/// Leases whose end is proposed in one entry.
const EXPIRE_BATCH: usize = 1000;
/// Longest wait for the next step: a bound on how late a missed wake-up is noticed.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Lease timers run on the leader only.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) term: u64,
    pub(crate) timers: LeaseTimers,
}

/// What the leader has to do about leases now.
#[derive(Debug)]
pub(crate) enum Due {
    /// Propose the end of these, and look again.
    Expire(ExpireLeases),
    /// Nothing will be due for so long, unless a lease is granted.
    Wait(Duration),
}

impl From<ExpireLeases> for LogBody {
    fn from(expire: ExpireLeases) -> LogBody {
        LogBody::Expire(expire)
    }
}

impl Shared {
    /// This member leads `term`, and everything of earlier terms is applied: every lease gets its full time.
    pub(crate) fn begin_leading(&self, term: u64) {
        // Taken together: a lease granted between the two would have no timer.
        let store = self.store();
        let timers = LeaseTimers::start(store.leases(), self.now_ms());
        *self.leading() = Some(Leading { term, timers });
    }

    /// This member leads no more.
    pub(crate) fn end_leading(&self) {
        *self.leading() = None;
    }

    /// Takes what ran out.
    pub(crate) fn due(&self) -> Due {
        let now_ms = self.now_ms();
        let mut leading = self.leading();
        let Some(leading) = leading.as_mut() else {
            return Due::Wait(MAX_WAIT);
        };
        let ids = leading.timers.expire(now_ms, EXPIRE_BATCH);
        if !ids.is_empty() {
            let term = leading.term;
            return Due::Expire(ExpireLeases { ids, term });
        }
        let wait = leading.timers.next_deadline_ms().map_or(MAX_WAIT, |next| {
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

    /// Renews a lease after a barrier; the seconds granted, 0 when there is no such lease.
    pub(crate) fn renew(&self, id: i64, info: LeaderInfo) -> Result<i64, OpError> {
        let ttl_s = self.ttl_while_leading(id, info)?;
        let now_ms = self.now_ms();
        let mut leading = self.leading();
        let leading = leading.as_mut().ok_or(OpError::NotLeader)?;
        Ok(ttl_s
            .filter(|ttl_s| leading.timers.renew(id, *ttl_s, now_ms))
            .unwrap_or(0))
    }

    /// Whole seconds that a lease has left, after a barrier; -1 when there is no such lease.
    pub(crate) fn remaining(&self, id: i64, info: LeaderInfo) -> Result<i64, OpError> {
        let ttl_s = self.ttl_while_leading(id, info)?;
        let now_ms = self.now_ms();
        let leading = self.leading();
        let leading = leading.as_ref().ok_or(OpError::NotLeader)?;
        Ok(ttl_s
            .and_then(|_| leading.timers.remaining_s(id, now_ms))
            .unwrap_or(-1))
    }

    /// The granted time of a lease, if this member leads the present term.
    fn ttl_while_leading(&self, id: i64, info: LeaderInfo) -> Result<Option<i64>, OpError> {
        let leading = self.leading().as_ref().map(|leading| leading.term);
        if info.role != Role::Leader || leading != Some(info.term) {
            return Err(OpError::NotLeader);
        }
        Ok(self.store().leases().get(id).map(|lease| lease.ttl_s))
    }
}
