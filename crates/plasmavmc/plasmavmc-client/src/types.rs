//! What the REST API speaks: requests and answers of `/v1`, as JSON.
//!
//! Sizes are in bytes, times are RFC 3339 texts in UTC. Fields are only ever added, and added ones are optional
//! for a reader.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hearth_types::{ErrorKind, ImageId, Labels, Name, PageToken, ProjectId, VmId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What a user asks for when creating a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Name, unique in its project: a DNS label of 1 to 63 characters. A text here, so that a bad one gets an
    /// answer that says what is wrong with it.
    #[schema(example = "web")]
    pub name: String,
    /// Name of the image to boot.
    #[schema(example = "tiny")]
    pub image: String,
    /// Virtual CPUs, 1 to 64.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Memory in bytes, a multiple of 1 MiB from 64 MiB up.
    #[serde(default = "default_memory")]
    pub memory_bytes: u64,
    /// Size of the disk in bytes; 0 takes the image's own size, which is also the least.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Public keys that may sign in by SSH, one per entry in `authorized_keys` form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// cloud-init user data, at most 32 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user_data: String,
    /// Labels of the VM itself.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Only nodes that carry all of these labels are considered.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub node_selector: Labels,
    /// Only nodes with this network mode: `routed` or `user`. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// Hypervisor: `kvm` (QEMU) or `firecracker`. Empty: `kvm`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hypervisor: String,
    /// Only nodes of this architecture, such as `x86_64`. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Only nodes that can do all of these, such as `kvm` (hardware virtualisation).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// Only where CPUs and memory come from one NUMA cell.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_numa_cell: bool,
    /// Names of the groups that it becomes a member of, at most 4.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// When its node is lost, restart it on another one, from the image: whatever was on its disk is lost then.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ha: bool,
    /// Power the VM on at once.
    #[serde(default = "default_true")]
    pub start: bool,
}

const fn default_vcpus() -> u32 {
    1
}

const fn default_memory() -> u64 {
    256 << 20
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_false(value: &bool) -> bool {
    !*value
}

const fn default_true() -> bool {
    true
}

impl VmCreate {
    /// A request with the defaults: one CPU, 256 MiB, the image's own disk size, started at once.
    #[must_use]
    pub fn new(name: impl Into<String>, image: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            vcpus: default_vcpus(),
            memory_bytes: default_memory(),
            disk_bytes: 0,
            ssh_keys: Vec::new(),
            user_data: String::new(),
            labels: Labels::default(),
            node_selector: Labels::default(),
            network_mode: None,
            hypervisor: String::new(),
            architecture: None,
            features: Vec::new(),
            one_numa_cell: false,
            groups: Vec::new(),
            ha: false,
            start: true,
        }
    }
}

/// What a VM is doing, as far as the control plane knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Placed on a node that has not reported anything about it yet.
    Scheduled,
    /// The node fetches the image and makes disk and network.
    Preparing,
    /// The guest is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is being stopped.
    Stopping,
    /// The guest is off; its disk is kept.
    Stopped,
    /// It could not be made so; `state_reason` says why. The node tries again while it is desired.
    Failed,
    /// Deletion was asked for and is under way.
    Deleting,
    /// Its node does not answer; the guest may well run on.
    Unknown,
}

impl VmState {
    /// The text that stands in JSON and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a VM should run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It should run.
    On,
    /// It should be off.
    Off,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Identifier, never reused.
    #[schema(value_type = String, format = Uuid)]
    pub id: VmId,
    /// Name, unique in the project.
    #[schema(value_type = String)]
    pub name: Name,
    /// Name of the project.
    #[schema(value_type = String)]
    pub project: Name,
    /// Identifier of the project.
    #[schema(value_type = String, format = Uuid)]
    pub project_id: ProjectId,
    /// Name of the image it was made from.
    pub image: String,
    /// That image's identifier.
    #[schema(value_type = String, format = Uuid)]
    pub image_id: ImageId,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Disk in bytes.
    pub disk_bytes: u64,
    /// Labels.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Groups that it is a member of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Restarted on another node, from its image, when its node is lost.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ha: bool,
    /// What the user wants.
    pub desired_power: Power,
    /// What it does.
    pub state: VmState,
    /// The user wants it to stand still while it runs.
    #[serde(default)]
    pub desired_paused: bool,
    /// It runs, and its CPUs stand still.
    #[serde(default)]
    pub paused: bool,
    /// Why it is in that state, where there is something to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// The node it is placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// Its DNS name, which resolves while it runs.
    pub dns_name: String,
    /// `kvm` or `tcg`, once the guest has been started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// The operation that the last request to it has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Incarnation: raised by every placement.
    pub epoch: u64,
    /// Version of what is wanted: raised by every change a user makes.
    pub generation: u64,
    /// The version that `state` speaks of; below `generation` the node has not taken the last change over yet.
    pub observed_generation: u64,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When the guest was last started, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
}

