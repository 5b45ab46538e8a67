//! The leader's keeping of leases: renewals, what is left, and proposing the end of those that ran out.
//!
//! ```text
//!   elected ──read barrier──> Leading {timers: every lease in full} ──deposed──> nothing
//! ```
//! Renewals and expiries happen only in `Leading` of the present term, after everything of earlier terms is applied.

use std::time::Duration;

use chainfire_core::{OpError, timers::LeaseTimers};
use raft_host::{NodeId, Role};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    machine::Leading,
    node::Node,
    record::{ExpireLeases, LogBody},
    wire::{LeaseRemainingRequest, RenewLeaseRequest},
};

/// Leases whose end is proposed in one entry.
const EXPIRE_BATCH: usize = 1000;
/// Longest sleep of the expiry loop: a bound on how late a missed wake-up is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(60);
/// Pause after an expiry could not be proposed.
const EXPIRE_PAUSE: Duration = Duration::from_millis(500);
/// How long a call about a lease looks for the leader.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time one attempt at the leader may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// What a member asks of the leader's timers.
#[derive(Clone, Copy)]
enum Ask {
    Renew,
    Remaining,
}

/// Leases, as one member serves them.
#[derive(Clone)]
pub(crate) struct Lessor {
    node: Node,
}

impl Lessor {
    pub(crate) fn new(node: Node) -> Lessor {
        Lessor { node }
    }

    /// Runs the timers whenever this member leads, until the stop.
    pub(crate) async fn run(&self) {
        let mut leader = self.node.leader.clone();
        loop {
            let info = *leader.borrow_and_update();
            let lead = async {
                if info.role == Role::Leader {
                    self.lead(info.term).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = self.node.tasks.stopping() => return,
                () = lead => {}
                changed = leader.changed() => if changed.is_err() { return },
            }
            *self.node.shared.leading() = None;
        }
    }

    async fn lead(&self, term: u64) {
        // The barrier passes only when this term's first entry is applied, and with it all of the earlier terms.
        while let Err(error) = self.node.read_barrier().await {
            tracing::debug!(%error, "the new leader waits for its barrier");
            sleep(PAUSE).await;
        }
        {
            // Taken together: a lease granted between the two would have no timer.
            let store = self.node.shared.store();
            let timers = LeaseTimers::start(store.leases(), self.node.shared.now_ms());
            *self.node.shared.leading() = Some(Leading { term, timers });
        }
        loop {
            let wait = self.expire(term).await;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.node.shared.leases_changed.notified() => {}
            }
        }
    }

    /// Proposes the end of what ran out; how long nothing will be due.
    async fn expire(&self, term: u64) -> Duration {
        let now_ms = self.node.shared.now_ms();
        let (ids, next_ms) = match self.node.shared.leading().as_mut() {
            Some(leading) => (
                leading.timers.expire(now_ms, EXPIRE_BATCH),
                leading.timers.next_deadline_ms(),
            ),
            None => return MAX_SLEEP,
        };
        if ids.is_empty() {
            let wait = next_ms.map_or(MAX_SLEEP, |next| {
                Duration::from_millis(next.saturating_sub(now_ms) + 1)
            });
            return wait.min(MAX_SLEEP);
        }
        let expire = LogBody::Expire(ExpireLeases {
            ids: ids.clone(),
            term,
        });
        if let Err(error) = self.node.propose(expire).await {
            tracing::warn!(%error, leases = ids.len(), "expired leases could not be ended yet");
            if let Some(leading) = self.node.shared.leading().as_mut() {
                leading.timers.not_expired(&ids, self.node.shared.now_ms());
            }
            return EXPIRE_PAUSE;
        }
        Duration::ZERO
    }

    /// Renews a lease, wherever the leader is; the seconds granted, 0 when there is no such lease.
    pub(crate) async fn renew(&self, id: i64) -> Result<i64, OpError> {
        self.at_leader(Ask::Renew, id).await
    }

    /// Whole seconds left, wherever the leader is; -1 when there is no such lease.
    pub(crate) async fn remaining(&self, id: i64) -> Result<i64, OpError> {
        self.at_leader(Ask::Remaining, id).await
    }

    /// Asks whoever leads, here or at another member, until one answers or the patience is over.
    async fn at_leader(&self, ask: Ask, id: i64) -> Result<i64, OpError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let outcome = match self.node.leader_info().leader {
                None => Err(OpError::NoLeader),
                Some(leader) if leader == self.node.id => match ask {
                    Ask::Renew => self.renew_here(id).await,
                    Ask::Remaining => self.remaining_here(id).await,
                },
                Some(leader) => self.ask_peer(leader, ask, id).await,
            };
            match outcome {
                Ok(ttl_s) => return Ok(ttl_s),
                Err(_) if Instant::now() < end => sleep(PAUSE).await,
                Err(_) => return Err(OpError::NoLeader),
            }
        }
    }

    async fn ask_peer(&self, leader: NodeId, ask: Ask, id: i64) -> Result<i64, OpError> {
        let mut peer = self.node.peers.get(leader).ok_or(OpError::NoLeader)?;
        let answer = timeout(ATTEMPT, async {
            Ok::<_, tonic::Status>(match ask {
                Ask::Renew => {
                    peer.renew_lease(RenewLeaseRequest { id })
                        .await?
                        .into_inner()
                        .ttl_s
                }
                Ask::Remaining => {
                    let request = LeaseRemainingRequest { id };
                    peer.lease_remaining(request).await?.into_inner().ttl_s
                }
            })
        });
        match answer.await {
            Ok(Ok(ttl_s)) => Ok(ttl_s),
            Ok(Err(_)) | Err(_) => Err(OpError::NotLeader),
        }
    }

    /// Renews a lease on the leader itself. The barrier proves that it still leads: a deposed leader must not promise
    /// time that its successor does not know of.
    pub(crate) async fn renew_here(&self, id: i64) -> Result<i64, OpError> {
        let ttl_s = self.ttl_while_leading(id).await?;
        let now_ms = self.node.shared.now_ms();
        let mut leading = self.node.shared.leading();
        let timers = leading
            .as_mut()
            .map(|leading| &mut leading.timers)
            .ok_or(OpError::NotLeader)?;
        Ok(ttl_s
            .filter(|ttl_s| timers.renew(id, *ttl_s, now_ms))
            .unwrap_or(0))
    }

    pub(crate) async fn remaining_here(&self, id: i64) -> Result<i64, OpError> {
        let ttl_s = self.ttl_while_leading(id).await?;
        let leading = self.node.shared.leading();
        let leading = leading.as_ref().ok_or(OpError::NotLeader)?;
        let now_ms = self.node.shared.now_ms();
        Ok(ttl_s
            .and_then(|_| leading.timers.remaining_s(id, now_ms))
            .unwrap_or(-1))
    }

    /// The granted time of a lease, if this member provably leads the present term.
    async fn ttl_while_leading(&self, id: i64) -> Result<Option<i64>, OpError> {
        self.node.read_barrier().await?;
        let info = self.node.leader_info();
        let leading = self.node.shared.leading().as_ref().map(|leading| leading.term);
        if info.role != Role::Leader || leading != Some(info.term) {
            return Err(OpError::NotLeader);
        }
        Ok(self.node.shared.store().leases().get(id).map(|lease| lease.ttl_s))
    }
}
