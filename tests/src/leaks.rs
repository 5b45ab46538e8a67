//! What a deleted VM must not leave behind: processes, taps, keys, names, files.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::{Platform, guest, store, wait};

/// What VMs leave in the world, as far as it can be seen from outside.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    interfaces: Vec<String>,
    guests: Vec<(u32, String)>,
    keys: Vec<String>,
}

impl Traces {
    /// What is there now.
    ///
    /// # Errors
    /// When the store or the system does not answer.
    pub fn of(platform: &Platform) -> Result<Traces> {
        let mut interfaces = platform.sandbox().interfaces()?;
        interfaces.sort();
        Ok(Traces {
            interfaces,
            guests: platform.guests(),
            keys: store::keys_of_vms()?,
        })
    }

    /// Waits until there is nothing but these.
    ///
    /// # Errors
    /// At the limit: what there is.
    pub fn are_all(&self, platform: &Platform, seconds: u64) -> Result<()> {
        wait::until_ok("nothing of deleted VMs is left", seconds, || {
            let now = Traces::of(platform)?;
            ensure!(now == *self, "there is {now:?}, and should be {self:?}");
            Ok(())
        })
    }
}

/// Waits until a VM's name does not resolve any more.
///
/// # Errors
/// When it does after ten seconds.
pub fn no_name(vm: &str) -> Result<()> {
    wait::until_ok(&format!("the name of `{vm}` is gone"), 10, || {
        let found = guest::dig(&format!("{vm}.default.hearth.internal A"))?;
        ensure!(found.is_empty(), "it is {found:?}");
        Ok(())
    })
}

/// Looks for files named after one of these VMs, anywhere in the data folder. One is right to be there for a month:
/// the agent's note of the highest epoch, which refuses an order from before the deletion. It must hold nothing else.
///
/// # Errors
/// Names what was found.
pub fn no_file_names(platform: &Platform, ids: &[String]) -> Result<()> {
    let mut found = vec![];
    walk(platform.data(), &mut |path| {
        let text = path.to_string_lossy();
        if ids.iter().any(|id| text.contains(id.as_str())) && !is_bare_note(path) {
            found.push(path.to_path_buf());
        }
    })?;
    ensure!(found.is_empty(), "files of deleted VMs: {found:?}");
    Ok(())
}

fn is_bare_note(path: &Path) -> bool {
    let note =
        path.extension().is_some_and(|e| e == "vm") && path.parent().is_some_and(|p| p.ends_with("journal"));
    let text = fs::read_to_string(path).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    note && value["gone"] == true && value["assignment"].is_null()
}

fn walk(folder: &Path, see: &mut impl FnMut(&Path)) -> Result<()> {
    // A running platform makes and removes files while we look.
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        see(&path);
        if path.is_dir() && !path.is_symlink() {
            walk(&path, see)?;
        }
    }
    Ok(())
}
