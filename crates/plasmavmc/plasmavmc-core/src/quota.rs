//! Quotas: what the VMs of one project may take together.

use serde::{Deserialize, Serialize};

use crate::Resources;
use crate::request::size_text;

/// The limits of a project; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Number of VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u32>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Disk in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// What the VMs of a project take. A VM counts from its creation until it is gone, running or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Number of VMs.
    pub vms: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes.
    pub disk_bytes: u64,
}

/// One more VM would take more than the project may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverQuota {
    /// Too many VMs.
    #[error("the project has {used} VMs, and its quota is {limit}")]
    Vms {
        /// How many there are.
        used: u32,
        /// How many there may be.
        limit: u32,
    },
    /// Too many CPUs.
    #[error("the project uses {used} virtual CPUs, its quota is {limit}, and {asked} more were asked for")]
    Vcpus {
        /// How many are used.
        used: u32,
        /// How many more were asked for.
        asked: u32,
        /// How many may be used.
        limit: u32,
    },
    /// Too much memory.
    #[error("the project uses {} of memory, its quota is {}, and {} more were asked for", size_text(*.used), size_text(*.limit), size_text(*.asked))]
    Memory {
        /// Bytes used.
        used: u64,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that may be used.
        limit: u64,
    },
    /// Too much disk.
    #[error("the project uses {} of disk, its quota is {}, and {} more were asked for", size_text(*.used), size_text(*.limit), size_text(*.asked))]
    Disk {
        /// Bytes used.
        used: u64,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that may be used.
        limit: u64,
    },
}

impl Quota {
    /// True when nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.vms.is_none() && self.vcpus.is_none() && self.memory_bytes.is_none() && self.disk_bytes.is_none()
    }

    /// What would be used with one more VM, if the quota allows it.
    ///
    /// # Errors
    /// [`OverQuota`]: the first limit that would be passed.
    pub fn admit(&self, used: Usage, vm: Resources) -> Result<Usage, OverQuota> {
        let after = used.with(vm);
        if let Some(limit) = self.vms.filter(|limit| after.vms > *limit) {
            return Err(OverQuota::Vms {
                used: used.vms,
                limit,
            });
        }
        if let Some(limit) = self.vcpus.filter(|limit| after.vcpus > *limit) {
            return Err(OverQuota::Vcpus {
                used: used.vcpus,
                asked: vm.vcpus,
                limit,
            });
        }
        if let Some(limit) = self.memory_bytes.filter(|limit| after.memory_bytes > *limit) {
            return Err(OverQuota::Memory {
                used: used.memory_bytes,
                asked: vm.memory_bytes,
                limit,
            });
        }
        if let Some(limit) = self.disk_bytes.filter(|limit| after.disk_bytes > *limit) {
            return Err(OverQuota::Disk {
                used: used.disk_bytes,
                asked: vm.disk_bytes,
                limit,
            });
        }
        Ok(after)
    }
}

impl Usage {
    /// With one more VM.
    #[must_use]
    pub const fn with(self, vm: Resources) -> Self {
        Self {
            vms: self.vms.saturating_add(1),
            vcpus: self.vcpus.saturating_add(vm.vcpus),
            memory_bytes: self.memory_bytes.saturating_add(vm.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(vm.disk_bytes),
        }
    }

    /// With one VM less. Below nothing is nothing: what was never counted (VMs older than quotas, until the next
    /// sweep has counted them) takes nothing away.
    #[must_use]
    pub const fn without(self, vm: Resources) -> Self {
        Self {
            vms: self.vms.saturating_sub(1),
            vcpus: self.vcpus.saturating_sub(vm.vcpus),
            memory_bytes: self.memory_bytes.saturating_sub(vm.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(vm.disk_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vm(vcpus: u32, memory: u64, disk: u64) -> Resources {
        Resources {
            vcpus,
            memory_bytes: memory << 30,
            disk_bytes: disk << 30,
        }
    }

    #[test]
    fn each_limit_refuses_and_says_what_is_used() {
        let used = Usage::default().with(vm(2, 4, 10)).with(vm(2, 4, 10));
        let check = |quota: Quota, expected: &expect_test::Expect| {
            let text = match quota.admit(used, vm(1, 1, 1)) {
                Ok(after) => format!("ok: {} VMs", after.vms),
                Err(over) => over.to_string(),
            };
            expected.assert_eq(&text);
        };
        use expect_test::expect;
        check(Quota::default(), &expect!["ok: 3 VMs"]);
        let none = Quota::default();
        check(
            Quota { vms: Some(2), ..none },
            &expect!["the project has 2 VMs, and its quota is 2"],
        );
        check(
            Quota {
                vcpus: Some(4),
                ..none
            },
            &expect!["the project uses 4 virtual CPUs, its quota is 4, and 1 more were asked for"],
        );
        check(
            Quota {
                memory_bytes: Some(8 << 30),
                ..none
            },
            &expect!["the project uses 8 GiB of memory, its quota is 8 GiB, and 1 GiB more were asked for"],
        );
        check(
            Quota {
                disk_bytes: Some(20 << 30),
                ..none
            },
            &expect!["the project uses 20 GiB of disk, its quota is 20 GiB, and 1 GiB more were asked for"],
        );
        check(
            Quota {
                vms: Some(3),
                vcpus: Some(5),
                memory_bytes: Some(9 << 30),
                disk_bytes: Some(21 << 30),
            },
            &expect!["ok: 3 VMs"],
        );
    }

    proptest! {
        /// Whatever comes and goes, what is used is the sum of what is there and within the limits.
        #[test]
        fn used_is_the_sum_and_within_the_limits(
            limits in (0_u32..8, 0_u32..20, 0_u64..40),
            requests in prop::collection::vec(((0_u32..4, 0_u64..8), any::<bool>()), 1..60),
        ) {
            let quota = Quota {
                vms: Some(limits.0), vcpus: Some(limits.1), memory_bytes: Some(limits.2 << 30), disk_bytes: None,
            };
            let (mut used, mut there) = (Usage::default(), Vec::new());
            for ((vcpus, memory), goes) in requests {
                let asked = vm(vcpus, memory, 1);
                if let Ok(after) = quota.admit(used, asked) {
                    used = after;
                    there.push(asked);
                }
                if goes && let Some(gone) = there.pop() {
                    used = used.without(gone);
                }
                let sum = there.iter().fold(Usage::default(), |sum, vm| sum.with(*vm));
                prop_assert_eq!(used, sum);
                prop_assert!(used.vms <= limits.0 && used.vcpus <= limits.1 && used.memory_bytes <= limits.2 << 30);
            }
        }
    }
}
