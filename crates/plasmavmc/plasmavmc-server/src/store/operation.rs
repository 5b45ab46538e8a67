//! Operations in the store. Each is written in the transaction of the request that began it, and advanced in the
//! transactions that change what it waits for; the reconciler looks after those that nothing of the kind has reached.

use chainfire_client::wire::etcdserverpb::RangeRequest;
use chainfire_client::{Compare, KeyValue, Txn, prefix_end};
use hearth_types::{Name, ProjectId, VmId};
use plasmavmc_core::{Desired, Goal, OperationKind, OperationState, Phase, Progress, Sight, progress};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::records::{ObservedRecord, Record, VmRecord};
use super::requests::Along;
use super::{Store, StoreError, Stored, decode, encode, keys, unchanged, while_doing};

/// Steps of one operation that are kept; a VM that goes to and fro has its last ones.
const MAX_STEPS: usize = 32;
/// Younger operations are left to the observations that they wait for. (There are no more open ones than VMs.)
const SETTLE_AFTER_MS: i64 = 3000;
/// Operations read at once.
const PAGE: i64 = 500;

/// A VM's last operation, as the VM's record names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationRef {
    pub(crate) id: Uuid,
    pub(crate) kind: OperationKind,
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OperationRecord {
    pub(crate) version: u32,
    pub(crate) id: Uuid,
    pub(crate) kind: OperationKind,
    pub(crate) project_id: ProjectId,
    pub(crate) vm: VmId,
    pub(crate) vm_name: Name,
    /// Who asked for it.
    pub(crate) who: String,
    pub(crate) goal: Goal,
    pub(crate) state: OperationState,
    pub(crate) steps: Vec<StepRecord>,
    /// Why it has failed, or what is in its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    pub(crate) created_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_at_ms: Option<i64>,
}

/// What was seen on the way, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    pub(crate) name: String,
    pub(crate) at_ms: i64,
}

impl Record for OperationRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl OperationRecord {
    /// True until it has ended.
    pub(crate) const fn is_open(&self) -> bool {
        !self.state.is_over()
    }

    fn step(&mut self, name: &str, now_ms: i64) {
        if self.steps.last().is_some_and(|last| last.name == name) {
            return;
        }
        if self.steps.len() >= MAX_STEPS {
            self.steps.remove(1);
        }
        self.steps.push(StepRecord {
            name: name.to_owned(),
            at_ms: now_ms,
        });
    }

    /// Ends it.
    pub(crate) fn end(mut self, failed: Option<String>, now_ms: i64) -> Self {
        self.state = match failed {
            None => OperationState::Done,
            Some(_) => OperationState::Failed,
        };
        self.step(if failed.is_none() { "done" } else { "failed" }, now_ms);
        self.error = failed;
        self.ended_at_ms = Some(now_ms);
        self
    }

    /// As it stands after an observation of its VM in the VM's current epoch.
    pub(crate) fn after(&self, seen: &ObservedRecord, now_ms: i64) -> Self {
        let sight = Sight {
            generation: seen.generation,
            phase: seen.phase,
            paused: seen.paused,
            resets: seen.resets,
            reason: &seen.reason,
        };
        let mut next = self.clone();
        match progress(&self.goal, &sight) {
            Progress::Pending => {}
            Progress::Running(phase, trouble) => {
                next.state = OperationState::Running;
                next.step(word(phase), now_ms);
                next.error = trouble;
            }
            Progress::Done => next = next.end(None, now_ms),
            Progress::Failed(why) => next = next.end(Some(why), now_ms),
        }
        next
    }
}

const fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::Scheduled => "scheduled",
        Phase::Preparing => "preparing",
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Failed => "trouble",
        Phase::Gone => "gone",
    }
}

impl Store {
    /// One operation.
    pub(crate) async fn operation(
        &self,
        project: ProjectId,
        id: Uuid,
    ) -> Result<Option<Stored<OperationRecord>>, StoreError> {
        self.get(&keys::operation(project, id)).await
    }

    /// A VM's operation, if it has not ended.
    pub(crate) async fn open_operation(
        &self,
        vm: &VmRecord,
    ) -> Result<Option<Stored<OperationRecord>>, StoreError> {
        let Some(last) = vm.operation else {
            return Ok(None);
        };
        let found = self.operation(vm.project_id, last.id).await?;
        Ok(found.filter(|operation| operation.value.is_open()))
    }

    /// What goes into the transaction of an observation about the VM's operation.
    pub(crate) async fn advancing(
        &self,
        vm: &VmRecord,
        seen: &ObservedRecord,
        now_ms: i64,
    ) -> Result<Along, StoreError> {
        let Some(open) = self.open_operation(vm).await? else {
            return Ok(Along::default());
        };
        replacing(&open, &open.value.after(seen, now_ms))
    }

