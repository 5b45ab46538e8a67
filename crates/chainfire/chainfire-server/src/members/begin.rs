//! How a member's process finds out who it is, before it opens anything, and how it learns that it is out.
//!
//! ```text
//!   DATA/member ── removed ──> refuses to start
//!        │ none
//!        ├─ a log, or state `new` ──> id from cluster and name
//!        └─ state `existing` ──Join──> id from the cluster
//!   id written to DATA/member, then the log's folder with its disk number, then the log
//! ```

use std::path::Path;

use hearth_service::tls::Identity;
use raft_host::{NodeId, Peer};

use super::{
    identity::{self, MemberFile},
    join::{self, Known},
};
use crate::{
    Config, ServerError,
    config::{Chainfire, InitialState},
    node::Node,
    outbox::Refusal,
};

/// Folder of the Raft log within the data folder.
pub(crate) const LOG_DIR: &str = "raft";
/// Folder of the state within the data folder.
pub(crate) const STATE_DIR: &str = "state";

/// Who a member is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) file: MemberFile,
    /// The number of the disk that its log is on.
    pub(crate) disk: u64,
}

/// Makes a folder where there is none.
pub(crate) fn folder(path: &Path) -> Result<(), ServerError> {
    std::fs::create_dir_all(path).map_err(|source| ServerError::Folder {
        path: path.to_owned(),
        source,
    })
}

/// Finds out who this member is; asks the cluster when it is to join one.
pub(crate) async fn begin(config: &Config, identity: &Identity) -> Result<Begun, ServerError> {
    let (data_dir, chainfire) = (&config.service.data_dir, &config.chainfire);
    let log_dir = data_dir.join(LOG_DIR);
    folder(data_dir)?;
    let file = match MemberFile::read(data_dir)? {
        Some(file) => file,
        None => {
            let file = first(chainfire, identity, identity::has_log(&log_dir)).await?;
            file.write(data_dir)?;
            file
        }
    };
    if file.removed {
        return Err(ServerError::Removed);
    }
    if file.cluster != chainfire.cluster_id() {
        return Err(ServerError::OtherCluster {
            dir: data_dir.clone(),
            cluster: chainfire.cluster.clone(),
        });
    }
    folder(&log_dir)?;
    let disk = identity::disk(&log_dir)?;
    Ok(Begun { file, disk })
}

/// The first start; or the first one of a release that writes the file.
async fn first(config: &Chainfire, identity: &Identity, has_log: bool) -> Result<MemberFile, ServerError> {
    let joined = config.initial_cluster_state == InitialState::Existing && !has_log;
    let id = if joined {
        join::ask(config, identity, Known { id: 0, disk: 0 }).await?.id
    } else {
        config.node_id(&config.member)
    };
    Ok(MemberFile {
        cluster: config.cluster_id(),
        id,
        joined,
        removed: false,
    })
}

/// The group's first members, for a member that begins a cluster; nobody for one that joins.
pub(crate) fn initial(config: &Chainfire, begun: &Begun) -> Vec<Peer> {
    if begun.file.joined {
        return Vec::new();
    }
    let peer = |member: &crate::Member| Peer {
        id: config.node_id(&member.name),
        address: member.peer.clone(),
    };
    config.members.iter().map(peer).collect()
}

/// Where this member is reached by the others.
pub(crate) fn own_address(config: &Chainfire) -> String {
    let own = config.members.iter().find(|member| member.name == config.member);
    own.map(|own| own.peer.clone()).unwrap_or_default()
}

/// The other members, asked of the cluster.
pub(crate) async fn others(
    config: &Config,
    identity: &Identity,
    begun: &Begun,
) -> Result<Vec<(NodeId, String)>, ServerError> {
    let known = Known {
        id: begun.file.id,
        disk: begun.disk,
    };
    let joined = join::ask(&config.chainfire, identity, known).await;
    if matches!(joined, Err(ServerError::Removed)) {
        removed(begun.file, &config.service.data_dir)?;
    }
    Ok(joined?.members)
}

/// Ends when this member has to: it was removed, or is on a disk that it must not use. Until the stop otherwise.
pub(crate) async fn until_out(node: &Node, file: MemberFile) -> Result<(), ServerError> {
    let mut fate = node.peers.fate();
    let mut membership = node.membership.clone();
    let out = async {
        loop {
            // Nobody is a member before the first snapshot.
            let in_it = {
                let members = membership.borrow_and_update();
                members.members.is_empty() || members.get(node.id).is_some()
            };
            if !in_it && node.shared.members().is_removed(node.id) {
                return Refusal::Removed;
            }
            if membership.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let refusal = tokio::select! {
        () = node.tasks.stopping() => return Ok(()),
        refusal = out => refusal,
        refused = fate.wait_for(Option::is_some) => match refused.ok().and_then(|refused| *refused) {
            Some(refusal) => refusal,
            None => return Ok(()),
        },
    };
    if refusal == Refusal::Disk {
        return Err(ServerError::LostDisk);
    }
    removed(file, &node.data_dir)?;
    Err(ServerError::Removed)
}

/// Remembers that this member is out: it will not start again with this data.
fn removed(file: MemberFile, data_dir: &Path) -> Result<(), ServerError> {
    let file = MemberFile {
        removed: true,
        ..file
    };
    file.write(data_dir)
}
