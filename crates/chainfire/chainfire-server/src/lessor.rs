//! The leader's keeping of leases: renewals, what is left, and proposing the end of those that ran out. Decisions are
//! [`crate::leading`]'s; here is the waiting.
//!
//! ```text
//!   elected ──read barrier──> Leading {timers: every lease in full} ──deposed──> nothing
//! ```
//! Renewals and expiries happen only in `Leading` of the present term, after everything of earlier terms is applied.

use std::time::Duration;

use chainfire_core::OpError;
use raft_host::{NodeId, Role};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    leading::Due,
    node::Node,
    wire::{LeaseRemainingRequest, RenewLeaseRequest},
};

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
            self.node.shared.end_leading();
        }
    }

    async fn lead(&self, term: u64) {
        // The barrier passes only when this term's first entry is applied, and with it all of the earlier terms.
        while let Err(error) = self.node.read_barrier().await {
            tracing::debug!(%error, "the new leader waits for its barrier");
            sleep(PAUSE).await;
        }
        self.node.shared.begin_leading(term);
        loop {
            let wait = self.expire().await;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.node.shared.leases_changed.notified() => {}
            }
        }
    }

    /// Proposes the end of what ran out; how long nothing will be due.
    async fn expire(&self) -> Duration {
        let shared = &self.node.shared;
        let expire = match shared.due() {
            Due::Wait(wait) => return wait,
            Due::Expire(expire) => expire,
        };
        if let Err(error) = self.node.propose(expire.clone().into()).await {
            tracing::warn!(%error, leases = expire.ids.len(), "expired leases could not be ended yet");
            shared.not_expired(&expire.ids);
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
        self.node.read_barrier().await?;
        self.node.shared.renew(id, self.node.leader_info())
    }

    pub(crate) async fn remaining_here(&self, id: i64) -> Result<i64, OpError> {
        self.node.read_barrier().await?;
        self.node.shared.remaining(id, self.node.leader_info())
    }
}
