//! Which node a VM goes to: filters, then a weigher, then a choice at random among the equally good.
//!
//! The random choice keeps several schedulers that see the same picture from all taking the same node; the number
//! is an input. It is among equals only: three VMs on three empty nodes go to three nodes, not to three dice. What is decided here becomes real only by a transaction that compares the node's claims' revision.

use hearth_types::Labels;

use crate::request::size_text;
use crate::{NetworkMode, Resources, VmRequest};

/// A node as the scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// Its session lives.
    pub alive: bool,
    /// New VMs may be placed on it.
    pub schedulable: bool,
    /// What guests may have.
    pub capacity: Resources,
    /// What is claimed.
    pub claimed: Resources,
    /// Labels.
    pub labels: Labels,
    /// How it connects guests.
    pub network_mode: NetworkMode,
}

/// Whether VMs are spread over nodes or packed onto few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weigher {
    /// The emptiest node first.
    #[default]
    Spread,
    /// The fullest node that has room first.
    Pack,
}

/// How nodes are filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Virtual CPUs that may be claimed per hundred that the node has; 100: no overcommit.
    pub vcpu_percent: u32,
    /// Memory that may be claimed per hundred bytes.
    pub memory_percent: u32,
    /// Disk that may be claimed per hundred bytes.
    pub disk_percent: u32,
    /// What is kept free on each node, taken off before the overcommit.
    pub reserve: Resources,
    /// Spread or pack.
    pub weigher: Weigher,
}

impl Default for Policy {
    /// CPUs four times over, memory and disk never, nothing kept free beyond what agents keep.
    fn default() -> Self {
        Self {
            vcpu_percent: 400,
            memory_percent: 100,
            disk_percent: 100,
            reserve: Resources::default(),
            weigher: Weigher::Spread,
        }
    }
}

impl Policy {
    /// What may be claimed in all on a node with this capacity.
    #[must_use]
    pub fn room(&self, capacity: Resources) -> Resources {
        let base = capacity.saturating_sub(self.reserve);
        let scale = |amount: u64, percent: u32| {
            let scaled = u128::from(amount) * u128::from(percent) / 100;
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        Resources {
            vcpus: u32::try_from(scale(base.vcpus.into(), self.vcpu_percent)).unwrap_or(u32::MAX),
            memory_bytes: scale(base.memory_bytes, self.memory_percent),
            disk_bytes: scale(base.disk_bytes, self.disk_percent),
        }
    }
}

/// Why a node was not taken. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// Its session has ended.
    #[error("its agent does not answer")]
    NotAlive,
    /// It takes no new VMs.
    #[error("it takes no new VMs")]
    NotSchedulable,
    /// It lacks a label.
    #[error("it lacks the label {0}")]
    Label(String),
    /// It connects guests in another way.
    #[error("its network mode is {}", .0.as_str())]
    NetworkMode(NetworkMode),
    /// Too few CPUs left.
    #[error("{free} virtual CPUs are free of {room}")]
    Vcpus {
        /// What is left.
        free: u32,
        /// What may be claimed in all.
        room: u32,
    },
    /// Too little memory left.
    #[error("{} of memory are free of {}", size_text(*.free), size_text(*.room))]
    Memory {
        /// What is left, in bytes.
        free: u64,
        /// What may be claimed in all, in bytes.
        room: u64,
    },
    /// Too little disk left.
    #[error("{} of disk are free of {}", size_text(*.free), size_text(*.room))]
    Disk {
        /// What is left, in bytes.
        free: u64,
        /// What may be claimed in all, in bytes.
        room: u64,
    },
}

/// What a placement is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// What it takes.
    pub resources: Resources,
    /// Labels that the node must have.
    pub node_selector: Labels,
    /// Network mode that the node must have; `None`: any.
    pub network_mode: Option<NetworkMode>,
}

impl From<&VmRequest> for Placement {
    fn from(request: &VmRequest) -> Self {
        Self {
            resources: request.resources,
            node_selector: request.node_selector.clone(),
            network_mode: request.network_mode,
        }
    }
}

/// A node was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its name.
    pub node: String,
    /// How it connects guests, which decides the address pool.
    pub network_mode: NetworkMode,
    /// What may be claimed on it in all.
    pub room: Resources,
    /// Why others were not considered.
    pub rejected: Vec<(String, WhyNot)>,
}

