//! VMs in the store: creation in one transaction, reading, release in one transaction.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use chainfire_client::wire::etcdserverpb::RangeRequest;
use chainfire_client::{Compare, KeyValue, Op, Txn, prefix_end};
use hearth_types::{Name, ProjectId, VmId};
use plasmavmc_core::{Phase, Usage};

use super::quota::{Basis, quota_op};
use super::records::{AllocRecord, ClaimRecord, ImageRecord, ObservedRecord, QuotaRecord, VERSION, VmRecord};
use super::requests::Along;
use super::{Store, StoreError, Stored, decode, encode, keys, pairs, power, unchanged, while_doing};
use crate::store::node::NodeSnapshot;

/// Most records read in one transaction (etcd allows 128 operations).
pub(crate) const READ_BATCH: usize = 100;

/// A VM with what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct VmView {
    pub(crate) record: Stored<VmRecord>,
    pub(crate) observed: Option<Stored<ObservedRecord>>,
    pub(crate) node_alive: bool,
}

/// All that the creation of a VM was decided on.
#[derive(Debug)]
pub(crate) struct Creation<'a> {
    pub(crate) vm: &'a VmRecord,
    pub(crate) image: &'a Stored<ImageRecord>,
    pub(crate) node: &'a NodeSnapshot,
    /// The node's claims with this VM's in them.
    pub(crate) alloc: &'a AllocRecord,
    /// The project's quota and the groups, as they were read.
    pub(crate) basis: &'a Basis,
    /// What is used of the quota with this VM.
    pub(crate) used: Usage,
    /// Where the record of the request will be, if it has an idempotency key.
    pub(crate) request: Option<&'a str>,
    /// What is written beside.
    pub(crate) along: &'a Along,
}

/// What became of a creation.
#[derive(Debug)]
pub(crate) enum Created {
    /// It stands; the revision of its transaction, 0 where that is not known.
    Done(i64),
    /// The name belongs to this VM already.
    NameTaken(VmId),
    /// The idempotency key has been used.
    Replay,
    AddressTaken,
    /// Something else has changed: the node, which is told of as it is now, the quota, a group or the image. Decide
    /// again.
    Changed {
        /// The node's keys that exist.
        node: Vec<KeyValue>,
        /// The node's keys that do not.
        absent: Vec<String>,
        /// The revision that this is of.
        revision: i64,
    },
}

impl Store {
    /// Creates a VM with its claim, address, name and assignment, or nothing at all.
    pub(crate) async fn create_vm(&self, creation: &Creation<'_>) -> Result<Created, StoreError> {
        self.fail_points.reach("create.decided").await;
        let outcome = self.txn("creating a VM", creation_txn(creation)?).await;
        self.fail_points.reach("create.written").await;
        match outcome {
            Ok(outcome) if outcome.succeeded => Ok(Created::Done(outcome.revision)),
            Ok(outcome) => {
                let claim = |index| {
                    pairs(&outcome, index)
                        .first()
                        .map(decode::<ClaimRecord>)
                        .transpose()
                };
                let keys = node_keys(&creation.vm.placed.node);
                if outcome.get(2 + keys.len()).is_some() {
                    return Ok(Created::Replay);
                }
                if let Some(holder) = claim(0)? {
                    return Ok(Created::NameTaken(holder.value.vm));
                }
                if claim(1)?.is_some() {
                    return Ok(Created::AddressTaken);
                }
                let (mut node, mut absent) = (Vec::new(), Vec::new());
                for (index, key) in (2..).zip(keys) {
                    match outcome.get(index) {
                        Some(kv) => node.push(kv.clone()),
                        None => absent.push(key),
                    }
                }
                Ok(Created::Changed {
                    node,
                    absent,
                    revision: outcome.revision,
                })
            }
            Err(error) if is_unknown(&error) => {
                // It may have been applied: the record itself tells.
                let vm = creation.vm;
                let found: Option<Stored<VmRecord>> = self.get(&keys::vm(vm.project_id, vm.id)).await?;
                found.map_or(Err(error), |_| Ok(Created::Done(0)))
            }
            Err(error) => Err(error),
        }
    }

    /// The VM that holds a name in a project.
    pub(crate) async fn vm_by_name(
        &self,
        project: ProjectId,
        name: &Name,
    ) -> Result<Option<VmView>, StoreError> {
        match self.get::<ClaimRecord>(&keys::vm_name(project, name)).await? {
            Some(claim) => self.vm(project, claim.value.vm).await,
            None => Ok(None),
        }
    }

    /// One VM.
    pub(crate) async fn vm(&self, project: ProjectId, vm: VmId) -> Result<Option<VmView>, StoreError> {
        let key = keys::vm(project, vm);
        let Some(record) = self.get::<VmRecord>(&key).await? else {
            return Ok(None);
        };
        Ok(self.with_observations(vec![record]).await?.pop())
    }

