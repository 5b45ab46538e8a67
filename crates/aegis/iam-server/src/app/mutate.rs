//! The one way in which rights change.
//!
//! ```text
//!  read the policy's revision ── wait until the snapshot has it ── check and plan over the snapshot
//!        ^                                                                   │
//!        └────────────── somebody else changed the policy ── commit, guarded by that revision
//! ```
//!
//! The commit carries the change, the policy's new generation and the audit record. Since the guard holds, the check
//! was made against exactly the state that the change applies to: two administrators cannot combine two allowed
//! changes into one that neither may make.

use std::time::Duration;

use hearth_service::error::{ApiError, ErrorKind};
use iam_client::records::{POLICY_KEY, PolicyRecord};
use iam_client::{OpContext, Snapshot};

use super::{Acting, Aegis, now_ms};
use crate::store::records::{AUDIT, AuditRecord, VERSION};
use crate::store::{Commit, StoreError};

/// Most tries of one change before the caller is told to retry.
const MAX_TRIES: usize = 16;
/// Longest wait for the snapshot to show what was written.
const CATCH_UP: Duration = Duration::from_secs(5);

/// A value with the revision of the store at which it became true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revised<T> {
    /// The value.
    pub value: T,
    /// The revision.
    pub revision: i64,
}

/// What a change writes and what its audit record says.
pub(crate) struct Plan<T> {
    pub(crate) value: T,
    pub(crate) commit: Commit,
    pub(crate) action: &'static str,
    pub(crate) target: String,
    pub(crate) detail: String,
}

impl Commit {
    /// Adds an audit record.
    pub(crate) fn audit(self, by: &Acting, action: &str, target: &str, detail: &str) -> Self {
        let record = AuditRecord {
            v: VERSION,
            time_ms: now_ms(),
            actor: by.actor.clone(),
            actor_name: by.name.clone(),
            action: action.to_owned(),
            target: target.to_owned(),
            request_id: by.request_id.clone(),
            detail: detail.to_owned(),
        };
        self.put(format!("{AUDIT}{}", uuid::Uuid::now_v7()), &record)
    }
}

impl Aegis {
    /// Runs a change. `plan` checks and plans over the snapshot; it is called again when somebody else was faster.
    pub(crate) async fn mutate<T, P>(&self, context: &OpContext, plan: P) -> Result<Revised<T>, ApiError>
    where
        P: Fn(&Snapshot) -> Result<Plan<T>, ApiError> + Send + Sync,
        T: Send,
    {
        self.mutate_as(&Acting::of(context), plan).await
    }

    pub(crate) async fn mutate_as<T, P>(&self, by: &Acting, plan: P) -> Result<Revised<T>, ApiError>
    where
        P: Fn(&Snapshot) -> Result<Plan<T>, ApiError> + Send + Sync,
        T: Send,
    {
        for _ in 0..MAX_TRIES {
            let (generation, at) = self.policy().await?;
            self.inner.authorizer.at_least(at, CATCH_UP).await?;
            let Plan {
                value,
                commit,
                action,
                target,
                detail,
            } = plan(&self.inner.authorizer.snapshot())?;
            let next = PolicyRecord {
                v: VERSION,
                generation: generation + 1,
            };
            let commit = commit
                .guard(POLICY_KEY, at)
                .put(POLICY_KEY, &next)
                .audit(by, action, &target, &detail);
            match self.store().commit(commit).await {
                Ok(revision) => {
                    self.inner.metrics.changed(action);
                    tracing::info!(actor = by.name, action, target, "rights changed");
                    // So that whoever asks this replica next sees it; a timeout here takes nothing back.
                    let _seen = self.inner.authorizer.at_least(revision, CATCH_UP).await;
                    return Ok(Revised { value, revision });
                }
                Err(StoreError::Conflict) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(ApiError::new(
            ErrorKind::Conflict,
            "too many others are changing rights at the same time",
        )
        .hint("retry"))
    }

    /// The policy's generation and the revision of its last change; zeros before the first start.
    pub(crate) async fn policy(&self) -> Result<(u64, i64), StoreError> {
        read_policy(self.store()).await
    }
}

pub(crate) async fn read_policy(store: &crate::store::Store) -> Result<(u64, i64), StoreError> {
    match store.get(POLICY_KEY).await? {
        None => Ok((0, 0)),
        Some(stored) => Ok((stored.read::<PolicyRecord>()?.generation, stored.mod_revision)),
    }
}
