//! Quotas and groups in the store: what a placement has to agree with beside its node.
//!
//! Everything that makes or frees a VM writes its project's quota in the same transaction. So a count of the VMs that
//! was read after the quota, and is written guarded by the quota's revision, is exact.

use chainfire_client::{Compare, Op, Txn};
use hearth_types::{Name, ProjectId};
use plasmavmc_core::{Quota, Usage};

use super::records::{GroupRecord, QuotaRecord, VERSION, VmRecord};
use super::requests::Along;
use super::{Store, StoreError, Stored, decode, encode, keys, pairs, unchanged, while_doing};

/// What a placement is decided on, beside the nodes, at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Basis {
    pub(crate) quota: Stored<QuotaRecord>,
    /// The groups asked for; `None`: there is no such group.
    pub(crate) groups: Vec<(Name, Option<Stored<GroupRecord>>)>,
}

impl Store {
    /// Reads what a placement in a project is decided on.
    pub(crate) async fn basis<'a>(
        &self,
        project: ProjectId,
        groups: impl IntoIterator<Item = &'a Name>,
    ) -> Result<Basis, StoreError> {
        let names: Vec<Name> = groups.into_iter().cloned().collect();
        let reads = std::iter::once(Op::get(keys::quota(project)))
            .chain(names.iter().map(|name| Op::get(keys::group(project, name))));
        let outcome = self
            .txn("reading quota and groups", Txn::new().then(reads))
            .await?;
        let quota = outcome.get(0).map(decode).transpose()?;
        let groups = names.into_iter().enumerate().map(|(index, name)| {
            let group = outcome.get(index + 1).map(decode).transpose()?;
            Ok((name, group))
        });
        Ok(Basis {
            quota: quota.unwrap_or_else(no_quota),
            groups: groups.collect::<Result<_, StoreError>>()?,
        })
    }

    /// A project's quota and what is used of it.
    pub(crate) async fn quota(&self, project: ProjectId) -> Result<QuotaRecord, StoreError> {
        let quota = self.get::<QuotaRecord>(&keys::quota(project)).await?;
        Ok(quota.unwrap_or_else(no_quota).value)
    }

    /// A project's quota with other limits, not yet written, and the revision that it replaces. What is used is
    /// counted anew.
    pub(crate) async fn quota_with(
        &self,
        project: ProjectId,
        limits: Quota,
    ) -> Result<Stored<QuotaRecord>, StoreError> {
        let known = self.get::<QuotaRecord>(&keys::quota(project)).await?;
        Ok(Stored {
            value: QuotaRecord {
                version: VERSION,
                limits,
                used: self.counted(project).await?,
            },
            revision: known.map_or(0, |known| known.revision),
        })
    }

    /// Counts what a project uses and writes it where it is not what stands there; true when it was written.
    pub(crate) async fn recount_quota(
        &self,
        project: ProjectId,
        leader: &Compare,
    ) -> Result<bool, StoreError> {
        let known = self
            .get::<QuotaRecord>(&keys::quota(project))
            .await?
            .unwrap_or_else(no_quota);
        let used = self.counted(project).await?;
        if used == known.value.used {
            return Ok(false);
        }
        let wanted = QuotaRecord { used, ..known.value };
        let wanted = Stored {
            value: wanted,
            revision: known.revision,
        };
        let along = Along {
            guards: vec![leader.clone()],
            writes: Vec::new(),
        };
        self.write_quota(project, &wanted, along).await
    }

    async fn counted(&self, project: ProjectId) -> Result<Usage, StoreError> {
        let vms = self
            .client()
            .list(keys::vms_of(project))
            .await
            .map_err(while_doing("counting a project's VMs"))?;
        let mut used = Usage::default();
        for kv in &vms.kvs {
            used = used.with(decode::<VmRecord>(kv)?.value.resources);
        }
        Ok(used)
    }

    /// Writes a quota, if it is still at the revision that it was decided on; false when it is not.
    pub(crate) async fn write_quota(
        &self,
        project: ProjectId,
        wanted: &Stored<QuotaRecord>,
        along: Along,
    ) -> Result<bool, StoreError> {
        let txn = Txn::new()
            .when([unchanged(&keys::quota(project), wanted.revision)])
            .when(along.guards)
            .then([quota_op(project, &wanted.value)?])
            .then(along.writes);
        Ok(self.txn("writing a quota", txn).await?.succeeded)
    }

    /// A project's groups, by name.
    pub(crate) async fn groups(&self, project: ProjectId) -> Result<Vec<GroupRecord>, StoreError> {
        let read = [Op::list(keys::groups_of(project))];
        let outcome = self.txn("listing groups", Txn::new().then(read)).await?;
        pairs(&outcome, 0)
            .iter()
            .map(|kv| Ok(decode::<GroupRecord>(kv)?.value))
            .collect()
    }

    /// One group.
    pub(crate) async fn group(
        &self,
        project: ProjectId,
        name: &Name,
    ) -> Result<Option<Stored<GroupRecord>>, StoreError> {
        self.get(&keys::group(project, name)).await
    }

    /// Creates a group; false when there is one of that name, or the request was carried out before.
    pub(crate) async fn create_group(
        &self,
        project: ProjectId,
        group: &GroupRecord,
        along: Along,
    ) -> Result<bool, StoreError> {
        let key = keys::group(project, &group.name);
        let txn = Txn::new()
            .when([Compare::absent(&key)])
            .when(along.guards)
            .then([encode(&key, group)?])
            .then(along.writes);
        Ok(self.txn("creating a group", txn).await?.succeeded)
    }

    /// Deletes a group as it was read; false when it has changed.
    pub(crate) async fn delete_group(
        &self,
        project: ProjectId,
        group: &Stored<GroupRecord>,
        along: Along,
    ) -> Result<bool, StoreError> {
        let key = keys::group(project, &group.value.name);
        let txn = Txn::new()
            .when([unchanged(&key, group.revision)])
            .when(along.guards)
            .then([Op::delete(&key)])
            .then(along.writes);
        Ok(self.txn("deleting a group", txn).await?.succeeded)
    }
}

/// No limits, nothing used.
pub(crate) fn no_quota() -> Stored<QuotaRecord> {
    Stored {
        value: QuotaRecord {
            version: VERSION,
            limits: Quota::default(),
            used: Usage::default(),
        },
        revision: 0,
    }
}

/// A quota without limits of which nothing is used is not kept: after the last VM nothing is left.
pub(crate) fn quota_op(project: ProjectId, quota: &QuotaRecord) -> Result<Op, StoreError> {
    let key = keys::quota(project);
    if quota.limits.is_unlimited() && quota.used == Usage::default() {
        Ok(Op::delete(&key))
    } else {
        encode(&key, quota)
    }
}
