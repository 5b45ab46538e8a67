//! What a valid request for a VM is.

use std::collections::BTreeSet;

use hearth_types::{Labels, Name, NameError};
use serde::{Deserialize, Serialize};

use crate::Resources;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The bounds that requests are held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most virtual CPUs of one VM.
    pub max_vcpus: u32,
    /// Least memory of one VM, in bytes.
    pub min_memory_bytes: u64,
    /// Most memory of one VM, in bytes.
    pub max_memory_bytes: u64,
    /// Most disk of one VM, in bytes.
    pub max_disk_bytes: u64,
    /// Most SSH keys of one VM.
    pub max_ssh_keys: usize,
    /// Longest SSH key, in bytes.
    pub max_ssh_key_bytes: usize,
    /// Longest user data, in bytes.
    pub max_user_data_bytes: usize,
    /// Most features that a VM may ask of a node.
    pub max_features: usize,
    /// Most groups that a VM may be in.
    pub max_groups: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_vcpus: 64,
            min_memory_bytes: 64 * MIB,
            max_memory_bytes: 1024 * GIB,
            max_disk_bytes: 16 * 1024 * GIB,
            max_ssh_keys: 32,
            max_ssh_key_bytes: 16 << 10,
            max_user_data_bytes: 32 << 10,
            max_features: 16,
            max_groups: 4,
        }
    }
}

/// How guests are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// A tap device with routes: the guest has its own address.
    Routed,
    /// Inside the hypervisor's process: ports are forwarded from a loopback address of the node.
    User,
}

impl NetworkMode {
    /// The text in interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::User => "user",
        }
    }
}

impl std::str::FromStr for NetworkMode {
    type Err = InvalidRequest;

    fn from_str(text: &str) -> Result<Self, InvalidRequest> {
        match text {
            "routed" => Ok(Self::Routed),
            "user" => Ok(Self::User),
            other => Err(InvalidRequest::NetworkMode(other.to_owned())),
        }
    }
}

/// What runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypervisor {
    /// QEMU.
    Kvm,
    /// Firecracker.
    Firecracker,
}

impl Hypervisor {
    /// The text in interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Firecracker => "firecracker",
        }
    }
}

impl std::str::FromStr for Hypervisor {
    type Err = InvalidRequest;

    fn from_str(text: &str) -> Result<Self, InvalidRequest> {
        match text {
            "kvm" => Ok(Self::Kvm),
            "firecracker" => Ok(Self::Firecracker),
            other => Err(InvalidRequest::Hypervisor(other.to_owned())),
        }
    }
}

/// A request as it came in, unchecked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// Name.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes; 0: the image's own size.
    pub disk_bytes: u64,
    /// Size of the image's disk in bytes.
    pub image_disk_bytes: u64,
    /// SSH keys.
    pub ssh_keys: Vec<String>,
    /// cloud-init user data.
    pub user_data: String,
    /// Labels that a node must have.
    pub node_selector: Labels,
    /// Network mode that a node must have; `None`: any.
    pub network_mode: Option<String>,
    /// Hypervisor; empty: QEMU.
    pub hypervisor: String,
    /// Architecture that a node must have; `None`: any.
    pub architecture: Option<String>,
    /// What else a node must be able to do.
    pub features: Vec<String>,
    /// CPUs and memory must come from one NUMA cell.
    pub one_cell: bool,
    /// Names of the groups that it will be a member of.
    pub groups: Vec<String>,
}

/// A valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRequest {
    /// Name.
    pub name: Name,
    /// What it takes; the disk is the final size.
    pub resources: Resources,
    /// Labels that a node must have.
    pub node_selector: Labels,
    /// Network mode that a node must have; `None`: any.
    pub network_mode: Option<NetworkMode>,
    /// Hypervisor.
    pub hypervisor: Hypervisor,
    /// Architecture that a node must have; `None`: any.
    pub architecture: Option<String>,
    /// What else a node must be able to do.
    pub features: BTreeSet<String>,
    /// CPUs and memory must come from one NUMA cell.
    pub one_cell: bool,
    /// Names of the groups that it will be a member of.
    pub groups: BTreeSet<Name>,
}

