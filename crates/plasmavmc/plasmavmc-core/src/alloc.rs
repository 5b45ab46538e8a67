//! Claims of VMs on a node.

use std::collections::BTreeMap;

use hearth_types::VmId;
use serde::{Deserialize, Serialize};

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

/// All claims on one node. Its stored revision guards every placement there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alloc {
    claims: BTreeMap<VmId, Resources>,
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
        self.claims
            .values()
            .fold(Resources::default(), |sum, claim| Resources {
                vcpus: sum.vcpus.saturating_add(claim.vcpus),
                memory_bytes: sum.memory_bytes.saturating_add(claim.memory_bytes),
                disk_bytes: sum.disk_bytes.saturating_add(claim.disk_bytes),
            })
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
    pub fn claim(&mut self, vm: VmId, amount: Resources, room: Resources) -> Result<(), AllocError> {
        if self.claims.contains_key(&vm) {
            return Err(AllocError::Claimed(vm));
        }
        let after = self.total().checked_add(amount).ok_or(AllocError::Full(vm))?;
        if !after.fits_in(room) {
            return Err(AllocError::Full(vm));
        }
        self.claims.insert(vm, amount);
        assert!(self.total().fits_in(room), "a claim was let in that does not fit");
        Ok(())
    }

    /// Takes a VM's claim away; true when there was one.
    pub fn release(&mut self, vm: VmId) -> bool {
        self.claims.remove(&vm).is_some()
    }
}
