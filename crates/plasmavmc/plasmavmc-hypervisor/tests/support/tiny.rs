//! Where tests get the tiny guest image from: `HEARTH_TINY_IMAGE`, or built once by `images/tiny/build.sh`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

/// The image, or why there is none (then the test prints SKIPPED and the reason).
pub(crate) fn image() -> Result<PathBuf, String> {
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-img", "qemu-utils"),
    ] {
        if Command::new(program).arg("--version").output().is_err() {
            return Err(format!("`{program}` is not installed (package {package})"));
        }
    }
    if let Some(given) = std::env::var_os("HEARTH_TINY_IMAGE") {
        let given = PathBuf::from(given);
        return given
            .canonicalize()
            .map_err(|e| format!("HEARTH_TINY_IMAGE `{}`: {e}", given.display()));
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../images/tiny");
    let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hearth-tiny.qcow2");
    let lock = File::create(image.with_extension("lock")).map_err(|e| e.to_string())?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e.to_string())?;
    let newest = newest(&sources);
    if fs::metadata(&image)
        .and_then(|m| m.modified())
        .is_ok_and(|built| Some(built) > newest)
    {
        return Ok(image);
    }
    let built = Command::new(sources.join("build.sh"))
        .arg(&image)
        .output()
        .map_err(|e| e.to_string())?;
    if built.status.success() {
        Ok(image)
    } else {
        Err(format!(
            "the tiny image cannot be built: {}",
            String::from_utf8_lossy(&built.stderr).trim()
        ))
    }
}

fn newest(path: &Path) -> Option<std::time::SystemTime> {
    if path.is_dir() {
        fs::read_dir(path)
            .ok()?
            .flatten()
            .filter_map(|e| newest(&e.path()))
            .max()
    } else {
        fs::metadata(path).and_then(|m| m.modified()).ok()
    }
}