    /// VMs of a project after a position, at most `limit`, and the position to go on from when there are more.
    pub(crate) async fn vms_page(
        &self,
        project: ProjectId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<VmView>, Option<VmId>), StoreError> {
        let prefix = keys::vms_of(project);
        let (records, more) = self
            .page::<VmRecord>("listing VMs", &prefix, after, limit)
            .await?;
        let next = records.last().filter(|_| more).map(|last| last.value.id);
        Ok((self.with_observations(records).await?, next))
    }

    /// Adds what is known of VMs: their last observation and whether their node's session lives.
    pub(crate) async fn with_observations(
        &self,
        records: Vec<Stored<VmRecord>>,
    ) -> Result<Vec<VmView>, StoreError> {
        let mut views = Vec::with_capacity(records.len());
        let mut alive: BTreeMap<Name, bool> = BTreeMap::new();
        for batch in records.chunks(READ_BATCH / 2) {
            let nodes: Vec<Name> = {
                let mut nodes: Vec<_> = batch.iter().map(|vm| vm.value.placed.node.clone()).collect();
                nodes.sort();
                nodes.dedup();
                nodes
            };
            let reads = batch
                .iter()
                .map(|vm| Op::get(keys::observed(vm.value.id)))
                .chain(nodes.iter().map(|node| Op::get(keys::session(node))));
            let outcome = self.txn("reading VMs", Txn::new().then(reads)).await?;
            for (index, node) in nodes.into_iter().enumerate() {
                alive.insert(node, outcome.get(batch.len() + index).is_some());
            }
            for (index, record) in batch.iter().enumerate() {
                let observed = outcome.get(index).map(decode).transpose()?;
                let node_alive = alive.get(&record.value.placed.node).copied().unwrap_or(false);
                views.push(VmView {
                    record: record.clone(),
                    observed,
                    node_alive,
                });
            }
        }
        Ok(views)
    }

    /// The creation that an idempotency key was used for, on a server of before there were records of all requests.
    pub(crate) async fn idempotency(
        &self,
        project: ProjectId,
        key: &str,
    ) -> Result<Option<ClaimRecord>, StoreError> {
        Ok(self
            .get::<ClaimRecord>(&keys::idempotency(project, key))
            .await?
            .map(|claim| claim.value))
    }

    /// Addresses that are taken.
    pub(crate) async fn taken_addresses(&self) -> Result<std::collections::BTreeSet<Ipv4Addr>, StoreError> {
        let range = RangeRequest {
            key: keys::ADDRESSES.into(),
            range_end: prefix_end(keys::ADDRESSES.as_bytes()),
            keys_only: true,
            ..Default::default()
        };
        let listing = self
            .client()
            .range(range)
            .await
            .map_err(while_doing("listing addresses"))?;
        Ok(listing.kvs.iter().filter_map(|kv| keys::last(&kv.key)).collect())
    }

    /// Frees everything of a VM, if it is as it was read. False when it is not.
    pub(crate) async fn release_vm(
        &self,
        vm: &Stored<VmRecord>,
        leader: Option<Compare>,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let record = &vm.value;
        // The turns are never closed, and if they were: without one it is only slower.
        let _turn = self.freeing.take(record.project_id).await.ok();
        let alloc_key = keys::node_alloc(&record.placed.node);
        let alloc = self.get::<AllocRecord>(&alloc_key).await?;
        let alloc_revision = alloc.as_ref().map_or(0, |alloc| alloc.revision);
        let basis = self.basis(record.project_id, &record.groups).await?;
        let vm_key = keys::vm(record.project_id, record.id);
        let mut guards = vec![
            unchanged(&vm_key, vm.revision),
            unchanged(&alloc_key, alloc_revision),
        ];
        guards.extend(basis_guards(record.project_id, &basis));
        let mut freed = vec![
            Op::delete(&vm_key),
            Op::delete(keys::observed(record.id)),
            Op::delete(keys::assign(&record.placed.node, record.id)),
            Op::delete(keys::vm_name(record.project_id, &record.name)),
            Op::delete(keys::address(record.placed.address)),
            Op::delete(plasmavmc_client::names::key(&record.project, &record.name)),
        ];
        if let Some(key) = &record.idempotency_key {
            freed.push(Op::delete(keys::idempotency(record.project_id, key)));
        }
        let used = basis.quota.value.used.without(record.resources);
        freed.extend(basis_writes(record.project_id, &basis, used, |members| {
            members.remove(&record.id);
        })?);
        if let Some(mut alloc) = alloc {
            alloc.value.alloc.release(record.id);
            freed.push(alloc_op(&alloc_key, &alloc.value)?);
        }
        let operation = self.completing(record, now_ms).await?;
        let txn = Txn::new()
            .when(guards)
            .when(operation.guards)
            .when(leader)
            .then(freed)
            .then(operation.writes);
        self.fail_points.reach("release.decided").await;
        let outcome = self.txn("freeing a VM", txn).await?;
        self.fail_points.reach("release.written").await;
        Ok(outcome.succeeded)
    }
}

