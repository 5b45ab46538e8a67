//! What the background reconciler reads and repairs.
//!
//! Leftovers are found by reading them first and the VMs afterwards: a VM's records are created in one transaction
//! and its id is never used again, so what has no VM in the later reading will never have one. Each deletion is
//! guarded by the revision that was read and by the leadership of whoever sweeps.

use std::collections::{BTreeMap, BTreeSet};

use chainfire_client::{Compare, KeyValue, Op, Txn};
use hearth_types::{ProjectId, VmId};
use plasmavmc_core::{Desired, Phase, Step, Usage, next_step};

use super::records::{
    AllocRecord, AssignRecord, ClaimRecord, GroupRecord, ObservedRecord, QuotaRecord, VmRecord,
};
use super::vm::alloc_op;
use super::{Store, StoreError, Stored, decode, encode, keys, node, power, unchanged, while_doing};

/// A node is nudged about a VM ever more seldom, at the end every 64 times the first wait.
const MAX_DOUBLINGS: u64 = 6;

/// Everything at about one time: leftovers can be told from it.
#[derive(Debug)]
pub(crate) struct Picture {
    /// Keys that belong to a VM, with the VM they name.
    belongings: Vec<(KeyValue, VmId)>,
    allocs: Vec<(String, Stored<AllocRecord>)>,
    groups: Vec<(String, Stored<GroupRecord>)>,
    /// Projects that have a quota or use something of it.
    projects: BTreeMap<ProjectId, Usage>,
    assigned: BTreeMap<String, Stored<AssignRecord>>,
    observed: BTreeMap<VmId, Stored<ObservedRecord>>,
    pub(crate) vms: Vec<Stored<VmRecord>>,
    alive: BTreeSet<String>,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// VMs freed.
    pub(crate) released: u64,
    /// Records deleted that belonged to nothing.
    pub(crate) leftovers: u64,
    /// Assignments written again or sent once more.
    pub(crate) assigned: u64,
    /// Projects whose use was counted anew: they have VMs from before there were quotas.
    pub(crate) recounted: u64,
}

