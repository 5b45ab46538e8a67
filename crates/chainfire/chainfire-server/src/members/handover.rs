//! The leader looks at its own disk, and at its followers' when its own is slow; see [`slow_disk`](super::slow_disk).

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    publish::hello,
    slow_disk::{Follower, slow, successor},
};
use crate::node::{GROUP, Node};

/// How often the leader looks.
const PERIOD: Duration = Duration::from_secs(2);
/// Least time between two hand-overs by one member.
const LEAST_PAUSE: Duration = Duration::from_secs(60);

/// Runs until the stop.
pub(crate) async fn run(node: &Node) {
    let mut last: Option<Instant> = None;
    loop {
        tokio::select! {
            () = node.tasks.stopping() => return,
            () = sleep(PERIOD) => {}
        }
        if !node.leads() || last.is_some_and(|last| last.elapsed() < LEAST_PAUSE) {
            continue;
        }
        if look(node).await {
            last = Some(Instant::now());
        }
    }
}

/// Returns whether leadership was handed over, or at least tried.
async fn look(node: &Node) -> bool {
    let Some(raft) = node.raft.status(GROUP).await else {
        return false;
    };
    let Some(median) = slow(&raft.fsyncs) else {
        return false;
    };
    let mut followers = Vec::new();
    for progress in raft.progress.iter().filter(|progress| progress.active) {
        let voter = raft.membership.voters().any(|voter| voter == progress.id);
        let Some(hello) = hello(node, progress.id).await else {
            continue;
        };
        followers.push(Follower {
            id: progress.id,
            voter,
            matched: progress.matched,
            p99: Duration::from_micros(hello.fsync_p99_us),
        });
    }
    let Some(to) = successor(&raft.fsyncs, raft.last_index, &followers) else {
        tracing::warn!(
            median_ms = median.as_millis(),
            "the disk of this leader is slow, and no follower is fit to lead instead"
        );
        return false;
    };
    tracing::warn!(
        median_ms = median.as_millis(),
        to = %format!("{:x}", to.id),
        p99_ms = to.p99.as_millis(),
        "handing leadership over: the disk of this member is slow (median of its latest log syncs), the other's is not"
    );
    if let Err(error) = node.raft.transfer_leader(GROUP, to.id).await {
        tracing::warn!(%error, "leadership could not be handed over");
    }
    true
}