impl Vm {
    /// True when what is wanted has been reached: the last change was taken over and the state is the desired one.
    /// A deletion has been reached when the VM is not found any more.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let reached = match self.desired_power {
            Power::On => VmState::Running,
            Power::Off => VmState::Stopped,
        };
        let as_paused = self.paused == (self.desired_paused && reached == VmState::Running);
        self.observed_generation >= self.generation && self.state == reached && as_paused
    }
}

/// One page of VMs, ordered by identifier (that is, by creation).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// The VMs.
    pub items: Vec<Vm>,
    /// Give this as `page_token` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_page_token: Option<PageToken>,
}

/// Which page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Items on a page, 1 to 1000; absent: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u32>,
    /// Where to go on: `next_page_token` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub page_token: Option<PageToken>,
}

/// How to stop a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmStop {
    /// Cut the power instead of asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Seconds after which a graceful stop becomes a forced one, 1 to 3600; absent: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// The node has not reported on it yet.
    Pending,
    /// The node acts.
    Running,
    /// It is so.
    Done,
    /// It will not be so by this operation; `error` says why.
    Failed,
}

impl OperationState {
    /// The text that stands in JSON and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// What became of a request to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Identifier; later ones sort after earlier ones.
    pub id: String,
    /// What was asked for: `create`, `start`, `stop`, `delete`, `pause`, `resume` or `reset`.
    pub kind: String,
    /// Name of the project.
    #[schema(value_type = String)]
    pub project: Name,
    /// Name of the VM.
    #[schema(value_type = String)]
    pub vm: Name,
    /// Identifier of the VM.
    #[schema(value_type = String, format = Uuid)]
    pub vm_id: VmId,
    /// Who asked.
    pub who: String,
    /// How far it is.
    pub state: OperationState,
    /// What was seen on the way.
    pub steps: Vec<OperationStep>,
    /// Why it has failed, or what is in its way now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// When it ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
}

/// Something that was seen of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationStep {
    /// What.
    pub name: String,
    /// When, RFC 3339.
    pub at: String,
}

/// One page of operations, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// The operations.
    pub items: Vec<Operation>,
    /// Give this as `page_token` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_page_token: Option<PageToken>,
}

/// Form of an image's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// The bytes of the disk.
    Raw,
}

impl ImageFormat {
    /// The text that stands in JSON, query strings and the agent's protocol.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// An image that VMs boot from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Identifier.
    #[schema(value_type = String, format = Uuid)]
    pub id: ImageId,
    /// Name, unique in the cluster.
    #[schema(value_type = String)]
    pub name: Name,
    /// Form of its bytes.
    pub format: ImageFormat,
    /// SHA-256 of its bytes, 64 hexadecimal digits.
    pub sha256: String,
    /// Number of its bytes.
    pub size_bytes: u64,
    /// Size of the disk that a guest sees.
    pub virtual_size_bytes: u64,
    /// When it was imported, RFC 3339.
    pub created_at: String,
}

/// All images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageList {
    /// The images, ordered by name.
    pub items: Vec<Image>,
}

/// What an upload says about its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ImageQuery {
    /// Form of the bytes.
    #[param(inline)]
    pub format: ImageFormat,
    /// SHA-256 of the bytes, 64 hexadecimal digits; an upload that does not match is refused.
    pub sha256: String,
}

/// Whether a node can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Its session lives: its agent is there.
    Ready,
    /// Its session has ended: the agent or the machine is gone.
    Down,
}

/// A machine that runs VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Whether its agent is there.
    pub state: NodeState,
    /// Whether new VMs may be placed on it.
    pub schedulable: bool,
    /// Virtual CPUs that guests may have.
    pub vcpus: u32,
    /// Memory that guests may have, in bytes.
    pub memory_bytes: u64,
    /// Disk that guests may have, in bytes.
    pub disk_bytes: u64,
    /// Virtual CPUs claimed by VMs.
    pub vcpus_claimed: u32,
    /// Memory claimed by VMs, in bytes.
    pub memory_bytes_claimed: u64,
    /// Disk claimed by VMs, in bytes.
    pub disk_bytes_claimed: u64,
    /// Number of VMs placed on it.
    pub vms: u32,
    /// `routed` or `user`.
    pub network_mode: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Labels: those that its agent says, and over them those that people have set.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Architecture; empty: not known.
    #[serde(default)]
    pub architecture: String,
    /// What can run guests there.
    #[serde(default)]
    pub hypervisors: Vec<String>,
    /// Number of NUMA cells.
    #[serde(default)]
    pub numa_cells: u32,
}

