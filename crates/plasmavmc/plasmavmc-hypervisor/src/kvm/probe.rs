//! Which accelerator guests get, decided by trying.
//!
//! On nested hosts `/dev/kvm` may open, and hand-made toy guests may run, while every ordinary kernel
//! hangs. So `auto` boots a real kernel once per boot of the host, with a deadline, and remembers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::intent::write_durably;
use crate::{HypervisorError, host_boot_id};

/// What the tiny image prints on its serial console as its first act.
pub const MARKER: &str = "hearth-tiny: kernel is up";
/// How long a kernel may take to that point. A working KVM needs about a second.
const DEADLINE: Duration = Duration::from_secs(12);
/// How long another process may take to reach its verdict before this one looks for itself.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const VERDICT: &str = "kvm-verdict.json";

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// KVM where it proves itself, else TCG.
    #[default]
    Auto,
    /// KVM, untested.
    Kvm,
    /// TCG.
    Tcg,
}

/// What guests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorKind {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator: any host, about a tenth of the speed.
    Tcg,
}

impl AcceleratorKind {
    /// `kvm` or `tcg`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The decision, with its reason for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerator {
    /// Which.
    pub kind: AcceleratorKind,
    /// Why.
    pub reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    format: u32,
    boot_id: String,
    accelerator: Accelerator,
}

fn tcg(reason: impl Into<String>) -> Accelerator {
    Accelerator {
        kind: AcceleratorKind::Tcg,
        reason: reason.into(),
    }
}

/// Decides. With [`Preference::Auto`] the verdict is kept in `memory` (a folder) for this boot of the
/// host; several processes that share the folder try only once between them.
///
/// `image` is the qcow2 file of the tiny image, whose kernel is tried.
///
/// # Errors
/// With [`Preference::Kvm`] when `/dev/kvm` cannot be opened: a wish is never silently replaced.
pub async fn decide(
    preference: Preference,
    image: Option<&Path>,
    memory: &Path,
) -> Result<Accelerator, HypervisorError> {
    let device = File::options().read(true).write(true).open("/dev/kvm");
    match (preference, device) {
        (Preference::Tcg, _) => Ok(tcg("the configuration asks for it")),
        (Preference::Kvm, Ok(_)) => Ok(Accelerator {
            kind: AcceleratorKind::Kvm,
            reason: "the configuration asks for it; not tried".to_owned(),
        }),
        (Preference::Kvm, Err(error)) => Err(HypervisorError::io("open", "/dev/kvm")(error)),
        (Preference::Auto, Err(error)) => Ok(tcg(format!("/dev/kvm cannot be opened: {error}"))),
        (Preference::Auto, Ok(_)) => remembered_or_tried(image, memory).await,
    }
}

async fn remembered_or_tried(image: Option<&Path>, memory: &Path) -> Result<Accelerator, HypervisorError> {
    fs::create_dir_all(memory).map_err(HypervisorError::io("make", memory))?;
    if let Some(known) = recall(memory) {
        return Ok(known);
    }
    let Some(image) = image.filter(|i| i.is_file()) else {
        // Not remembered: with an image the next start decides better.
        return Ok(tcg(
            "/dev/kvm is there but no image is at hand to try it with (`probe_image`)",
        ));
    };
    let _lock = wait_for_lock(memory).await;
    if let Some(known) = recall(memory) {
        return Ok(known);
    }
    let accelerator = try_kvm(image, memory).await?;
    let verdict = Verdict {
        format: 1,
        boot_id: host_boot_id(),
        accelerator: accelerator.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&verdict).unwrap_or_default();
    if let Err(error) = write_durably(memory, VERDICT, &bytes) {
        tracing::warn!(%error, "the verdict on KVM could not be stored; the next start tries again");
    }
    Ok(accelerator)
}

