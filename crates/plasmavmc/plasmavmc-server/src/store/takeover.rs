//! Guards, fences, and VMs that go to another node, in the store.
//!
//! A fence is written over a guard's record while its lease is absent; a move compares that fence. Both compare the
//! election and the absence of lease and session, so what has been decided on an older picture changes nothing.

use std::collections::BTreeMap;

use chainfire_client::{Compare, Op, Txn};
use hearth_types::{Name, VmId};
use plasmavmc_client::guard::{self, GuardRecord};
use plasmavmc_core::fence::{Candidate, GuardSeen, Restart, Storage};

use super::node::NodeSnapshot;
use super::records::{AllocRecord, AssignRecord, EvictedRecord, VERSION, VmRecord};
use super::vm::{VmView, alloc_op};
use super::{Store, StoreError, Stored, decode, encode, keys, pairs, power, unchanged};

/// One node's guard, as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuardView {
    pub(crate) lease: bool,
    /// The agent's session.
    pub(crate) session: bool,
    pub(crate) record: Option<GuardSeen>,
}

/// A VM on its way to another node.
#[derive(Debug)]
pub(crate) struct Move<'a> {
    pub(crate) vm: &'a Stored<VmRecord>,
    /// Revision of the fence of its node.
    pub(crate) fence: i64,
    pub(crate) to: &'a NodeSnapshot,
    /// The node's claims with this VM's in them.
    pub(crate) alloc: &'a AllocRecord,
    pub(crate) leader: &'a Compare,
}

/// What the rule has to know of a VM.
pub(crate) fn candidate(vm: &VmRecord) -> Candidate {
    Candidate {
        desired: vm.desired,
        restart: if vm.ha { Restart::Elsewhere } else { Restart::Never },
        storage: if vm.ha { Storage::Scratch } else { Storage::Local },
    }
}

impl Store {
    /// All guards, by node, at one revision.
    pub(crate) async fn guards(&self) -> Result<BTreeMap<Name, GuardView>, StoreError> {
        let reads = [guard::RECORDS, guard::LEASES, keys::SESSIONS].map(Op::list);
        let outcome = self.txn("reading guards", Txn::new().then(reads)).await?;
        let mut guards: BTreeMap<Name, GuardView> = BTreeMap::new();
        for kv in pairs(&outcome, 0) {
            let Some(node) = keys::last(&kv.key) else { continue };
            // A record that cannot be read may be a fence: it is left alone, and nothing is moved by it.
            let fenced = serde_json::from_slice(&kv.value).map(|r: GuardRecord| r.fenced_at_ms.is_some());
            guards.entry(node).or_default().record = fenced.ok().map(|fenced| GuardSeen {
                revision: kv.mod_revision,
                fenced,
            });
        }
        for kv in pairs(&outcome, 1) {
            let Some(node) = keys::last(&kv.key) else { continue };
            guards.entry(node).or_default().lease = true;
        }
        for kv in pairs(&outcome, 2) {
            let Some(node) = keys::last::<Name>(&kv.key) else {
                continue;
            };
            if let Some(guard) = guards.get_mut(&node) {
                guard.session = true;
            }
        }
        Ok(guards)
    }

    /// Writes the fence over a guard's record; false when anything has changed.
    pub(crate) async fn fence(
        &self,
        node: &Name,
        revision: i64,
        now_ms: i64,
        leader: &Compare,
    ) -> Result<bool, StoreError> {
        let key = guard::record_key(node.as_str());
        let damaged = |why: String| StoreError::Damaged {
            key: key.clone(),
            why,
        };
        let found = self
            .client()
            .get(&key)
            .await
            .map_err(super::while_doing("reading a guard"))?;
        let Some(found) = found.filter(|kv| kv.mod_revision == revision) else {
            return Ok(false);
        };
        let mut record: GuardRecord =
            serde_json::from_slice(&found.value).map_err(|error| damaged(error.to_string()))?;
        record.fenced_at_ms = Some(now_ms);
        let bytes = serde_json::to_vec(&record).map_err(|error| damaged(error.to_string()))?;
        let mut guards = absent(node);
        guards.extend([unchanged(&key, revision), leader.clone()]);
        let txn = Txn::new().when(guards).then([Op::put(&key, bytes)]);
        Ok(self.txn("fencing a node", txn).await?.succeeded)
    }

