//! Root disks for Firecracker: raw files, made whole from an image.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use crate::kvm::disk::{MAX_VIRTUAL_BYTES, inspect, qemu_img};
use crate::{DiskSpec, HypervisorError};

/// Longest time for copying an image.
const COPY_LIMIT: Duration = Duration::from_secs(600);

/// Makes `target` as a copy of the image unless it exists. Whole or not at all; zeros take no space.
pub(super) async fn ensure(disk: &DiskSpec, target: &Path) -> Result<(), HypervisorError> {
    if target.exists() {
        return Ok(());
    }
    let size = disk.size_bytes.max(inspect(&disk.image, disk.format).await?);
    if size > MAX_VIRTUAL_BYTES {
        return Err(HypervisorError::Invalid(format!(
            "disk size {size} is above 2 TiB"
        )));
    }
    let part = target.with_extension("part");
    let words = ["convert", "-q", "-O", "raw", "-f", disk.format.as_str(), "--"];
    let mut args: Vec<&std::ffi::OsStr> = words.iter().map(|w| w.as_ref()).collect();
    args.extend([disk.image.as_os_str(), part.as_os_str()]);
    let made = match qemu_img(&args, COPY_LIMIT).await {
        Ok(_) => OpenOptions::new()
            .write(true)
            .open(&part)
            .and_then(|f| {
                f.set_len(size)?;
                f.sync_all()
            })
            .and_then(|()| fs::rename(&part, target))
            .and_then(|()| File::open(target.parent().unwrap_or(target))?.sync_all())
            .map_err(HypervisorError::io("make", target)),
        Err(error) => Err(error),
    };
    if made.is_err() {
        // Nothing half-made may stay behind, least of all on a full disk.
        let _ = fs::remove_file(&part);
    }
    made
}