/// A change of what people set of a node. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeUpdate {
    /// Whether new VMs may be placed on it; false cordons it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedulable: Option<bool>,
    /// Labels to set; null takes one away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

/// All nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The nodes, ordered by name.
    pub items: Vec<Node>,
}

/// What the VMs of a project may take together. A limit that is left out is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaLimits {
    /// Number of VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u32>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Disk in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
}

/// What a project may take and what its VMs take. A VM counts until it is gone, running or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    /// Name of the project.
    #[schema(value_type = String)]
    pub project: Name,
    /// The limits.
    pub limits: QuotaLimits,
    /// VMs there are.
    pub vms_used: u32,
    /// Virtual CPUs they have.
    pub vcpus_used: u32,
    /// Memory they have, in bytes.
    pub memory_bytes_used: u64,
    /// Disk they have, in bytes.
    pub disk_bytes_used: u64,
}

/// How members of a group are placed to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupRule {
    /// On different nodes.
    Apart,
    /// On one node.
    Together,
}

impl GroupRule {
    /// The text that stands in JSON and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Apart => "apart",
            Self::Together => "together",
        }
    }
}

/// A group to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupCreate {
    /// Name, unique in its project.
    pub name: String,
    /// The rule.
    pub rule: GroupRule,
    /// A VM that cannot be placed by the rule is refused; otherwise the rule only weighs.
    #[serde(default)]
    pub strict: bool,
}

/// A group of VMs that are placed with regard to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Name, unique in the project.
    #[schema(value_type = String)]
    pub name: Name,
    /// The rule.
    pub rule: GroupRule,
    /// Whether the rule must hold.
    pub strict: bool,
    /// Number of VMs in it.
    pub vms: u32,
    /// The VMs; empty in listings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<GroupMember>,
    /// When it was created, RFC 3339.
    pub created_at: String,
}

/// A VM of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupMember {
    /// Identifier.
    #[schema(value_type = String, format = Uuid)]
    pub id: VmId,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The node it is placed on.
    pub node: String,
}

/// All groups of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupList {
    /// The groups, ordered by name.
    pub items: Vec<Group>,
}

/// What the scheduler thinks of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Whether it could be placed now.
    pub placeable: bool,
    /// Whether it would be restarted elsewhere if its node were lost, or is to be now, and what stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_elsewhere: Option<String>,
    /// Why the project's quota does not allow it, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<String>,
    /// Every node: the best first, then those that cannot take it, by name.
    pub nodes: Vec<NodeExplanation>,
}

/// What the scheduler thinks of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeExplanation {
    /// Name of the node.
    pub node: String,
    /// Whether it can take the VM.
    pub fits: bool,
    /// Whether the VM is placed there now.
    #[serde(default)]
    pub current: bool,
    /// Every reason why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// How it weighs, if it can take the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<WeightShown>,
}

/// How a node weighs, in millionths; the lightest is best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WeightShown {
    /// The sum.
    pub total: u64,
    /// How full it would be in its scarcest respect (or how empty, where VMs are packed).
    pub room: u64,
    /// Groups that would rather have the VM elsewhere.
    pub groups: u64,
    /// It does not hold the image yet.
    pub image: u64,
}

/// The body of every answer that is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What happened.
    pub error: ErrorDetail,
}

/// What happened, why, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// One of the closed set of kinds, such as `not_found`.
    #[schema(value_type = String)]
    pub kind: ErrorKind,
    /// What happened and why.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The request, as it stands in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_create_request_gets_the_defaults() {
        let create: VmCreate = serde_json::from_str(r#"{"name":"web","image":"tiny"}"#).unwrap();
        assert_eq!(create, VmCreate::new("web", "tiny"));
        assert!(serde_json::from_str::<VmCreate>(r#"{"name":"web","image":"tiny","cpus":2}"#).is_err());
    }

    #[test]
    fn states_display_as_in_json() {
        for state in [VmState::Scheduled, VmState::Running, VmState::Unknown] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        assert_eq!(format!("{:<9}|", VmState::Failed), "failed   |");
    }
}
