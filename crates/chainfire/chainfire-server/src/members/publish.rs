//! A member tells the others who it is; the leader raises the cluster's level when all understand more.
//!
//! ```text
//!   every member answers Hello with a level >= LEVEL ──leader──> Level entry ──each member──> Publish entry
//! ```
//! No entry of a new kind is proposed before all members have said that they understand it: a member of an earlier
//! release would stop at it.

use std::time::Duration;

use chainfire_core::{OpError, auth::By};
use raft_host::Membership;
use tokio::time::{sleep, timeout};

use super::table::{LEVEL, MemberRecord, MembersBody, MembersEntry, Publish, RaiseLevel};
use crate::{
    node::Node,
    outbox::Refusal,
    record::LogBody,
    wire::{HelloReply, HelloRequest},
};

/// Pause while something is still to be told.
const PAUSE: Duration = Duration::from_millis(300);
/// Pause when all is told.
const IDLE_PAUSE: Duration = Duration::from_secs(10);
/// Longest wait for an answer to Hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(2);

/// Runs until the stop.
pub(crate) async fn run(node: &Node) {
    let mut membership = node.membership.clone();
    let mut leader = node.leader.clone();
    loop {
        membership.borrow_and_update();
        leader.borrow_and_update();
        let settled = round(node).await;
        let pause = if settled { IDLE_PAUSE } else { PAUSE };
        tokio::select! {
            () = node.tasks.stopping() => return,
            () = sleep(pause) => {}
            changed = membership.changed(), if settled => if changed.is_err() { return },
            changed = leader.changed(), if settled => if changed.is_err() { return },
        }
    }
}

/// Returns whether nothing is left to tell.
async fn round(node: &Node) -> bool {
    let members = node.membership.borrow().clone();
    if members.get(node.id).is_none() || node.leader_info().leader.is_none() {
        return false;
    }
    let (level, known) = {
        let table = node.shared.members();
        (table.level(), table.get(node.id).cloned())
    };
    if level < LEVEL {
        if node.leads() {
            raise(node, &members).await;
        }
        return false;
    }
    let record = own_record(node);
    if known.as_ref() == Some(&record) {
        return true;
    }
    let publish = MembersBody::Publish(Publish {
        id: node.id,
        record: Some(record),
    });
    match propose(node, publish).await {
        Ok(()) => tracing::info!(id = %format!("{:x}", node.id), level, "this member is published"),
        // It was published with another disk: this one is not the disk that the votes were promised on.
        Err(OpError::MemberExists) => node.peers.refused(Refusal::Disk),
        Err(error) => tracing::debug!(%error, "this member could not be published yet"),
    }
    false
}

fn own_record(node: &Node) -> MemberRecord {
    let config = &node.config;
    let own = config.members.iter().find(|member| member.name == config.member);
    MemberRecord {
        name: config.member.clone(),
        client_urls: own
            .map(|own| config.client_url(&own.client))
            .into_iter()
            .collect(),
        disk: node.peers.own().disk,
        level: LEVEL,
        removed: false,
    }
}

/// The leader asks who has not said yet what it understands, and raises the level when all do.
async fn raise(node: &Node, members: &Membership) {
    let mut ids = Vec::new();
    for member in &members.members {
        let published = node
            .shared
            .members()
            .get(member.id)
            .map_or(0, |record| record.level);
        if member.id != node.id && published < LEVEL && hello_level(node, member.id).await < LEVEL {
            tracing::debug!(member = %format!("{:x}", member.id), "not all members understand level {LEVEL} yet");
            return;
        }
        ids.push(member.id);
    }
    let raise = MembersBody::Level(RaiseLevel {
        level: LEVEL,
        members: ids,
    });
    match propose(node, raise).await {
        Ok(()) => tracing::info!(
            level = LEVEL,
            "all members understand this: the cluster's level is raised"
        ),
        Err(error) => tracing::debug!(%error, "the level could not be raised yet"),
    }
}

async fn hello_level(node: &Node, id: u64) -> u32 {
    let reply = hello(node, id).await.and_then(|reply| reply.sender);
    // Another member may have the address by now.
    reply
        .filter(|sender| sender.member == id)
        .map_or(0, |sender| sender.level)
}

/// What a member says of itself now; `None` when it does not answer, or is of a release that cannot.
pub(crate) async fn hello(node: &Node, id: u64) -> Option<HelloReply> {
    let mut peer = node.peers.get(id)?;
    match timeout(HELLO_PATIENCE, peer.hello(HelloRequest {})).await {
        Ok(Ok(reply)) => Some(reply.into_inner()),
        Ok(Err(_)) | Err(_) => None,
    }
}

async fn propose(node: &Node, body: MembersBody) -> Result<(), OpError> {
    let entry = MembersEntry { body: Some(body) };
    node.propose(&By::System, LogBody::Members(entry)).await.map(drop)
}
