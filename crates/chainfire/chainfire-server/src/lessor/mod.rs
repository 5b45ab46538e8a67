//! The leader's keeping of leases: renewals, what is left, storing it for the next leader, and proposing the end of
//! those that ran out. Decisions are [`crate::leading`]'s; here is the waiting.
//!
//! ```text
//!   elected ──read barrier──> Leading {timers: what is stored, else in full} ──deposed──> nothing
//! ```
//! Renewals, checkpoints and expiries happen only in `Leading` of the present term, after everything of earlier terms is
//! applied.

mod renew;

use std::time::Duration;

use chainfire_core::{OpError, auth::By};
use raft_host::{NodeId, Role};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

pub(crate) use renew::{MAX_RENEWALS, Renewals, Renewing};

use crate::{leading::Due, members::table::LEVEL, node::Node, wire::LeaseRemainingRequest};

/// Longest pause between two entries that end leases, in which other writes go first.
const MAX_EXPIRE_PAUSE: Duration = Duration::from_millis(50);
/// Pause after something could not be proposed.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a call about a lease looks for the leader.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time one attempt at the leader may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Leases, as one member serves them.
#[derive(Clone)]
pub(crate) struct Lessor {
    node: Node,
    renewals: mpsc::Sender<renew::Ask>,
}

impl Lessor {
    /// The lessor, and what [`Lessor::renew_in_batches`] works on.
    pub(crate) fn new(node: Node) -> (Lessor, Renewals) {
        let (renewals, to_renew) = Renewals::channel();
        (Lessor { node, renewals }, to_renew)
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
            // Within one term the timers stay: what is on its way to the log knows of them.
            let deposed = leader.wait_for(|now| (now.role, now.term) != (info.role, info.term));
            tokio::select! {
                () = self.node.tasks.stopping() => return,
                () = lead => {}
                changed = deposed => if changed.is_err() { return },
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
            let wait = self.step().await;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.node.shared.leases_changed.notified() => {}
            }
        }
    }

    /// Proposes what is due; how long nothing will be.
    async fn step(&self) -> Duration {
        let shared = &self.node.shared;
        let started = Instant::now();
        match shared.due() {
            Due::Wait(wait) => wait,
            Due::Expire(expire) => {
                if let Err(error) = self.node.propose(&By::System, expire.clone().into()).await {
                    tracing::warn!(%error, leases = expire.ids.len(), "expired leases could not be ended yet");
                    shared.not_expired(&expire.ids);
                    return RETRY_PAUSE;
                }
                // As long as it took others go first.
                started.elapsed().min(MAX_EXPIRE_PAUSE)
            }
            // A member of an earlier release would stop at such an entry.
            Due::Checkpoint(_) if shared.members().level() < LEVEL => RETRY_PAUSE,
            Due::Checkpoint(checkpoint) => {
                if let Err(error) = self.node.propose(&By::System, checkpoint.clone().into()).await {
                    tracing::warn!(%error, leases = checkpoint.ids.len(), "what is left of leases could not be stored");
                    return RETRY_PAUSE;
                }
                shared.checkpointed(&checkpoint);
                Duration::ZERO
            }
        }
    }

    /// Whole seconds left, wherever the leader is; -1 when there is no such lease.
    pub(crate) async fn remaining(&self, id: i64) -> Result<i64, OpError> {
        let end = Instant::now() + PATIENCE;
        loop {
            let outcome = match self.node.leader_info().leader {
                None => Err(OpError::NoLeader),
                Some(leader) if leader == self.node.id => self.remaining_here(id).await,
                Some(leader) => self.ask_remaining(leader, id).await,
            };
            match outcome {
                Ok(ttl_s) => return Ok(ttl_s),
                Err(_) if Instant::now() < end => sleep(PAUSE).await,
                Err(_) => return Err(OpError::NoLeader),
            }
        }
    }

    async fn ask_remaining(&self, leader: NodeId, id: i64) -> Result<i64, OpError> {
        let mut peer = self.node.peers.get(leader).ok_or(OpError::NoLeader)?;
        let request = LeaseRemainingRequest { id };
        match timeout(ATTEMPT, peer.lease_remaining(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().ttl_s),
            Ok(Err(_)) | Err(_) => Err(OpError::NotLeader),
        }
    }

    pub(crate) async fn remaining_here(&self, id: i64) -> Result<i64, OpError> {
        self.node.read_barrier().await?;
        self.node.shared.remaining(id, self.node.leader_info())
    }

    /// Renews leases on the leader itself; see [`crate::machine::Shared::renew`]. One barrier for all proves that this
    /// member still leads: a deposed leader must not promise time that its successor does not know of.
    pub(crate) async fn renew_here(&self, ids: &[i64]) -> Result<Vec<Option<i64>>, OpError> {
        self.node.read_barrier().await?;
        self.node.shared.renew(ids, self.node.leader_info())
    }
}
