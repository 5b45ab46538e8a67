//! Changes of what is wanted of a VM.

use chainfire_client::Txn;
use plasmavmc_core::Desired;

use super::records::{AssignRecord, VERSION, VmRecord};
use super::{Store, StoreError, Stored, encode, keys, unchanged};

/// What is wanted from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) desired: Desired,
    pub(crate) forced: bool,
    pub(crate) stop_timeout_s: u32,
}

impl Store {
    /// Writes what is wanted of a VM and its assignment in one transaction, if the VM is as it was read. `None` when
    /// it is not: read again.
    pub(crate) async fn change_wanted(
        &self,
        vm: &Stored<VmRecord>,
        wanted: Wanted,
    ) -> Result<Option<Stored<VmRecord>>, StoreError> {
        let record = VmRecord {
            desired: wanted.desired,
            forced: wanted.forced,
            stop_timeout_s: wanted.stop_timeout_s,
            generation: vm.value.generation + 1,
            ..vm.value.clone()
        };
        let assign = assignment_of(&record);
        let vm_key = keys::vm(record.project_id, record.id);
        let txn = Txn::new().when([unchanged(&vm_key, vm.revision)]).then([
            encode(&vm_key, &record)?,
            encode(&keys::assign(&record.placed.node, record.id), &assign)?,
        ]);
        let outcome = self.txn("changing a VM", txn).await?;
        Ok(outcome.succeeded.then_some(Stored {
            value: record,
            revision: outcome.revision,
        }))
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
