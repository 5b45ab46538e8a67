//! What stands in the store, as JSON. Each record carries its version; a reader refuses a newer one than it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use hearth_types::{ImageId, Labels, Name, ProjectId, VmId};
use plasmavmc_client::types::ImageFormat;
use plasmavmc_core::{
    Cell, Desired, Group, GroupRule, Hypervisor, NetworkMode, Phase, Quota, Resources, Usage,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::operation::OperationRef;

/// The version that this build writes.
pub(crate) const VERSION: u32 = 1;

/// A record that knows its version.
pub(crate) trait Record: Serialize + DeserializeOwned {
    fn version(&self) -> u32;
}

/// The image a VM was made from, as it was then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageUse {
    pub(crate) id: ImageId,
    pub(crate) name: Name,
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    pub(crate) format: ImageFormat,
}

/// Where a VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub(crate) node: Name,
    pub(crate) epoch: u64,
    pub(crate) network_mode: NetworkMode,
    pub(crate) address: Ipv4Addr,
}

/// What is wanted of a VM. Written by the API only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub(crate) version: u32,
    pub(crate) id: VmId,
    pub(crate) project_id: ProjectId,
    pub(crate) project: Name,
    pub(crate) name: Name,
    pub(crate) image: ImageUse,
    pub(crate) resources: Resources,
    pub(crate) labels: Labels,
    pub(crate) ssh_keys: Vec<String>,
    pub(crate) user_data: String,
    pub(crate) hypervisor: Hypervisor,
    pub(crate) desired: Desired,
    /// Whether a stop cuts the power.
    pub(crate) forced: bool,
    /// After this many seconds a graceful stop is forced.
    pub(crate) stop_timeout_s: u32,
    pub(crate) generation: u64,
    /// While it runs, its CPUs stand still.
    #[serde(default)]
    pub(crate) paused: bool,
    /// Resets asked for since it was made.
    #[serde(default)]
    pub(crate) resets: u64,
    /// Generation of the last change of power; 0: the same as `generation`.
    #[serde(default)]
    pub(crate) power_generation: u64,
    pub(crate) placed: Placed,
    pub(crate) created_at_ms: i64,
    /// The idempotency key that an older server has created it with, freed together with it.
    pub(crate) idempotency_key: Option<String>,
    /// What was asked of it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<OperationRef>,
    /// What it asks of its node.
    #[serde(default)]
    pub(crate) wishes: Wishes,
    /// Groups that it is a member of.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) groups: BTreeSet<Name>,
    /// Restarted on another node, its disk made anew, when its node is lost.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) ha: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// What a VM asks of its node, beside room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wishes {
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(crate) node_selector: Labels,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network_mode: Option<NetworkMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) architecture: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) features: BTreeSet<String>,
    #[serde(default)]
    pub(crate) one_cell: bool,
}

impl Record for VmRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// The last report accepted about a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObservedRecord {
    pub(crate) version: u32,
    pub(crate) epoch: u64,
    pub(crate) generation: u64,
    pub(crate) phase: Phase,
    pub(crate) reason: String,
    /// The agent's incarnation.
    pub(crate) reporter: String,
    pub(crate) seq: u64,
    pub(crate) pid: u32,
    pub(crate) started_at_ms: i64,
    pub(crate) accelerator: String,
    /// It runs, and its CPUs stand still.
    #[serde(default)]
    pub(crate) paused: bool,
    /// Resets done.
    #[serde(default)]
    pub(crate) resets: u64,
    /// When it was accepted, by this server's clock: for people and for noticing what is stuck.
    pub(crate) accepted_at_ms: i64,
}

impl Record for ObservedRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// A VM's assignment to a node: enough for the node's session to find the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AssignRecord {
    pub(crate) version: u32,
    pub(crate) project_id: ProjectId,
    pub(crate) epoch: u64,
    pub(crate) generation: u64,
    /// How often it was written unchanged, to have it sent once more.
    #[serde(default)]
    pub(crate) nudges: u64,
    /// When that was last.
    #[serde(default)]
    pub(crate) nudged_at_ms: i64,
}

