//! VMs in the store: creation in one transaction, reading, release in one transaction.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use chainfire_client::wire::etcdserverpb::RangeRequest;
use chainfire_client::{Compare, KeyValue, Op, Txn, prefix_end};
use hearth_types::{Name, ProjectId, VmId};
use plasmavmc_core::Phase;

use super::records::{AllocRecord, ClaimRecord, ImageRecord, ObservedRecord, VERSION, VmRecord};
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
    pub(crate) request_sha256: &'a str,
}

/// What became of a creation.
#[derive(Debug)]
pub(crate) enum Created {
    Done,
    /// The name belongs to this VM already.
    NameTaken(VmId),
    /// The idempotency key belongs to this request already.
    Replay(ClaimRecord),
    AddressTaken,
    /// The node, its claims or the image have changed: decide again.
    Changed,
}

impl Store {
    /// Creates a VM with its claim, address, name and assignment, or nothing at all.
    pub(crate) async fn create_vm(&self, creation: &Creation<'_>) -> Result<Created, StoreError> {
        match self.txn("creating a VM", creation_txn(creation)?).await {
            Ok(outcome) if outcome.succeeded => Ok(Created::Done),
            Ok(outcome) => {
                let claim = |index| {
                    pairs(&outcome, index)
                        .first()
                        .map(decode::<ClaimRecord>)
                        .transpose()
                };
                if let Some(replay) = claim(0)? {
                    return Ok(Created::Replay(replay.value));
                }
                if let Some(holder) = claim(1)? {
                    return Ok(Created::NameTaken(holder.value.vm));
                }
                Ok(if claim(2)?.is_some() {
                    Created::AddressTaken
                } else {
                    Created::Changed
                })
            }
            Err(error) if is_unknown(&error) => {
                // It may have been applied: the record itself tells.
                let vm = creation.vm;
                let found: Option<Stored<VmRecord>> = self.get(&keys::vm(vm.project_id, vm.id)).await?;
                found.map_or(Err(error), |_| Ok(Created::Done))
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
        // The key after `position` in byte order is the same with a zero byte at its end.
        let start = after.map_or_else(|| prefix.clone(), |position| format!("{prefix}{position}\0"));
        let range = RangeRequest {
            key: start.into_bytes().into(),
            range_end: prefix_end(prefix.as_bytes()),
            limit: limit.into(),
            ..Default::default()
        };
        let page = self
            .client()
            .range(range)
            .await
            .map_err(while_doing("listing VMs"))?;
        let records = page
            .kvs
            .into_iter()
            .map(|kv| decode::<VmRecord>(&KeyValue::from(kv)))
            .collect::<Result<Vec<_>, _>>()?;
        let next = records.last().filter(|_| page.more).map(|last| last.value.id);
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

    /// The request that an idempotency key was used for.
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
    ) -> Result<bool, StoreError> {
        let record = &vm.value;
        let alloc_key = keys::node_alloc(&record.placed.node);
        let alloc = self.get::<AllocRecord>(&alloc_key).await?;
        let alloc_revision = alloc.as_ref().map_or(0, |alloc| alloc.revision);
        let vm_key = keys::vm(record.project_id, record.id);
        let guards = [
            unchanged(&vm_key, vm.revision),
            unchanged(&alloc_key, alloc_revision),
        ];
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
        if let Some(mut alloc) = alloc {
            alloc.value.alloc.release(record.id);
            freed.push(alloc_op(&alloc_key, &alloc.value)?);
        }
        let txn = Txn::new().when(guards).when(leader).then(freed);
        Ok(self.txn("freeing a VM", txn).await?.succeeded)
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
    // Without an idempotency key, one that is free for this VM alone keeps the shape of the transaction.
    let idempotency_key = vm
        .idempotency_key
        .clone()
        .unwrap_or_else(|| format!("vm-{}", vm.id));
    let idempotency_key = keys::idempotency(vm.project_id, &idempotency_key);
    let guards = [
        Compare::absent(&idempotency_key),
        Compare::absent(&name_key),
        Compare::absent(&address_key),
        Compare::absent(&vm_key),
        Compare::exists(keys::session(node)),
        unchanged(&keys::node_info(node), creation.node.info.revision),
        unchanged(&alloc_key, creation.node.alloc.revision),
        unchanged(&keys::image(creation.image.value.id), creation.image.revision),
    ];
    let mut writes = vec![
        encode(&vm_key, vm)?,
        encode(&name_key, &claim)?,
        encode(&address_key, &claim)?,
        encode(&alloc_key, creation.alloc)?,
        encode(&keys::assign(node, vm.id), &assign)?,
    ];
    if vm.idempotency_key.is_some() {
        let request = ClaimRecord {
            request_sha256: Some(creation.request_sha256.to_owned()),
            ..claim
        };
        writes.push(encode(&idempotency_key, &request)?);
    }
    let reads = [
        Op::get(&idempotency_key),
        Op::get(&name_key),
        Op::get(&address_key),
    ];
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
