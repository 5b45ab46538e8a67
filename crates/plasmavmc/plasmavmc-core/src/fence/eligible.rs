//! Which guests may be restarted elsewhere, and why not.

use serde::{Deserialize, Serialize};

use super::Standing;
use crate::Desired;

/// What happens to a guest whose node is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// It waits for its node.
    #[default]
    Never,
    /// It is restarted elsewhere, once its node is proved to be out of the way.
    Elsewhere,
}

/// Where a guest's disk is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// On its node alone. It survives any partition there, and cannot go elsewhere.
    #[default]
    Local,
    /// On its node, and worth nothing: elsewhere it is made again from the image.
    Scratch,
    /// In a folder that several nodes reach, by the name that they give it.
    Shared(String),
}

impl Storage {
    /// Whether a guest on it could run on another node.
    #[must_use]
    pub const fn is_movable(&self) -> bool {
        !matches!(self, Self::Local)
    }
}

/// A guest on a node that may be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What is wanted of it.
    pub desired: Desired,
    /// Its policy.
    pub restart: Restart,
    /// Its disk.
    pub storage: Storage,
}

/// Why a guest is not restarted elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    /// It should not run.
    #[error("it is not wanted to run")]
    NotWanted,
    /// Nobody asked for it.
    #[error("it has no high availability (`hearth vm create --ha`)")]
    NoPolicy,
    /// Its data is there.
    #[error("its disk is on this node alone")]
    LocalDisk,
    /// No proof is possible.
    #[error("no guard has ever run on its node, so nothing can prove that it is off")]
    Unguarded,
    /// The guard is there.
    #[error("its node's guard holds its lease, so the guest runs on there")]
    Held,
    /// Not yet.
    #[error("its node's lease is gone; the proof that it has stopped takes {} s more", .left_ms.div_ceil(1000))]
    Waiting {
        /// What is left to wait.
        left_ms: u64,
    },
}

/// Whether a guest may be restarted elsewhere, and over which revision of the fence.
///
/// # Errors
/// [`Hindrance`], for people.
pub fn may_restart_elsewhere(vm: &Candidate, node: Standing) -> Result<i64, Hindrance> {
    if vm.desired != Desired::Running {
        return Err(Hindrance::NotWanted);
    }
    if !vm.storage.is_movable() {
        return Err(Hindrance::LocalDisk);
    }
    if vm.restart != Restart::Elsewhere {
        return Err(Hindrance::NoPolicy);
    }
    match node {
        Standing::Unguarded => Err(Hindrance::Unguarded),
        Standing::Held => Err(Hindrance::Held),
        Standing::Gone { left_ms } => Err(Hindrance::Waiting { left_ms }),
        Standing::MayFence { .. } => Err(Hindrance::Waiting { left_ms: 0 }),
        Standing::Fenced { revision } => Ok(revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wanted_movable_guest_of_a_fenced_node_with_the_policy() {
        let fenced = Standing::Fenced { revision: 5 };
        let vm = Candidate {
            desired: Desired::Running,
            restart: Restart::Elsewhere,
            storage: Storage::Shared("pool".to_owned()),
        };
        assert_eq!(may_restart_elsewhere(&vm, fenced), Ok(5));
        let stopped = Candidate {
            desired: Desired::Stopped,
            ..vm.clone()
        };
        assert_eq!(may_restart_elsewhere(&stopped, fenced), Err(Hindrance::NotWanted));
        let local = Candidate {
            storage: Storage::Local,
            ..vm.clone()
        };
        assert_eq!(may_restart_elsewhere(&local, fenced), Err(Hindrance::LocalDisk));
        let never = Candidate {
            restart: Restart::Never,
            ..vm.clone()
        };
        assert_eq!(may_restart_elsewhere(&never, fenced), Err(Hindrance::NoPolicy));
        for (standing, why) in [
            (Standing::Unguarded, Hindrance::Unguarded),
            (Standing::Held, Hindrance::Held),
            (Standing::Gone { left_ms: 1 }, Hindrance::Waiting { left_ms: 1 }),
            (
                Standing::MayFence { revision: 5 },
                Hindrance::Waiting { left_ms: 0 },
            ),
        ] {
            assert_eq!(may_restart_elsewhere(&vm, standing), Err(why));
        }
    }
}
