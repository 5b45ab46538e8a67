//! What Firecracker is told before a guest runs: pure, so that a test can bend it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::api::Request;
use crate::{HypervisorError, MachineSpec, NetBackend};

/// Most virtual CPUs that Firecracker takes.
pub(super) const MAX_VCPUS: u32 = 32;
/// File names in a machine's folder.
pub(super) const DISK: &str = "disk.raw";
pub(super) const LOG: &str = "firecracker.log";

/// The kernel of all guests: Firecracker has no firmware that could find one on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The kernel: an ELF `vmlinux`, or a bzImage where the version takes one.
    pub kernel: PathBuf,
    /// Its initial file system, if it needs one.
    pub initrd: Option<PathBuf>,
    /// Its command line. Must name the root file system and the console `ttyS0`; `reboot=k` lets a
    /// reboot end the machine.
    pub args: String,
}

fn text(path: &Path) -> Result<&str, HypervisorError> {
    path.to_str()
        .ok_or_else(|| HypervisorError::Invalid(format!("path `{}` is not UTF-8", path.display())))
}

/// Refuses what Firecracker cannot do, before anything is touched.
pub(super) fn check(spec: &MachineSpec) -> Result<(), HypervisorError> {
    spec.validate()?;
    if spec.vcpus > MAX_VCPUS {
        return Err(HypervisorError::Unsupported {
            hypervisor: "firecracker",
            what: format!("give a machine {} virtual CPUs; at most {MAX_VCPUS}", spec.vcpus),
        });
    }
    if let Some(NetBackend::User { .. }) = spec.nic.as_ref().map(|n| &n.backend) {
        return Err(HypervisorError::Unsupported {
            hypervisor: "firecracker",
            what: "use the user-mode network; use `kvm`, or a node whose network is `routed`".to_owned(),
        });
    }
    Ok(())
}

/// The requests that make `spec` run, in their order; the last one starts it.
///
/// # Errors
/// [`HypervisorError::Invalid`] for a path that JSON cannot carry.
pub fn requests(spec: &MachineSpec, boot: &Boot) -> Result<Vec<Request>, HypervisorError> {
    // Info, because the line about its end is the only trace of a guest that switched itself off.
    let mut all = vec![Request::put("/logger", json!({"log_path": LOG, "level": "Info"}))];
    all.push(Request::put(
        "/machine-config",
        json!({"vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib}),
    ));
    let mut source = json!({"kernel_image_path": text(&boot.kernel)?, "boot_args": boot.args});
    if let (Some(initrd), Value::Object(members)) = (&boot.initrd, &mut source) {
        members.insert("initrd_path".to_owned(), text(initrd)?.into());
    }
    all.push(Request::put("/boot-source", source));
    // No root device in Firecracker's sense: it would append `root=/dev/vda` to the command line, and
    // the system may well lie on a partition. Writeback makes a guest's flush a real one.
    all.push(Request::put(
        "/drives/root",
        json!({"drive_id": "root", "path_on_host": DISK, "is_root_device": false, "is_read_only": false,
               "cache_type": "Writeback"}),
    ));
    if let Some(seed) = &spec.seed {
        all.push(Request::put(
            "/drives/seed",
            json!({"drive_id": "seed", "path_on_host": text(seed)?, "is_root_device": false, "is_read_only": true}),
        ));
    }
    if let Some(nic) = &spec.nic
        && let NetBackend::Tap { ifname } = &nic.backend
    {
        all.push(Request::put(
            "/network-interfaces/net0",
            json!({"iface_id": "net0", "host_dev_name": ifname, "guest_mac": nic.mac}),
        ));
    }
    all.push(Request::put("/entropy", json!({})));
    all.push(Request::put("/actions", json!({"action_type": "InstanceStart"})));
    Ok(all)
}