    /// The VMs that are assigned to a node and may be restarted elsewhere.
    pub(crate) async fn movable_on(&self, node: &Name) -> Result<Vec<VmView>, StoreError> {
        let prefix = keys::assigned_to(node);
        let listing = self.client().list(&prefix).await;
        let listing = listing.map_err(super::while_doing("listing assignments"))?;
        let mut found = Vec::new();
        for kv in &listing.kvs {
            let assign: Stored<AssignRecord> = decode(kv)?;
            let Some(vm) = keys::last(&kv.key) else { continue };
            let view = self.vm(assign.value.project_id, vm).await?;
            found.extend(view.filter(|view| view.record.value.ha && view.record.value.placed.node == *node));
        }
        Ok(found)
    }

    /// Gives a VM to another node, in a higher epoch; false when anything has changed.
    pub(crate) async fn move_vm(&self, moved: &Move<'_>) -> Result<bool, StoreError> {
        let before = &moved.vm.value;
        let (from, to) = (&before.placed.node, &moved.to.name);
        let mut after = before.clone();
        after.placed.node = to.clone();
        after.placed.epoch += 1;
        let alloc_key = keys::node_alloc(from);
        let alloc = self.get::<AllocRecord>(&alloc_key).await?;
        let basis = self.basis(before.project_id, &before.groups).await?;
        let vm_key = keys::vm(before.project_id, before.id);
        let to_alloc = keys::node_alloc(to);
        let mut guards = absent(from);
        guards.extend([
            moved.leader.clone(),
            unchanged(&guard::record_key(from.as_str()), moved.fence),
            unchanged(&vm_key, moved.vm.revision),
            unchanged(&alloc_key, alloc.as_ref().map_or(0, |alloc| alloc.revision)),
            Compare::exists(guard::lease_key(to.as_str())),
            Compare::exists(keys::session(to)),
            unchanged(&keys::node_info(to), moved.to.info.revision),
            unchanged(&to_alloc, moved.to.alloc.revision),
        ]);
        let evicted = EvictedRecord {
            version: VERSION,
            epoch: before.placed.epoch,
            hypervisor: before.hypervisor,
        };
        let mut writes = vec![
            encode(&vm_key, &after)?,
            encode(&to_alloc, moved.alloc)?,
            Op::delete(keys::assign(from, before.id)),
            encode(&keys::assign(to, before.id), &power::assignment_of(&after))?,
            encode(&keys::evicted(from, before.id), &evicted)?,
            Op::delete(keys::evicted(to, before.id)),
            Op::delete(plasmavmc_client::names::key(&before.project, &before.name)),
        ];
        if let Some(mut alloc) = alloc {
            alloc.value.alloc.release(before.id);
            writes.push(alloc_op(&alloc_key, &alloc.value)?);
        }
        for (name, group) in &basis.groups {
            let key = keys::group(before.project_id, name);
            guards.push(unchanged(&key, group.as_ref().map_or(0, |group| group.revision)));
            if let Some(group) = group {
                let mut group = group.value.clone();
                group.members.insert(before.id, to.clone());
                writes.push(encode(&key, &group)?);
            }
        }
        let txn = Txn::new().when(guards).then(writes);
        Ok(self.txn("moving a VM to another node", txn).await?.succeeded)
    }

    /// The incarnation that was taken away from a node, if its agent has not removed it yet.
    pub(crate) async fn evicted(&self, node: &Name, vm: VmId) -> Result<Option<EvictedRecord>, StoreError> {
        let found = self.get::<EvictedRecord>(&keys::evicted(node, vm)).await?;
        Ok(found.map(|record| record.value))
    }

    /// Its agent has removed it.
    pub(crate) async fn forget_evicted(&self, node: &Name, vm: VmId) -> Result<(), StoreError> {
        let txn = Txn::new().then([Op::delete(keys::evicted(node, vm))]);
        self.txn("forgetting an evicted VM", txn).await.map(drop)
    }
}

/// Neither its guard nor its agent says anything.
fn absent(node: &Name) -> Vec<Compare> {
    vec![
        Compare::absent(guard::lease_key(node.as_str())),
        Compare::absent(keys::session(node)),
    ]
}
