//! What a machine is made of.

use std::fmt;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::HypervisorError;

/// Smallest memory that a guest is started with: below it kernels do not come up.
const MIN_MEMORY_MIB: u64 = 32;
/// Largest number of virtual CPUs that q35 takes without an IOMMU.
pub(crate) const MAX_VCPUS: u32 = 255;

/// Name of a machine on this host; also the name of its folder.
///
/// 1 to 64 characters out of `0-9`, `a-z` and `-`, not starting with `-`: it can never leave its folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

impl MachineId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MachineId {
    type Error = HypervisorError;

    fn try_from(text: String) -> Result<Self, HypervisorError> {
        let fits = (1..=64).contains(&text.len())
            && !text.starts_with('-')
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase() || b == b'-');
        if fits {
            Ok(Self(text))
        } else {
            Err(HypervisorError::Invalid(format!("machine id `{text}`")))
        }
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Format of a base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Plain bytes.
    Raw,
}

impl ImageFormat {
    /// The name that QEMU knows it by.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// The root disk: an overlay over a base image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The base image; absolute, only read.
    pub image: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Size of the overlay in bytes; 0 takes the image's virtual size.
    pub size_bytes: u64,
}

/// One TCP port of the host that leads to a port of the guest (user network).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Where the host listens.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest_port: u16,
}

/// How the guest's network card reaches the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetBackend {
    /// A tap device that exists already.
    Tap {
        /// Its name.
        ifname: String,
    },
    /// QEMU's user-mode network: no privilege, only the given forwards.
    User {
        /// Ports of the host that lead to the guest.
        forwards: Vec<Forward>,
        /// Whether the guest may open connections of its own. It then also reaches the host's
        /// loopback services (by 10.0.2.2), which is why the default of the agent is no.
        outbound: bool,
    },
}

/// The network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// MAC address, six hexadecimal pairs.
    pub mac: String,
    /// What is behind it.
    pub backend: NetBackend,
}

/// Everything that a backend needs to start a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Which machine.
    pub id: MachineId,
    /// Incarnation, stored and returned.
    pub epoch: u64,
    /// Version of the specification, stored and returned.
    pub generation: u64,
    /// Name for people; shown in process lists.
    pub name: String,
    /// Virtual CPUs, 1 to 255.
    pub vcpus: u32,
    /// Memory in MiB, at least 32.
    pub memory_mib: u64,
    /// Root disk.
    pub disk: DiskSpec,
    /// Read-only second drive (NoCloud seed), if any.
    pub seed: Option<PathBuf>,
    /// Network card, if any.
    pub nic: Option<NicSpec>,
    /// It could be started on another host: the guard of this one stops it when it loses its lease.
    #[serde(default)]
    pub movable: bool,
}

impl MachineSpec {
    /// Checks the ranges; backends call it before they touch anything.
    ///
    /// # Errors
    /// [`HypervisorError::Invalid`] with the first value that does not fit.
    pub fn validate(&self) -> Result<(), HypervisorError> {
        let invalid = |what: String| Err(HypervisorError::Invalid(what));
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return invalid(format!("vcpus {} is not within 1 to {MAX_VCPUS}", self.vcpus));
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return invalid(format!(
                "memory {} MiB is below {MIN_MEMORY_MIB} MiB",
                self.memory_mib
            ));
        }
        if !self.disk.image.is_absolute() {
            return invalid(format!(
                "image path `{}` is not absolute",
                self.disk.image.display()
            ));
        }
        if let Some(nic) = &self.nic {
            let pairs: Vec<&str> = nic.mac.split(':').collect();
            let hex = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            if pairs.len() != 6 || !pairs.iter().all(hex) {
                return invalid(format!("MAC address `{}`", nic.mac));
            }
            if let NetBackend::Tap { ifname } = &nic.backend {
                let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if ifname.is_empty() || ifname.len() > 15 || !ifname.bytes().all(plain) {
                    return invalid(format!("tap device `{ifname}`"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_cannot_leave_their_folder() {
        for bad in ["", "..", "a/b", "-x", "A", "a.b", &"a".repeat(65)] {
            assert!(MachineId::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        for good in ["a", "0190a1b2-0000-7000-8000-000000000001"] {
            assert!(MachineId::try_from(good.to_owned()).is_ok(), "{good}");
        }
    }
}
