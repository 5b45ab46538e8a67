//! Do the members still have the same state? Each one asks the others, every few seconds, for the running hash at one
//! common log index.
//!
//! ```text
//!   newest index of each ──> the newest one that a majority (and this member) has applied ──> hashes there ──> verdict
//! ```
//! A member that stands against a majority stops: what it would answer is wrong. Where no majority agrees, nobody knows
//! who is right, and the alarm stops every write. Members of a release without this protocol are left out.
//!
//! Hashes can be compared only when they began at the same index. A state that was written before there were hashes
//! begins with its own; the leader then has all members begin anew together.

use std::{collections::BTreeMap, time::Duration};

use chainfire_client::wire::etcdserverpb::alarm_request::AlarmAction;
use chainfire_core::{Alarm, AlarmKind, Digest, auth::By};
use futures::future::join_all;
use raft_host::NodeId;
use tokio::time::{sleep, timeout};

use crate::{
    digests::Stamp,
    members::table::LEVEL,
    node::{GROUP, Node},
    quota::alarm_request,
    record::{LogBody, RestartDigest},
    wire::StateHashRequest,
};

/// How often the others are asked.
const PERIOD: Duration = Duration::from_secs(5);
/// Time that one member has to answer.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Time for the alarm to get into the log before a wrong member stops.
const ALARM_PATIENCE: Duration = Duration::from_secs(5);

/// The state of this member is wrong.
#[derive(Debug, thiserror::Error)]
#[error(
    "at log index {index} the state of this member is not that of the majority: a disk or memory error, or a defect. \
     It stops, so that nobody reads wrong data. Remove it from the cluster and add it anew with an empty data folder; \
     keep the old folder for whoever looks for the cause. The alarm CORRUPT stays until it is disarmed"
)]
pub(crate) struct Diverged {
    index: u64,
}

/// What the hashes of one index say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// No two hashes differ.
    Agree,
    /// They began at different places and say nothing.
    Incomparable,
    /// A majority has another hash than this member.
    OwnWrong,
    /// A majority has this member's hash, these have another.
    OthersWrong(Vec<NodeId>),
    /// They differ, and there is no majority.
    Unclear,
}

/// Judges the hashes of one index; `voters` make up the majority.
fn judge(own: NodeId, stamps: &BTreeMap<NodeId, Stamp>, voters: &[NodeId]) -> Verdict {
    let Some(mine) = stamps.get(&own) else {
        return Verdict::Incomparable;
    };
    if stamps.values().any(|stamp| stamp.since != mine.since) {
        return Verdict::Incomparable;
    }
    let others: Vec<NodeId> = stamps
        .iter()
        .filter(|(_, stamp)| stamp.digest != mine.digest)
        .map(|(id, _)| *id)
        .collect();
    if others.is_empty() {
        return Verdict::Agree;
    }
    let is_majority = |digest: Digest| {
        let votes = voters
            .iter()
            .filter(|id| stamps.get(id).is_some_and(|stamp| stamp.digest == digest));
        votes.count() > voters.len() / 2
    };
    if is_majority(mine.digest) {
        Verdict::OthersWrong(others)
    } else if others
        .iter()
        .filter_map(|id| stamps.get(id))
        .any(|stamp| is_majority(stamp.digest))
    {
        Verdict::OwnWrong
    } else {
        Verdict::Unclear
    }
}

/// The newest index that a majority of the voters and this member have applied; `None`: too few are known.
fn common_index(own: u64, newest: &BTreeMap<NodeId, Stamp>, voters: &[NodeId]) -> Option<u64> {
    let mut indices: Vec<u64> = voters
        .iter()
        .filter_map(|id| newest.get(id))
        .map(|stamp| stamp.index)
        .collect();
    indices.sort_unstable_by(|a, b| b.cmp(a));
    indices.get(voters.len() / 2).map(|index| own.min(*index))
}

/// Compares for ever; returns when the own state is wrong.
pub(crate) async fn run(node: &Node) -> Diverged {
    let mut checked = None;
    loop {
        sleep(PERIOD).await;
        let index = node.shared.stamp(u64::MAX).map(|stamp| stamp.index);
        // Nothing has happened since everybody was seen to agree.
        if index == checked {
            continue;
        }
        match check(node).await {
            Some((index, Verdict::OwnWrong)) => {
                tracing::error!(
                    index,
                    "the state of this member is wrong: a majority has another hash; stopping"
                );
                raise(node, node.id).await;
                return Diverged { index };
            }
            Some((index, Verdict::OthersWrong(members))) => {
                for member in members {
                    tracing::error!(
                        index,
                        member,
                        "the state of a member is wrong: a majority has another hash"
                    );
                    raise(node, member).await;
                }
            }
            Some((index, Verdict::Unclear)) => {
                tracing::error!(
                    index,
                    "the members' states differ and no majority agrees: writes are refused until the alarm CORRUPT \
                     is disarmed"
                );
                raise(node, 0).await;
            }
            Some((index, Verdict::Agree)) => checked = Some(index),
            Some((_, Verdict::Incomparable)) | None => {}
        }
    }
}

