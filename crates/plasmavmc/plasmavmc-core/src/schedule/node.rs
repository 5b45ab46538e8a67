//! A node as the scheduler sees it, and what it is asked for.

use std::collections::{BTreeMap, BTreeSet};

use hearth_types::Labels;

use super::Policy;
use crate::{CellRoom, Hypervisor, NetworkMode, Resources, VmRequest};

/// One NUMA cell of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cell {
    /// CPUs in it.
    pub vcpus: u32,
    /// Memory in it, in bytes.
    pub memory_bytes: u64,
}

/// A node as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// Its session lives.
    pub alive: bool,
    /// New VMs may be placed on it: it is not cordoned.
    pub schedulable: bool,
    /// What guests may have.
    pub capacity: Resources,
    /// What is claimed.
    pub claimed: Resources,
    /// NUMA cells; none: the whole node is one.
    pub cells: Vec<Cell>,
    /// What VMs that are bound to a cell have claimed there, by the cell's number.
    pub claimed_in_cells: BTreeMap<u16, Resources>,
    /// Labels.
    pub labels: Labels,
    /// How it connects guests.
    pub network_mode: NetworkMode,
    /// Architecture, such as `x86_64`; empty: not known.
    pub architecture: String,
    /// What can run guests.
    pub hypervisors: BTreeSet<Hypervisor>,
    /// What else it can do, such as `kvm`.
    pub features: BTreeSet<String>,
    /// SHA-256 of the images that it holds.
    pub images: BTreeSet<String>,
}

/// How members of a group are placed to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupRule {
    /// On different nodes.
    Apart,
    /// On one node.
    Together,
}

/// A group that the VM will be a member of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name, for people.
    pub name: String,
    /// The rule.
    pub rule: GroupRule,
    /// The rule must hold; otherwise it only weighs.
    pub strict: bool,
    /// How many members a node has. Nodes without any are not in it.
    pub members: BTreeMap<String, u32>,
}

impl Group {
    pub(super) fn members_on(&self, node: &str) -> u32 {
        self.members.get(node).copied().unwrap_or(0)
    }
}

/// What a placement is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What it takes.
    pub resources: Resources,
    /// CPUs and memory must come from one NUMA cell.
    pub one_cell: bool,
    /// Labels that the node must have.
    pub node_selector: Labels,
    /// Network mode that the node must have; `None`: any.
    pub network_mode: Option<NetworkMode>,
    /// Hypervisor that the node must have.
    pub hypervisor: Hypervisor,
    /// Architecture that the node must have; `None`: any.
    pub architecture: Option<String>,
    /// What else the node must be able to do.
    pub features: BTreeSet<String>,
    /// SHA-256 of the image: a node that holds it is better.
    pub image: Option<String>,
    /// Groups that the VM will be a member of.
    pub groups: Vec<Group>,
}

impl From<&VmRequest> for Placement {
    fn from(request: &VmRequest) -> Self {
        Self {
            resources: request.resources,
            one_cell: request.one_cell,
            node_selector: request.node_selector.clone(),
            network_mode: request.network_mode,
            hypervisor: request.hypervisor,
            architecture: request.architecture.clone(),
            features: request.features.clone(),
            image: None,
            groups: Vec::new(),
        }
    }
}

/// A node with what is computed once, when it is put into the picture.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) node: NodeView,
    /// What may be claimed in all.
    pub(super) room: Resources,
    /// What is left of it.
    pub(super) free: Resources,
    /// What is left in each cell, and what may be claimed there in all.
    cells: Vec<(Resources, Resources)>,
    pub(super) name_hash: u64,
}

impl Slot {
    pub(super) fn new(node: NodeView, policy: &Policy) -> Self {
        let room = policy.room(node.capacity);
        let whole = Cell {
            vcpus: node.capacity.vcpus,
            memory_bytes: node.capacity.memory_bytes,
        };
        let cells = if node.cells.is_empty() {
            &[whole][..]
        } else {
            &node.cells
        };
        let cells = (0_u16..)
            .zip(cells)
            .map(|(number, cell)| {
                let room = policy.cell_room(*cell);
                let claimed = node.claimed_in_cells.get(&number).copied().unwrap_or_default();
                (room.saturating_sub(claimed), room)
            })
            .collect();
        Self {
            room,
            free: room.saturating_sub(node.claimed),
            cells,
            name_hash: fnv(node.name.as_bytes()),
            node,
        }
    }

    /// The cell that the VM is bound to, if it asks for one: of those that have room, the one that it fills most.
    pub(super) fn cell_for(&self, wanted: &Placement) -> Option<CellRoom> {
        if !wanted.one_cell {
            return None;
        }
        let need = in_cell(wanted.resources);
        (0_u16..)
            .zip(&self.cells)
            .filter(|(_, (free, _))| need.fits_in(*free))
            .min_by_key(|(number, (free, _))| (free.memory_bytes, free.vcpus, *number))
            .map(|(number, (_, room))| CellRoom { number, room: *room })
    }
}

/// What of a VM's resources lies in a cell.
pub(crate) const fn in_cell(resources: Resources) -> Resources {
    Resources {
        disk_bytes: 0,
        ..resources
    }
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