impl Store {
    /// Reads the picture: belongings first, VMs last.
    pub(crate) async fn picture(&self) -> Result<Picture, StoreError> {
        let list = async |prefix: &str| {
            self.client()
                .list(prefix)
                .await
                .map(|listing| listing.kvs)
                .map_err(while_doing("reading for a sweep"))
        };
        let mut belongings = Vec::new();
        for prefix in [keys::VM_NAMES, keys::ADDRESSES, keys::IDEMPOTENCY] {
            for kv in list(prefix).await? {
                let vm = decode::<ClaimRecord>(&kv)?.value.vm;
                belongings.push((kv, vm));
            }
        }
        for kv in list(plasmavmc_client::names::PREFIX).await? {
            // What is not ours to read is not ours to delete.
            if let Ok(name) = plasmavmc_client::names::parse(&kv.key, &kv.value) {
                belongings.push((kv, name.vm));
            }
        }
        let mut assigned = BTreeMap::new();
        for kv in list(keys::ASSIGN).await? {
            let Some(vm) = keys::last(&kv.key) else { continue };
            assigned.insert(kv.key_text().into_owned(), decode(&kv)?);
            belongings.push((kv, vm));
        }
        let mut observed = BTreeMap::new();
        for kv in list(keys::OBSERVED).await? {
            let Some(vm) = keys::last(&kv.key) else { continue };
            observed.insert(vm, decode(&kv)?);
            belongings.push((kv, vm));
        }
        let mut allocs = Vec::new();
        for kv in list(keys::NODES).await? {
            if node::name_of(&kv.key, "/alloc").is_some() {
                allocs.push((kv.key_text().into_owned(), decode(&kv)?));
            }
        }
        let mut groups = Vec::new();
        for kv in list(keys::GROUPS).await? {
            groups.push((kv.key_text().into_owned(), decode(&kv)?));
        }
        let mut projects = BTreeMap::new();
        for kv in list(keys::QUOTAS).await? {
            let Some(project) = keys::last(&kv.key) else {
                continue;
            };
            projects.insert(project, decode::<QuotaRecord>(&kv)?.value.used);
        }
        let sessions = list(keys::SESSIONS).await?;
        let alive = sessions.iter().map(|kv| kv.key_text().into_owned()).collect();
        let vms = list(keys::VMS)
            .await?
            .iter()
            .map(decode)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Picture {
            belongings,
            allocs,
            groups,
            projects,
            assigned,
            observed,
            vms,
            alive,
        })
    }

    /// Makes everything agree. Idempotent; can be cut anywhere.
    pub(crate) async fn sweep(
        &self,
        leader: &Compare,
        now_ms: i64,
        stuck_ms: i64,
    ) -> Result<Swept, StoreError> {
        let picture = self.picture().await?;
        let mut swept = Swept::default();
        for vm in &picture.vms {
            match next_step(vm.value.desired, picture.phase_of(&vm.value)) {
                Step::Release => {
                    swept.released += u64::from(self.release_vm(vm, Some(leader.clone()), now_ms).await?)
                }
                step @ (Step::NodeActs | Step::Settled | Step::Lost) => {
                    let acts =
                        step == Step::NodeActs || (step == Step::Settled && picture.is_behind(&vm.value));
                    let waits = acts && picture.waits(&vm.value, now_ms, stuck_ms);
                    let done = self
                        .assign_again(&picture, vm, leader, waits.then_some(now_ms))
                        .await?;
                    swept.assigned += u64::from(done);
                }
            }
        }
        let known: BTreeMap<VmId, &VmRecord> =
            picture.vms.iter().map(|vm| (vm.value.id, &vm.value)).collect();
        for (kv, vm) in &picture.belongings {
            let misplaced = known.get(vm).is_some_and(|record| {
                kv.key.starts_with(keys::ASSIGN.as_bytes())
                    && kv.key != keys::assign(&record.placed.node, *vm).as_bytes()
            });
            if !known.contains_key(vm) || misplaced {
                let guards = [unchanged(&kv.key_text(), kv.mod_revision), leader.clone()];
                let txn = Txn::new().when(guards).then([Op::delete(&kv.key)]);
                swept.leftovers += u64::from(self.txn("deleting a leftover", txn).await?.succeeded);
            }
        }
        for (key, alloc) in &picture.allocs {
            swept.leftovers += self.trim_alloc(key, alloc, &known, leader).await?;
        }
        for (key, group) in &picture.groups {
            swept.leftovers += self.trim_group(key, group, &known, leader).await?;
        }
        for project in picture.miscounted() {
            swept.recounted += u64::from(self.recount_quota(project, leader).await?);
        }
        Ok(swept)
    }

    /// Writes an assignment that is missing, or nudges one that has waited too long for its node, so that its session
    /// sends it again.
    async fn assign_again(
        &self,
        picture: &Picture,
        vm: &Stored<VmRecord>,
        leader: &Compare,
        nudge_at_ms: Option<i64>,
    ) -> Result<bool, StoreError> {
        let record = &vm.value;
        let key = keys::assign(&record.placed.node, record.id);
        let existing = picture.assigned.get(&key);
        let assign = match (existing, nudge_at_ms) {
            (None, _) => power::assignment_of(record),
            (Some(_), None) => return Ok(false),
            (Some(existing), Some(now_ms)) => AssignRecord {
                nudges: existing.value.nudges + 1,
                nudged_at_ms: now_ms,
                ..power::assignment_of(record)
            },
        };
        let guards = [
            unchanged(&keys::vm(record.project_id, record.id), vm.revision),
            unchanged(&key, existing.map_or(0, |assign| assign.revision)),
            leader.clone(),
        ];
        let txn = Txn::new().when(guards).then([encode(&key, &assign)?]);
        Ok(self.txn("assigning a VM again", txn).await?.succeeded)
    }

    /// Takes claims of VMs that do not exist off a node; how many.
    async fn trim_alloc(
        &self,
        key: &str,
        alloc: &Stored<AllocRecord>,
        known: &BTreeMap<VmId, &VmRecord>,
        leader: &Compare,
    ) -> Result<u64, StoreError> {
        let mut trimmed = alloc.value.clone();
        let dead: Vec<VmId> = trimmed
            .alloc
            .vms()
            .filter(|vm| {
                known
                    .get(vm)
                    .is_none_or(|record| keys::node_alloc(&record.placed.node) != key)
            })
            .collect();
        if dead.is_empty() {
            return Ok(0);
        }
        for vm in &dead {
            trimmed.alloc.release(*vm);
        }
        let guards = [unchanged(key, alloc.revision), leader.clone()];
        let txn = Txn::new().when(guards).then([alloc_op(key, &trimmed)?]);
        let done = self.txn("trimming claims", txn).await?.succeeded;
        Ok(if done { dead.len() as u64 } else { 0 })
    }
}