    /// What goes into the transaction that frees a VM.
    pub(crate) async fn completing(&self, vm: &VmRecord, now_ms: i64) -> Result<Along, StoreError> {
        let Some(open) = self.open_operation(vm).await? else {
            return Ok(Along::default());
        };
        replacing(&open, &open.value.clone().end(None, now_ms))
    }

    /// Operations of a project after a position, oldest first, and the position to go on from when there are more.
    pub(crate) async fn operations_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Stored<OperationRecord>>, Option<Uuid>), StoreError> {
        let (records, more) = self
            .page::<OperationRecord>("listing operations", prefix, after, limit)
            .await?;
        let next = records.last().filter(|_| more).map(|last| last.value.id);
        Ok((records, next))
    }

    /// Brings every open operation to where it stands: those whose VM has moved on without them, and those that take
    /// longer than `limit_ms`. How many were changed. Idempotent; can be cut anywhere.
    pub(crate) async fn settle_operations(
        &self,
        leader: &Compare,
        now_ms: i64,
        limit_ms: i64,
    ) -> Result<u64, StoreError> {
        let mut start = keys::OPERATIONS.as_bytes().to_vec();
        let mut settled = 0;
        loop {
            let range = RangeRequest {
                key: start.clone().into(),
                range_end: prefix_end(keys::OPERATIONS.as_bytes()),
                limit: PAGE,
                ..Default::default()
            };
            let page = self
                .client()
                .range(range)
                .await
                .map_err(while_doing("reading operations"))?;
            for kv in page.kvs {
                let kv = KeyValue::from(kv);
                start = [&kv.key[..], &[0]].concat();
                let operation = decode::<OperationRecord>(&kv)?;
                if operation.value.is_open() && now_ms - operation.value.created_at_ms >= SETTLE_AFTER_MS {
                    settled += u64::from(self.settle(&operation, leader, now_ms, limit_ms).await?);
                }
            }
            if !page.more {
                return Ok(settled);
            }
        }
    }

    async fn settle(
        &self,
        open: &Stored<OperationRecord>,
        leader: &Compare,
        now_ms: i64,
        limit_ms: i64,
    ) -> Result<bool, StoreError> {
        let operation = &open.value;
        let view = self.vm(operation.project_id, operation.vm).await?;
        let next = match &view {
            None if operation.goal.desired == Desired::Deleted => operation.clone().end(None, now_ms),
            None => operation.clone().end(Some("the VM is gone".to_owned()), now_ms),
            Some(view) => {
                let vm = &view.record.value;
                let seen = view.observed.as_ref().map(|seen| &seen.value);
                let seen = seen.filter(|seen| seen.epoch == vm.placed.epoch);
                let next = seen.map_or_else(|| operation.clone(), |seen| operation.after(seen, now_ms));
                let other = vm.operation.is_none_or(|last| last.id != operation.id);
                if next.is_open() && other && vm.generation > operation.goal.generation {
                    next.end(Some("something else was asked for meanwhile".to_owned()), now_ms)
                } else if next.is_open() && now_ms - operation.created_at_ms >= limit_ms {
                    let why = next.error.clone().unwrap_or_else(|| {
                        if view.node_alive {
                            "it takes too long".to_owned()
                        } else {
                            format!("node {} does not answer", vm.placed.node)
                        }
                    });
                    let minutes = limit_ms / 60_000;
                    let text = format!("not done within {minutes} minutes ({why}); it is still being tried");
                    next.end(Some(text), now_ms)
                } else {
                    next
                }
            }
        };
        if next == *operation {
            return Ok(false);
        }
        let along = replacing(open, &next)?;
        let txn = Txn::new()
            .when(along.guards)
            .when([leader.clone()])
            .then(along.writes);
        Ok(self.txn("settling an operation", txn).await?.succeeded)
    }
}

/// One that is written in the transaction of its request.
pub(crate) fn beginning(operation: &OperationRecord) -> Result<Along, StoreError> {
    let key = keys::operation(operation.project_id, operation.id);
    Ok(Along {
        guards: Vec::new(),
        writes: vec![encode(&key, operation)?],
    })
}

/// One that is written in the place of what was read.
pub(crate) fn replacing(
    before: &Stored<OperationRecord>,
    after: &OperationRecord,
) -> Result<Along, StoreError> {
    if before.value == *after {
        return Ok(Along::default());
    }
    let key = keys::operation(after.project_id, after.id);
    Ok(Along {
        guards: vec![unchanged(&key, before.revision)],
        writes: vec![encode(&key, after)?],
    })
}
