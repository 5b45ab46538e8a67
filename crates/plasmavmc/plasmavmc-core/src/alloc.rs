//! Claims of VMs on a node.

use std::collections::BTreeMap;

use hearth_types::VmId;
use serde::{Deserialize, Serialize};

use crate::schedule::in_cell;

/// An amount of what a node has and a VM takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes.
    pub disk_bytes: u64,
}

impl Resources {
    /// The sum, or `None` when it does not fit the numbers.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            vcpus: self.vcpus.checked_add(other.vcpus)?,
            memory_bytes: self.memory_bytes.checked_add(other.memory_bytes)?,
            disk_bytes: self.disk_bytes.checked_add(other.disk_bytes)?,
        })
    }

    /// The sum, or as near to it as the numbers go.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
        }
    }

    /// What is left after taking `other` away; never below nothing.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
        }
    }

    /// True when `self` fits into `room` in every respect.
    #[must_use]
    pub const fn fits_in(self, room: Self) -> bool {
        self.vcpus <= room.vcpus
            && self.memory_bytes <= room.memory_bytes
            && self.disk_bytes <= room.disk_bytes
    }
}

/// A claim of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    vcpus: u32,
    memory_bytes: u64,
    disk_bytes: u64,
    /// The NUMA cell that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cell: Option<u16>,
}

impl Claim {
    const fn amount(&self) -> Resources {
        Resources {
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
        }
    }
}

/// What may be claimed in one NUMA cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellRoom {
    /// The cell's number.
    pub number: u16,
    /// What VMs bound to it may claim in all; disks are not in cells.
    pub room: Resources,
}

/// What may be claimed on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub node: Resources,
    /// In the cell that the VM is bound to, if it is.
    pub cell: Option<CellRoom>,
}

/// All claims on one node. Its stored revision guards every placement there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alloc {
    claims: BTreeMap<VmId, Claim>,
}

/// Why claims could not be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The VM has a claim already.
    #[error("VM {0} has a claim on this node already")]
    Claimed(VmId),
    /// The room left is too small.
    #[error("the claim of VM {0} does not fit the node")]
    Full(VmId),
}

impl Alloc {
    /// The sum of all claims.
    #[must_use]
    pub fn total(&self) -> Resources {
        self.claims.values().fold(Resources::default(), |sum, claim| {
            sum.saturating_add(claim.amount())
        })
    }

    /// The sums of the claims that are bound to a cell, by the cell's number. Disks are not in cells.
    #[must_use]
    pub fn in_cells(&self) -> BTreeMap<u16, Resources> {
        let mut cells: BTreeMap<u16, Resources> = BTreeMap::new();
        for claim in self.claims.values() {
            if let Some(cell) = claim.cell {
                let sum = cells.entry(cell).or_default();
                *sum = sum.saturating_add(in_cell(claim.amount()));
            }
        }
        cells
    }

    /// What a VM has claimed.
    #[must_use]
    pub fn of(&self, vm: VmId) -> Option<Resources> {
        self.claims.get(&vm).map(Claim::amount)
    }

    /// Number of VMs with a claim.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// True when nothing is claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// The VMs that have a claim.
    pub fn vms(&self) -> impl Iterator<Item = VmId> {
        self.claims.keys().copied()
    }

    /// Adds a claim, if all claims then fit into `room`.
    ///
    /// # Errors
    /// [`AllocError`]; nothing has changed then.
    pub fn claim(&mut self, vm: VmId, amount: Resources, room: Room) -> Result<(), AllocError> {
        if self.claims.contains_key(&vm) {
            return Err(AllocError::Claimed(vm));
        }
        let full = AllocError::Full(vm);
        let after = self.total().checked_add(amount).ok_or(full)?;
        if !after.fits_in(room.node) {
            return Err(full);
        }
        if let Some(cell) = room.cell {
            let there = self.in_cells().get(&cell.number).copied().unwrap_or_default();
            let after = there.checked_add(in_cell(amount)).ok_or(full)?;
            if !after.fits_in(cell.room) {
                return Err(full);
            }
        }
        let claim = Claim {
            vcpus: amount.vcpus,
            memory_bytes: amount.memory_bytes,
            disk_bytes: amount.disk_bytes,
            cell: room.cell.map(|cell| cell.number),
        };
        self.claims.insert(vm, claim);
        assert!(
            self.total().fits_in(room.node),
            "a claim was let in that does not fit"
        );
        Ok(())
    }

    /// Takes a VM's claim away; true when there was one.
    pub fn release(&mut self, vm: VmId) -> bool {
        self.claims.remove(&vm).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_written_before_there_were_cells_are_read() {
        let old = r#"{"claims":{"0190d0c0-0000-7000-8000-000000000001":{"vcpus":2,"memory_bytes":7,"disk_bytes":9}}}"#;
        let alloc: Alloc = serde_json::from_str(old).unwrap();
        assert_eq!((alloc.total().vcpus, alloc.in_cells().len()), (2, 0));
        assert_eq!(serde_json::to_string(&alloc).unwrap(), old);
    }
}