/// Claims that are empty are not kept: after the last VM nothing is left.
pub(crate) fn alloc_op(key: &str, alloc: &AllocRecord) -> Result<Op, StoreError> {
    if alloc.alloc.is_empty() {
        Ok(Op::delete(key))
    } else {
        encode(key, alloc)
    }
}

/// True when a write may or may not have been applied.
pub(crate) fn is_unknown(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Chainfire {
            source: chainfire_client::Error::UnknownOutcome { .. },
            ..
        }
    )
}

/// The keys of a node that a placement is guarded by.
fn node_keys(node: &Name) -> [String; 3] {
    [keys::node_info(node), keys::node_alloc(node), keys::session(node)]
}

fn basis_guards(project: ProjectId, basis: &Basis) -> Vec<Compare> {
    let groups = basis.groups.iter().map(|(name, group)| {
        let revision = group.as_ref().map_or(0, |group| group.revision);
        unchanged(&keys::group(project, name), revision)
    });
    std::iter::once(unchanged(&keys::quota(project), basis.quota.revision))
        .chain(groups)
        .collect()
}

/// The quota with what is used from now on, and the groups with their members changed.
fn basis_writes(
    project: ProjectId,
    basis: &Basis,
    used: Usage,
    change: impl Fn(&mut BTreeMap<VmId, Name>),
) -> Result<Vec<Op>, StoreError> {
    let quota = QuotaRecord {
        used,
        ..basis.quota.value.clone()
    };
    let mut writes = vec![quota_op(project, &quota)?];
    for (name, group) in &basis.groups {
        if let Some(group) = group {
            let mut group = group.value.clone();
            change(&mut group.members);
            writes.push(encode(&keys::group(project, name), &group)?);
        }
    }
    Ok(writes)
}

fn creation_txn(creation: &Creation<'_>) -> Result<Txn, StoreError> {
    let vm = creation.vm;
    let node = &vm.placed.node;
    let claim = ClaimRecord {
        version: VERSION,
        project_id: vm.project_id,
        vm: vm.id,
        request_sha256: None,
    };
    let assign = power::assignment_of(vm);
    let vm_key = keys::vm(vm.project_id, vm.id);
    let name_key = keys::vm_name(vm.project_id, &vm.name);
    let address_key = keys::address(vm.placed.address);
    let alloc_key = keys::node_alloc(node);
    let mut guards = vec![
        Compare::absent(&name_key),
        Compare::absent(&address_key),
        Compare::absent(&vm_key),
        Compare::exists(keys::session(node)),
        unchanged(&keys::node_info(node), creation.node.info.revision),
        unchanged(&alloc_key, creation.node.alloc.revision),
        unchanged(&keys::image(creation.image.value.id), creation.image.revision),
    ];
    guards.extend(basis_guards(vm.project_id, creation.basis));
    let mut writes = vec![
        encode(&vm_key, vm)?,
        encode(&name_key, &claim)?,
        encode(&address_key, &claim)?,
        encode(&alloc_key, creation.alloc)?,
        encode(&keys::assign(node, vm.id), &assign)?,
    ];
    writes.extend(basis_writes(
        vm.project_id,
        creation.basis,
        creation.used,
        |members| {
            members.insert(vm.id, node.clone());
        },
    )?);
    guards.extend(creation.along.guards.iter().cloned());
    writes.extend(creation.along.writes.iter().cloned());
    let reads = [Op::get(&name_key), Op::get(&address_key)];
    let reads = reads
        .into_iter()
        .chain(node_keys(node).into_iter().map(Op::get))
        .chain(creation.request.map(Op::get));
    Ok(Txn::new().when(guards).then(writes).otherwise(reads))
}

impl VmView {
    /// A VM that was just placed: no node has said anything about it, and its node's session was there.
    pub(crate) const fn unseen(record: Stored<VmRecord>) -> Self {
        Self {
            record,
            observed: None,
            node_alive: true,
        }
    }

    /// The phase of the current incarnation.
    pub(crate) fn phase(&self) -> Phase {
        self.observed
            .as_ref()
            .filter(|seen| seen.value.epoch == self.record.value.placed.epoch)
            .map(|seen| seen.value.phase)
            .unwrap_or_default()
    }
}
