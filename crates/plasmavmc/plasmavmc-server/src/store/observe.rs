//! Observations in the store, and what a node's session reads.

use chainfire_client::{Op, Txn};
use hearth_types::{Name, ProjectId, VmId};
use plasmavmc_client::names::{DEFAULT_TTL_S, PublishedName};
use plasmavmc_core::{Publication, Refused, Report, Tracked, accept};

use super::records::{AssignRecord, ObservedRecord, VmRecord};
use super::vm::READ_BATCH;
use super::{MAX_CONTENTION, Store, StoreError, Stored, decode, encode, keys, unchanged};

/// What became of an observation.
#[derive(Debug)]
pub(crate) enum Observed {
    /// It is kept, or it was no news.
    Accepted,
    /// The VM is gone and everything of it is free.
    Released,
    /// There is no such VM on this node any more.
    NotAssigned,
    /// It must not change anything.
    Refused(Refused),
}

/// The assignments of a node at one revision.
#[derive(Debug)]
pub(crate) struct Assignments {
    pub(crate) revision: i64,
    pub(crate) vms: Vec<VmRecord>,
}

impl Store {
    /// Takes an observation of `vm` by `node` over, with everything that follows from it, in one transaction.
    pub(crate) async fn observe(
        &self,
        node: &Name,
        vm: VmId,
        seen: &ObservedRecord,
    ) -> Result<Observed, StoreError> {
        for _ in 0..MAX_CONTENTION {
            let Some(assign) = self.get::<AssignRecord>(&keys::assign(node, vm)).await? else {
                return Ok(Observed::NotAssigned);
            };
            let Some((record, before)) = self.vm_and_observed(assign.value.project_id, vm).await? else {
                return Ok(Observed::NotAssigned);
            };
            let verdict = accept(&tracked(&record.value, before.as_ref()), &report(seen));
            let effects = match verdict {
                Ok(effects) => effects,
                Err(refused) => return Ok(Observed::Refused(refused)),
            };
            let done = if effects.release {
                self.release_vm(&record, None, seen.accepted_at_ms)
                    .await?
                    .then_some(Observed::Released)
            } else {
                self.keep(&record, before.as_ref(), seen, effects.publication)
                    .await?
                    .then_some(Observed::Accepted)
            };
            if let Some(done) = done {
                return Ok(done);
            }
        }
        Err(StoreError::Contended {
            doing: "accepting an observation",
        })
    }

    /// Writes an observation and the published name; true when it stands.
    async fn keep(
        &self,
        vm: &Stored<VmRecord>,
        before: Option<&Stored<ObservedRecord>>,
        seen: &ObservedRecord,
        publication: Publication,
    ) -> Result<bool, StoreError> {
        let record = &vm.value;
        if before.is_some_and(|before| is_no_news(&before.value, seen)) {
            return Ok(true);
        }
        let name = PublishedName {
            project: record.project.clone(),
            name: record.name.clone(),
            vm: record.id,
            addresses: vec![record.placed.address.into()],
            ttl_s: DEFAULT_TTL_S,
        };
        let name_op = match publication {
            Publication::Put => Op::put(
                name.key(),
                name.value().map_err(|error| StoreError::Damaged {
                    key: name.key(),
                    why: error.to_string(),
                })?,
            ),
            Publication::Delete => Op::delete(name.key()),
        };
        let operation = self.advancing(record, seen, seen.accepted_at_ms).await?;
        let observed_key = keys::observed(record.id);
        let guards = [
            unchanged(&keys::vm(record.project_id, record.id), vm.revision),
            unchanged(&observed_key, before.map_or(0, |before| before.revision)),
        ];
        let txn = Txn::new()
            .when(guards)
            .when(operation.guards)
            .then([encode(&observed_key, seen)?, name_op])
            .then(operation.writes);
        self.fail_points().reach("observe.heard").await;
        let outcome = self.txn("accepting an observation", txn).await?;
        self.fail_points().reach("observe.written").await;
        Ok(outcome.succeeded)
    }

    async fn vm_and_observed(
        &self,
        project: ProjectId,
        vm: VmId,
    ) -> Result<Option<(Stored<VmRecord>, Option<Stored<ObservedRecord>>)>, StoreError> {
        let reads = [Op::get(keys::vm(project, vm)), Op::get(keys::observed(vm))];
        let outcome = self.txn("reading a VM", Txn::new().then(reads)).await?;
        let Some(record) = outcome.get(0) else {
            return Ok(None);
        };
        Ok(Some((decode(record)?, outcome.get(1).map(decode).transpose()?)))
    }

    /// Everything assigned to a node.
    pub(crate) async fn assignments(&self, node: &Name) -> Result<Assignments, StoreError> {
        let prefix = keys::assigned_to(node);
        let listing = self
            .client()
            .list(&prefix)
            .await
            .map_err(super::while_doing("listing assignments"))?;
        let mut keys_of_vms = Vec::with_capacity(listing.kvs.len());
        for kv in &listing.kvs {
            let assign: Stored<AssignRecord> = decode(kv)?;
            if let Some(vm) = keys::last(&kv.key) {
                keys_of_vms.push(keys::vm(assign.value.project_id, vm));
            }
        }
        let mut vms = Vec::with_capacity(keys_of_vms.len());
        for batch in keys_of_vms.chunks(READ_BATCH) {
            let outcome = self
                .txn("reading assigned VMs", Txn::new().then(batch.iter().map(Op::get)))
                .await?;
            for index in 0..batch.len() {
                let record = outcome.get(index).map(decode::<VmRecord>).transpose()?;
                vms.extend(
                    record
                        .map(|record| record.value)
                        .filter(|record| record.placed.node == *node),
                );
            }
        }
        Ok(Assignments {
            revision: listing.revision,
            vms,
        })
    }

    /// A VM, if it is placed on this node.
    pub(crate) async fn assigned_vm(
        &self,
        project: ProjectId,
        vm: VmId,
        node: &Name,
    ) -> Result<Option<VmRecord>, StoreError> {
        let record = self.get::<VmRecord>(&keys::vm(project, vm)).await?;
        Ok(record
            .map(|record| record.value)
            .filter(|record| record.placed.node == *node))
    }
}

/// True when only counters differ: writing it would make revisions for nothing.
fn is_no_news(before: &ObservedRecord, seen: &ObservedRecord) -> bool {
    let same = |record: &ObservedRecord| ObservedRecord {
        seq: 0,
        accepted_at_ms: 0,
        reporter: String::new(),
        ..record.clone()
    };
    same(before) == same(seen)
}

fn tracked(vm: &VmRecord, observed: Option<&Stored<ObservedRecord>>) -> Tracked {
    // What was seen of an earlier incarnation says nothing about this one.
    let observed = observed
        .map(|observed| &observed.value)
        .filter(|seen| seen.epoch == vm.placed.epoch);
    Tracked {
        desired: vm.desired,
        epoch: vm.placed.epoch,
        generation: vm.generation,
        phase: observed.map(|seen| seen.phase).unwrap_or_default(),
        reporter: observed.map(|seen| seen.reporter.clone()).unwrap_or_default(),
        seq: observed.map_or(0, |seen| seen.seq),
    }
}

fn report(seen: &ObservedRecord) -> Report {
    Report {
        epoch: seen.epoch,
        generation: seen.generation,
        reporter: seen.reporter.clone(),
        seq: seen.seq,
        phase: seen.phase,
    }
}