/// No node was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPlace {
    /// Each node and why not; empty when there is no node.
    pub rejected: Vec<(String, WhyNot)>,
}

impl std::fmt::Display for NoPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.rejected.is_empty() {
            return f.write_str("no node can take the VM: no agent has registered yet");
        }
        f.write_str("no node can take the VM: ")?;
        for (index, (node, why)) in self.rejected.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{node}: {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoPlace {}

/// Chooses a node. `random` should be uniform; the same inputs give the same answer.
///
/// # Errors
/// [`NoPlace`] with every node's reason.
pub fn place(
    nodes: &[NodeView],
    wanted: &Placement,
    policy: &Policy,
    random: u64,
) -> Result<Decision, NoPlace> {
    let mut rejected = Vec::new();
    let mut fitting: Vec<&NodeView> = Vec::new();
    for node in nodes {
        match filter(node, wanted, policy) {
            None => fitting.push(node),
            Some(why) => rejected.push((node.name.clone(), why)),
        }
    }
    let best = fitting.iter().map(|node| weight(node, wanted, policy)).min();
    fitting.retain(|node| Some(weight(node, wanted, policy)) == best);
    // By name, so that the order of the input does not matter.
    fitting.sort_by(|a, b| a.name.cmp(&b.name));
    let index = usize::try_from(random % fitting.len().max(1) as u64).unwrap_or(0);
    let Some(chosen) = fitting.get(index) else {
        return Err(NoPlace { rejected });
    };
    let room = policy.room(chosen.capacity);
    let after = chosen.claimed.checked_add(wanted.resources);
    assert!(
        after.is_some_and(|after| after.fits_in(room)),
        "a node was chosen that has no room"
    );
    Ok(Decision {
        node: chosen.name.clone(),
        network_mode: chosen.network_mode,
        room,
        rejected,
    })
}

/// The first reason against a node, if there is one.
fn filter(node: &NodeView, wanted: &Placement, policy: &Policy) -> Option<WhyNot> {
    if !node.alive {
        return Some(WhyNot::NotAlive);
    }
    if !node.schedulable {
        return Some(WhyNot::NotSchedulable);
    }
    let missing = wanted
        .node_selector
        .iter()
        .find(|(key, value)| node.labels.get(key) != Some(value));
    if let Some((key, value)) = missing {
        return Some(WhyNot::Label(format!("{key}={value}")));
    }
    if wanted.network_mode.is_some_and(|mode| mode != node.network_mode) {
        return Some(WhyNot::NetworkMode(node.network_mode));
    }
    let room = policy.room(node.capacity);
    let free = room.saturating_sub(node.claimed);
    if wanted.resources.vcpus > free.vcpus {
        return Some(WhyNot::Vcpus {
            free: free.vcpus,
            room: room.vcpus,
        });
    }
    if wanted.resources.memory_bytes > free.memory_bytes {
        return Some(WhyNot::Memory {
            free: free.memory_bytes,
            room: room.memory_bytes,
        });
    }
    if wanted.resources.disk_bytes > free.disk_bytes {
        return Some(WhyNot::Disk {
            free: free.disk_bytes,
            room: room.disk_bytes,
        });
    }
    None
}

/// How full the node would be in its scarcest respect, in millionths; the smallest weight is best.
fn weight(node: &NodeView, wanted: &Placement, policy: &Policy) -> u128 {
    let room = policy.room(node.capacity);
    let share = |used: u64, all: u64| u128::from(used) * 1_000_000 / u128::from(all.max(1));
    let after = |claimed: u64, more: u64| claimed.saturating_add(more);
    let fullest = [
        share(
            after(node.claimed.vcpus.into(), wanted.resources.vcpus.into()),
            room.vcpus.into(),
        ),
        share(
            after(node.claimed.memory_bytes, wanted.resources.memory_bytes),
            room.memory_bytes,
        ),
        share(
            after(node.claimed.disk_bytes, wanted.resources.disk_bytes),
            room.disk_bytes,
        ),
    ]
    .into_iter()
    .max()
    .unwrap_or(0);
    match policy.weigher {
        Weigher::Spread => fullest,
        Weigher::Pack => u128::MAX - fullest,
    }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