fn recall(memory: &Path) -> Option<Accelerator> {
    let verdict: Verdict = serde_json::from_slice(&fs::read(memory.join(VERDICT)).ok()?).ok()?;
    let boot_id = host_boot_id();
    (verdict.format == 1 && !boot_id.is_empty() && verdict.boot_id == boot_id).then_some(verdict.accelerator)
}

/// The lock is a courtesy: whoever waited too long goes on without it.
async fn wait_for_lock(memory: &Path) -> Option<Flock<File>> {
    let path: PathBuf = memory.join("kvm-verdict.lock");
    let started = Instant::now();
    while started.elapsed() < LOCK_LIMIT {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .ok()?;
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            return Some(lock);
        }
        tokio::time::sleep(POLL).await;
    }
    None
}

/// Boots the image under KVM, writing nothing to it, and looks for the marker on its console.
async fn try_kvm(image: &Path, memory: &Path) -> Result<Accelerator, HypervisorError> {
    let serial = memory.join(format!("kvm-try-{}.log", std::process::id()));
    let errors = serial.with_extension("err");
    let stderr = File::create(&errors).map_err(HypervisorError::io("make", &errors))?;
    let drive = serde_json::json!({
        "driver": "qcow2", "node-name": "root", "read-only": true,
        "file": { "driver": "file", "filename": image },
    });
    let child = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "q35",
            "-accel",
            "kvm",
        ])
        .args([
            "-cpu",
            "host",
            "-m",
            "256",
            "-sandbox",
            "on",
            "-blockdev",
            &drive.to_string(),
        ])
        .args([
            "-device",
            "virtio-blk-pci,drive=root,bootindex=0",
            "-no-reboot",
            "-serial",
        ])
        .arg(format!("file:{}", serial.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|e| HypervisorError::Program {
        program: "qemu-system-x86_64",
        message: format!("cannot start it ({e}); is the package qemu-system-x86 installed?"),
    })?;
    let started = Instant::now();
    let accelerator = loop {
        let came_up =
            fs::read(&serial).is_ok_and(|t| t.windows(MARKER.len()).any(|w| w == MARKER.as_bytes()));
        if came_up {
            let ms = started.elapsed().as_millis();
            break Accelerator {
                kind: AcceleratorKind::Kvm,
                reason: format!("a kernel came up under KVM in {ms} ms"),
            };
        }
        if let Ok(Some(status)) = child.try_wait() {
            let words = fs::read_to_string(&errors).unwrap_or_default();
            let last = words
                .lines()
                .rfind(|l| !l.trim().is_empty())
                .unwrap_or("no message");
            break tcg(format!(
                "/dev/kvm opens, but QEMU ended under KVM: {last} ({status})"
            ));
        }
        if started.elapsed() > DEADLINE {
            let s = DEADLINE.as_secs();
            break tcg(format!(
                "/dev/kvm opens, but an ordinary kernel did not come up under it within {s} s"
            ));
        }
        tokio::time::sleep(POLL).await;
    };
    // It may have ended by itself; either way it is reaped here.
    let _ = child.kill().await;
    let _ = fs::remove_file(&serial);
    let _ = fs::remove_file(&errors);
    Ok(accelerator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_verdict_holds_for_one_boot_of_the_host_only() {
        let dir = tempfile::tempdir().unwrap();
        let kvm = Accelerator {
            kind: AcceleratorKind::Kvm,
            reason: "tried".to_owned(),
        };
        for (boot_id, expected) in [(host_boot_id(), Some(kvm.clone())), ("another".to_owned(), None)] {
            let verdict = Verdict {
                format: 1,
                boot_id,
                accelerator: kvm.clone(),
            };
            fs::write(dir.path().join(VERDICT), serde_json::to_vec(&verdict).unwrap()).unwrap();
            assert_eq!(recall(dir.path()), expected);
        }
    }

    #[tokio::test]
    async fn a_wish_for_tcg_needs_no_trial() {
        let dir = tempfile::tempdir().unwrap();
        let decided = decide(Preference::Tcg, None, dir.path()).await.unwrap();
        assert_eq!(decided, tcg("the configuration asks for it"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