/// Asks everybody once; `None` when too few answered.
async fn check(node: &Node) -> Option<(u64, Verdict)> {
    let membership = node.raft.status(GROUP).await?.membership;
    let voters: Vec<NodeId> = membership.voters().collect();
    let others: Vec<NodeId> = membership
        .members
        .iter()
        .map(|member| member.id)
        .filter(|id| *id != node.id)
        .collect();
    let mut newest = ask(node, &others, u64::MAX).await;
    let everybody = newest.len() == others.len();
    let own = node.shared.stamp(u64::MAX)?;
    newest.insert(node.id, own);
    let index = common_index(own.index, &newest, &voters)?;
    if newest.values().any(|stamp| stamp.since != own.since) {
        if everybody && node.leads() && node.shared.members().level() >= LEVEL {
            restart(node).await;
        }
        return Some((index, Verdict::Incomparable));
    }
    let reached: Vec<NodeId> = others
        .into_iter()
        .filter(|id| newest.get(id).is_some_and(|stamp| stamp.index >= index))
        .collect();
    let mut stamps = ask(node, &reached, index).await;
    stamps.retain(|_, stamp| stamp.index == index);
    stamps.insert(node.id, node.shared.stamp(index)?);
    let verdict = judge(node.id, &stamps, &voters);
    // Only what everybody has been asked about need not be asked again.
    let verdict = if verdict == Verdict::Agree && stamps.len() < membership.members.len() {
        Verdict::Incomparable
    } else {
        verdict
    };
    Some((index, verdict))
}

/// The hashes of some members at an index, or at their newest one where that is older.
async fn ask(node: &Node, members: &[NodeId], index: u64) -> BTreeMap<NodeId, Stamp> {
    let asked = members.iter().map(|id| async move {
        let mut peer = node.peers.get(*id)?;
        let reply = timeout(ATTEMPT, peer.state_hash(StateHashRequest { index })).await;
        // Down, of an older release, or too far away from this index: it is left out.
        let reply = reply.ok()?.ok()?.into_inner();
        let stamp = Stamp {
            index: reply.index,
            since: reply.since,
            digest: Digest::resume(reply.hash),
        };
        Some((*id, stamp))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn restart(node: &Node) {
    tracing::info!("the members' hashes began at different places: they begin anew");
    if let Err(error) = node
        .propose(&By::System, LogBody::RestartDigest(RestartDigest {}))
        .await
    {
        tracing::debug!(%error, "not yet");
    }
}

/// Raises the alarm CORRUPT for a member (0: nobody knows which) unless it is on.
async fn raise(node: &Node, member: NodeId) {
    let alarm = Alarm {
        kind: AlarmKind::Corrupt,
        member,
    };
    // An earlier release does not know the entry, and would stop.
    let level = node.shared.members().level();
    // One lock after the other: whoever applies takes them in the other order.
    if level < LEVEL || node.shared.store().alarms().is_on(alarm) {
        return;
    }
    let raised = timeout(
        ALARM_PATIENCE,
        node.propose(&By::System, alarm_request(AlarmAction::Activate, alarm)),
    );
    match raised.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, member, "the alarm CORRUPT could not be raised"),
        Err(_) => tracing::warn!(member, "the alarm CORRUPT could not be raised in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(hashes: &[(NodeId, u64)]) -> BTreeMap<NodeId, Stamp> {
        let stamp = |hash| Stamp {
            index: 10,
            since: 0,
            digest: Digest::resume(hash),
        };
        hashes.iter().map(|(id, hash)| (*id, stamp(*hash))).collect()
    }

    #[test]
    fn the_majority_is_right() {
        let voters = [1, 2, 3];
        let three = |a, b, c| stamps(&[(1, a), (2, b), (3, c)]);
        assert_eq!(judge(1, &three(7, 7, 7), &voters), Verdict::Agree);
        assert_eq!(judge(1, &three(8, 7, 7), &voters), Verdict::OwnWrong);
        assert_eq!(judge(1, &three(7, 7, 8), &voters), Verdict::OthersWrong(vec![3]));
        assert_eq!(judge(1, &three(7, 8, 9), &voters), Verdict::Unclear);
        // One is down: two that differ do not know who is right, two that agree do.
        assert_eq!(judge(1, &stamps(&[(1, 7), (2, 8)]), &voters), Verdict::Unclear);
        assert_eq!(judge(1, &stamps(&[(1, 7), (2, 7)]), &voters), Verdict::Agree);
        assert_eq!(judge(1, &stamps(&[(1, 7)]), &voters), Verdict::Agree);
    }

    #[test]
    fn learners_are_compared_but_do_not_count() {
        let voters = [1, 2];
        let all = stamps(&[(1, 7), (2, 7), (9, 8)]);
        assert_eq!(judge(1, &all, &voters), Verdict::OthersWrong(vec![9]));
        assert_eq!(judge(9, &all, &voters), Verdict::OwnWrong);
        let all = stamps(&[(1, 7), (2, 8), (9, 8)]);
        assert_eq!(judge(1, &all, &voters), Verdict::Unclear);
    }

    #[test]
    fn hashes_of_different_beginnings_say_nothing() {
        let mut all = stamps(&[(1, 7), (2, 8), (3, 8)]);
        for stamp in all.values_mut().take(1) {
            stamp.since = 5;
        }
        assert_eq!(judge(1, &all, &[1, 2, 3]), Verdict::Incomparable);
    }

    #[test]
    fn a_member_that_lags_does_not_hold_up_the_others() {
        let mut newest = stamps(&[(1, 7), (2, 7), (3, 7)]);
        let indices = [100, 90, 3];
        for (stamp, index) in newest.values_mut().zip(indices) {
            stamp.index = index;
        }
        let voters = [1, 2, 3];
        assert_eq!(common_index(100, &newest, &voters), Some(90));
        assert_eq!(
            common_index(3, &newest, &voters),
            Some(3),
            "seen by the one that lags"
        );
        newest.remove(&2);
        newest.remove(&3);
        assert_eq!(common_index(100, &newest, &voters), None);
    }
}
