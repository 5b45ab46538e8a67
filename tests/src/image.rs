//! The tiny guest image, built once for each state of its sources.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{Cmd, root, target_dir};

/// The image's file. It is kept under the target folder by the hash of what it is made from.
///
/// # Errors
/// When it cannot be built; the error has the builder's own words.
pub fn tiny_image() -> Result<PathBuf> {
    let sources = Cmd::new("sh")
        .words("-c")
        .arg("find images/tiny -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16")
        .dir(&root())
        .ok()?;
    let profile_dir = target_dir()?;
    let target = profile_dir.parent().context("the target folder has no parent")?;
    let folder = target.join("test-images");
    let file = folder.join(format!("tiny-{}.qcow2", sources.stdout.trim()));
    if !file.is_file() {
        std::fs::create_dir_all(&folder)?;
        // The builder writes to a second name and renames: a killed build leaves no half image here.
        Cmd::new(root().join("images/tiny/build.sh"))
            .arg(&file)
            .limit_s(300)
            .ok()?;
    }
    Ok(file)
}
