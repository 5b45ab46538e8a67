//! Renewals in batches: what waits is renewed together, with one barrier on the leader or one call to it.

use std::{sync::Arc, time::Duration};

use chainfire_core::OpError;
use hearth_service::tasks::Kind;
use raft_host::NodeId;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{ATTEMPT, Lessor, PATIENCE, PAUSE};
use crate::wire::RenewLeasesRequest;

/// Renewals that wait for the next batch; who asks for more waits.
const QUEUE: usize = 8192;
/// Renewals in one batch, and so in one call to the leader.
pub(crate) const MAX_RENEWALS: usize = 4096;
/// Shortest time between two batches: a lone renewal goes at once, many go together. A barrier costs all members.
const GATHER: Duration = Duration::from_millis(20);
/// Batches under way at once: one that waits for what is stored to be cleared does not hold up the others.
const BATCHES: usize = 4;
/// What a member answers for a lease about which it is to be asked again.
const AGAIN: i64 = -1;

/// One renewal.
pub(super) struct Ask {
    id: i64,
    done: oneshot::Sender<Result<i64, OpError>>,
}

/// Renewals that wait.
pub(crate) struct Renewals(mpsc::Receiver<Ask>);

impl Renewals {
    pub(super) fn channel() -> (mpsc::Sender<Ask>, Renewals) {
        let (sender, queue) = mpsc::channel(QUEUE);
        (sender, Renewals(queue))
    }
}

/// The answer to a renewal, when there is one.
pub(crate) struct Renewing(oneshot::Receiver<Result<i64, OpError>>);

impl Renewing {
    /// An ask that is not handed on.
    pub(crate) fn refused(error: OpError) -> Renewing {
        let (done, answer) = oneshot::channel();
        let _ = done.send(Err(error));
        Renewing(answer)
    }

    /// The seconds granted, 0 when there is no such lease.
    pub(crate) async fn answer(self) -> Result<i64, OpError> {
        self.0.await.unwrap_or(Err(OpError::Stopped))
    }
}

impl Lessor {
    /// Renews a lease, wherever the leader is, with the next batch.
    pub(crate) async fn renew(&self, id: i64) -> Renewing {
        let (done, answer) = oneshot::channel();
        // A queue that is closed drops the ask, and with it the answer.
        let _ = self.renewals.send(Ask { id, done }).await;
        Renewing(answer)
    }

    /// Renews what waits, batch after batch, until the stop.
    pub(crate) async fn renew_in_batches(&self, mut renewals: Renewals) {
        let slots = Arc::new(Semaphore::new(BATCHES));
        let mut next = Instant::now();
        loop {
            let mut batch = Vec::new();
            let taken = tokio::select! {
                taken = renewals.0.recv_many(&mut batch, MAX_RENEWALS) => taken,
                () = self.node.tasks.stopping() => return,
            };
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            if taken == 0 {
                return;
            }
            sleep_until(next).await;
            next = Instant::now() + GATHER;
            // What came meanwhile goes along.
            while batch.len() < MAX_RENEWALS
                && let Ok(ask) = renewals.0.try_recv()
            {
                batch.push(ask);
            }
            let lessor = self.clone();
            self.node
                .tasks
                .spawn("lease renewals", Kind::Background, async move {
                    lessor.renew_batch(batch).await;
                    drop(slot);
                    Ok(())
                });
        }
    }

    /// Asks whoever leads, here or at another member, until everything is answered or the patience is over.
    async fn renew_batch(&self, mut batch: Vec<Ask>) {
        let end = Instant::now() + PATIENCE;
        loop {
            let ids: Vec<i64> = batch.iter().map(|ask| ask.id).collect();
            let answers = match self.node.leader_info().leader {
                None => Err(OpError::NoLeader),
                // A leader that is cut off learns of it late: its barrier waits longer than a caller should.
                Some(leader) if leader == self.node.id => timeout(PATIENCE, self.renew_here(&ids))
                    .await
                    .unwrap_or(Err(OpError::NotLeader)),
                Some(leader) => self.renew_at(leader, ids).await,
            };
            if let Ok(answers) = answers {
                let mut open = Vec::new();
                for (ask, answer) in batch.into_iter().zip(answers) {
                    match answer {
                        // Who asked may be gone.
                        Some(ttl_s) => drop(ask.done.send(Ok(ttl_s))),
                        None => open.push(ask),
                    }
                }
                batch = open;
            }
            if batch.is_empty() {
                return;
            }
            if Instant::now() >= end {
                for ask in batch {
                    let _ = ask.done.send(Err(OpError::NoLeader));
                }
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn renew_at(&self, leader: NodeId, ids: Vec<i64>) -> Result<Vec<Option<i64>>, OpError> {
        let mut peer = self.node.peers.get(leader).ok_or(OpError::NoLeader)?;
        let asked = ids.len();
        let mut known = self.node.leader.clone();
        let answer = tokio::select! {
            answer = timeout(ATTEMPT, peer.renew_leases(RenewLeasesRequest { ids })) => answer,
            // A stopped leader answers nothing; its successor is asked as soon as it is known.
            _ = known.wait_for(|info| info.leader != Some(leader)) => return Err(OpError::NotLeader),
        };
        match answer {
            Ok(Ok(reply)) => {
                let answers = reply.into_inner().ttl_s;
                if answers.len() != asked {
                    return Err(OpError::NotLeader);
                }
                let answer = |ttl_s| (ttl_s != AGAIN).then_some(ttl_s);
                Ok(answers.into_iter().map(answer).collect())
            }
            Ok(Err(_)) | Err(_) => Err(OpError::NotLeader),
        }
    }

    /// The leader's answer to another member's batch.
    pub(crate) async fn renew_for_peer(&self, ids: &[i64]) -> Result<Vec<i64>, OpError> {
        let answers = self.renew_here(ids).await?;
        Ok(answers
            .into_iter()
            .map(|answer| answer.unwrap_or(AGAIN))
            .collect())
    }
}
