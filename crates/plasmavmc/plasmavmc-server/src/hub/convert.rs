//! The agent's protocol to records and back.

use std::collections::BTreeMap;

use hearth_types::{LabelError, Labels};
use plasmavmc_client::agent::{self, Assignment, ImageRef, Nic, NodeStatus, VmSpec};
use plasmavmc_core::{Cell, Desired, InvalidRequest, NetworkMode, Phase, Resources};

use crate::app::vm::now_ms;
use crate::config::PlasmaConfig;
use crate::store::records::{NodeRecord, ObservedRecord, VERSION, VmRecord};

/// Most NUMA cells of a node that are kept.
const MAX_CELLS: usize = 64;
/// Most features of an agent that are kept.
const MAX_FEATURES: usize = 64;
/// Most images of a node that are kept.
const MAX_IMAGES: usize = 256;

/// Why what an agent says cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("the node's network mode is not known")]
    NetworkMode(#[from] InvalidRequest),
    #[error("the node's labels are not usable")]
    Labels(#[from] LabelError),
    #[error("the state {0} of a VM is not known; is the agent newer than this server?")]
    State(i32),
}

pub(crate) fn node_record(
    status: &NodeStatus,
    agent_version: &str,
    boot_id: &str,
    features: &[String],
) -> Result<NodeRecord, Unusable> {
    let labels: BTreeMap<String, String> = status.labels.clone().into_iter().collect();
    Ok(NodeRecord {
        version: VERSION,
        capacity: Resources {
            vcpus: status.vcpus,
            memory_bytes: status.memory_bytes,
            disk_bytes: status.disk_bytes,
        },
        network_mode: status.network_mode.parse()?,
        accelerator: status.accelerator.clone(),
        accelerator_reason: status.accelerator_reason.clone(),
        labels: Labels::try_from(labels)?,
        agent_version: agent_version.to_owned(),
        boot_id: boot_id.to_owned(),
        features: features.iter().take(MAX_FEATURES).cloned().collect(),
        schedulable: true,
        own_labels: Labels::default(),
        architecture: status.architecture.clone(),
        // One that this server does not know is one that it never asks for.
        hypervisors: status
            .hypervisors
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        cells: status
            .cells
            .iter()
            .take(MAX_CELLS)
            .map(|cell| Cell {
                vcpus: cell.vcpus,
                memory_bytes: cell.memory_bytes,
            })
            .collect(),
        images: status.images.iter().take(MAX_IMAGES).cloned().collect(),
    })
}

pub(crate) fn observed_record(seen: &agent::Observed, reporter: &str) -> Result<ObservedRecord, Unusable> {
    use agent::VmState;
    let phase = match VmState::try_from(seen.state) {
        Ok(VmState::Preparing) => Phase::Preparing,
        Ok(VmState::Starting) => Phase::Starting,
        Ok(VmState::Running) => Phase::Running,
        Ok(VmState::Stopping) => Phase::Stopping,
        Ok(VmState::Stopped) => Phase::Stopped,
        Ok(VmState::Failed) => Phase::Failed,
        Ok(VmState::Gone) => Phase::Gone,
        Ok(VmState::Unspecified) | Err(_) => return Err(Unusable::State(seen.state)),
    };
    Ok(ObservedRecord {
        version: VERSION,
        epoch: seen.epoch,
        generation: seen.observed_generation,
        phase,
        reason: seen.reason.clone(),
        reporter: reporter.to_owned(),
        seq: seen.seq,
        pid: seen.pid,
        started_at_ms: seen.started_at_unix_ms,
        accelerator: seen.accelerator.clone(),
        paused: seen.paused && phase == Phase::Running,
        resets: seen.resets,
        accepted_at_ms: now_ms(),
    })
}

pub(crate) fn assignment(vm: &VmRecord, config: &PlasmaConfig) -> Assignment {
    let power = match (vm.desired, vm.forced) {
        (Desired::Running, _) => agent::Power::On,
        (Desired::Stopped, false) => agent::Power::Off,
        (Desired::Stopped, true) | (Desired::Deleted, _) => agent::Power::OffForced,
    };
    Assignment {
        vm_id: vm.id.to_string(),
        epoch: vm.placed.epoch,
        generation: vm.generation,
        power: power.into(),
        delete: vm.desired == Desired::Deleted,
        spec: Some(spec(vm, config)),
        graceful_stop_timeout_s: vm.stop_timeout_s,
        paused: vm.paused && vm.desired == Desired::Running,
        resets: vm.resets,
        power_generation: vm.power_generation,
    }
}

/// Splits assignments so that no part is much larger than `max_bytes`.
pub(crate) fn in_parts(assignments: Vec<Assignment>, max_bytes: usize) -> Vec<Vec<Assignment>> {
    /// What everything but keys and user data takes at most: names are 63 bytes long.
    const SMALL_FIELDS: usize = 1024;
    let (mut parts, mut bytes): (Vec<Vec<Assignment>>, usize) = (Vec::new(), usize::MAX);
    for assignment in assignments {
        let variable = assignment.spec.as_ref().map_or(0, |spec| {
            spec.user_data.len() + spec.ssh_keys.iter().map(String::len).sum::<usize>()
        });
        bytes = bytes.saturating_add(variable + SMALL_FIELDS);
        match parts.last_mut() {
            Some(part) if bytes <= max_bytes => part.push(assignment),
            _ => {
                parts.push(vec![assignment]);
                bytes = variable + SMALL_FIELDS;
            }
        }
    }
    parts
}

fn spec(vm: &VmRecord, config: &PlasmaConfig) -> VmSpec {
    VmSpec {
        name: vm.name.to_string(),
        project: vm.project.to_string(),
        hostname: vm.name.to_string(),
        vcpus: vm.resources.vcpus,
        memory_bytes: vm.resources.memory_bytes,
        image: Some(ImageRef {
            id: vm.image.id.to_string(),
            sha256: vm.image.sha256.clone(),
            size_bytes: vm.image.size_bytes,
            format: vm.image.format.as_str().to_owned(),
        }),
        disk_bytes: vm.resources.disk_bytes,
        nic: Some(nic(vm, config)),
        ssh_keys: vm.ssh_keys.clone(),
        user_data: vm.user_data.clone(),
        movable: vm.ha,
        hypervisor: vm.hypervisor.as_str().to_owned(),
    }
}

/// The network card. On routed networks the gateway is also the resolver (the agent relays to FlashDNS); inside
/// QEMU's user-mode network the guest's own addresses are the hypervisor's affair.
fn nic(vm: &VmRecord, config: &PlasmaConfig) -> Nic {
    let address = vm.placed.address;
    let [a, b, c, d] = address.octets();
    let routed = vm.placed.network_mode == NetworkMode::Routed;
    let network = if routed {
        config.routed_network
    } else {
        config.user_network
    };
    let gateway = network.gateway().to_string();
    Nic {
        // 52 has the bit of locally administered addresses; the rest is the IPv4 address, which is unique.
        mac: format!("52:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}"),
        address: address.to_string(),
        prefix_length: network.prefix_length().into(),
        resolvers: if routed { vec![gateway.clone()] } else { Vec::new() },
        gateway: if routed { gateway } else { String::new() },
        search_domain: format!("{}.{}", vm.project, config.domain),
    }
}
