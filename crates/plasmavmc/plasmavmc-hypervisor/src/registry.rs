//! Backends by name: the only place that knows them all.
//!
//! Adding one: a module with a [`Hypervisor`], and a line in [`open_backend`]. Whoever uses this crate
//! passes names and settings through without reading them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kvm::probe;
use crate::{FirecrackerBackend, Hypervisor, HypervisorError, KvmBackend, Preference};

/// Name that an empty wish stands for.
const DEFAULT: &str = "kvm";
/// What [`open_backend`] knows.
#[cfg(not(feature = "fake"))]
const KNOWN: &[&str] = &["firecracker", "kvm"];
#[cfg(feature = "fake")]
const KNOWN: &[&str] = &["firecracker", "imitation", "kvm"];

/// What the host offers to every backend.
#[derive(Debug, Clone)]
pub struct Host {
    /// Folder for the backends' folders.
    pub data_dir: PathBuf,
    /// What QEMU's guests should run on.
    pub accelerator: Preference,
    /// The tiny image, whose kernel KVM is tried with.
    pub probe_image: Option<PathBuf>,
    /// Where the verdict on KVM is kept.
    pub verdict_dir: PathBuf,
}

/// The hypervisors of this host. Only backends that can really run are entered.
#[derive(Debug, Clone, Default)]
pub struct HypervisorRegistry {
    backends: BTreeMap<&'static str, Arc<dyn Hypervisor>>,
}

impl HypervisorRegistry {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// QEMU, and every backend that `settings` names, each with its own settings.
    ///
    /// # Errors
    /// For a name that no backend has, for settings that its backend does not know, and when a backend
    /// cannot run here: none is left out silently.
    pub async fn open(host: &Host, settings: &BTreeMap<String, Value>) -> Result<Self, HypervisorError> {
        let mut registry = Self::new();
        let without = Value::Object(serde_json::Map::new());
        if !settings.contains_key(DEFAULT) {
            registry.register(open_backend(DEFAULT, host, &without).await?);
        }
        for (name, own) in settings {
            registry.register(open_backend(name, host, own).await?);
        }
        Ok(registry)
    }

    /// Enters a backend under its own name; a second of that name replaces the first.
    pub fn register(&mut self, backend: Arc<dyn Hypervisor>) {
        self.backends.insert(backend.name(), backend);
    }

    /// The backend of that name; an empty name means `kvm`.
    ///
    /// # Errors
    /// [`HypervisorError::Unknown`] with the names that there are.
    pub fn get(&self, name: &str) -> Result<&Arc<dyn Hypervisor>, HypervisorError> {
        let wanted = if name.is_empty() { DEFAULT } else { name };
        self.backends.get(wanted).ok_or_else(|| HypervisorError::Unknown {
            name: wanted.to_owned(),
            known: if self.backends.is_empty() {
                "none".to_owned()
            } else {
                self.backends.keys().copied().collect::<Vec<_>>().join(", ")
            },
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Hypervisor>> {
        self.backends.values()
    }
}

/// Makes one backend. Each has a folder of its own; QEMU's is older than the others and named `vms`.
async fn open_backend(
    name: &str,
    host: &Host,
    settings: &Value,
) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let root = folder_of(&host.data_dir, name);
    match name {
        "kvm" => {
            let NoSettings {} = read(name, settings)?;
            let image = host.probe_image.as_deref();
            let accelerator = probe::decide(host.accelerator, image, &host.verdict_dir).await?;
            Ok(Arc::new(KvmBackend::new(&root, accelerator)?))
        }
        "firecracker" => Ok(Arc::new(FirecrackerBackend::new(&root, read(name, settings)?)?)),
        #[cfg(feature = "fake")]
        "imitation" => {
            let NoSettings {} = read(name, settings)?;
            let host = crate::fake::FakeHost::new();
            Ok(Arc::new(crate::fake::FakeHypervisor::named("imitation", host)))
        }
        other => Err(HypervisorError::Unknown {
            name: other.to_owned(),
            known: KNOWN.join(", "),
        }),
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

fn read<T: DeserializeOwned>(name: &str, settings: &Value) -> Result<T, HypervisorError> {
    T::deserialize(settings)
        .map_err(|e| HypervisorError::Invalid(format!("settings of hypervisor `{name}`: {e}")))
}

pub(crate) fn folder_of(data_dir: &Path, name: &str) -> PathBuf {
    if name == DEFAULT {
        data_dir.join("vms")
    } else {
        data_dir.join(format!("vms-{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host(dir: &Path) -> Host {
        Host {
            data_dir: dir.to_owned(),
            accelerator: Preference::Tcg,
            probe_image: None,
            verdict_dir: dir.to_owned(),
        }
    }

    #[tokio::test]
    async fn wrong_names_and_settings_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        let with_unknown = json!({"program": "/bin/true", "kernel": kernel, "speed": 9});
        let without_file = json!({"program": "/bin/true", "kernel": kernel});
        for (name, settings, expected) in [
            ("xen", json!({}), "no hypervisor `xen` on this node"),
            (
                "kvm",
                json!({"speed": 9}),
                "settings of hypervisor `kvm`: unknown field `speed`",
            ),
            ("firecracker", json!({}), "missing field `program`"),
            ("firecracker", with_unknown, "unknown field `speed`"),
            (
                "firecracker",
                json!({"program": "fc", "kernel": "/k"}),
                "path `fc` of hypervisor",
            ),
            ("firecracker", without_file, "cannot open"),
        ] {
            let settings = BTreeMap::from([(name.to_owned(), settings)]);
            let error = HypervisorRegistry::open(&host(dir.path()), &settings)
                .await
                .unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn every_known_name_opens_and_kvm_is_always_there() {
        let dir = tempfile::tempdir().unwrap();
        let registry = HypervisorRegistry::open(&host(dir.path()), &BTreeMap::new())
            .await
            .unwrap();
        assert_eq!(registry.get("").unwrap().name(), "kvm");
        assert!(registry.get("firecracker").is_err());
        let kernel = dir.path().join("kernel");
        std::fs::write(&kernel, "k").unwrap();
        for name in KNOWN {
            let own = match *name {
                "firecracker" => json!({"program": "/bin/true", "kernel": kernel}),
                _ => json!({}),
            };
            let settings = BTreeMap::from([((*name).to_owned(), own)]);
            let registry = HypervisorRegistry::open(&host(dir.path()), &settings)
                .await
                .unwrap();
            assert_eq!(registry.get(name).unwrap().name(), *name);
            assert!(registry.get("kvm").is_ok());
        }
    }
}
