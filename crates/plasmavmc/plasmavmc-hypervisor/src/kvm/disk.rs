//! Overlays and the inspection of base images, by `qemu-img`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::{DiskSpec, HypervisorError, ImageFormat};

/// Longest time for one run of `qemu-img` (it only touches headers here).
const LIMIT: Duration = Duration::from_secs(30);
/// Largest virtual size of an image or overlay: 2 TiB.
pub(crate) const MAX_VIRTUAL_BYTES: u64 = 2 << 40;

/// Runs `qemu-img` and returns what it printed.
pub(crate) async fn qemu_img(args: &[&std::ffi::OsStr], limit: Duration) -> Result<Vec<u8>, HypervisorError> {
    let failed = |message: String| HypervisorError::Program {
        program: "qemu-img",
        message,
    };
    let run = Command::new("qemu-img")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let output = timeout(limit, run)
        .await
        .map_err(|_| HypervisorError::Timeout {
            what: "qemu-img",
            limit_ms,
        })?
        .map_err(|e| {
            failed(format!(
                "cannot start it ({e}); is the package qemu-utils installed?"
            ))
        })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Checks that an image may serve as a base and returns its virtual size in bytes.
///
/// An image can name other files of the host as its backing or data file; started as a base it would
/// hand their contents to the guest. Such an image is refused.
///
/// # Errors
/// [`HypervisorError::BadImage`] and failures of `qemu-img`.
pub async fn inspect(image: &Path, format: ImageFormat) -> Result<u64, HypervisorError> {
    let bad = |reason: &str| HypervisorError::BadImage {
        path: image.to_owned(),
        reason: reason.to_owned(),
    };
    let words = ["info", "--output=json", "-f", format.as_str(), "--"];
    let mut args: Vec<&std::ffi::OsStr> = words.iter().map(|w| w.as_ref()).collect();
    args.push(image.as_os_str());
    let info: Value = serde_json::from_slice(&qemu_img(&args, LIMIT).await?)
        .map_err(|_| bad("qemu-img cannot describe it"))?;
    if info.get("backing-filename").is_some() {
        return Err(bad("it names a backing file"));
    }
    if info.pointer("/format-specific/data/data-file").is_some() {
        return Err(bad("it keeps its data in another file"));
    }
    if info.get("encrypted").and_then(Value::as_bool) == Some(true) {
        return Err(bad("it is encrypted"));
    }
    let size = info
        .get("virtual-size")
        .and_then(Value::as_u64)
        .ok_or_else(|| bad("it has no size"))?;
    if size == 0 || size > MAX_VIRTUAL_BYTES {
        return Err(bad("its virtual size is zero or above 2 TiB"));
    }
    Ok(size)
}

/// Makes `target` as a qcow2 overlay of the image unless it exists. Whole or not at all.
pub(crate) async fn ensure_overlay(disk: &DiskSpec, target: &Path) -> Result<(), HypervisorError> {
    if target.exists() {
        return Ok(());
    }
    let virtual_size = inspect(&disk.image, disk.format).await?;
    let size = disk.size_bytes.max(virtual_size);
    if size > MAX_VIRTUAL_BYTES {
        return Err(HypervisorError::Invalid(format!(
            "disk size {size} is above 2 TiB"
        )));
    }
    let part = target.with_extension("part");
    let size = size.to_string();
    let words = ["create", "-q", "-f", "qcow2", "-F", disk.format.as_str(), "-b"];
    let mut args: Vec<&std::ffi::OsStr> = words.iter().map(|w| w.as_ref()).collect();
    args.extend([disk.image.as_os_str(), part.as_os_str(), size.as_ref()]);
    let made = match qemu_img(&args, LIMIT).await {
        Ok(_) => std::fs::File::open(&part)
            .and_then(|f| f.sync_all())
            .and_then(|()| std::fs::rename(&part, target))
            .map_err(HypervisorError::io("make", target)),
        Err(error) => Err(error),
    };
    if made.is_err() {
        // Nothing half-made may stay behind, least of all on a full disk.
        let _ = std::fs::remove_file(&part);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn skip() -> bool {
        let missing = qemu_img(&["--version".as_ref()], LIMIT).await.is_err();
        if missing {
            println!("SKIPPED: qemu-img is not installed");
        }
        missing
    }

    #[tokio::test]
    async fn an_image_that_names_another_file_is_refused() {
        if skip().await {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (secret, image) = (dir.path().join("secret"), dir.path().join("evil.qcow2"));
        std::fs::write(&secret, vec![7; 65536]).unwrap();
        let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
        let mut args: Vec<&std::ffi::OsStr> = args.iter().map(|w| w.as_ref()).collect();
        args.extend([secret.as_os_str(), image.as_os_str()]);
        qemu_img(&args, LIMIT).await.unwrap();
        let error = inspect(&image, ImageFormat::Qcow2).await.unwrap_err();
        assert!(error.to_string().contains("names a backing file"), "{error}");
        let disk = DiskSpec {
            image,
            format: ImageFormat::Qcow2,
            size_bytes: 0,
        };
        let target = dir.path().join("disk.qcow2");
        assert!(ensure_overlay(&disk, &target).await.is_err());
        assert!(!target.exists() && !target.with_extension("part").exists());
    }

    #[tokio::test]
    async fn an_overlay_has_the_larger_size_and_is_made_once() {
        if skip().await {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("base.raw");
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        let target = dir.path().join("disk.qcow2");
        let disk = DiskSpec {
            image,
            format: ImageFormat::Raw,
            size_bytes: 8 << 20,
        };
        ensure_overlay(&disk, &target).await.unwrap();
        let info: Value = serde_json::from_slice(
            &qemu_img(
                &["info".as_ref(), "--output=json".as_ref(), target.as_os_str()],
                LIMIT,
            )
            .await
            .unwrap(),
        )
        .unwrap();
        assert_eq!(info["virtual-size"], 8 << 20);
        let before = std::fs::metadata(&target).unwrap().modified().unwrap();
        ensure_overlay(&disk, &target).await.unwrap();
        assert_eq!(before, std::fs::metadata(&target).unwrap().modified().unwrap());
    }
}