impl Store {
    /// Takes members that do not exist out of a group; how many.
    async fn trim_group(
        &self,
        key: &str,
        group: &Stored<GroupRecord>,
        known: &BTreeMap<VmId, &VmRecord>,
        leader: &Compare,
    ) -> Result<u64, StoreError> {
        let mut trimmed = group.value.clone();
        trimmed.members.retain(|vm, _| known.contains_key(vm));
        let dead = group.value.members.len() - trimmed.members.len();
        if dead == 0 {
            return Ok(0);
        }
        let guards = [unchanged(key, group.revision), leader.clone()];
        let txn = Txn::new().when(guards).then([encode(key, &trimmed)?]);
        let done = self.txn("trimming a group", txn).await?.succeeded;
        Ok(if done { dead as u64 } else { 0 })
    }
}

impl Picture {
    /// Projects whose use does not look as it stands written. The picture is of several moments: those that are named
    /// are counted again exactly.
    fn miscounted(&self) -> Vec<ProjectId> {
        let mut counted: BTreeMap<ProjectId, Usage> = self
            .projects
            .keys()
            .map(|project| (*project, Usage::default()))
            .collect();
        for vm in &self.vms {
            let used = counted.entry(vm.value.project_id).or_default();
            *used = used.with(vm.value.resources);
        }
        counted
            .into_iter()
            .filter(|(project, used)| self.projects.get(project).copied().unwrap_or_default() != *used)
            .map(|(project, _)| project)
            .collect()
    }

    /// True when a node that is there has not reported anything about a VM for too long. Each nudge doubles the wait:
    /// a guest that has switched itself off waits for ever, and that is nobody's fault.
    fn waits(&self, vm: &VmRecord, now_ms: i64, stuck_ms: i64) -> bool {
        let seen = self
            .observed
            .get(&vm.id)
            .map_or(vm.created_at_ms, |seen| seen.value.accepted_at_ms);
        let (nudges, nudged_at_ms) = self
            .assigned
            .get(&keys::assign(&vm.placed.node, vm.id))
            .map_or((0, 0), |assign| (assign.value.nudges, assign.value.nudged_at_ms));
        let wait_ms = stuck_ms << nudges.min(MAX_DOUBLINGS);
        let alive = self.alive.contains(&keys::session(&vm.placed.node));
        alive && now_ms - seen.max(nudged_at_ms) >= wait_ms
    }

    /// True when a VM's power is as it should be, but the node has not said that it has taken the last change over.
    fn is_behind(&self, vm: &VmRecord) -> bool {
        self.observed.get(&vm.id).is_none_or(|seen| {
            let seen = &seen.value;
            let on = vm.desired == Desired::Running;
            seen.generation < vm.generation || (on && (seen.paused != vm.paused || seen.resets < vm.resets))
        })
    }

    fn phase_of(&self, vm: &VmRecord) -> Phase {
        self.observed
            .get(&vm.id)
            .filter(|seen| seen.value.epoch == vm.placed.epoch)
            .map_or(Phase::Scheduled, |seen| seen.value.phase)
    }
}