/// What is wrong with a request. The text says what, why and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The name is no DNS label.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No CPU, or more than a VM may have.
    #[error("{asked} virtual CPUs are not possible; ask for 1 to {max}")]
    Vcpus {
        /// What was asked for.
        asked: u32,
        /// The most.
        max: u32,
    },
    /// Too little or too much memory.
    #[error("{} of memory are not possible; ask for {} to {}", size_text(*.asked), size_text(*.min), size_text(*.max))]
    Memory {
        /// What was asked for, in bytes.
        asked: u64,
        /// The least, in bytes.
        min: u64,
        /// The most, in bytes.
        max: u64,
    },
    /// Memory that is no whole number of MiB.
    #[error("{0} bytes of memory are no whole number of MiB; round to a multiple of 1048576")]
    MemoryGranularity(u64),
    /// A disk smaller than the image or larger than allowed.
    #[error("a disk of {} is not possible; the image needs {}, the most is {}", size_text(*.asked), size_text(*.image), size_text(*.max))]
    Disk {
        /// What was asked for, in bytes.
        asked: u64,
        /// What the image needs, in bytes.
        image: u64,
        /// The most, in bytes.
        max: u64,
    },
    /// Too many keys, or one that is none.
    #[error("SSH key number {number} is not usable: {why}; give the content of a .pub file")]
    SshKey {
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Too many keys.
    #[error("{count} SSH keys are too many; give at most {max}")]
    SshKeys {
        /// How many there are.
        count: usize,
        /// The most.
        max: usize,
    },
    /// User data too long.
    #[error(
        "user data of {bytes} bytes is too long; the limit is {max}: let it fetch the rest from somewhere"
    )]
    UserData {
        /// How long it is.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// An unknown network mode.
    #[error("the network mode `{0}` does not exist; use `routed` or `user`, or leave it out")]
    NetworkMode(String),
    /// An unknown hypervisor.
    #[error("the hypervisor `{0}` does not exist; use `kvm` or `firecracker`, or leave it out")]
    Hypervisor(String),
    /// A text that is no architecture or feature.
    #[error("`{0}` is no architecture or feature; use 1 to 63 of a-z, 0-9, -, _ and .")]
    Word(String),
    /// Too many features or groups.
    #[error("{count} {what} are too many; give at most {max}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// Of what.
        what: &'static str,
        /// The most.
        max: usize,
    },
}

/// A size for people, in the largest unit that keeps it a whole number.
pub(crate) fn size_text(bytes: u64) -> String {
    let units = [("TiB", 1024 * GIB), ("GiB", GIB), ("MiB", MIB), ("KiB", 1024)];
    units
        .iter()
        .find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(
            || format!("{bytes} bytes"),
            |(name, unit)| format!("{} {name}", bytes / unit),
        )
}

/// Checks a request against the limits.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn validate(raw: &RawRequest, limits: &Limits) -> Result<VmRequest, InvalidRequest> {
    let name: Name = raw.name.parse()?;
    if !(1..=limits.max_vcpus).contains(&raw.vcpus) {
        return Err(InvalidRequest::Vcpus {
            asked: raw.vcpus,
            max: limits.max_vcpus,
        });
    }
    if !(limits.min_memory_bytes..=limits.max_memory_bytes).contains(&raw.memory_bytes) {
        return Err(InvalidRequest::Memory {
            asked: raw.memory_bytes,
            min: limits.min_memory_bytes,
            max: limits.max_memory_bytes,
        });
    }
    if !raw.memory_bytes.is_multiple_of(MIB) {
        return Err(InvalidRequest::MemoryGranularity(raw.memory_bytes));
    }
    let disk_bytes = if raw.disk_bytes == 0 {
        raw.image_disk_bytes
    } else {
        raw.disk_bytes
    };
    if disk_bytes < raw.image_disk_bytes || disk_bytes > limits.max_disk_bytes {
        return Err(InvalidRequest::Disk {
            asked: disk_bytes,
            image: raw.image_disk_bytes,
            max: limits.max_disk_bytes,
        });
    }
    check_guest_data(raw, limits)?;
    let network_mode = raw.network_mode.as_deref().map(str::parse).transpose()?;
    let hypervisor = match raw.hypervisor.as_str() {
        "" => Hypervisor::Kvm,
        given => given.parse()?,
    };
    let groups = check_groups(raw, limits)?;
    let resources = Resources {
        vcpus: raw.vcpus,
        memory_bytes: raw.memory_bytes,
        disk_bytes,
    };
    assert!(
        resources.vcpus > 0 && resources.memory_bytes > 0,
        "an empty VM was let through"
    );
    Ok(VmRequest {
        name,
        resources,
        node_selector: raw.node_selector.clone(),
        network_mode,
        hypervisor,
        architecture: raw.architecture.clone(),
        features: raw.features.iter().cloned().collect(),
        one_cell: raw.one_cell,
        groups,
    })
}

/// What a node must be able to do, and the groups.
fn check_groups(raw: &RawRequest, limits: &Limits) -> Result<BTreeSet<Name>, InvalidRequest> {
    let too_many = |count, what, max| InvalidRequest::TooMany { count, what, max };
    if raw.features.len() > limits.max_features {
        return Err(too_many(raw.features.len(), "features", limits.max_features));
    }
    if raw.groups.len() > limits.max_groups {
        return Err(too_many(raw.groups.len(), "groups", limits.max_groups));
    }
    for word in raw.architecture.iter().chain(&raw.features) {
        let fits = (1..=63).contains(&word.len())
            && word
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'));
        if !fits {
            return Err(InvalidRequest::Word(word.clone()));
        }
    }
    Ok(raw
        .groups
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?)
}

