//! A consistent picture of a running member.

use std::time::{SystemTime, UNIX_EPOCH};

use raft_host::Membership;

use super::format::{BackupHeader, BackupMember, Picture};
use crate::{machine::Shared, tables::StorageError};

/// Who makes a picture.
pub(crate) struct Maker {
    pub(crate) cluster: String,
    pub(crate) cluster_id: u64,
    pub(crate) member: String,
    pub(crate) member_id: u64,
    pub(crate) term: u64,
    pub(crate) members: Membership,
}

/// Takes the picture: state, revision and applied index of one moment.
pub(crate) fn take(shared: &Shared, maker: Maker) -> Result<Picture, StorageError> {
    let store = shared.store();
    // The writer commits under the store's lock: what the store says and what the engine holds is one moment.
    let snapshot = shared.tables.engine.snapshot()?;
    let (revision, compacted) = (store.revision(), store.compacted());
    let keys = store.index().len();
    let leases = store.leases().len();
    drop(store);
    let applied = shared.tables.meta_in(&snapshot)?.map_or(0, |meta| meta.applied);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let members = maker.members.members.iter().map(|member| BackupMember {
        id: member.id,
        peer: member.address.clone(),
        learner: member.learner,
    });
    let header = BackupHeader {
        cluster: maker.cluster,
        cluster_id: maker.cluster_id,
        member: maker.member,
        member_id: maker.member_id,
        revision,
        compacted,
        applied,
        term: maker.term,
        members: members.collect(),
        release: hearth_service::VERSION.to_owned(),
        keys: keys as u64,
        leases: leases as u64,
        created_s: now.as_secs(),
    };
    Ok(Picture {
        header,
        snapshot,
        keyspaces: shared.tables.all().to_vec(),
    })
}