impl Record for AssignRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// An incarnation that was taken away from a node: its agent is to remove it when it is back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EvictedRecord {
    pub(crate) version: u32,
    pub(crate) epoch: u64,
    pub(crate) hypervisor: Hypervisor,
}

impl Record for EvictedRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// The holder of an address, a name or (on older servers) an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimRecord {
    pub(crate) version: u32,
    pub(crate) project_id: ProjectId,
    pub(crate) vm: VmId,
    /// Of an idempotency key: the SHA-256 of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_sha256: Option<String>,
}

impl Record for ClaimRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// What a node is. Written from what its agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRecord {
    pub(crate) version: u32,
    pub(crate) capacity: Resources,
    pub(crate) network_mode: NetworkMode,
    pub(crate) accelerator: String,
    pub(crate) accelerator_reason: String,
    pub(crate) labels: Labels,
    pub(crate) agent_version: String,
    pub(crate) boot_id: String,
    /// What its agent can do beyond the first protocol.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) features: BTreeSet<String>,
    /// Set by people.
    pub(crate) schedulable: bool,
    /// Labels set by people, over those that the agent says.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(crate) own_labels: Labels,
    #[serde(default)]
    pub(crate) architecture: String,
    /// None: an agent of before there were several; it runs QEMU.
    #[serde(default)]
    pub(crate) hypervisors: BTreeSet<Hypervisor>,
    #[serde(default)]
    pub(crate) cells: Vec<Cell>,
    /// SHA-256 of the images in the node's cache.
    #[serde(default)]
    pub(crate) images: BTreeSet<String>,
}

impl NodeRecord {
    /// All labels: those set by people win.
    pub(crate) fn all_labels(&self) -> Labels {
        let mut all: BTreeMap<String, String> = self.labels.clone().into();
        all.extend(BTreeMap::from(self.own_labels.clone()));
        // Both together may be more than one resource may have: then people's count.
        Labels::try_from(all).unwrap_or_else(|_| self.own_labels.clone())
    }
}

impl Record for NodeRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// The claims on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AllocRecord {
    pub(crate) version: u32,
    pub(crate) alloc: plasmavmc_core::Alloc,
}

impl Record for AllocRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// What a project may take, and what its VMs take. Written by everything that makes or frees a VM of the project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuotaRecord {
    pub(crate) version: u32,
    pub(crate) limits: Quota,
    pub(crate) used: Usage,
}

impl Record for QuotaRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// A group of VMs that are placed with regard to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    pub(crate) version: u32,
    pub(crate) name: Name,
    pub(crate) rule: GroupRule,
    pub(crate) strict: bool,
    /// Where each member is placed.
    pub(crate) members: BTreeMap<VmId, Name>,
    pub(crate) created_at_ms: i64,
}

impl GroupRecord {
    /// As the scheduler sees it.
    pub(crate) fn seen(&self) -> Group {
        let mut members: BTreeMap<String, u32> = BTreeMap::new();
        for node in self.members.values() {
            *members.entry(node.to_string()).or_default() += 1;
        }
        Group {
            name: self.name.to_string(),
            rule: self.rule,
            strict: self.strict,
            members,
        }
    }
}

impl Record for GroupRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) id: ImageId,
    pub(crate) name: Name,
    pub(crate) format: ImageFormat,
    pub(crate) sha256: String,
    pub(crate) size_bytes: u64,
    pub(crate) virtual_size_bytes: u64,
    pub(crate) created_at_ms: i64,
    /// Deletion has begun: no VM may be made from it any more.
    #[serde(default)]
    pub(crate) deleting: bool,
}

impl Record for ImageRecord {
    fn version(&self) -> u32 {
        self.version
    }
}
