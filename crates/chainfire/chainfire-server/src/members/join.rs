//! How a member comes to a cluster that runs: it asks the members whose addresses it has for its id, by the address with
//! which it was added. The certificate `service/chainfire` is shown by both; a join token is asked for when the cluster
//! has one.

use std::{path::Path, time::Duration};

use hearth_service::tls::Identity;
use raft_host::NodeId;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::{begin::own_address, change::addresses, table::LEVEL, urls};
use crate::{
    ServerError,
    config::Chainfire,
    node::Node,
    outbox::{MAX_FRAME_BYTES, Refusal, connect},
    wire::{JoinReply, JoinRequest, peer_client::PeerClient},
};

/// How long a joining member asks before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it asks when the members that answer say that it was not added.
const NOT_ADDED_PATIENCE: Duration = Duration::from_secs(3);
/// Pause before all are asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for one answer.
const ATTEMPT: Duration = Duration::from_secs(3);

/// A member's answer to one that wants to join.
pub(crate) fn answer(node: &Node, request: &JoinRequest) -> Result<JoinReply, Status> {
    if let Some(expected) = &node.config.join_token_sha256 {
        check_token(expected, &request.token)?;
    }
    if request.cluster != node.config.cluster_id() {
        return Err(Refusal::Cluster.status());
    }
    let table = node.shared.members();
    if request.level < table.level() {
        return Err(Status::failed_precondition(format!(
            "the cluster's members understand level {}, the joining one only {}; install the newer release there",
            table.level(),
            request.level
        )));
    }
    if table.is_removed(request.member) {
        return Err(Refusal::Removed.status());
    }
    let members = node.membership.borrow().clone();
    let found = members.members.iter().find(|member| {
        (request.member == 0 || member.id == request.member)
            && urls::overlap(&member.address, &request.address)
    });
    let Some(found) = found else {
        return Err(Status::not_found(format!(
            "no member with the peer address {} was added",
            request.address
        )));
    };
    if table.disk(found.id).is_some_and(|disk| disk != request.disk) {
        return Err(Refusal::Disk.status());
    }
    Ok(JoinReply {
        member: found.id,
        members: addresses(&members),
    })
}

fn check_token(expected_sha256: &str, token: &str) -> Result<(), Status> {
    let expected = hex::decode(expected_sha256).unwrap_or_default();
    let found = Sha256::digest(token.as_bytes());
    if bool::from(expected.as_slice().ct_eq(found.as_slice())) {
        return Ok(());
    }
    Err(Status::unauthenticated(
        "the join token is wrong or missing: set join_token_file in the [chainfire] table of the joining member",
    ))
}

/// What a member learned from the cluster that it joins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) id: NodeId,
    /// All members and their addresses.
    pub(crate) members: Vec<(NodeId, String)>,
}

/// What the member knows of itself: 0 for what it does not have yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) id: NodeId,
    pub(crate) disk: u64,
}

/// Asks the members in the configuration for this one's id and for the others' addresses.
pub(crate) async fn ask(
    config: &Chainfire,
    identity: &Identity,
    known: Known,
) -> Result<Joined, ServerError> {
    let own = own_address(config);
    let request = JoinRequest {
        address: own.clone(),
        member: known.id,
        disk: known.disk,
        token: token(config.join_token_file.as_deref())?,
        level: LEVEL,
        cluster: config.cluster_id(),
    };
    let begin = Instant::now();
    loop {
        let mut answers = Vec::new();
        for member in config
            .members
            .iter()
            .filter(|member| member.name != config.member)
        {
            match ask_one(&member.peer, identity, &request).await {
                Ok(reply) => {
                    let members = reply.members.into_iter().map(|m| (m.id, m.address)).collect();
                    return Ok(Joined {
                        id: reply.member,
                        members,
                    });
                }
                Err(error) => answers.push((member.peer.clone(), error)),
            }
        }
        let definite = answers.iter().any(|(_, error)| error.code() == Code::NotFound);
        if let Some(error) = answers.iter().find_map(|(_, error)| hopeless(error, &own)) {
            return Err(error);
        }
        let patience = if definite { NOT_ADDED_PATIENCE } else { PATIENCE };
        if begin.elapsed() >= patience {
            return Err(if definite {
                ServerError::NotAdded {
                    member: config.member.clone(),
                    peer: own,
                }
            } else {
                let told = answers.iter().map(|(peer, error)| format!("{peer}: {error}"));
                ServerError::Unjoined(told.collect::<Vec<_>>().join("; "))
            });
        }
        sleep(PAUSE).await;
    }
}

/// Refusals that will be the same the next time.
fn hopeless(error: &Status, own: &str) -> Option<ServerError> {
    match Refusal::of(error) {
        Some(Refusal::Removed) => return Some(ServerError::Removed),
        Some(Refusal::Disk) => return Some(ServerError::LostDisk),
        Some(Refusal::Cluster) => {
            return Some(ServerError::Unjoined(
                "the members belong to another cluster; correct `cluster`".to_owned(),
            ));
        }
        Some(Refusal::Stranger) | None => {}
    }
    matches!(error.code(), Code::Unauthenticated | Code::FailedPrecondition)
        .then(|| ServerError::Unjoined(format!("{own} is refused: {}", error.message())))
}

async fn ask_one(endpoint: &str, identity: &Identity, request: &JoinRequest) -> Result<JoinReply, Status> {
    let channel = connect(endpoint, identity).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut peer = PeerClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES);
    match timeout(ATTEMPT, peer.join(request.clone())).await {
        Ok(reply) => reply.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

fn token(file: Option<&Path>) -> Result<String, ServerError> {
    let Some(path) = file else {
        return Ok(String::new());
    };
    let text = std::fs::read_to_string(path).map_err(|source| ServerError::Folder {
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_by_their_digest() {
        let expected = hex::encode(Sha256::digest(b"secret"));
        assert!(check_token(&expected, "secret").is_ok());
        for wrong in ["", "Secret", "secret "] {
            assert_eq!(
                check_token(&expected, wrong).unwrap_err().code(),
                Code::Unauthenticated
            );
        }
        assert!(check_token("not hex", "secret").is_err());
        assert!(check_token("", "").is_err(), "a malformed digest admits nobody");
    }
}
