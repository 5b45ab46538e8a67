//! Machines that could be started on another host, for a guard, which is the owner of none of them.
//!
//! They are found as an owner finds them: by their records, and their processes by pid, start time and boot id, or,
//! between a start and its record, by the folder that the process itself names. Nothing is found by name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::folders::Claim;
use crate::intent::Intent;
use crate::{HypervisorError, MachineId, ProcessIdentity, firecracker, host_boot_id, kvm, process, registry};

/// The backends that make processes, with the words by which these claim their folders.
const BACKENDS: [(&str, Claim); 2] = [
    ("kvm", kvm::claimed_folder),
    ("firecracker", firecracker::claimed_folder),
];

/// A movable machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovableMachine {
    /// Which.
    pub id: MachineId,
    /// Its incarnation.
    pub epoch: u64,
    /// Its process.
    pub process: ProcessIdentity,
}

/// The movable machines of all backends below an agent's data folder that run now.
///
/// A record that cannot be read is reported and passed over: what is not known to be movable is not touched.
///
/// # Errors
/// When a folder cannot be listed.
pub fn movable_machines(data_dir: &Path) -> Result<Vec<MovableMachine>, HypervisorError> {
    let boot = host_boot_id();
    let mut found = Vec::new();
    for (name, claim) in BACKENDS {
        let root = registry::folder_of(data_dir, name);
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(HypervisorError::io("list", &root)(error)),
        };
        for entry in entries {
            let folder = entry.map_err(HypervisorError::io("list", &root))?.path();
            match Intent::read(&folder) {
                Ok(Some(intent)) if intent.spec.movable && intent.boot_id == boot => {
                    found.extend(process_of(&folder, &intent, claim).map(|process| MovableMachine {
                        id: intent.spec.id.clone(),
                        epoch: intent.spec.epoch,
                        process,
                    }));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a machine's record cannot be read"),
            }
        }
    }
    Ok(found)
}

fn process_of(folder: &Path, intent: &Intent, claim: Claim) -> Option<ProcessIdentity> {
    if let Some(run) = &intent.run {
        return run.process.is_alive().then(|| run.process.clone());
    }
    if intent.ended.is_some() {
        return None;
    }
    let folder: PathBuf = folder.canonicalize().ok()?;
    let pid = process::all()
        .into_iter()
        .find(|pid| claim(*pid).as_deref() == Some(&*folder))?;
    ProcessIdentity::of(pid).filter(ProcessIdentity::is_alive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Run;
    use crate::{DiskSpec, ImageFormat, MachineSpec};

    fn write(dir: &Path, name: &str, movable: bool, process: &ProcessIdentity) {
        let folder = dir.join("vms").join(name);
        fs::create_dir_all(&folder).unwrap();
        let spec = MachineSpec {
            id: MachineId::try_from(name.to_owned()).unwrap(),
            epoch: 3,
            generation: 1,
            name: name.to_owned(),
            vcpus: 1,
            memory_mib: 64,
            disk: DiskSpec {
                image: "/i".into(),
                format: ImageFormat::Raw,
                size_bytes: 0,
            },
            seed: None,
            nic: None,
            movable,
        };
        let mut intent = Intent::new(spec, "tcg", host_boot_id());
        intent.run = Some(Run {
            process: process.clone(),
            started_at_unix_ms: 0,
        });
        intent.write(&folder).unwrap();
    }

    #[test]
    fn only_movable_machines_whose_very_process_lives_are_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(movable_machines(dir.path()).unwrap().is_empty());
        let alive = ProcessIdentity::of(std::process::id()).unwrap();
        let dead = ProcessIdentity {
            start_ticks: alive.start_ticks + 1,
            ..alive.clone()
        };
        write(dir.path(), "movable", true, &alive);
        write(dir.path(), "local", false, &alive);
        write(dir.path(), "ended", true, &dead);
        let broken = dir.path().join("vms/broken");
        fs::create_dir_all(&broken).unwrap();
        fs::write(broken.join("intent.json"), "{").unwrap();
        let found = movable_machines(dir.path()).unwrap();
        let found: Vec<_> = found.iter().map(|m| (m.id.as_str(), m.epoch)).collect();
        assert_eq!(found, [("movable", 3)]);
    }
}
