//! Records as the REST interface shows them.

use hearth_types::Name;
use plasmavmc_client::types::{
    Group, GroupMember, GroupRule, Image, Node, NodeState, Operation, OperationState as Progress,
    OperationStep, Power, Vm, VmState,
};
use plasmavmc_core::{Desired, OperationState, Phase, Shown, shown_state};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::store::node::NodeSnapshot;
use crate::store::operation::OperationRecord;
use crate::store::records::{GroupRecord, ImageRecord, ObservedRecord};
use crate::store::vm::VmView;

/// Milliseconds since 1970 as RFC 3339; empty when a damaged record holds a time that is none.
fn rfc3339(unix_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

pub(crate) fn vm(view: &VmView, domain: &str) -> Vm {
    let record = &view.record.value;
    let seen = view
        .observed
        .as_ref()
        .map(|observed| &observed.value)
        .filter(|seen| seen.epoch == record.placed.epoch);
    let phase = seen.map_or(Phase::Scheduled, |seen| seen.phase);
    let shown = shown_state(record.desired, phase, view.node_alive);
    Vm {
        id: record.id,
        name: record.name.clone(),
        project: record.project.clone(),
        project_id: record.project_id,
        image: record.image.name.to_string(),
        image_id: record.image.id,
        vcpus: record.resources.vcpus,
        memory_bytes: record.resources.memory_bytes,
        disk_bytes: record.resources.disk_bytes,
        labels: record.labels.clone(),
        groups: record.groups.iter().map(ToString::to_string).collect(),
        ha: record.ha,
        desired_power: if record.desired == Desired::Running {
            Power::On
        } else {
            Power::Off
        },
        desired_paused: record.paused && record.desired == Desired::Running,
        paused: shown == Shown::Phase(Phase::Running) && seen.is_some_and(|seen| seen.paused),
        state: state_of(shown),
        state_reason: reason(shown, seen, record.placed.node.as_str(), view.node_alive),
        node: Some(record.placed.node.to_string()),
        address: Some(record.placed.address.into()),
        dns_name: format!("{}.{}.{domain}", record.name, record.project),
        accelerator: seen
            .map(|seen| seen.accelerator.clone())
            .filter(|text| !text.is_empty()),
        operation: record.operation.map(|last| last.id.to_string()),
        epoch: record.placed.epoch,
        generation: record.generation,
        observed_generation: seen.map_or(0, |seen| seen.generation),
        created_at: rfc3339(record.created_at_ms),
        started_at: seen
            .filter(|seen| seen.started_at_ms > 0)
            .map(|seen| rfc3339(seen.started_at_ms)),
    }
}

const fn state_of(shown: Shown) -> VmState {
    match shown {
        Shown::Deleting => VmState::Deleting,
        Shown::Lost => VmState::Failed,
        Shown::Unknown => VmState::Unknown,
        Shown::Phase(phase) => match phase {
            Phase::Scheduled => VmState::Scheduled,
            Phase::Preparing => VmState::Preparing,
            Phase::Starting => VmState::Starting,
            Phase::Running => VmState::Running,
            Phase::Stopping => VmState::Stopping,
            Phase::Stopped => VmState::Stopped,
            Phase::Failed | Phase::Gone => VmState::Failed,
        },
    }
}

fn reason(shown: Shown, seen: Option<&ObservedRecord>, node: &str, alive: bool) -> Option<String> {
    match shown {
        Shown::Unknown => Some(format!("node {node} does not answer; the guest may well run on")),
        Shown::Lost => Some(format!("node {node} has nothing of it any more; delete the VM")),
        Shown::Deleting if !alive => Some(format!("waits for node {node}, which does not answer")),
        Shown::Deleting | Shown::Phase(_) => seen
            .map(|seen| seen.reason.clone())
            .filter(|reason| !reason.is_empty()),
    }
}

pub(crate) fn operation(record: &OperationRecord, project: &Name) -> Operation {
    Operation {
        id: record.id.to_string(),
        kind: record.kind.as_str().to_owned(),
        project: project.clone(),
        vm: record.vm_name.clone(),
        vm_id: record.vm,
        who: record.who.clone(),
        state: match record.state {
            OperationState::Pending => Progress::Pending,
            OperationState::Running => Progress::Running,
            OperationState::Done => Progress::Done,
            OperationState::Failed => Progress::Failed,
        },
        steps: record
            .steps
            .iter()
            .map(|step| OperationStep {
                name: step.name.clone(),
                at: rfc3339(step.at_ms),
            })
            .collect(),
        error: record.error.clone(),
        created_at: rfc3339(record.created_at_ms),
        ended_at: record.ended_at_ms.map(rfc3339),
    }
}

pub(crate) fn image(record: &ImageRecord) -> Image {
    Image {
        id: record.id,
        name: record.name.clone(),
        format: record.format,
        sha256: record.sha256.clone(),
        size_bytes: record.size_bytes,
        virtual_size_bytes: record.virtual_size_bytes,
        created_at: rfc3339(record.created_at_ms),
    }
}

pub(crate) fn group(group: &GroupRecord, members: Vec<GroupMember>) -> Group {
    Group {
        name: group.name.clone(),
        rule: match group.rule {
            plasmavmc_core::GroupRule::Apart => GroupRule::Apart,
            plasmavmc_core::GroupRule::Together => GroupRule::Together,
        },
        strict: group.strict,
        vms: u32::try_from(group.members.len()).unwrap_or(u32::MAX),
        members,
        created_at: rfc3339(group.created_at_ms),
    }
}

pub(crate) fn node(node: &NodeSnapshot) -> Node {
    let info = &node.info.value;
    let claimed = node.alloc.value.alloc.total();
    Node {
        name: node.name.to_string(),
        state: if node.alive {
            NodeState::Ready
        } else {
            NodeState::Down
        },
        schedulable: info.schedulable,
        vcpus: info.capacity.vcpus,
        memory_bytes: info.capacity.memory_bytes,
        disk_bytes: info.capacity.disk_bytes,
        vcpus_claimed: claimed.vcpus,
        memory_bytes_claimed: claimed.memory_bytes,
        disk_bytes_claimed: claimed.disk_bytes,
        vms: u32::try_from(node.alloc.value.alloc.len()).unwrap_or(u32::MAX),
        network_mode: info.network_mode.as_str().to_owned(),
        accelerator: info.accelerator.clone(),
        accelerator_reason: info.accelerator_reason.clone(),
        agent_version: info.agent_version.clone(),
        labels: info.all_labels(),
        architecture: info.architecture.clone(),
        hypervisors: info.hypervisors.iter().map(|h| h.as_str().to_owned()).collect(),
        numa_cells: u32::try_from(info.cells.len().max(1)).unwrap_or(u32::MAX),
    }
}
