//! The last observation of every VM, for whichever stream to the control plane is open.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use plasmavmc_client::agent::{Observed, VmState};
use plasmavmc_hypervisor::MachineId;
use tokio::sync::watch;

/// Bounded by the number of VMs: a newer observation of a VM replaces the older one.
#[derive(Debug)]
pub(crate) struct Observations {
    latest: Mutex<BTreeMap<MachineId, Observed>>,
    version: watch::Sender<u64>,
}

impl Observations {
    pub(crate) fn new() -> Self {
        Self {
            latest: Mutex::default(),
            version: watch::channel(0).0,
        }
    }

    /// Stores an observation unless it says what the last one said. Numbers it within its epoch.
    pub(crate) fn put(&self, id: &MachineId, mut observed: Observed) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let last = latest.get(id);
        observed.seq = last.map_or(1, |o| o.seq);
        if last == Some(&observed) {
            return;
        }
        if last.is_some() {
            observed.seq += 1;
        }
        tracing::info!(vm = %id, epoch = observed.epoch, state = observed.state().as_str_name(),
            reason = %observed.reason, "observed");
        latest.insert(id.clone(), observed);
        drop(latest);
        self.version.send_modify(|v| *v += 1);
    }

    /// Forgets a VM that is gone.
    pub(crate) fn forget_gone(&self, id: &MachineId) -> bool {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = latest.get(id).is_none_or(|o| o.state() == VmState::Gone);
        if gone {
            latest.remove(id);
        }
        gone
    }

    /// All of them, by id.
    pub(crate) fn all(&self) -> BTreeMap<MachineId, Observed> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever any of them does.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_and_repetitions_are_silent() {
        let observations = Observations::new();
        let id = MachineId::try_from("a".to_owned()).unwrap();
        let mut changed = observations.subscribe();
        let running = Observed {
            epoch: 1,
            state: VmState::Running as i32,
            ..Default::default()
        };
        observations.put(&id, running.clone());
        assert!(changed.has_changed().unwrap());
        changed.mark_unchanged();
        observations.put(&id, running);
        assert!(!changed.has_changed().unwrap());
        assert!(!observations.forget_gone(&id));
        observations.put(
            &id,
            Observed {
                epoch: 1,
                state: VmState::Gone as i32,
                ..Default::default()
            },
        );
        assert_eq!(observations.all()[&id].seq, 2);
        assert!(observations.forget_gone(&id));
        assert!(observations.all().is_empty());
    }
}
