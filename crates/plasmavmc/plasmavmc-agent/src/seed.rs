//! NoCloud seed drives: how a guest in a user network learns its name and keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use plasmavmc_hypervisor::MachineId;
use tokio::process::Command;

use crate::net::Guest;

const LIMIT: Duration = Duration::from_secs(20);

/// Why there is no seed drive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    #[error("cannot write the seed drive")]
    Io(#[from] std::io::Error),
    #[error("genisoimage: {0}")]
    Tool(String),
}

fn path(folder: &Path, id: &MachineId) -> PathBuf {
    folder.join(format!("{id}.iso"))
}

/// The `meta-data` file. Values are JSON strings, which are YAML strings too.
fn meta_data(guest: &Guest) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        quote(guest.id.as_str()),
        quote(&guest.hostname)
    );
    if !guest.ssh_keys.is_empty() {
        text.push_str("public-keys:\n");
        for key in &guest.ssh_keys {
            text.push_str(&format!("  - {}\n", quote(key.trim())));
        }
    }
    text
}

/// Makes the drive, labelled `cidata`. Whole or not at all.
pub(crate) async fn make(folder: &Path, guest: &Guest) -> Result<PathBuf, SeedError> {
    fs::create_dir_all(folder)?;
    let target = path(folder, &guest.id);
    let (files, part) = (target.with_extension("files"), target.with_extension("part"));
    fs::create_dir_all(&files)?;
    let made = async {
        fs::write(files.join("meta-data"), meta_data(guest))?;
        let user_data = if guest.user_data.is_empty() {
            "#cloud-config\n"
        } else {
            &guest.user_data
        };
        fs::write(files.join("user-data"), user_data)?;
        let run = Command::new("genisoimage")
            .args(["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"])
            .arg(&part)
            .arg(&files)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, run)
            .await
            .map_err(|_| SeedError::Tool(format!("not done after {} s", LIMIT.as_secs())))?
            .map_err(|e| {
                SeedError::Tool(format!("cannot start it ({e}); install the package genisoimage"))
            })?;
        if !output.status.success() {
            return Err(SeedError::Tool(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        fs::rename(&part, &target)?;
        Ok(target.clone())
    };
    let made = made.await;
    // Keys and user data stand in them; neither may stay when something failed.
    let _ = fs::remove_dir_all(&files);
    let _ = fs::remove_file(&part);
    made
}

/// Removes the drive; it need not be there.
pub(crate) fn remove(folder: &Path, id: &MachineId) -> std::io::Result<()> {
    match fs::remove_file(path(folder, id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tests::guest;

    #[test]
    fn a_hostile_key_stays_one_string() {
        let mut guest = guest("vm-1");
        guest.ssh_keys = vec![
            "ssh-ed25519 AAAA a@b".to_owned(),
            "x\nlocal-hostname: evil".to_owned(),
        ];
        let text = meta_data(&guest);
        assert!(text.contains("  - \"ssh-ed25519 AAAA a@b\"\n"), "{text}");
        assert_eq!(
            text.lines().filter(|l| l.starts_with("local-hostname")).count(),
            1,
            "{text}"
        );
    }
}
