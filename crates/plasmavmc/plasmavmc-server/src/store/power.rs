//! Changes of what is wanted of a VM.

use chainfire_client::Txn;
use plasmavmc_core::Desired;

use super::records::{AssignRecord, VERSION, VmRecord};
use super::requests::Along;
use super::{Store, StoreError, Stored, encode, keys, unchanged};

/// What is wanted from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) desired: Desired,
    pub(crate) forced: bool,
    pub(crate) stop_timeout_s: u32,
    pub(crate) paused: bool,
    /// Resets asked for beside those of before.
    pub(crate) resets: u64,
    /// It is about the VM's power: a guest that has switched itself off is started again if it should run.
    pub(crate) power: bool,
}

impl Store {
    /// Writes what is wanted of a VM and its assignment in one transaction, if the VM is as it was read. False when
    /// it is not: read again.
    pub(crate) async fn change_wanted(
        &self,
        vm: &Stored<VmRecord>,
        record: &VmRecord,
        along: Along,
    ) -> Result<bool, StoreError> {
        let assign = assignment_of(record);
        let vm_key = keys::vm(record.project_id, record.id);
        let txn = Txn::new()
            .when([unchanged(&vm_key, vm.revision)])
            .when(along.guards)
            .then([
                encode(&vm_key, record)?,
                encode(&keys::assign(&record.placed.node, record.id), &assign)?,
            ])
            .then(along.writes);
        self.fail_points().reach("change.decided").await;
        let outcome = self.txn("changing a VM", txn).await?;
        self.fail_points().reach("change.written").await;
        Ok(outcome.succeeded)
    }
}

impl Store {
    /// Writes which operation of a VM is the last, if the VM is as it was read. False when it is not.
    pub(crate) async fn note_operation(
        &self,
        vm: &Stored<VmRecord>,
        record: &VmRecord,
        along: Along,
    ) -> Result<bool, StoreError> {
        let vm_key = keys::vm(record.project_id, record.id);
        let txn = Txn::new()
            .when([unchanged(&vm_key, vm.revision)])
            .when(along.guards)
            .then([encode(&vm_key, record)?])
            .then(along.writes);
        Ok(self.txn("noting an operation", txn).await?.succeeded)
    }
}

impl Wanted {
    /// As it is wanted now; to be changed.
    pub(crate) const fn now(vm: &VmRecord) -> Self {
        Self {
            desired: vm.desired,
            forced: vm.forced,
            stop_timeout_s: vm.stop_timeout_s,
            paused: vm.paused,
            resets: 0,
            power: false,
        }
    }

    /// Another state of its power, in which it is not paused.
    pub(crate) const fn power(vm: &VmRecord, desired: Desired, forced: bool) -> Self {
        Self {
            desired,
            forced,
            paused: false,
            power: true,
            ..Self::now(vm)
        }
    }

    /// The VM as it is wanted then.
    pub(crate) fn of(self, vm: &VmRecord) -> VmRecord {
        let generation = vm.generation + 1;
        let power_generation = match (self.power, vm.power_generation) {
            (true, _) => generation,
            (false, 0) => vm.generation,
            (false, known) => known,
        };
        VmRecord {
            desired: self.desired,
            forced: self.forced,
            stop_timeout_s: self.stop_timeout_s,
            paused: self.paused,
            resets: vm.resets + self.resets,
            generation,
            power_generation,
            ..vm.clone()
        }
    }
}

/// A fresh assignment of a VM as it is wanted now.
pub(crate) fn assignment_of(vm: &VmRecord) -> AssignRecord {
    AssignRecord {
        version: VERSION,
        project_id: vm.project_id,
        epoch: vm.placed.epoch,
        generation: vm.generation,
        nudges: 0,
        nudged_at_ms: 0,
    }
}