fn check_guest_data(raw: &RawRequest, limits: &Limits) -> Result<(), InvalidRequest> {
    if raw.ssh_keys.len() > limits.max_ssh_keys {
        return Err(InvalidRequest::SshKeys {
            count: raw.ssh_keys.len(),
            max: limits.max_ssh_keys,
        });
    }
    for (index, key) in raw.ssh_keys.iter().enumerate() {
        let bad = |why| InvalidRequest::SshKey {
            number: index + 1,
            why,
        };
        if key.len() > limits.max_ssh_key_bytes {
            return Err(bad("it is too long"));
        }
        if key.chars().any(char::is_control) {
            return Err(bad("it has line breaks or other control characters"));
        }
        if key.contains("PRIVATE KEY") {
            return Err(bad("it is a private key, which must stay where it is"));
        }
        if key.split_whitespace().nth(1).is_none() {
            return Err(bad("it is not of the form `ssh-ed25519 AAAA... comment`"));
        }
    }
    if raw.user_data.len() > limits.max_user_data_bytes {
        return Err(InvalidRequest::UserData {
            bytes: raw.user_data.len(),
            max: limits.max_user_data_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw() -> RawRequest {
        RawRequest {
            name: "web".to_owned(),
            vcpus: 1,
            memory_bytes: 256 * MIB,
            disk_bytes: 0,
            image_disk_bytes: GIB,
            ssh_keys: vec!["ssh-ed25519 AAAA me@here".to_owned()],
            user_data: String::new(),
            node_selector: Labels::default(),
            network_mode: None,
            hypervisor: String::new(),
            architecture: None,
            features: Vec::new(),
            one_cell: false,
            groups: Vec::new(),
        }
    }

    fn check(change: impl FnOnce(&mut RawRequest), expected: &expect_test::Expect) {
        let mut request = raw();
        change(&mut request);
        let text = match validate(&request, &Limits::default()) {
            Ok(valid) => format!("ok: {:?}", valid.resources),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn each_refusal_says_what_and_what_to_do() {
        use expect_test::expect;
        check(
            |_| {},
            &expect!["ok: Resources { vcpus: 1, memory_bytes: 268435456, disk_bytes: 1073741824 }"],
        );
        check(
            |r| r.name = "We b".to_owned(),
            &expect!["the name `We b` has the character `W`; use a-z, 0-9 and -"],
        );
        check(
            |r| r.vcpus = 0,
            &expect!["0 virtual CPUs are not possible; ask for 1 to 64"],
        );
        check(
            |r| r.memory_bytes = 0,
            &expect!["0 bytes of memory are not possible; ask for 64 MiB to 1 TiB"],
        );
        check(
            |r| r.memory_bytes = 4096 * GIB,
            &expect!["4 TiB of memory are not possible; ask for 64 MiB to 1 TiB"],
        );
        check(
            |r| r.memory_bytes = 100_000_000,
            &expect!["100000000 bytes of memory are no whole number of MiB; round to a multiple of 1048576"],
        );
        check(
            |r| r.disk_bytes = MIB,
            &expect!["a disk of 1 MiB is not possible; the image needs 1 GiB, the most is 16 TiB"],
        );
        check(
            |r| r.ssh_keys = vec!["-----BEGIN OPENSSH PRIVATE KEY-----".to_owned()],
            &expect![
                "SSH key number 1 is not usable: it is a private key, which must stay where it is; give the content of a .pub file"
            ],
        );
        check(
            |r| r.network_mode = Some("bridge".to_owned()),
            &expect!["the network mode `bridge` does not exist; use `routed` or `user`, or leave it out"],
        );
        check(
            |r| r.hypervisor = "xen".to_owned(),
            &expect!["the hypervisor `xen` does not exist; use `kvm` or `firecracker`, or leave it out"],
        );
        check(
            |r| r.features = vec!["AVX 512".to_owned()],
            &expect!["`AVX 512` is no architecture or feature; use 1 to 63 of a-z, 0-9, -, _ and ."],
        );
        check(
            |r| r.groups = (0..5).map(|n| format!("g{n}")).collect(),
            &expect!["5 groups are too many; give at most 4"],
        );
    }

    proptest! {
        #[test]
        fn what_is_valid_is_within_the_limits(
            vcpus in any::<u32>(), memory in any::<u64>(), mib in 0_u64..1 << 22, disk in any::<u64>(), image in 0..GIB
        ) {
            let limits = Limits::default();
            for memory_bytes in [memory, mib * MIB] {
                let request = RawRequest { vcpus, memory_bytes, disk_bytes: disk, image_disk_bytes: image, ..raw() };
                if let Ok(valid) = validate(&request, &limits) {
                    prop_assert!((1..=limits.max_vcpus).contains(&valid.resources.vcpus));
                    prop_assert!(valid.resources.memory_bytes <= limits.max_memory_bytes);
                    prop_assert!(valid.resources.disk_bytes >= image);
                }
            }
        }
    }
}
