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
        Ok(self.txn("changing a VM", txn).await?.succeeded)
    }
}

impl Wanted {
    /// The VM as it is wanted then.
    pub(crate) fn of(self, vm: &VmRecord) -> VmRecord {
        VmRecord {
            desired: self.desired,
            forced: self.forced,
            stop_timeout_s: self.stop_timeout_s,
            generation: vm.generation + 1,
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
