//! Whoever opens a disk that several nodes reach.
//!
//! Beside the disk lie a lock, which the opener holds as long as the disk is open, and a note of who opened it last in
//! which epoch. The lock keeps two away from each other; the note keeps away who comes late.

use serde::{Deserialize, Serialize};

/// Who opens a disk, or opened it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Incarnation of the VM.
    pub epoch: u64,
    /// The node.
    pub node: String,
}

/// Why a disk must not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    /// Somebody has it open.
    #[error("the disk is open already; last opened by node `{}` in epoch {}", .0.node, .0.epoch)]
    Open(Owner),
    /// Somebody does who nobody knows.
    #[error("the disk is open already, by somebody who left no note")]
    OpenByStranger,
    /// It was opened in a later epoch.
    #[error("node `{}` has opened the disk in epoch {}, which is later than {ours}", .last.node, .last.epoch)]
    Stale {
        /// Who.
        last: Owner,
        /// The epoch that wanted to open it.
        ours: u64,
    },
    /// Another node opened it in the same epoch.
    #[error("node `{}` has opened the disk in the same epoch {}", .0.node, .0.epoch)]
    Twin(Owner),
}

/// Whether `us` may open a disk with the note `last`; `locked`: whether we got its lock. The note must be replaced by
/// `us`, and be on the disk, before it is opened.
///
/// # Errors
/// [`OpenRefused`].
pub fn may_open(last: Option<&Owner>, us: &Owner, locked: bool) -> Result<(), OpenRefused> {
    match (last, locked) {
        (Some(last), _) if last.epoch > us.epoch => Err(OpenRefused::Stale {
            last: last.clone(),
            ours: us.epoch,
        }),
        (Some(last), _) if last.epoch == us.epoch && last.node != us.node => {
            Err(OpenRefused::Twin(last.clone()))
        }
        (Some(last), false) => Err(OpenRefused::Open(last.clone())),
        (None, false) => Err(OpenRefused::OpenByStranger),
        (_, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_holds_the_lock_and_is_not_late_opens() {
        let owner = |epoch, node: &str| Owner {
            epoch,
            node: node.to_owned(),
        };
        let us = owner(4, "a");
        for (last, locked, fits) in [
            (None, true, true),
            (None, false, false),
            (Some(owner(3, "b")), true, true),
            (Some(owner(3, "b")), false, false),
            (Some(owner(4, "a")), true, true),
            (Some(owner(4, "a")), false, false),
            (Some(owner(4, "b")), true, false),
            (Some(owner(5, "b")), true, false),
            (Some(owner(5, "a")), true, false),
        ] {
            assert_eq!(
                may_open(last.as_ref(), &us, locked).is_ok(),
                fits,
                "{last:?} {locked}"
            );
        }
    }
}
