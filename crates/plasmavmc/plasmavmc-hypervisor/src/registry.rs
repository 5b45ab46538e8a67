//! Backends by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Hypervisor, HypervisorError};

/// Name that an empty wish stands for.
const DEFAULT: &str = "kvm";

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
